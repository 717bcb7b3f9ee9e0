"""``evaluation.jsonl``: one row an evaluation, beside ``training.jsonl``."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

from runformer.observe.metrics import MetricsWriter, read_values

_FIELDS = ("step", "epoch", "loss", "perplexity", "tokens", "samples", "seconds")
_NULLABLE = frozenset({"step", "epoch", "loss", "perplexity"})
_LARGEST_IN_FULL = 1e7  # of a perplexity; larger ones mean no more than their size


@dataclass(frozen=True, slots=True)
class EvaluationRow:
    """One pass over an evaluation dataset.

    Attributes:
        step: optimizer steps that the weights have learnt for; None where only the weights are known.
        epoch: likewise.
        loss: mean over all counted tokens of the dataset.
        tokens: how many those are.
        samples: rows of the dataset.
        seconds: wall time.
    """

    step: int | None
    epoch: int | None
    loss: float
    tokens: int
    samples: int
    seconds: float

    @property
    def perplexity(self) -> float:
        """``exp(loss)``; infinite where that is more than a float can hold."""
        try:
            return math.exp(self.loss)
        except OverflowError:
            return math.inf

    def to_json(self) -> str:
        """One line of JSON without its newline; what is not finite is null, since JSON has no word for it."""
        values = asdict(self) | {"perplexity": self.perplexity}
        finite = {name: value if value is None or math.isfinite(value) else None for name, value in values.items()}
        return json.dumps({name: finite[name] for name in _FIELDS}, allow_nan=False)

    def __str__(self) -> str:
        after = "" if self.step is None else f" after step {self.step}"
        perplexity = f"{self.perplexity:.2f}" if self.perplexity < _LARGEST_IN_FULL else f"{self.perplexity:.3g}"
        return (
            f"evaluation{after}: loss {self.loss:.4f}, perplexity {perplexity} "
            f"over {self.tokens:,} tokens of {self.samples:,} samples, {self.seconds:.1f} s"
        )


def parse_evaluation(text: str | bytes) -> EvaluationRow:
    """One line of ``evaluation.jsonl``; a loss that was not finite comes back as NaN.

    Raises:
        ValueError: it is not JSON, or a key is missing or of another type.
    """
    values = read_values(text, _FIELDS, _NULLABLE)
    del values["perplexity"]
    return EvaluationRow(**values | {"loss": math.nan if values["loss"] is None else values["loss"]})


def append_row(path: Path, row: EvaluationRow) -> None:
    """Add a row at the end of the file and wait until it is on disk; a line that a crash cut off is removed first.

    A run that is resumed evaluates steps again that came after its checkpoint: of two rows the later one counts.

    Raises:
        RunformerError: the file cannot be written, or what stands in it is something else.
    """
    with MetricsWriter(path, parse_evaluation) as writer:
        writer.write(row)
        writer.sync()
