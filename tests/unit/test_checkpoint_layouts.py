"""Any layout in, any layout out: what ranks of one write is, bit for bit, what ranks of another read.

That each element is written once is seen to where the ranks' manifests are put together.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from runformer.checkpoint import HeldState, TrainingState, open_checkpoint, parameter_pieces, state_pieces
from runformer.checkpoint.reader import Checkpoint
from runformer.checkpoint.share import Writer
from runformer.config.layout import ParallelOptions
from runformer.config.task import LoraOptions, ModelOptions, Precision
from runformer.models.build import outline
from runformer.models.part import Box, Part
from runformer.parallel.compose import outline_parts, stage_indices
from runformer.parallel.group import Group
from runformer.parallel.mesh import place_of, shard_of
from runformer.parallel.model import ParallelModel
from runformer.parallel.pipeline import stages_of
from runformer.parallel.shards import Shards

CPU = torch.device("cpu")
OPTIONS = ModelOptions(
    vocab_size=61, hidden_size=24, intermediate_size=50, num_layers=4, num_heads=14, num_kv_heads=2, head_dim=4,
    max_positions=16, qkv_bias=True, tie_embeddings=True,
)  # fmt: skip
LORA = LoraOptions(3, 6.0, 0.0, ".*wq|.*wk|.*wo|.*w2")
WHOLE = {
    name: torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
    for number, (name, parameter) in enumerate(outline(OPTIONS, Precision(), LORA).named_parameters())
}
STATE = {
    f"{moment}.{name}": tensor * factor
    for moment, factor in (("exp_avg", 3), ("exp_avg_sq", -0.0))
    for name, tensor in WHOLE.items()
}


@dataclass
class Sizes:
    """The groups that a share of the writing hangs on."""

    options: ParallelOptions
    replicas: Group
    shards: Group
    twins: Group


@dataclass
class Rank:
    """What one rank of a layout holds, without the other processes: as much of a ``ParallelModel`` as saving needs."""

    mesh: Sizes
    parts: dict[str, Part]

    def held(self) -> dict[str, Tensor]:
        return {name: part.take(WHOLE[name]) for name, part in self.parts.items()}

    @property
    def shards(self) -> Shards:
        """Of the optimizer's states."""
        group = self.mesh.shards if self.mesh.options.zero == 1 else Group(0, 1, CPU)
        return Shards(group)


def ranks_of(layout: ParallelOptions) -> Iterator[Rank]:
    all_stages = stages_of(OPTIONS.num_layers, layout.pipeline, layout.chunks, layout.extra_layers)
    for number in range(layout.devices):
        place = place_of(number, layout)
        stages = [all_stages[index] for index in stage_indices(place.pipeline, layout)]
        shard = shard_of(place, layout)
        parts = outline_parts(OPTIONS, Precision(), LORA, layout, stages, place.tensor, shard)
        replica = place.data * layout.context + place.context
        twins = Group(replica // layout.shards, layout.replicas // layout.shards, CPU)
        yield Rank(Sizes(layout, Group(replica, layout.replicas, CPU), Group(shard, layout.shards, CPU), twins), parts)


def save(layout: ParallelOptions, folder: Path) -> Checkpoint:
    """What all ranks of a layout write."""
    own = None
    for number, rank in enumerate(ranks_of(layout)):
        model = cast(ParallelModel, rank)
        part_of = {key: rank.parts[key.partition(".")[2]] for key in STATE if key.partition(".")[2] in rank.parts}
        held = {key: part.take(STATE[key]) for key, part in part_of.items()}
        shares = {key: rank.shards.own(tensor.contiguous()) for key, tensor in held.items()}
        state = state_pieces(model, shares, lambda key, held=held, rank=rank: rank.shards.span(held[key]))
        written = TrainingState(parameter_pieces(model), state, {"step": 1})
        manifest = Writer("x", number, layout.devices).write(folder, written, lambda: None)
        own = own or manifest
    assert own is not None
    Writer("x", 0, layout.devices).put_together(folder, own)
    return open_checkpoint(folder)


def require_read(layout: ParallelOptions, checkpoint: Checkpoint) -> None:
    """Every rank of a layout reads its own slices, and those are the whole tensors'."""
    for rank in ranks_of(layout):
        held = HeldState(checkpoint, rank.parts)
        for name, part in rank.parts.items():
            expected, out = part.take(WHOLE[name]), torch.full(part.held_shape, math.nan)
            for whole, here in part.boxes(Box.of(part.held_shape)):
                checkpoint.fill(name, whole, out[here.place])
            assert same_bits(out, expected), name
            for key in (f"exp_avg.{name}", f"exp_avg_sq.{name}"):
                moment = part.take(STATE[key]).contiguous()
                assert held.shape(key) == tuple(moment.shape)
                share = torch.full_like(rank.shards.own(moment), math.nan)
                held.fill(key, share, rank.shards.span(moment))
                assert same_bits(share, rank.shards.own(moment)), key


def same_bits(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.contiguous().view(torch.int32), b.contiguous().view(torch.int32))


@st.composite
def layouts(draw: st.DrawFn) -> ParallelOptions:
    zero = draw(st.sampled_from([0, 1, 2, 3]))
    data, context = draw(st.sampled_from([1, 2, 3])), draw(st.sampled_from([1, 2]))
    sharers = draw(st.sampled_from([size for size in range(1, data * context + 1) if data * context % size == 0]))
    pipeline, chunks = draw(st.sampled_from([(1, 1), (2, 1), (2, 2), (3, 1)]))
    more: dict[str, Any] = {"schedule": "ZBVZeroBubble"} if chunks == 2 and draw(st.booleans()) else {}
    return ParallelOptions(
        data=data,
        context=context,
        tensor=draw(st.sampled_from([1, 2, 3, 4])),
        pipeline=pipeline,
        chunks=chunks,
        zero=zero,  # type: ignore[arg-type]
        sharers=sharers if zero else None,
        copies_embedding=draw(st.booleans()),
        **more,
    )


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(layouts(), layouts())
def test_any_layout_reads_what_any_other_wrote(
    tmp_path_factory: pytest.TempPathFactory, before: ParallelOptions, after: ParallelOptions
) -> None:
    folder = tmp_path_factory.mktemp("pair")
    checkpoint = save(before, folder)
    for name, tensor in (WHOLE | STATE).items():
        assert same_bits(checkpoint[name], tensor), name
    require_read(after, checkpoint)


def test_copies_share_the_writing(tmp_path: Path) -> None:
    save(ParallelOptions(data=4), tmp_path)
    sizes = [file.stat().st_size for file in tmp_path.glob("x-opt-*.safetensors")]
    assert len(sizes) == 4
    assert max(sizes) < 1.5 * min(sizes)
