"""The memory estimate against what tensors really take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tensor_memory import taken
from torch import Tensor

from runformer.config.layout import ParallelOptions
from runformer.config.task import (
    DataOptions,
    LoraOptions,
    LossScaleOptions,
    MindRecordFiles,
    ModelOptions,
    ModelTask,
    OptimizerOptions,
    Precision,
    SaveOptions,
    ScheduleOptions,
    TrainTask,
)
from runformer.data.batch import TokenBatch
from runformer.models.build import build_model, initialise
from runformer.models.decoder import CausalLM
from runformer.parallel.compose import compose
from runformer.parallel.group import alone
from runformer.parallel.mesh import lay_out
from runformer.plan.memory import prediction_memory, training_memories, training_memory
from runformer.predict.cache import StaticCache
from runformer.train.loss_scale import LossScaler
from runformer.train.optimizer import NamedAdamW
from runformer.train.step import TrainStep

OPTIONS = ModelOptions(320, 64, 176, 3, 4, 2, 16, 64, qkv_bias=True)
ROWS, LENGTH = 16, 64
CPU = torch.device("cpu")
PRECISIONS = [Precision(), Precision(compute="bfloat16"), Precision(parameters="bfloat16", compute="bfloat16")]
LORA = LoraOptions(rank=4, alpha=8, dropout=0.0, target_modules=".*wq|.*wv")


def train_task(rows: int = ROWS, accumulation: int = 1) -> TrainTask:
    data = DataOptions(MindRecordFiles(()), ("input_ids",), shuffle=None, seed=0)
    schedule = ScheduleOptions("ConstantWarmUpLR", {"learning_rate": 1e-3})
    return TrainTask(data, 1, rows, accumulation, OptimizerOptions(), schedule, LossScaleOptions(), None, None)


def estimate(task: ModelTask, options: ModelOptions = OPTIONS, **layout: Any) -> Mapping[str, int]:
    parallel = ParallelOptions(**layout)
    return training_memory(task, options, train_task(), LENGTH, parallel, "cuda")


def kept_by_forward(model: CausalLM) -> int:
    """Bytes that autograd saves in a real forward pass through the layers, parameters left out."""
    saved: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    tokens_BL = torch.zeros(ROWS, LENGTH, dtype=torch.int64)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        hidden_BLD = model(tokens_BL)
    assert hidden_BLD.requires_grad
    for parameter in model.parameters():
        saved.pop(parameter.untyped_storage().data_ptr(), None)
    return sum(saved.values())


@pytest.mark.parametrize("lora", [None, LORA], ids=["all weights", "lora"])
@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
def test_a_step_keeps_what_was_estimated(precision: Precision, lora: LoraOptions | None) -> None:
    model = build_model(OPTIONS, precision, CPU, lora)
    initialise(model, seed=0)
    kinds = estimate(ModelTask("x", OPTIONS, None, precision=precision, lora=lora))
    assert kinds["weights"] == sum(p.numel() * p.element_size() for p in model.parameters())
    assert kinds["gradients"] == 0, "memory is fullest when the backward pass begins"
    optimizer = NamedAdamW(model, OptimizerOptions())
    optimizer.updates = 1  # its state is told from the first update on
    assert kinds["optimizer states"] == sum(m.numel() * m.element_size() for m in optimizer.state().values())
    kept = kept_by_forward(model)
    estimated = kinds["activations"]
    # The rest is the embedding, the last norm, and with adapters the first layer, which needs less than the others.
    assert abs(kept - estimated) <= 0.12 * kept, (kept, estimated)


@pytest.mark.filterwarnings("ignore:.*profiler.*")
@pytest.mark.parametrize(
    ("precision", "length", "recompute", "batches"),
    [
        (PRECISIONS[0], 16, False, 2),
        (PRECISIONS[0], 256, True, 1),
        (PRECISIONS[1], 256, False, 1),
        (PRECISIONS[1], 256, True, 2),
        (PRECISIONS[1], 256, True, 1),
    ],
)
def test_the_peak_of_a_step_is_as_estimated(
    tmp_path: Path, precision: Precision, length: int, recompute: bool, batches: int
) -> None:
    """Tensors of the second step, as PyTorch's profiler sees them come and go; optimizer states are there then."""
    rows, layout = 4, ParallelOptions(recompute=recompute)
    options = replace(OPTIONS, hidden_size=128, num_layers=6, head_dim=32, intermediate_size=384, max_positions=256)
    model = compose(options, precision, None, lay_out(layout, alone(CPU)))
    initialise(model.stages[0], 0)
    model.train()
    step = TrainStep(model, NamedAdamW(model, OptimizerOptions()), LossScaler(LossScaleOptions()), 1.0, 0)
    tokens = torch.randint(0, options.vocab_size, (rows * batches, length))
    batch = TokenBatch.of(tokens, tokens, torch.ones_like(tokens, dtype=torch.bool))
    step(1, batch.split(rows), 1e-3)
    measured = max(taken(tmp_path, lambda: step(2, batch.split(rows), 1e-3)))
    task = ModelTask("x", options, None, precision=precision)
    kinds = training_memory(task, options, train_task(rows, batches), length, layout, "cuda")
    estimated = sum(kinds.values()) - kinds["weights"] - kinds["optimizer states"]
    assert estimated == pytest.approx(measured, rel=0.1)


def test_recomputed_layers_keep_their_inputs() -> None:
    task, options = ModelTask("x", OPTIONS, None), replace(OPTIONS, num_layers=4)
    whole, half, none = (estimate(task, options, recompute=value)["activations"] for value in (False, (2,), True))
    between = ROWS * LENGTH * options.hidden_size * 4
    whole, half, none = (kept - 2 * between for kept in (whole, half, none))  # around the last norm
    assert none == 4 * between + whole / 4, "each layer's input, and all of the one whose turn it is"
    assert half == 2 * between + whole * 3 / 4


