"""Tensor parallelism: each process of a group computes with a part of every layer's weights (arXiv:1909.08053).

A table says how each linear layer is cut: the first ones of a block by their outputs (rows of their weights), the last
one by its inputs (columns), so that a block needs one sum at its end. What PyTorch's DTensor cannot say is why layers
are cut here: shares that differ in size, and key-value heads that several processes hold.

With sequence parallelism each process holds some of the positions between blocks (arXiv:2205.05198).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runformer.config.layout import ParallelOptions
from runformer.models.decoder import CausalLM
from runformer.models.layers import Embedding, Linear
from runformer.models.lora import LoraLinear
from runformer.models.part import Part, Span, even_spans
from runformer.parallel.collectives import enter, leave
from runformer.parallel.group import Group
from runformer.parallel.heads import share_heads

ROWS, COLUMNS = 0, 1

_PLAN: Mapping[str, tuple[int, str]] = {
    "self_attn.q_proj": (ROWS, "query"),
    "self_attn.k_proj": (ROWS, "key_value"),
    "self_attn.v_proj": (ROWS, "key_value"),
    "self_attn.o_proj": (COLUMNS, "query"),
    "mlp.gate_proj": (ROWS, "width"),
    "mlp.up_proj": (ROWS, "width"),
    "mlp.down_proj": (COLUMNS, "width"),
}
"""How each linear layer of a decoder layer is cut, and by which sizes."""


class _Cut(NamedTuple):
    """One process's share of a size: what it holds, and which of that it answers for."""

    held: Span
    owned: Span


@dataclass
class TensorSplit:
    """What was done to a model.

    Attributes:
        parts: what this process holds of each parameter.
        partial: parameters, held whole by all, whose gradients are parts of a sum.
        overlapping: parameters of which several processes hold the same rows.
        vocabulary: the tokens whose scores this process computes.
    """

    parts: dict[str, Part] = field(default_factory=dict)
    partial: set[str] = field(default_factory=set)
    overlapping: set[str] = field(default_factory=set)
    vocabulary: Span = (0, 0)


def split_tensors(model: CausalLM, group: Group, layout: ParallelOptions) -> TensorSplit:
    """Leave of a model, which has no memory yet, what this process computes with.

    Args:
        model: on the meta device; changed.
        group: the processes that share each layer.
        layout: whether positions between blocks are shared out, too (sequence parallelism), and whether each process
            has a copy of the embedding; one that serves as output layer is shared in any case.
    """
    spread = layout.sequence_parallel
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    split = TensorSplit(vocabulary=even_spans(model.options.vocab_size, group.size)[group.rank])
    if group.size > 1:
        _cut_layers(model, group, split)
        copied = layout.copies_embedding and not model.options.tie_embeddings
        _cut_vocabulary(model, group, split, spread=spread, copied=copied)
        _join_blocks(model, group, spread)
    for name, _ in model.named_parameters():
        split.parts.setdefault(name, Part.whole(shapes[name], owned=group.rank == 0))
        if group.size > 1 and (name.endswith(("q_norm.weight", "k_norm.weight")) or (spread and "norm" in name)):
            split.partial.add(name)
    return split


def _cut_layers(model: CausalLM, group: Group, split: TensorSplit) -> None:
    options = model.options
    shares = share_heads(options.num_heads, options.num_kv_heads, group.size)
    own = shares[group.rank]
    model.num_kv_heads = own.key_value[1] - own.key_value[0]
    width = even_spans(options.intermediate_size, group.size)[group.rank]
    size = options.head_dim
    query, key_value, owned = ((begin * size, end * size) for begin, end in (own.query, own.key_value, own.owned))
    cuts = {"query": _Cut(query, query), "key_value": _Cut(key_value, owned), "width": _Cut(width, width)}
    overlaps = sum(end - begin for begin, end in (share.key_value for share in shares)) > options.num_kv_heads
    for number, layer in model.layers.items():
        for name, (dim, sizes) in _PLAN.items():
            prefix = f"model.layers.{number}.{name}."
            linear = cast(Linear, layer.get_submodule(name))
            cut_names = _cut_linear(linear, prefix, dim, cuts[sizes], group, split)
            if overlaps and sizes == "key_value":
                split.overlapping.update(cut_names)
        layer.self_attn.kv_heads_H = None if own.reads is None else torch.tensor(own.reads)


