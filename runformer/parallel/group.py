"""The processes of a run, and what they compute together.

A process alone has a group of its own, in which every collective is the identity: no other code asks how many there
are.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from runformer.config.launched import Launched, launched
from runformer.errors import ParallelError

_BACKENDS = {"cpu": "gloo", "cuda": "nccl", "npu": "hccl"}


@dataclass(frozen=True, slots=True)
class Group:
    """Processes that compute something together: all of a run, or those along a dimension of its layout.

    Attributes:
        rank: this one's number among them, from 0.
        size: how many there are.
        device: where this one computes, and the tensors of collectives lie.
        handle: PyTorch's group of them; None: all processes.
    """

    rank: int
    size: int
    device: torch.device
    handle: dist.ProcessGroup | None = None

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which writes files and speaks for all."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all ranks, in place; shape, dtype and device as on every other rank."""
        if self.size > 1:
            dist.all_reduce(values, group=self.handle)
        return values

    def largest(self, values: Tensor) -> Tensor:
        """The largest of each element over all ranks, in place."""
        if self.size > 1:
            dist.all_reduce(values, dist.ReduceOp.MAX, group=self.handle)
        return values

    def mean(self, values: Tensor) -> Tensor:
        """The mean over all ranks, in place."""
        return self.sum(values).div_(self.size) if self.size > 1 else values

    def gather(self, value: int) -> list[int]:
        """Every rank's value, by rank."""
        values = torch.zeros(self.size, dtype=torch.int64, device=self.device)
        values[self.rank] = value
        return [int(item) for item in self.sum(values).tolist()]

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on some rank."""
        return any(self.gather(int(flag)))

    def barrier(self) -> None:
        """Wait until all ranks are here."""
        if self.size > 1:
            self.gather(0)

    def first(self, work: Callable[[], None]) -> None:
        """Let rank 0 do something that the others wait for; where it fails they do not go on."""
        if self.is_first:
            work()
        self.barrier()

    def leave(self) -> None:
        """Say good-bye, at the good end of a run only: after a failure others may never answer."""
        if self.size > 1:
            # Not by a sum: gloo's thread needs Python's lock to free its tensor, and who frees the last copy of a model
            # has the lock while it waits for that thread. PyTorch's barrier has no tensor, and waits without the lock.
            dist.barrier()
            dist.destroy_process_group()


def alone(device: torch.device) -> Group:
    """The group of a process by itself."""
    return Group(0, 1, device)


def join(device: torch.device) -> Group:
    """The group of all processes that the launcher started, once all of them have come.

    Raises:
        ParallelError: they do not find each other.
    """
    place = launched()
    if place is None or place.world_size == 1:
        return alone(device)
    _choose_interface(place, device)
    try:
        _connect(place, device)
    except (RuntimeError, ValueError) as error:
        raise ParallelError(
            f"rank {place.rank} of {place.world_size}: no connection to the others over {place.master_addr} "
            f"port {place.master_port}: {str(error).splitlines()[0]}",
            hint="are all ranks started, with the same MASTER_ADDR and MASTER_PORT, and may they talk to each other?",
        ) from error
    return Group(place.rank, place.world_size, device)


def _connect(place: Launched, device: torch.device) -> None:
    backend = _BACKENDS[device.type]
    if place.by == "WORLD_SIZE":  # torch's own variables, some of which speak of a store that a launcher holds
        dist.init_process_group(backend, device_id=_device_id(device))
        return
    where = f"tcp://{place.master_addr}:{place.master_port}"
    dist.init_process_group(
        backend, init_method=where, rank=place.rank, world_size=place.world_size, device_id=_device_id(device)
    )


def _device_id(device: torch.device) -> torch.device | None:
    return None if device.type == "cpu" else device


def _choose_interface(place: Launched, device: torch.device) -> None:
    """Let gloo talk over loopback where all ranks are here: it would else look up this machine's name."""
    try:
        local = ipaddress.ip_address(place.master_addr).is_loopback
    except ValueError:
        local = place.master_addr == "localhost"
    if device.type == "cpu" and local:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")


def copy_over_ranks(model: nn.Module, group: Group, messages: int | None = None, *, narrow: bool = False) -> nn.Module:
    """The model as one of equal copies whose gradients are summed over the ranks, while they are computed.

    It is PyTorch's DistributedDataParallel, which gathers gradients into buckets and sends each as soon as it is full;
    only that it adds where that class averages, since each rank's loss is its part of the global batch's.
    Parameters stay those of ``model``, under their names there. Gradients are sent in about as many ``messages``; None:
    in messages of PyTorch's size. With ``narrow`` they are sent and summed in bfloat16.
    """
    if group.size == 1:
        return model
    size = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    from torch.nn.parallel import DistributedDataParallel

    copy: Any = DistributedDataParallel(
        model,
        device_ids=None if group.device.type == "cpu" else [group.device],
        process_group=group.handle,
        gradient_as_bucket_view=True,
        bucket_cap_mb=None if messages is None else max(1, size // messages / 2**20),
    )
    # Without annotations: it would compare them with its own, and ours are strings. PyTorch's own hook for bfloat16 is
    # refused on gloo.
    copy.register_comm_hook(None, lambda _state, bucket: _sum(bucket.buffer(), group, narrow))
    return cast(nn.Module, copy)


def collecting_gradients(copy: nn.Module) -> AbstractContextManager[None]:
    """In it gradients are added up on this rank only, for a later backward pass to send."""
    no_sync: Callable[[], AbstractContextManager[None]] = getattr(copy, "no_sync", nullcontext)
    return no_sync()


def _sum(gradients: Tensor, group: Group, narrow: bool) -> torch.futures.Future[Tensor]:
    """The sum over a group, in place; sent in bfloat16 if ``narrow``."""
    message = gradients.bfloat16() if narrow else gradients
    work = dist.all_reduce(message, group=group.handle, async_op=True)
    summed: torch.futures.Future[Tensor] = work.get_future().then(
        lambda future: gradients.copy_(future.value()[0]) if narrow else future.value()[0]
    )
    return summed
