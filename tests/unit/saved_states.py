"""An optimizer's state in memory, for tests that need no checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor

from runformer.checkpoint import SavedState
from runformer.models.part import Span


class InMemory(SavedState):
    """Tensors of a process that holds all."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = dict(tensors)

    def __getitem__(self, key: str) -> Tensor:
        return self._tensors[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def shape(self, key: str) -> tuple[int, ...]:
        return tuple(self._tensors[key].shape)

    def fill(self, key: str, out: Tensor, span: Span | None = None) -> None:
        assert span is None
        out.copy_(self._tensors[key])
