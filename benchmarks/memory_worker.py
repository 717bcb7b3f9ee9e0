"""One rank of ``memory.py``: trains two steps, and writes how much memory it took at most beside the estimate."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import psutil
import torch

# What a run imports late is no memory of its model.
import torch._subclasses.fake_tensor
import torch.distributed.fsdp
import torch.distributed.pipelining
import torch.nn.parallel
import torch.testing
from torch._dynamo import config as _  # noqa: F401

from runformer.config.layout import ParallelOptions
from runformer.config.task import (
    DataOptions,
    LossScaleOptions,
    MindRecordFiles,
    ModelOptions,
    ModelTask,
    OptimizerOptions,
    Precision,
    ScheduleOptions,
    TrainTask,
)
from runformer.data.batch import TokenBatch
from runformer.models.build import initialise
from runformer.parallel.compose import compose
from runformer.parallel.group import join
from runformer.parallel.heap import keep_freed_memory
from runformer.parallel.mesh import lay_out
from runformer.parallel.shards import Shards
from runformer.plan.memory import rank_memory
from runformer.train.loss_scale import LossScaler
from runformer.train.optimizer import NamedAdamW
from runformer.train.step import TrainStep

STEPS = 2
OPTIONS = ModelOptions(
    vocab_size=32000, hidden_size=768, intermediate_size=2048, num_layers=12, num_heads=12, num_kv_heads=4, head_dim=64,
    max_positions=2048,
)  # fmt: skip
"""134 M parameters."""


def train(case: dict[str, Any], layout: ParallelOptions) -> int:
    """Bytes above those after imports, at most."""
    world = join(torch.device("cpu"))
    mesh = lay_out(layout, world)
    before = psutil.Process().memory_info().rss
    model = compose(OPTIONS, Precision(compute=case["compute"]), None, mesh)
    for stage in model.stages:
        initialise(stage, 0, model.parts)
    model.train()
    shards = Shards(mesh.shards) if layout.zero == 1 else None
    optimizer = NamedAdamW(model, OptimizerOptions(), shards)
    step = TrainStep(model, optimizer, LossScaler(LossScaleOptions()), 1.0, 0)
    rows, length = case["rows"], case["length"]
    tokens = torch.randint(1, OPTIONS.vocab_size, (rows * case["micro_batches"], length + 1))
    keep = torch.ones(len(tokens), length, dtype=torch.bool)
    batch = TokenBatch.of(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), keep)
    for number in range(1, STEPS + 1):
        step(number, batch.split(rows), 1e-4)
    peak = int(next(line for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line).split()[1])
    world.barrier()
    Path(f"{sys.argv[2]}_{world.rank}.json").write_text(
        json.dumps({"measured": peak * 1024 - before, "estimated": estimate(case, layout, mesh.place)})
    )
    world.leave()
    return 0


def estimate(case: dict[str, Any], layout: ParallelOptions, place: Any) -> dict[str, int]:
    data = DataOptions(MindRecordFiles(()), ("input_ids",), shuffle=None, seed=0)
    schedule = ScheduleOptions("ConstantWarmUpLR", {"learning_rate": 1e-4})
    options = TrainTask(
        data, 1, case["rows"], case["micro_batches"], OptimizerOptions(), schedule, LossScaleOptions(), None, None
    )
    task = ModelTask("", OPTIONS, None, precision=Precision(compute=case["compute"]))
    return dict(rank_memory(task, OPTIONS, options, case["length"], layout, "cpu", place))


def main() -> None:
    keep_freed_memory()
    case = json.loads(Path(sys.argv[1]).read_text())
    train(case, ParallelOptions(**case["layout"]))


if __name__ == "__main__":
    main()
