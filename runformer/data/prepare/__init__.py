"""Preprocessing: files of text, instructions and conversations → rows of token ids that a run learns from.

Worker processes parse and encode blocks of the input; their results come back in order and are kept in chunks on disk,
each committed by a rename; the rows are made from the chunks at the end. A killed run goes on behind its last chunk::

    options.py      what is asked for
    sources.py      which files, of which kind
    streams.py      their bytes, decompressed
    blocks.py       their bytes in blocks of whole records: JSON lines, CSV, plain text
    json_list.py    the same for a JSON list, which is never read as a whole
    tables.py       the same for Parquet, and for folders of the datasets library
    records.py      blocks → records
    encode.py       a block → token ids: what a worker does
    pool.py         the workers
    chunks.py       the work folder
    rows.py         samples → rows: padded, packed or cut from one stream
    outputs.py      rows → files
    report.py       what became of the records
    engine.py       all of it
"""
