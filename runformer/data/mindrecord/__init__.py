"""MindSpore's dataset files, read and written without MindSpore.

A MindRecord file is a JSON header and pages of length-prefixed records; ``NAME.db`` beside it is an SQLite index.
A record has a blob part (arrays and bytes) and a raw part (scalars and text), kept in pages of their own::

    schema.py    columns and their types
    header.py    the JSON header <-> Header
    integers.py  packed integer arrays
    msgpack.py   raw parts: one msgpack map each
    records.py   blob parts, and checks of the values that go in
    rows.py      where each record lies, by scanning the pages
    index.py     where each record lies, by the .db; and writing one
    sqlite.py    opening a .db that may come from anywhere
    paging.py    filling pages as MindSpore's writer does
    reader.py    MindRecordReader
    writer.py    MindRecordWriter
"""

from runformer.data.mindrecord.reader import MindRecordReader
from runformer.data.mindrecord.schema import Column
from runformer.data.mindrecord.writer import MindRecordWriter

__all__ = ["Column", "MindRecordReader", "MindRecordWriter"]