def _cut_linear(linear: Linear, prefix: str, dim: int, cut: _Cut, group: Group, split: TensorSplit) -> list[str]:
    """Cut a layer's weight and what goes with it; the names of what was cut."""
    names = [_cut(linear, "weight", prefix, dim, cut, split)]
    if linear.bias is not None:
        if dim == ROWS:
            names.append(_cut(linear, "bias", prefix, dim, cut, split))
        elif group.rank > 0:
            linear.register_parameter("bias", None)  # what all give is summed, and it has to be in that once
    if isinstance(linear, LoraLinear):
        factor, other = ("lora_B", "lora_A") if dim == ROWS else ("lora_A", "lora_B")
        names.append(_cut(getattr(linear, factor), "weight", f"{prefix}{factor}.", dim, cut, split))
        split.partial.add(f"{prefix}{other}.weight")
        linear.first_feature = cut.held[0] if dim == COLUMNS else 0
    return names


def _cut(module: nn.Module, name: str, prefix: str, dim: int, cut: _Cut, split: TensorSplit) -> str:
    whole = getattr(module, name)
    part = Part(tuple(whole.shape), dim, (cut.held,), (cut.owned,) if cut.owned[0] < cut.owned[1] else ())
    split.parts[prefix + name] = part
    held = torch.empty(part.held_shape, dtype=whole.dtype, device="meta")
    setattr(module, name, nn.Parameter(held, requires_grad=whole.requires_grad))
    if isinstance(module, nn.Linear) and name == "weight":
        module.out_features, module.in_features = part.held_shape
    return prefix + name


class VocabularyEmbedding(Embedding):
    """The rows of some tokens; those of all processes together are the table.

    It gives the sum over the group, in which each token's row is there once.
    """

    def __init__(self, whole: nn.Embedding, group: Group, span: Span, *, spread: bool) -> None:
        super().__init__(span[1] - span[0], whole.embedding_dim, device="meta", dtype=whole.weight.dtype)
        self.weight.requires_grad_(whole.weight.requires_grad)
        self.group, self.span, self.spread = group, span, spread

    def forward(self, tokens_BL: Tensor) -> Tensor:
        """``(B, L)`` token ids to ``(B, L, D)``, or to this process's share of the positions."""
        begin, end = self.span
        is_here_BL = (tokens_BL >= begin) & (tokens_BL < end)
        rows_BLD = F.embedding(torch.where(is_here_BL, tokens_BL - begin, 0), self.weight)
        return leave(rows_BLD * is_here_BL.unsqueeze(-1), self.group, spread=self.spread)


def _cut_vocabulary(model: CausalLM, group: Group, split: TensorSplit, *, spread: bool, copied: bool) -> None:
    cut = _Cut(split.vocabulary, split.vocabulary)
    table = model.model.embed_tokens
    if table is not None and copied:
        if spread:  # each looks up its own positions
            table.register_forward_pre_hook(lambda _, given: (given[0].chunk(group.size, 1)[group.rank],))
            split.partial.add("model.embed_tokens.weight")
    elif table is not None:
        part = Part(tuple(table.weight.shape), ROWS, (cut.held,), (cut.owned,))
        split.parts["model.embed_tokens.weight"] = part
        model.model.embed_tokens = VocabularyEmbedding(table, group, split.vocabulary, spread=spread)
    if model.lm_head is not None:
        _cut_linear(cast(Linear, model.lm_head), "lm_head.", ROWS, cut, group, split)


def _join_blocks(model: CausalLM, group: Group, spread: bool) -> None:
    def before(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return enter(inputs[0], group, spread=spread), *inputs[1:]

    def after(_: nn.Module, __: tuple[Any, ...], output: Tensor) -> Tensor:
        return leave(output, group, spread=spread)

    for layer in model.layers.values():
        for block in (layer.self_attn, layer.mlp):
            block.register_forward_pre_hook(before)
            block.register_forward_hook(after)
    if model.model.norm is not None:  # the output layer is one more block, with the loss at its end
        model.model.norm.register_forward_hook(lambda _, __, hidden: enter(hidden, group, spread=spread))
