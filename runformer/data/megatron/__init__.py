"""Megatron-LM's indexed datasets: sequences of token ids in ``PREFIX.bin``, and where each lies in ``PREFIX.idx``."""

from runformer.data.megatron.indexed import IndexedDataset
from runformer.data.megatron.writer import IndexedWriter

__all__ = ["IndexedDataset", "IndexedWriter"]
