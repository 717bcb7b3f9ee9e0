"""The schema: one dataclass for each section of a MindFormers task file."""

from runformer.config.sections.root import Config

__all__ = ["Config"]
