"""Who holds what in a layout: heads, parts of parameters, stages, places of ranks."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from runformer.config.layout import ParallelOptions
from runformer.config.task import LoraOptions, ModelOptions, Precision
from runformer.errors import ConfigError
from runformer.models.build import initialise, materialise, outline
from runformer.models.part import Part, even_spans
from runformer.parallel.compose import compose
from runformer.parallel.group import Group, alone
from runformer.parallel.heads import share_heads
from runformer.parallel.mesh import Mesh, place_of
from runformer.parallel.pipeline import stages_of
from runformer.parallel.tensor import split_tensors

CPU = torch.device("cpu")
OPTIONS = ModelOptions(
    vocab_size=61, hidden_size=32, intermediate_size=50, num_layers=2, num_heads=14, num_kv_heads=2, head_dim=4,
    max_positions=16, qkv_bias=True, attention_output_bias=True, mlp_bias=True, qk_norm=True,
)  # fmt: skip


@st.composite
def head_counts(draw: st.DrawFn) -> tuple[int, int, int]:
    kv_heads, group = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    return kv_heads * group, kv_heads, draw(st.integers(1, kv_heads * group))


@given(head_counts())
def test_every_head_is_computed_once_and_reads_its_own_keys(counts: tuple[int, int, int]) -> None:
    heads, kv_heads, count = counts
    shares = share_heads(heads, kv_heads, count)
    assert [head for share in shares for head in range(*share.query)] == list(range(heads))
    assert [head for share in shares for head in range(*share.owned)] == list(range(kv_heads))
    for share in shares:
        held = list(range(*share.key_value))
        assert set(range(*share.owned)) <= set(held)
        local = len(range(*share.query))
        reads = share.reads or tuple(place * len(held) // local for place in range(local))
        assert [held[read] for read in reads] == [head // (heads // kv_heads) for head in range(*share.query)]
    sizes = [len(range(*share.query)) for share in shares]
    if kv_heads % count and count % kv_heads:
        assert max(sizes) - min(sizes) <= 1


def test_the_heads_of_the_published_plan() -> None:
    """14 query heads on 2 key-value heads, for 4 devices: 4, 3, 4, 3, each with one key-value head."""
    shares = share_heads(14, 2, 4)
    assert [share.query for share in shares] == [(0, 4), (4, 7), (7, 11), (11, 14)]
    assert [share.key_value for share in shares] == [(0, 1), (0, 1), (1, 2), (1, 2)]
    assert [share.owned for share in shares] == [(0, 1), (1, 1), (1, 2), (2, 2)]
    assert {share.reads for share in shares} == {None}


@given(st.integers(0, 200), st.integers(1, 40))
def test_spans_are_as_even_as_they_can_be(size: int, count: int) -> None:
    spans = even_spans(size, count)
    assert [index for span in spans for index in range(*span)] == list(range(size))
    lengths = [end - begin for begin, end in spans]
    assert lengths == sorted(lengths, reverse=True)
    assert max(lengths) - min(lengths) <= 1


@given(st.integers(1, 6), st.integers(1, 4), st.integers(1, 4), st.integers(1, 4))
def test_ranks_that_share_layers_are_neighbours(data: int, tensor: int, context: int, pipeline: int) -> None:
    options = ParallelOptions(data, tensor, context, pipeline)
    places = [place_of(rank, options) for rank in range(options.devices)]
    expected = itertools.product(range(pipeline), range(data), range(context), range(tensor))
    assert [(p.pipeline, p.data, p.context, p.tensor) for p in places] == list(expected)


@given(st.integers(1, 4), st.integers(1, 3), st.data())
def test_stages_have_every_layer_in_order(ranks: int, chunks: int, data: st.DataObject) -> None:
    count = ranks * chunks
    layers = data.draw(st.integers(count, 40))
    stages = stages_of(layers, ranks, chunks, None)
    assert [layer for stage in stages for layer in stage.layers] == list(range(layers))
    assert [stage.first for stage in stages] == [index == 0 for index in range(count)]
    assert [stage.last for stage in stages] == [index == count - 1 for index in range(count)]
    assert min(len(stage.layers) for stage in stages) >= 1


def test_stages_of_chosen_lengths() -> None:
    assert [stage.layers for stage in stages_of(5, 2, 1, (0, 1))] == [range(2), range(2, 5)]
    assert [stage.layers for stage in stages_of(6, 2, 2, (1, -1, 1, 1))] == [
        range(2),
        range(2, 2),
        range(2, 4),
        range(4, 6),
    ]


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("layout", [{}, {"sequence_parallel": True}, {"copies_embedding": True}], ids=str)
def test_the_parts_of_all_ranks_are_the_model(ranks: int, layout: dict[str, bool]) -> None:
    """Put together from what each rank owns, every parameter is there, every element once, with its own value."""
    lora = LoraOptions(4, 8.0, 0.0, ".*wq|.*wk|.*wo|.*w2")
    single = outline(OPTIONS, Precision(), lora)
    materialise(single, CPU)
    initialise(single, seed=2)
    wholes = {name: torch.full_like(parameter, math.nan) for name, parameter in single.named_parameters()}
    counted = dict.fromkeys(wholes, 0)
    for rank in range(ranks):
        model = outline(OPTIONS, Precision(), lora)
        split = split_tensors(model, Group(rank, ranks, CPU), ParallelOptions(tensor=ranks, **layout))  # type: ignore[arg-type]
        materialise(model, CPU)
        initialise(model, 2, split.parts)
        for name, parameter in model.named_parameters():
            assert parameter.shape == split.parts[name].held_shape, name
            split.parts[name].put(parameter.detach(), wholes[name])
            counted[name] += sum(piece.numel() for piece in split.parts[name].own(parameter))
    for name, parameter in single.named_parameters():
        assert torch.equal(wholes[name], parameter), name
        assert counted[name] == parameter.numel(), name


@pytest.mark.parametrize(
    ("layout", "words"),
    [
        (ParallelOptions(pipeline=3), "3 stages, more than the model's 2 layers"),
        (ParallelOptions(pipeline=2, chunks=2), "4 stages, more than"),
        (ParallelOptions(tensor=15), "model_parallel is 15, more than the model's 14 attention heads"),
        (ParallelOptions(pipeline=2, extra_layers=(1, 0)), "offset does not give 2 layers to 2 stages"),
    ],
)
def test_a_model_that_is_too_small_is_refused(layout: ParallelOptions, words: str) -> None:
    alone_group = alone(CPU)
    mesh = Mesh(layout, place_of(0, layout), *[alone_group] * 9)
    with pytest.raises(ConfigError, match=words):
        compose(OPTIONS, Precision(), None, mesh)


@given(st.integers(1, 20), st.integers(1, 5), st.data())
def test_a_part_takes_and_puts_its_own(rows: int, copies: int, data: st.DataObject) -> None:
    dim = data.draw(st.integers(0, 1))
    cuts = sorted(data.draw(st.sets(st.integers(0, rows), min_size=2, max_size=2))) if rows > 1 else [0, 1]
    span = (cuts[0], cuts[1])
    whole = torch.arange(rows * 3.0).reshape((rows, 3) if dim == 0 else (3, rows))
    part = Part(tuple(whole.shape), dim, (span,), (span,))
    held = part.take(whole)
    assert held.shape == part.held_shape
    target = torch.zeros_like(whole)
    part.put(held, target)
    assert torch.equal(part.take(target), held)
    assert target.count_nonzero() == held.count_nonzero()
    shared = torch.zeros_like(whole)
    for rank in range(copies):
        mine = part.shared(rank, copies)
        assert torch.equal(mine.take(whole), _chunk(held, rank, copies))
        assert mine.take(whole).shape == mine.held_shape
        assert not mine.is_whole
        mine.put(mine.take(whole), shared)
        own = sum(piece.square().sum() for piece in mine.own(mine.take(whole)))
        assert own == sum(piece.square().sum() for piece in [_chunk(held, rank, copies)])
    assert torch.equal(shared, target)


def _chunk(held: torch.Tensor, rank: int, copies: int) -> torch.Tensor:
    """As PyTorch's Shard(0) cuts."""
    chunks = held.chunk(copies)
    return chunks[rank] if rank < len(chunks) else held[:0]
