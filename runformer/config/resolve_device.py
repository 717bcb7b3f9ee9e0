"""From ``context`` to the device and the question whether to compile."""

from __future__ import annotations

from typing import Literal

from runformer.config.launched import Launched
from runformer.config.problems import Report, nearest
from runformer.config.sections import Config
from runformer.config.task import DeviceOptions

_KINDS: dict[str, Literal["cpu", "cuda", "npu"]] = {"Ascend": "npu", "GPU": "cuda", "CPU": "cpu"}
_TARGET = "context.device_target"


def device_options(config: Config, place: Launched | None, report: Report) -> DeviceOptions:
    """The device. On the command line its kind is meant literally; a file's Ascend or GPU means any accelerator.

    Of several processes on a machine each has the device with its local rank.
    """
    target = config.context.device_target
    alone = place is None or place.world_size == 1
    index = config.context.device_id if alone or place is None else place.local_rank
    if target is None:
        return DeviceOptions(None, index)
    spelling = {name.lower(): name for name in _KINDS}.get(target.lower())
    if spelling is None:
        near = nearest(target, _KINDS)
        suggestion = f"; did you mean {near!r}?" if near else ""
        report.error(_TARGET, f"must be Ascend, GPU or CPU, not {target!r}{suggestion}")
        return DeviceOptions(None, index)
    written = report.place(_TARGET)
    if spelling == "CPU" or (written is not None and written.on_command_line):
        return DeviceOptions(_KINDS[spelling], index)
    report.notice(f"{_TARGET}: {spelling} is read as the best device here (--device_target {spelling} insists on it)")
    return DeviceOptions(None, index)


def compile_mode(config: Config, report: Report) -> Literal["never", "accelerator", "always"]:
    """Whether the model is compiled: mode 0 in a file asks for it on accelerators, ``--mode 0`` anywhere."""
    if config.context.mode == 1:
        return "never"
    place = report.place("context.mode") if report.given("context.mode") else None
    return "always" if place is not None and place.on_command_line else "accelerator"
