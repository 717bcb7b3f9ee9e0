"""The compiled part of this room, where there is one: installing without a compiler leaves it out.

Everything in it is also written in Python, which is many times slower.
"""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from runformer.data import _native as native
else:
    try:
        from runformer.data import _native as native
    except ImportError:
        native = None

__all__ = ["native"]

_CONTRACT = 1


def is_current(module: ModuleType | None) -> bool:
    """Whether this was compiled from the source beside it: after an update of the code it may be older."""
    return getattr(module, "CONTRACT", None) == _CONTRACT


if not is_current(native):
    native = None  # type: ignore[assignment]
