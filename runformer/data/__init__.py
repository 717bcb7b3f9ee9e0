"""From dataset files to batches of token ids: MindRecord, rows, their order, the cursor, preprocessing."""

IGNORED = -100
"""The label of a position that does not count: what ``torch.nn.functional.cross_entropy`` ignores by default."""
