"""The memory estimate against what tensors really take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from runformer.config.task import (
    DataOptions,
    LoraOptions,
    LossScaleOptions,
    ModelOptions,
    ModelTask,
    OptimizerOptions,
    ParallelOptions,
    Precision,
    ScheduleOptions,
    TrainTask,
)
from runformer.models.build import build_model, initialise
from runformer.models.decoder import CausalLM
from runformer.plan.memory import prediction_memory, training_memory
from runformer.predict.cache import StaticCache
from runformer.train.optimizer import NamedAdamW

OPTIONS = ModelOptions(320, 64, 176, 3, 4, 2, 16, 64, qkv_bias=True)
ROWS, LENGTH = 2, 32
CPU = torch.device("cpu")
PRECISIONS = [Precision(), Precision(compute="bfloat16"), Precision(parameters="bfloat16", compute="bfloat16")]
LORA = LoraOptions(rank=4, alpha=8, dropout=0.0, target_modules=".*wq|.*wv")


def train_task(rows: int = ROWS, accumulation: int = 1) -> TrainTask:
    data = DataOptions((), ("input_ids",), shuffle=False, seed=0)
    schedule = ScheduleOptions("ConstantWarmUpLR", {"learning_rate": 1e-3})
    return TrainTask(data, 1, rows, accumulation, OptimizerOptions(), schedule, LossScaleOptions(), None, None)


def estimate(task: ModelTask, options: ModelOptions = OPTIONS, **layout: int | bool) -> Mapping[str, int]:
    parallel = ParallelOptions(**layout)  # type: ignore[arg-type]
    return training_memory(task, options, train_task(), LENGTH, parallel, "cpu")


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
    trained = [p for p in model.parameters() if p.requires_grad]
    assert kinds["gradients"] == sum(p.numel() * p.element_size() for p in trained)
    optimizer = NamedAdamW(model, OptimizerOptions())
    optimizer.updates = 1  # its state is told from the first update on
    assert kinds["optimizer states"] == sum(m.numel() * m.element_size() for m in optimizer.state().values())
    kept = kept_by_forward(model)
    estimated = kinds["activations"]
    # The rest is the embedding, the last norm, and with adapters the first layer, which needs less than the others.
    assert abs(kept - estimated) <= 0.12 * kept, (kept, estimated)


def test_recomputed_layers_keep_their_inputs() -> None:
    task, options = ModelTask("x", OPTIONS, None), replace(OPTIONS, num_layers=4)
    whole, half, none = (estimate(task, options, recompute=value)["activations"] for value in (False, (2,), True))
    between = ROWS * LENGTH * options.hidden_size * 4
    assert none == 4 * between + whole / 4, "each layer's input, and all of the one whose turn it is"
    assert half == 2 * between + whole * 3 / 4


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
    data = estimate(task, options, data=4, shard_optimizer=True)
    assert data["optimizer states"] == whole["optimizer states"] / 4
    assert data["weights"] == whole["weights"]
    pipeline = estimate(task, options, pipeline=2)
    head = 4 * (320 * 64 + 64)
    assert pipeline["weights"] == (whole["weights"] - 4 * 320 * 64 - head) / 2 + 4 * 320 * 64
    context = estimate(task, options, context=2)
    assert context["activations"] == pytest.approx(whole["activations"] / 2, rel=0.01)


def test_a_pipeline_s_first_stage_holds_as_many_micro_batches_as_there_are_stages() -> None:
    task, options = ModelTask("x", OPTIONS, None), replace(OPTIONS, num_layers=4)
    layout = ParallelOptions(pipeline=4)
    few = training_memory(task, options, train_task(accumulation=2), LENGTH, layout, "cpu")
    many = training_memory(task, options, train_task(accumulation=16), LENGTH, layout, "cpu")
    one = training_memory(task, options, train_task(), LENGTH, layout, "cpu")
    assert (few["activations"], many["activations"]) == (2 * one["activations"], 4 * one["activations"])


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
