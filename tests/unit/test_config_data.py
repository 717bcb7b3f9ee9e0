"""Keys of a dataset that say how its rows are ordered, padded and cut into documents."""

from __future__ import annotations

from pathlib import Path

import pytest
from config_tasks import MINIMAL, load

from runformer.config.task import DataOptions, DocumentOptions, PaddingOptions
from runformer.errors import ConfigError

PARALLEL = "use_parallel: True\nparallel_config: {{context_parallel: {context}, model_parallel: {model}}}\n"


@pytest.fixture(autouse=True)
def _inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def text_of(*keys: str, loader: str = "") -> str:
    lines = "".join(f"  {key}\n" for key in keys)
    return MINIMAL.replace("rows.mindrecord\n", f"rows.mindrecord\n{loader}{lines}")


def data_of(folder: Path, *keys: str, loader: str = "") -> DataOptions:
    train = load(folder, text_of(*keys, loader=loader)).train
    assert train is not None
    return train.data


@pytest.mark.parametrize(
    ("value", "expected"),
    [("True", "reference"), ("reference", "reference"), ("hashed", "hashed"), ("False", None)],
)
def test_orders(tmp_path: Path, value: str, expected: str | None) -> None:
    assert data_of(tmp_path, loader=f"    shuffle: {value}\n").shuffle == expected


def test_an_order_that_is_not_known(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError,
        match=r"must be one of reference, hashed, global, infile, files, not 'hash': did you mean 'hashed'\?",
    ):
        data_of(tmp_path, loader="    shuffle: hash\n")


def test_documents_end_at_a_token_that_has_to_be_named(tmp_path: Path) -> None:
    assert data_of(tmp_path, "eod_reset: True", "eod_token_id: 7").documents == DocumentOptions(7)
    assert data_of(tmp_path, "eod_token_id: 7").documents is None
    with pytest.raises(ConfigError, match=r"train_dataset.eod_reset needs train_dataset.eod_token_id"):
        data_of(tmp_path, "eod_reset: True")


def test_rows_of_any_length(tmp_path: Path) -> None:
    assert data_of(tmp_path, "dynamic_batch: True", "divisor: 32", "remainder: 1").padding == PaddingOptions(32, 1)
    assert data_of(tmp_path, "dynamic_batch: True").padding == PaddingOptions(1, 0)
    assert data_of(tmp_path, "divisor: 32").padding is None
    with pytest.raises(ConfigError, match="divisor must be at least 1"):
        data_of(tmp_path, "dynamic_batch: True", "divisor: 0")


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        (("divisor: 8", "remainder: 1"), None),
        (
            ("divisor: 9", "remainder: 1"),
            "train_dataset.divisor gives padded rows a number of positions that 4",
        ),
        (("divisor: 8",), "remainder gives .* cannot share out: divisor 4, remainder 1 would do"),
    ],
)
def test_devices_share_out_padded_rows(tmp_path: Path, keys: tuple[str, ...], says: str | None) -> None:
    text = text_of("dynamic_batch: True", *keys) + PARALLEL.format(context=2, model=2)
    text = text.replace("{context_parallel", "{use_seq_parallel: True, context_parallel")
    if says is None:
        load(tmp_path, text, "--dry_run", "True")
        return
    with pytest.raises(ConfigError, match=says):
        load(tmp_path, text, "--dry_run", "True")


def test_an_epoch_of_several_passes(tmp_path: Path) -> None:
    assert data_of(tmp_path, "repeat: 3").repeat == 3
    assert data_of(tmp_path).repeat == 1
