"""Megatron-LM's indexed datasets, read and written without Megatron-LM, and the samples that it makes of them.

``PREFIX.bin`` holds sequences of token ids, ``PREFIX.idx`` where each lies::

    layout.py    the two files, byte for byte
    writer.py    IndexedWriter
    indexed.py   IndexedDataset
    indices.py   which documents, in which order, make which samples
    blending.py  which dataset of a blend gives the next sample
    cache.py     files that keep such indices from run to run
    samples.py   GPTSamples, BlendedSamples: the tokens of a sample
    records.py   MegatronRecords: tokens and labels
"""

from runformer.data.megatron.indexed import IndexedDataset
from runformer.data.megatron.writer import IndexedWriter

__all__ = ["IndexedDataset", "IndexedWriter"]