def test_what_is_computed_again_is_not_counted() -> None:
    task, options = ModelTask("x", OPTIONS, None), replace(OPTIONS, num_layers=4)
    whole, products, norms = (
        estimate(task, options, **layout)["activations"]
        for layout in ({}, {"recompute_products": (3,)}, {"recompute_norms": True, "recompute": (1,)})
    )
    numbers = ROWS * LENGTH * 4
    assert products == whole - 3 * numbers * options.intermediate_size
    # The recomputed layer keeps its input, and all when its turn comes; the others keep no copies for their two blocks.
    assert norms == whole + numbers * options.hidden_size * (1 - 3 * 2)


def test_no_copies_of_weights_are_kept() -> None:
    """Half the bytes in the compute dtype are half the activations, and no more."""
    same, mixed = (estimate(ModelTask("x", OPTIONS, None, precision=precision)) for precision in PRECISIONS[:2])
    linear = sum(p.numel() for p in CausalLM(OPTIONS, Precision()).model.layers.parameters() if p.ndim > 1)
    assert mixed["activations"] < 0.6 * same["activations"]
    assert mixed["activations"] - same["activations"] / 2 < 0.2 * 2 * linear


def test_layouts_split_what_they_say() -> None:
    task = ModelTask("x", OPTIONS, None)
    options = replace(OPTIONS, num_layers=4, qkv_bias=False)
    whole, tensor = estimate(task, options), estimate(task, options, tensor=2)
    norms = 4 * (2 * 4 + 1) * 64  # bytes; each device has them all
    assert tensor["weights"] == (whole["weights"] - norms) / 2 + norms
    sequence = estimate(task, options, tensor=2, sequence_parallel=True)
    assert sequence["activations"] < tensor["activations"] < whole["activations"]
    data = estimate(task, options, data=4, zero=1)
    assert data["optimizer states"] == whole["optimizer states"] / 4
    assert data["weights"] == whole["weights"]
    pipeline = estimate(task, options, pipeline=2)
    table, head = 4 * 320 * 64, 4 * (320 * 64 + 64)
    assert pipeline["weights"] == (whole["weights"] - table - head) / 2 + head, "the stage with the loss is the fullest"
    context = estimate(task, options, context=2)
    keys = 2 * ROWS * LENGTH * options.num_kv_heads * options.head_dim * 4
    assert context["activations"] == (whole["activations"] + 4 * keys) / 2, "each has all keys and values"


def test_a_pipeline_s_first_stage_holds_as_many_micro_batches_as_there_are_stages() -> None:
    task, options = ModelTask("x", OPTIONS, None), replace(OPTIONS, num_layers=4)
    layout = ParallelOptions(pipeline=4)

    def kept(batches: int) -> list[int]:
        memories = training_memories(task, options, train_task(ROWS, batches), LENGTH, layout, "cuda")
        return [kinds["activations"] for kinds in memories]

    one, few, many = kept(1), kept(2), kept(16)
    assert few[:3] == [2 * one[0], 2 * one[1], 2 * one[2]]
    assert many == [4 * one[0], 3 * one[1], 2 * one[2], one[3]]


@pytest.mark.parametrize("tied", [True, False])
def test_predicting_takes_weights_and_cache(tied: bool) -> None:
    options, precision = replace(OPTIONS, tie_embeddings=tied), Precision(compute="bfloat16")
    kinds = prediction_memory(options, precision, ROWS, LENGTH, ParallelOptions())
    model = build_model(options, precision, torch.device("meta"))
    elements = sum(p.numel() for p in model.parameters())
    assert kinds["weights"] == 2 * elements
    cache = StaticCache(model, ROWS, LENGTH, dtype=torch.bfloat16, device=CPU)
    stored = [tensor for layer in cache.layers for tensor in (layer.keys_BGSK, layer.values_BGSK)]
    assert kinds["keys and values"] == sum(tensor.numel() * tensor.element_size() for tensor in stored)


def test_rows_are_shared_by_the_copies_of_the_model() -> None:
    one = prediction_memory(OPTIONS, Precision(), 4, LENGTH, ParallelOptions())
    two = prediction_memory(OPTIONS, Precision(), 4, LENGTH, ParallelOptions(data=2))
    assert two["keys and values"] == one["keys and values"] / 2
    assert two["weights"] == one["weights"]


def test_nothing_of_the_model_is_in_memory_while_estimating() -> None:
    huge = ModelOptions(152064, 8192, 29568, 80, 64, 8, 128, 32768, qkv_bias=True)  # Qwen2.5-72B: 270 GiB
    kinds = training_memory(ModelTask("x", huge, None), huge, train_task(), 4096, ParallelOptions(), "cuda")
    assert kinds["weights"] == 4 * 72_706_203_648


def test_saving_behind_takes_a_copy_of_what_is_written() -> None:
    task, train = ModelTask("x", OPTIONS, None), train_task(ROWS, 1)
    behind = replace(train, save=SaveOptions(behind=True))
    for copies in (1, 2):
        layout = ParallelOptions(data=copies)
        kinds = [training_memory(task, OPTIONS, step, LENGTH, layout, "cpu") for step in (train, behind)]
        state = kinds[0]["weights"] + kinds[0]["optimizer states"]
        assert kinds[1]["buffers"] - kinds[0]["buffers"] == state // copies
    assert training_memory(task, OPTIONS, behind, LENGTH, ParallelOptions(), "cuda") == training_memory(
        task, OPTIONS, train, LENGTH, ParallelOptions(), "cuda"
    )
