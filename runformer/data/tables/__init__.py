"""Tables that the ``datasets`` library opens, and the handlers that make rows of tokens of them."""

from runformer.data.tables.build import open_table

__all__ = ["open_table"]
