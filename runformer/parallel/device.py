"""Which device this process computes on."""

from __future__ import annotations

import importlib.util

import torch

from runformer.config.task import DeviceOptions
from runformer.errors import DeviceError
from runformer.parallel.heap import keep_freed_memory


def resolve_device(options: DeviceOptions) -> torch.device:
    """The device that a task asks for, made current.

    Raises:
        DeviceError: there is none of that kind, or none with that number.
    """
    kind: str = options.kind or next(kind for kind in ("npu", "cuda", "cpu") if _count(kind))
    count = _count(kind)
    if count == 0:
        raise DeviceError(
            f"--device_target: there is no {kind.upper()} device here",
            hint="leave --device_target out to use the best device there is, or give CPU",
        )
    if kind == "cpu":
        keep_freed_memory()
        return torch.device("cpu")
    if not 0 <= options.index < count:
        raise DeviceError(f"device_id {options.index}: there are {count} {kind.upper()} devices, 0 to {count - 1}")
    device = torch.device(kind, options.index)
    torch.get_device_module(device).set_device(device)
    return device


def _count(kind: str) -> int:
    if kind == "cpu":
        return 1
    if kind == "cuda":
        return torch.cuda.device_count()
    if importlib.util.find_spec("torch_npu") is None:
        return 0
    import torch_npu  # noqa: F401 - importing it is what adds torch.npu

    return int(torch.get_device_module("npu").device_count())
