"""What is on disk: checkpoints of a training run, and weights of others.

Saving is ``CheckpointStore.save``. Reading begins with ``find_weights`` or ``find_resume``, which recognise what a path
is; ``load_parts`` fills a model, or a part of one, from what they find. Every error is a ``CheckpointError``.
"""

from runformer.checkpoint.description import KEY, describe, described
from runformer.checkpoint.held import HeldState, SavedState
from runformer.checkpoint.keep import Keep
from runformer.checkpoint.layout import complete_checkpoints, newest_checkpoint
from runformer.checkpoint.load import LoadReport, check_weights, load_parts, load_weights
from runformer.checkpoint.pieces import Piece, gathered, parameter_pieces, state_pieces, whole_pieces
from runformer.checkpoint.reader import Checkpoint, open_checkpoint
from runformer.checkpoint.share import TrainingState
from runformer.checkpoint.source import WeightSource, as_it_is, find_resume, find_weights
from runformer.checkpoint.store import CheckpointStore

__all__ = [
    "KEY",
    "Checkpoint",
    "CheckpointStore",
    "HeldState",
    "Keep",
    "LoadReport",
    "Piece",
    "SavedState",
    "TrainingState",
    "WeightSource",
    "as_it_is",
    "check_weights",
    "complete_checkpoints",
    "describe",
    "described",
    "find_resume",
    "find_weights",
    "gathered",
    "load_parts",
    "load_weights",
    "newest_checkpoint",
    "open_checkpoint",
    "parameter_pieces",
    "state_pieces",
    "whole_pieces",
]
