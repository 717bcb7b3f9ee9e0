"""The decode step through ``torch.compile``, or as it is where nothing can compile."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable

import torch
from torch import Tensor

from runformer.predict.cache import StaticCache

logger = logging.getLogger(__name__)

Step = Callable[..., Tensor]

_SHAPES = 64
"""How many a run may compile: cache sizes by batch sizes. The compiler's own limit is made for training."""

_numbers = itertools.count()


def fix_in_place(cache: StaticCache) -> None:
    """Say that a cache stays where it is in memory.

    A CUDA graph may then write into it; a step that changes what may lie elsewhere next time is launched kernel by
    kernel, which on a GPU takes several times as long.
    """
    for layer in cache.layers:
        for slots in (layer.keys_BGSK, layer.values_BGSK):
            torch._dynamo.mark_static_address(slots, guard=False)


class CompiledStep:
    """Compiles ``step`` at its first call. Where that fails it says so once and runs ``step`` itself from then on.

    ``step`` must be safe to run twice on the same arguments: a failed attempt is repeated eagerly. Its model must
    stay as it is: that is not checked again at every call, since checking every layer takes longer than computing one.
    """

    def __init__(self, step: Step, device: torch.device) -> None:
        self._eager = step
        self._number = next(_numbers)
        # On a GPU a small decode step waits for its launches: record it once as a CUDA graph, then replay it.
        self._records_graphs = device.type == "cuda"
        torch._dynamo.config.recompile_limit = _SHAPES
        self._compiled: Step | None = torch.compile(
            self._numbered,
            dynamic=False,
            fullgraph=True,
            options={
                "triton.cudagraphs": self._records_graphs,
                "guard_filter_fn": torch.compiler.skip_guard_on_all_nn_modules_unsafe,
            },
        )

    def _numbered(self, number: int, *arguments: object) -> Tensor:
        # Looked at, the number becomes a condition of the compiled code: one model's is never used for another.
        assert number == self._number
        return self._eager(*arguments)

    def __call__(self, *arguments: object) -> Tensor:
        """Run one step."""
        if self._compiled is None:
            return self._eager(*arguments)
        if self._records_graphs:
            torch.compiler.cudagraph_mark_step_begin()
        try:
            return self._compiled(self._number, *arguments)
        except (
            torch._dynamo.exc.TorchDynamoException,
            torch._dynamo.exc.FailOnRecompileLimitHit,
            torch._inductor.exc.InductorError,
        ) as error:
            reason = str(error).strip().partition("\n")[0]
            logger.warning("generation runs eagerly, since torch.compile cannot work here: %s", reason)
            self._compiled = None
            return self._eager(*arguments)
