"""The decode step through ``torch.compile``, or as it is where nothing can compile."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

Step = Callable[..., Tensor]


class CompiledStep:
    """Compiles ``step`` at its first call. Where that fails it says so once and runs ``step`` itself from then on.

    ``step`` must be safe to run twice on the same arguments: a failed attempt is repeated eagerly.
    """

    def __init__(self, step: Step, device: torch.device) -> None:
        self._eager = step
        # On a GPU a small decode step waits for its launches: record it once as a CUDA graph, then replay it.
        self._records_graphs = device.type == "cuda"
        mode = "reduce-overhead" if self._records_graphs else None
        self._compiled: Step | None = torch.compile(step, dynamic=False, fullgraph=True, mode=mode)

    def __call__(self, *arguments: object) -> Tensor:
        """Run one step."""
        if self._compiled is None:
            return self._eager(*arguments)
        if self._records_graphs:
            torch.compiler.cudagraph_mark_step_begin()
        try:
            return self._compiled(*arguments)
        except (torch._dynamo.exc.TorchDynamoException, torch._inductor.exc.InductorError) as error:
            reason = str(error).strip().partition("\n")[0]
            logger.warning("generation runs eagerly, since torch.compile cannot work here: %s", reason)
            self._compiled = None
            return self._eager(*arguments)
