"""Looking into dataset files: what they say, what their records hold, how long they are; and mending an index.

::

    files.py    opening whatever kind of file it is; which columns hold tokens
    indexed.py  documents of Megatron-LM's files as records
    facts.py    what a dataset's files say about themselves
    show.py     some records in a terminal
    tokens.py   token ids as text, with what does not count greyed
    figures.py  counting tokens, lengths and ids over all records
    report.py   these figures as text and as JSON
    reindex.py  the index beside a MindRecord file: compared with its data, and made anew
"""
