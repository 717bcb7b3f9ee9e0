"""What is on disk: checkpoints of a training run, and weights of others.

Saving is ``CheckpointStore.save``. Reading begins with ``find_weights`` or ``find_resume``, which recognise what a path
is; ``load_parts`` fills a model, or a part of one, from what they find. Every error is a ``CheckpointError``.
"""

from runformer.checkpoint.load import LoadReport, check_weights, load_parts, load_weights
from runformer.checkpoint.reader import Checkpoint, newest_intact, open_checkpoint
from runformer.checkpoint.source import WeightSource, find_resume, find_weights
from runformer.checkpoint.store import CheckpointStore, TrainingState

__all__ = [
    "Checkpoint",
    "CheckpointStore",
    "LoadReport",
    "TrainingState",
    "WeightSource",
    "check_weights",
    "find_resume",
    "find_weights",
    "load_parts",
    "load_weights",
    "newest_intact",
    "open_checkpoint",
]
