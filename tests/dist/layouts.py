"""The layouts that exactness is shown for, and the tiny models that it is shown on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

_SHORT = {"data": "dp", "tensor": "mp", "context": "cp", "pipeline": "pp"}


@dataclass(frozen=True)
class Layout:
    """One case of ``exactness.py``."""

    family: str
    sizes: dict[str, Any] = field(hash=False)
    micro_batches: int = 2
    dtype: str = "float32"
    more: dict[str, Any] = field(default_factory=dict, hash=False)

    @property
    def world_size(self) -> int:
        product = 1
        for name in _SHORT:
            product *= self.sizes.get(name, 1)
        return product

    @property
    def name(self) -> str:
        parts = [f"{short} {self.sizes[name]}" for name, short in _SHORT.items() if name in self.sizes]
        parts += [str(self.sizes[name]) for name in ("schedule",) if name in self.sizes]
        parts += [name.replace("_", " ") for name in self.sizes if self.sizes[name] is True]
        parts += [f"zero {self.sizes['zero']}"] if "zero" in self.sizes else []
        parts += [f"by {self.sizes['sharers']}"] if "sharers" in self.sizes else []
        parts += [f"{self.sizes['gradient_groups']} messages"] if "gradient_groups" in self.sizes else []
        parts += [f"stages {self.sizes['extra_layers']}"] if "extra_layers" in self.sizes else []
        parts += [f"{name} {value}" if value is not True else name for name, value in self.more.items()]
        return f"{self.family}, {self.dtype}: {' × '.join(parts)}, {self.micro_batches} micro-batches"

    def case(self) -> dict[str, Any]:
        return self.more | {
            "family": self.family,
            "dtype": self.dtype,
            "layout": self.sizes,
            "micro_batches": self.micro_batches,
        }

    def alone(self) -> dict[str, Any]:
        """The same model and data in one process, in one micro-batch."""
        return self.case() | {"layout": {}, "micro_batches": 1}


def reference_of(layout: Layout) -> str:
    return f"{layout.family} {layout.dtype} {sorted(layout.more.items())}"


SPREAD = {"sequence_parallel": True}
INTERLEAVED = {"chunks": 2, "schedule": "Interleaved1F1B"}
LORA = {"lora": True, "dropout": 0.2}
SHARDED = {"zero": 1}
HALF = {"zero": 2}
FULL = {"zero": 3}
ZERO_BUBBLE = {"chunks": 2, "schedule": "ZBVZeroBubble"}
AGAIN = {"recompute": True}
COPIED = {"copies_embedding": True}
RECALLS = {"recompute_products": True, "recompute_norms": True}

DOZEN = [
    Layout("llama", {"data": 2, **SHARDED}),
    Layout("qwen3", {"tensor": 2, **SPREAD}, more=LORA),
    Layout("llama", {"context": 2}, dtype="float64"),
    Layout("llama", {"pipeline": 2, **INTERLEAVED, **AGAIN}, 4, more=LORA),
    Layout("smollm2", {"pipeline": 2, "extra_layers": [0, 1]}, 4, dtype="float64"),
    Layout("qwen2", {"tensor": 4, **SPREAD}),
    Layout("smollm2", {"tensor": 4}, dtype="float64"),
    Layout("qwen3", {"context": 2, "tensor": 2, **SPREAD, **COPIED}),
    Layout("qwen2", {"data": 2, "tensor": 2, "pipeline": 2, **SPREAD, **RECALLS}, 4, dtype="float64"),
    Layout("qwen2", {"tensor": 4, "pipeline": 2}, 4),
    Layout("qwen2", {"data": 2, **FULL}, dtype="float64"),
    Layout("smollm2", {"pipeline": 2, **ZERO_BUBBLE}, 4),
    Layout("qwen2", {"data": 2, "tensor": 2, **HALF, **SPREAD}, 4),
]
"""What every test run shows."""

LAYOUTS = [
    *DOZEN,
    Layout("qwen2", {"data": 2, "pipeline": 2}, 4),
    Layout("smollm2", {"pipeline": 4}, 8),
    Layout("llama", {"pipeline": 2, **INTERLEAVED}, 4),
    Layout("qwen3", {"tensor": 2, **SPREAD, **AGAIN}, dtype="float64"),
    Layout("qwen2", {"pipeline": 2, "recompute": [1, 2]}, 4, dtype="float64", more=LORA),
    Layout("llama", {"data": 2, "gradient_groups": 4}),
    Layout("qwen2", {"data": 2, "tensor": 2, **SHARDED}, dtype="float64"),
    Layout("smollm2", {"data": 2, "pipeline": 2, **SHARDED}, 4),
    Layout("llama", {"data": 2, "context": 2, **SHARDED}, dtype="float64", more=LORA),
    Layout("qwen2", {"data": 2}, 4, dtype="float64"),
    Layout("llama", {"data": 2}, 1, more=LORA),
    Layout("llama", {"tensor": 2}),
    Layout("qwen2", {"tensor": 2}, dtype="float64"),
    Layout("qwen3", {"tensor": 2}, dtype="float64"),
    Layout("smollm2", {"tensor": 2}),
    Layout("smollm2", {"tensor": 2, **SPREAD}, dtype="float64", more=LORA),
    Layout("qwen3", {"context": 2}),
    Layout("qwen2", {"pipeline": 2}, 4, dtype="float64"),
    Layout("qwen2", {"pipeline": 2, "schedule": "GPipe"}, 4),
    Layout("llama", {"pipeline": 2, "chunks": 2, "schedule": "LoopedBFS"}, 4, dtype="float64"),
    Layout("qwen2", {"pipeline": 2}, 4, more=LORA),
    Layout("llama", {"data": 4}),
    Layout("llama", {"tensor": 4, **COPIED}, dtype="float64"),
    Layout("qwen3", {"tensor": 4, **SPREAD}),
    Layout("llama", {"context": 4}, dtype="float64"),
    Layout("qwen2", {"data": 2, "tensor": 2}, dtype="float64"),
    Layout("llama", {"data": 2, "context": 2}),
    Layout("qwen2", {"tensor": 2, "pipeline": 2, **SPREAD}, 4),
    Layout("smollm2", {"tensor": 2, "pipeline": 2, **INTERLEAVED}, 4, dtype="float64"),
    Layout("qwen3", {"context": 2, "pipeline": 2}, 4),
    Layout("smollm2", {"data": 2, "tensor": 4}, dtype="float64"),
    Layout("qwen3", {"data": 2, "context": 2, "tensor": 2, **SPREAD}),
    Layout("qwen2", {"data": 2, "context": 2, "pipeline": 2}, 4),
    Layout("qwen3", {"context": 2, "tensor": 2, "pipeline": 2, **SPREAD, **COPIED}, 4, dtype="float64"),
    Layout("smollm2", {"data": 2, "pipeline": 4}, 4),
    Layout("llama", {"data": 2, **HALF}, 4, more=LORA),
    Layout("qwen3", {"data": 4, **FULL, **AGAIN}),
    Layout("smollm2", {"data": 4, **FULL, "sharers": 2}, dtype="float64"),
    Layout("llama", {"data": 4, **SHARDED, "sharers": 2}, dtype="float64"),
    Layout("llama", {"data": 2, "context": 2, **FULL}, dtype="float64", more=LORA),
    Layout("qwen2", {"data": 2, "tensor": 4, **FULL}, dtype="float64"),
    Layout("smollm2", {"data": 2, "pipeline": 2, **HALF}, 4, dtype="float64"),
    Layout("llama", {"data": 2, "pipeline": 2, **FULL, **INTERLEAVED}, 4, dtype="float64"),
    Layout("qwen2", {"data": 2, "tensor": 2, "pipeline": 2, **FULL, **SPREAD}, 4),
    Layout("qwen2", {"data": 4, "tensor": 2, "pipeline": 2, **FULL, "sharers": 2}, 2, dtype="float64"),
    Layout("llama", {"pipeline": 2, **ZERO_BUBBLE}, 4, dtype="float64"),
    Layout("llama", {"pipeline": 2, **ZERO_BUBBLE, **AGAIN}, 4, dtype="float64", more=LORA),
    Layout("qwen2", {"data": 2, "pipeline": 2, **ZERO_BUBBLE, **SHARDED}, 3, dtype="float64"),
    Layout("qwen3", {"tensor": 2, "pipeline": 2, **ZERO_BUBBLE, **SPREAD}, 4),
    # The published plan of Qwen2.5-0.5B: 14 query heads on 2 for 4 devices.
    Layout("qwen2", {"data": 2, "tensor": 4, "pipeline": 2}, 4),
    Layout("qwen2", {"data": 2, "tensor": 4, "pipeline": 2, **SPREAD}, 4, dtype="float64"),
    Layout("qwen3", {"data": 2, "context": 2, "tensor": 2, "pipeline": 2, **SPREAD}, 4),
]
"""All of them."""

assert len({layout.name for layout in LAYOUTS}) == len(LAYOUTS)
