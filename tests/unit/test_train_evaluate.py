"""Evaluation: loss and perplexity against `transformers`, and that training does not notice it."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from runformer.config.task import (
    DataOptions,
    DeviceOptions,
    EvaluationTask,
    LoadOptions,
    LoraOptions,
    MindRecordFiles,
    ModelOptions,
    ModelTask,
    Task,
    TokenizerOptions,
)
from runformer.data.mindrecord import Column, MindRecordWriter
from runformer.errors import ConfigError, DataError, RunformerError
from runformer.models.build import build_model, initialise
from runformer.models.decoder import CausalLM
from runformer.observe import EvaluationRow, append_row
from runformer.observe.evaluation import parse_evaluation
from runformer.parallel.compiler import eagerly
from runformer.parallel.compose import undivided
from runformer.train.evaluate import Evaluator, evaluate
from runformer.train.state import TrainingPosition

OPTIONS = ModelOptions(97, 32, 56, 2, 4, 2, 8, 64)
ROWS, LENGTH, PAD = 11, 20, 0
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray, np.ndarray]:
    """A file of rows, its tokens and its labels, some of them masked."""
    random = np.random.default_rng(3)
    tokens = random.integers(1, 97, (ROWS, LENGTH + 1), dtype=np.int32)
    labels = np.where(random.random(tokens.shape) < 0.4, -100, tokens).astype(np.int32)
    path = tmp_path_factory.mktemp("data") / "eval.mindrecord"
    columns = {"input_ids": Column("int32", (-1,)), "labels": Column("int32", (-1,))}
    with MindRecordWriter(path, columns) as writer:
        writer.write([{"input_ids": t, "labels": label} for t, label in zip(tokens, labels, strict=True)])
    return path, tokens, labels


@pytest.fixture
def task(rows: tuple[Path, np.ndarray, np.ndarray], tmp_path: Path) -> Task:
    data = DataOptions(
        MindRecordFiles((rows[0],)),
        ("input_ids", "labels"),
        shuffle=None,
        seed=0,
        drop_remainder=False,
        pad_token_id=PAD,
    )
    return Task(
        run_mode="eval",
        config_file=Path("x.yaml"),
        output_dir=tmp_path / "output",
        seed=1,
        device=DeviceOptions("cpu"),
        compile="never",
        model=ModelTask("tiny", OPTIONS, None),
        tokenizer=TokenizerOptions(),
        load=LoadOptions(),
        train=None,
        predict=None,
        evaluation=EvaluationTask(replace(data, section="eval_dataset"), batch_size=4),
    )


def with_data(task: Task, **changes: object) -> Task:
    assert task.evaluation is not None
    data = replace(task.evaluation.data, **changes)  # type: ignore[arg-type]
    return replace(task, evaluation=replace(task.evaluation, data=data))


def model() -> CausalLM:
    built = build_model(OPTIONS, ModelTask("x", None, None).precision, CPU)
    initialise(built, seed=7)
    return built.train()


def of_transformers(ours: CausalLM, tokens: np.ndarray, labels: np.ndarray) -> tuple[float, int]:
    """Mean loss over all counted tokens, in float64, and their number."""
    config = LlamaConfig(
        vocab_size=97, hidden_size=32, intermediate_size=56, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, rms_norm_eps=OPTIONS.rms_norm_eps, rope_theta=10000.0,
        tie_word_embeddings=False,
    )  # fmt: skip
    theirs = LlamaForCausalLM(config).eval()
    theirs.load_state_dict(ours.state_dict())
    with torch.no_grad():
        logits = theirs(torch.from_numpy(tokens[:, :-1].astype(np.int64))).logits.double()
    wanted = torch.from_numpy(labels[:, 1:].astype(np.int64))
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="sum")
    count = int((wanted != -100).sum())
    return float(losses) / count, count


def test_the_loss_is_that_of_transformers(task: Task, rows: tuple[Path, np.ndarray, np.ndarray]) -> None:
    ours = model()
    row = Evaluator(task)(undivided(ours), 5, 2)
    expected, count = of_transformers(ours, rows[1], rows[2])
    assert row.loss == pytest.approx(expected, abs=1e-5)
    assert row.perplexity == pytest.approx(math.exp(expected), rel=1e-5)
    assert (row.tokens, row.samples, row.step, row.epoch) == (count, ROWS, 5, 2)


@pytest.mark.parametrize("batch_size", [1, 3, 11, 64])
def test_batches_do_not_change_it(task: Task, batch_size: int) -> None:
    assert task.evaluation is not None
    ours = model()
    whole = Evaluator(task)(undivided(ours), None, None)
    other = Evaluator(replace(task, evaluation=replace(task.evaluation, batch_size=batch_size)))(
        undivided(ours), None, None
    )
    assert other.loss == pytest.approx(whole.loss, abs=1e-6)
    assert other.tokens == whole.tokens


def test_fewer_rows_where_the_task_says_so(task: Task, rows: tuple[Path, np.ndarray, np.ndarray]) -> None:
    ours = model()
    first = Evaluator(with_data(task, num_samples=5))(undivided(ours), None, None)
    expected, count = of_transformers(ours, rows[1][:5], rows[2][:5])
    assert (first.loss, first.tokens) == (pytest.approx(expected, abs=1e-5), count)
    assert Evaluator(with_data(task, drop_remainder=True))(undivided(ours), None, None).samples == 8
    shuffled = Evaluator(with_data(task, shuffle=True))(undivided(ours), None, None)
    assert shuffled.loss == pytest.approx(Evaluator(task)(undivided(ours), None, None).loss, abs=1e-6)


def test_the_model_and_random_numbers_are_left_as_they_were(task: Task) -> None:
    ours = model()
    before = {name: parameter.clone() for name, parameter in ours.named_parameters()}
    torch.manual_seed(5)
    state = torch.get_rng_state()
    Evaluator(task)(undivided(ours), None, None)
    assert ours.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], parameter) for name, parameter in ours.named_parameters())
    assert all(parameter.grad is None for parameter in ours.parameters())


def test_dropout_of_adapters_is_off(task: Task) -> None:
    lora = LoraOptions(rank=4, alpha=8, dropout=0.5, target_modules=".*wq")
    ours = build_model(OPTIONS, task.model.precision, CPU, lora)
    initialise(ours, seed=1)
    for name, parameter in ours.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter)
    ours.train()
    losses = {Evaluator(task)(undivided(ours), None, None).loss for _ in range(3)}
    assert len(losses) == 1


def test_where_a_training_run_evaluates(task: Task) -> None:
    assert task.evaluation is not None

    def due(every_steps: int | None, every_epochs: int | None) -> list[int]:
        evaluation = replace(task.evaluation, every_steps=every_steps, every_epochs=every_epochs)  # type: ignore[type-var]
        evaluator = Evaluator(replace(task, evaluation=evaluation))
        return [step for step in range(1, 13) if evaluator.is_due(TrainingPosition(step), steps_per_epoch=4)]

    assert due(5, None) == [5, 10]
    assert due(None, 1) == [4, 8, 12]
    assert due(None, 2) == [8]
    assert due(6, 1) == [4, 6, 8, 12]


def write_rows(path: Path, rows: list[tuple[np.ndarray, np.ndarray]]) -> Path:
    columns = {"input_ids": Column("int32", (-1,)), "labels": Column("int32", (-1,))}
    with MindRecordWriter(path, columns) as writer:
        writer.write([{"input_ids": tokens, "labels": labels} for tokens, labels in rows])
    return path


def test_nothing_that_counts_is_an_error(task: Task, tmp_path: Path) -> None:
    tokens = np.ones(LENGTH + 1, np.int32)
    masked = write_rows(tmp_path / "masked.mindrecord", [(tokens, np.full_like(tokens, -100))] * 3)
    padding = write_rows(tmp_path / "padding.mindrecord", [(tokens * PAD, tokens)])
    for path in (masked, padding):
        with pytest.raises(DataError, match=f"{path.name}: no token counts in the loss"):
            Evaluator(with_data(task, source=MindRecordFiles((path,))))
    row = Evaluator(
        with_data(task, source=MindRecordFiles((masked, write_rows(tmp_path / "one.mindrecord", [(tokens, tokens)]))))
    )
    assert row(undivided(model()), None, None).tokens == LENGTH


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (np.ones(LENGTH, np.int32), f"record 5 .*'input_ids' has {LENGTH} tokens, not {LENGTH + 1}"),
        (np.full(LENGTH + 1, 97, np.int32), "record 5 .*token id 97, but the vocabulary has ids 0 to 96"),
    ],
)
def test_a_bad_row_shows_when_the_data_is_opened(task: Task, tmp_path: Path, bad: np.ndarray, words: str) -> None:
    good = np.ones(LENGTH + 1, np.int32)
    path = write_rows(tmp_path / "x.mindrecord", [(good, good)] * 5 + [(bad, bad)])
    with pytest.raises(DataError, match=words):
        Evaluator(with_data(task, source=MindRecordFiles((path,))))


def test_messages_name_the_evaluation_dataset(task: Task) -> None:
    with pytest.raises(DataError) as caught:
        Evaluator(with_data(task, columns=("input_id",)))
    assert "eval_dataset.input_columns names the columns to read" in str(caught.value)
    with pytest.raises(ConfigError, match=r"eval_dataset\.input_columns"):
        Evaluator(with_data(task, columns=("input_ids",), already_shifted=True))
    large = with_data(task, drop_remainder=True, num_samples=3)
    with pytest.raises(DataError, match="holds 3 samples, fewer than the 4 of one batch") as caught:
        Evaluator(large)
    assert caught.value.hint is not None
    assert caught.value.hint.startswith("lower eval_dataset.batch_size, use more data, or set eval_dataset.drop_rem")


def test_weights_of_a_run_are_evaluated_and_the_row_is_kept(
    task: Task, rows: tuple[Path, np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    ours = model()
    (tmp_path / "weights").mkdir()
    save_file(ours.state_dict(), tmp_path / "weights/model.safetensors")
    named = replace(task, model=replace(task.model, options=OPTIONS), load=LoadOptions(tmp_path / "weights"))
    evaluate(named)
    evaluate(named)
    lines = (tmp_path / "output/evaluation.jsonl").read_text().splitlines()
    assert len(lines) == 2
    row = json.loads(lines[0])
    assert list(row) == ["step", "epoch", "loss", "perplexity", "tokens", "samples", "seconds"]
    assert (row["step"], row["epoch"], row["samples"]) == (None, None, ROWS)
    assert row["loss"] == pytest.approx(of_transformers(ours, rows[1], rows[2])[0], abs=1e-5)
    assert "evaluation: loss " in (tmp_path / "output/log/rank_0/info.log").read_text()


def test_a_loss_that_is_no_number_is_told_as_it_is(task: Task, caplog: pytest.LogCaptureFixture) -> None:
    ours = model()
    with torch.no_grad():
        ours.model.norm.weight.fill_(math.nan)
    row = Evaluator(task)(undivided(ours), 1, 1)
    assert math.isnan(row.loss)
    assert json.loads(row.to_json())["loss"] is None
    assert [record.levelname for record in caplog.records][-1] == "WARNING"


@given(st.floats(allow_nan=False), st.integers(0, 2**40))
def test_any_loss_makes_a_row_of_json(loss: float, tokens: int) -> None:
    row = EvaluationRow(3, 1, loss, tokens, 1, 0.5)
    values = json.loads(row.to_json())
    again = parse_evaluation(row.to_json())
    assert again == row if math.isfinite(loss) else math.isnan(again.loss)
    assert len(str(row).partition("perplexity")[2]) < 100
    assert values["loss"] == (loss if math.isfinite(loss) else None)
    assert values["perplexity"] is None or values["perplexity"] == math.exp(loss)
    assert (values["perplexity"] is None) == math.isinf(row.perplexity)
    assert str(row).startswith("evaluation after step 3: loss ")


def test_a_line_that_was_cut_off_goes(tmp_path: Path) -> None:
    path = tmp_path / "deep/evaluation.jsonl"
    first, second = (EvaluationRow(step, 1, 2.0, 10, 1, 0.1) for step in (1, 2))
    append_row(path, first)
    with path.open("a") as file:
        file.write('{"step": 2, "los')
    append_row(path, second)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2]


@pytest.mark.parametrize("text", ["1,2,3\n4,5,6", '{"step": 1}\n{"step": 2}\n', "notes"])
def test_a_file_of_something_else_is_left_alone(tmp_path: Path, text: str) -> None:
    path = tmp_path / "evaluation.jsonl"
    path.write_text(text)
    with pytest.raises(RunformerError, match=r"is not the evaluation\.jsonl of a run"):
        append_row(path, EvaluationRow(1, 1, 2.0, 10, 1, 0.1))
    assert path.read_text() == text


@pytest.mark.filterwarnings("ignore")  # PyTorch's compiler warns of what PyTorch itself does
def test_the_compiler_does_not_see_an_evaluation(task: Task) -> None:
    """Its shapes would make graphs, and training's own would then become others than without it."""
    torch.compiler.reset()  # what other tests compiled would make the first graph fit all shapes
    graphs: list[object] = []

    def backend(graph: torch.fx.GraphModule, _inputs: list[torch.Tensor]) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    eager, compiled = model(), model()
    for layer in compiled.model.layers.values():
        layer.compile(backend=backend)
    batch = torch.ones(2, LENGTH, dtype=torch.int64)
    compiled(batch)
    count = len(graphs)
    assert count > 0
    with eagerly():
        row = Evaluator(task)(undivided(compiled), None, None)
    assert row.loss == Evaluator(task)(undivided(eager), None, None).loss
    compiled(batch)
    assert len(graphs) == count
    Evaluator(task)(undivided(compiled), None, None)
    assert len(graphs) > count
