"""Which device a task gets, and what it says when that is not there; compiled and eager code."""

from __future__ import annotations

import logging

import pytest
import torch

from runformer.config.task import DeviceOptions
from runformer.errors import DeviceError
from runformer.parallel import compiler
from runformer.parallel.device import resolve_device


def test_the_best_device_is_taken_where_none_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert resolve_device(DeviceOptions(None)) == torch.device("cpu")


def test_a_device_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(DeviceError, match="no CUDA device here"):
        resolve_device(DeviceOptions("cuda"))
    with pytest.raises(DeviceError, match="no NPU device here"):
        resolve_device(DeviceOptions("npu"))


def test_a_number_out_of_range_names_the_valid_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(DeviceError, match="device_id 5: there are 2 CUDA devices, 0 to 1"):
        resolve_device(DeviceOptions("cuda", 5))


def test_a_missing_compiler_is_said_and_survived(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(_: object) -> object:
        raise RuntimeError("no C++ compiler found\nmore")

    monkeypatch.setattr(torch, "compile", broken)
    with caplog.at_level(logging.WARNING):
        assert not compiler.can_compile(torch.device("cpu"))
    assert "does not work here: no C++ compiler found" in caplog.text


@pytest.mark.gpu
def test_a_gpu_is_the_best_device_where_there_is_one() -> None:
    assert resolve_device(DeviceOptions(None)).type == "cuda"
