"""Data handlers: what they get, what becomes of what they give, and who is named when that is wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runformer import plugins
from runformer.config.task import DataOptions, MindRecordFiles, PluginOptions
from runformer.data.dataset import TokenDataset
from runformer.data.mindrecord import Column, MindRecordWriter
from runformer.errors import ConfigError, DataError

pytestmark = pytest.mark.usefixtures("no_plugins")
LENGTH, VOCABULARY = 6, 50


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Three rows of LENGTH + 1 + row number tokens, with a weight and a text beside them."""
    path = tmp_path / "rows.mindrecord"
    columns = {"tokens": Column("int32", (-1,)), "weight": Column("float32", (1,)), "text": Column("string")}
    with MindRecordWriter(path, columns) as writer:
        for row in range(3):
            tokens = np.arange(1, LENGTH + 2 + row, dtype=np.int32)
            writer.write([{"tokens": tokens, "weight": np.ones(1, np.float32), "text": "x"}])
    return path


def dataset(
    file: Path, *handlers: str, columns: tuple[str, ...] = ("tokens",), length: int | None = LENGTH
) -> TokenDataset:
    options = DataOptions(
        MindRecordFiles((file,)), columns, None, 0, handlers=tuple(PluginOptions(name, {}) for name in handlers)
    )
    return TokenDataset(options, length, VOCABULARY)


def register(name: str, handle: Callable[[Any], Any]) -> None:
    plugins.data_handler(name)(lambda: handle)


def cut(record: dict[str, Any]) -> dict[str, Any]:
    return {name: values[: LENGTH + 1] for name, values in record.items()}


def test_handlers_run_in_order_on_all_columns(file: Path) -> None:
    seen: list[list[str]] = []
    register("Look", lambda record: seen.append(sorted(record)) or record)
    register("Cut", cut)
    register("Label", lambda record: {**record, "labels": np.where(record["tokens"] < 4, -100, record["tokens"])})
    batch = dataset(file, "Look", "Cut", "Label", columns=("tokens", "labels")).rows([2, 0])
    assert seen == [["text", "tokens", "weight"]] * 2
    assert batch.inputs_BL.tolist() == [[1, 2, 3, 4, 5, 6]] * 2
    assert batch.labels_BL.tolist() == [[-100, -100, 4, 5, 6, 7]] * 2


def test_the_length_may_come_from_the_first_record_as_handled(file: Path) -> None:
    register("Cut", lambda record: {"tokens": record["tokens"][:4]})
    assert dataset(file, "Cut", length=None).sequence_length == 3


def test_a_handler_may_write_into_its_record(file: Path) -> None:
    def overwrite(record: dict[str, Any]) -> dict[str, Any]:
        record["tokens"][:] = 9
        return cut(record)

    register("Overwrite", overwrite)
    rows = dataset(file, "Overwrite")
    assert rows.rows([1]).inputs_BL.tolist() == rows.rows([1]).inputs_BL.tolist() == [[9] * LENGTH]


def test_lists_are_as_good_as_arrays(file: Path) -> None:
    register("List", lambda record: {"tokens": record["tokens"].tolist()[: LENGTH + 1]})
    assert dataset(file, "List").rows([2]).inputs_BL.tolist() == [[1, 2, 3, 4, 5, 6]]


def fail(_: Any) -> Any:
    raise KeyError("lost")


def object_to(_: Any) -> Any:
    raise ValueError("no prompt here")


@pytest.mark.parametrize(
    ("handle", "message"),
    [
        (fail, "the data handler X raised KeyError: 'lost'"),
        (object_to, "no prompt here (says the data handler X, "),
        (lambda _: None, "the data handler X ("),
        (lambda _: None, ") gave an object of type NoneType"),
        (lambda record: record, "as left by Cut, X: 'tokens' has 9 tokens, not 7"),
        (lambda _: {"labels": [1]}, "as left by Cut, X: there is no column 'tokens', but labels"),
        (lambda record: {"tokens": record["tokens"] * 0.5}, "as left by Cut, X: 'tokens' is float64 [7]"),
        (lambda record: {"tokens": record["tokens"][None]}, "as left by Cut, X: 'tokens' is int32 [1, 7]"),
        (
            lambda record: {"tokens": record["tokens"] + 60},
            "as left by Cut, X: 'tokens', position 0, holds token i",
        ),
    ],
)
def test_what_is_wrong_names_the_record_and_the_handler(file: Path, handle: Callable[[Any], Any], message: str) -> None:
    register("Cut", (lambda _: {"tokens": np.arange(9)}) if "9 tokens" in message else cut)
    register("X", handle)
    with pytest.raises(DataError) as caught:
        dataset(file, "Cut", "X").rows([2])
    assert message in str(caught.value)
    assert f"record 2 of {file}" in str(caught.value)


def test_a_handler_that_cannot_be_made_is_named(file: Path) -> None:
    plugins.data_handler("X")(fail)
    with pytest.raises(ConfigError, match="the data handler X raised TypeError"):
        dataset(file, "X")
