"""Weights and gradients that copies of a model share out (ZeRO stages 2 and 3, arXiv:1910.02054).

It is PyTorch's ``fully_shard``: weights are gathered layer by layer, the next ones while a layer computes, and
gradients are summed and shared out as soon as a layer has them, for every micro-batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

from runformer.models.decoder import CausalLM
from runformer.parallel.group import Group
from runformer.parallel.mesh import Mesh


def share_weights(models: Sequence[CausalLM], mesh: Mesh) -> None:
    """Leave of stages, which have no memory yet, what this copy of the model keeps of each parameter.

    Args:
        models: on the meta device; changed.
        mesh: the copies; weights are gathered again in the backward pass where its layout says so.
    """
    # Imported late: it takes a second and more.
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    devices = _device_mesh(mesh)
    policy = MixedPrecisionPolicy(reduce_dtype=torch.bfloat16 if mesh.options.reduce_dtype == "bfloat16" else None)
    for model in models:
        for layer in model.layers.values():
            fully_shard(layer, mesh=devices, reshard_after_forward=mesh.options.zero == 3, mp_policy=policy)
        fully_shard(model, mesh=devices, reshard_after_forward=False, mp_policy=policy)  # its backward pass comes next
        for module in _sharing(model):
            module.set_gradient_divide_factor(1.0)  # a rank's loss is its part of the global batch's
            module.set_force_sum_reduction_for_comms(True)


def let_go(model: CausalLM) -> None:
    """Free what was gathered for a forward pass that no backward pass follows."""
    for module in _sharing(model):
        module.reshard()


def _sharing(model: CausalLM) -> list[Any]:
    return [module for module in (*model.layers.values(), model) if hasattr(module, "reshard")]


def _device_mesh(mesh: Mesh) -> Any:
    from torch.distributed.device_mesh import DeviceMesh

    kind = mesh.world.device.type
    if mesh.twins.size == 1:
        return DeviceMesh.from_group(_handle(mesh.shards), kind, mesh_dim_names=("shard",))
    ranks = torch.tensor(dist.get_process_group_ranks(_handle(mesh.replicas))).view(-1, mesh.shards.size)
    handles = [_handle(mesh.twins), _handle(mesh.shards)]
    return DeviceMesh.from_group(handles, kind, mesh=ranks, mesh_dim_names=("replicate", "shard"))


def _handle(group: Group) -> dist.ProcessGroup:
    handle = group.handle or dist.group.WORLD
    assert handle is not None, "the processes have joined"
    return handle
