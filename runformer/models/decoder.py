"""One decoder-only transformer for Llama 2/3, SmolLM2, Qwen2/2.5 and Qwen3.

Its parameters carry Hugging Face's names (``model.layers.0.self_attn.q_proj.weight``), so folders from
there load without renaming. What differs between families are fields of ``ModelOptions``.

Shape suffixes: B batch, L positions, S key positions, D hidden size, H query heads, G key-value heads,
R = H / G, K head size, F MLP width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol, Union, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from runformer.config.task import DType, ModelOptions, Precision
from runformer.models.blocks import attend_in_blocks
from runformer.models.layers import Embedding, Linear, RMSNorm, apply_rope, at_least_float32, side_by_side, swiglu
from runformer.models.part import Stage
from runformer.models.randomness import Place
from runformer.models.recall import recalling
from runformer.models.rope import rope_frequencies, rope_tables

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

TORCH_DTYPES: dict[DType, torch.dtype] = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


class LayerCache(Protocol):
    """Keys and values of one layer for the positions seen so far."""

    def update(self, keys_BGLK: Tensor, values_BGLK: Tensor) -> tuple[Tensor, Tensor]:
        """Add those of new positions; give all of them, ``(B, G, S, K)`` each."""
        ...


Rope = tuple[Tensor, Tensor]
Mask = Union[Tensor, "BlockMask"]


class Attention(nn.Module):
    """Grouped-query attention (arXiv:2305.13245) with rotary positions and, in Qwen3, normalised q and k.

    ``kv_heads_H`` is None where as many query heads read one key-value head as another; else it says which one each
    reads, which is so where heads are shared out over devices in numbers that do not divide.
    """

    kv_heads_H: Tensor | None

    def __init__(self, options: ModelOptions, precision: Precision) -> None:
        super().__init__()
        self.head_dim = options.head_dim
        q_size, kv_size = options.num_heads * options.head_dim, options.num_kv_heads * options.head_dim
        self.q_proj = Linear(options.hidden_size, q_size, bias=options.qkv_bias)
        self.k_proj = Linear(options.hidden_size, kv_size, bias=options.qkv_bias)
        self.v_proj = Linear(options.hidden_size, kv_size, bias=options.qkv_bias)
        self.o_proj = Linear(q_size, options.hidden_size, bias=options.attention_output_bias)
        self.sizes: tuple[int, ...] = ()  # of the parts of qkv_proj
        self.register_module("qkv_proj", None)
        self.register_buffer("kv_heads_H", None, persistent=False)
        norm = TORCH_DTYPES[precision.norm]
        self.q_norm = RMSNorm(options.head_dim, options.rms_norm_eps, norm) if options.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(options.head_dim, options.rms_norm_eps, norm) if options.qk_norm else nn.Identity()

    def forward(self, x_BLD: Tensor, rope: Rope, mask: Mask | None, cache: LayerCache | None) -> Tensor:
        """Attend; ``mask`` is boolean, ``(B | 1, 1, L, S)``, True where a key is seen, or a block mask.

        None is causal; a single position then sees the whole cache.
        """
        B, L, _ = x_BLD.shape
        q_BLHK, k_BLGK, v_BLGK = (out.unflatten(-1, (-1, self.head_dim)) for out in self._project(x_BLD))
        q_BHLK = apply_rope(self.q_norm(q_BLHK), *rope).transpose(1, 2)
        k_BGSK = apply_rope(self.k_norm(k_BLGK), *rope).transpose(1, 2)
        v_BGSK = v_BLGK.transpose(1, 2)
        if cache is not None:
            k_BGSK, v_BGSK = cache.update(k_BGSK, v_BGSK)
        if self.kv_heads_H is not None:
            k_BGSK, v_BGSK = k_BGSK[:, self.kv_heads_H], v_BGSK[:, self.kv_heads_H]
        out_BLD: Tensor = self.o_proj(_attend(q_BHLK, k_BGSK, v_BGSK, mask).reshape(B, L, -1))
        return out_BLD

    def _project(self, x_BLD: Tensor) -> Sequence[Tensor]:
        if self.qkv_proj is not None:
            return self.qkv_proj(x_BLD).split(self.sizes, dim=-1)  # type: ignore[no-any-return]
        return self.q_proj(x_BLD), self.k_proj(x_BLD), self.v_proj(x_BLD)

    def merge(self) -> None:
        """Take queries, keys and values from one product, for generation."""
        self.sizes = tuple(layer.out_features for layer in (self.q_proj, self.k_proj, self.v_proj))
        self.qkv_proj = side_by_side((self.q_proj, self.k_proj, self.v_proj))
        if self.qkv_proj is not None:
            del self.q_proj, self.k_proj, self.v_proj


def _attend(q_BHLK: Tensor, k_BGSK: Tensor, v_BGSK: Tensor, mask: Mask | None) -> Tensor:
    """Attention of every head, ``(B, L, H, K)`` or, where L is 1, ``(B, G, H / G, K)``."""
    if mask is not None and not isinstance(mask, Tensor):
        return attend_in_blocks(q_BHLK, k_BGSK, v_BGSK, mask).transpose(1, 2)
    heads, length, kv_heads = q_BHLK.shape[1], q_BHLK.shape[2], k_BGSK.shape[1]
    if length == 1:
        # The heads of a group read the same keys: as rows of one product they read them once.
        q_BGRK = q_BHLK.unflatten(1, (kv_heads, -1)).squeeze(3)
        return F.scaled_dot_product_attention(q_BGRK, k_BGSK, v_BGSK, attn_mask=mask)
    return F.scaled_dot_product_attention(
        q_BHLK, k_BGSK, v_BGSK, attn_mask=mask, is_causal=mask is None, enable_gqa=heads != kv_heads
    ).transpose(1, 2)


class MLP(nn.Module):
    """The SwiGLU feed-forward block; with ``recalls`` it computes gate · up again in the backward pass."""

    def __init__(self, options: ModelOptions) -> None:
        super().__init__()
        self.gate_proj = Linear(options.hidden_size, options.intermediate_size, bias=options.mlp_bias)
        self.up_proj = Linear(options.hidden_size, options.intermediate_size, bias=options.mlp_bias)
        self.down_proj = Linear(options.intermediate_size, options.hidden_size, bias=options.mlp_bias)
        self.register_module("gate_up_proj", None)
        self.recalls = False

    def forward(self, x_BLD: Tensor) -> Tensor:
        """``(B, L, D)`` to ``(B, L, D)``."""
        if self.recalls:
            return self._recalling(*self._project(x_BLD))
        out_BLD: Tensor = self.down_proj(swiglu(*self._project(x_BLD)))
        return out_BLD

    def _recalling(self, gate_BLF: Tensor, up_BLF: Tensor) -> Tensor:
        product_BLF = swiglu(gate_BLF, up_BLF)
        with recalling(product_BLF, lambda: swiglu(gate_BLF.detach(), up_BLF.detach())):
            out_BLD: Tensor = self.down_proj(product_BLF)
        return out_BLD

    def _project(self, x_BLD: Tensor) -> Sequence[Tensor]:
        if self.gate_up_proj is not None:
            return self.gate_up_proj(x_BLD).chunk(2, dim=-1)  # type: ignore[no-any-return]
        return self.gate_proj(x_BLD), self.up_proj(x_BLD)

    def merge(self) -> None:
        """Take gate and up from one product, for generation."""
        self.gate_up_proj = side_by_side((self.gate_proj, self.up_proj))
        if self.gate_up_proj is not None:
            del self.gate_proj, self.up_proj


class DecoderLayer(nn.Module):
    """Attention and MLP, each on a normalised copy of the residual stream.

    With ``recalls`` these copies are computed again in the backward pass.
    """

    def __init__(self, options: ModelOptions, precision: Precision) -> None:
        super().__init__()
        norm = TORCH_DTYPES[precision.norm]
        self.self_attn = Attention(options, precision)
        self.mlp = MLP(options)
        self.input_layernorm = RMSNorm(options.hidden_size, options.rms_norm_eps, norm)
        self.post_attention_layernorm = RMSNorm(options.hidden_size, options.rms_norm_eps, norm)
        self.recalls = False

    def forward(self, x_BLD: Tensor, rope: Rope, mask: Mask | None, cache: LayerCache | None) -> Tensor:
        """``(B, L, D)`` to ``(B, L, D)``."""
        x_BLD = self._on_normed(self.self_attn, self.input_layernorm, x_BLD, rope, mask, cache).add_(x_BLD)
        mlp_BLD = self._on_normed(self.mlp, self.post_attention_layernorm, x_BLD)
        return mlp_BLD.add_(x_BLD)

    def _on_normed(self, block: nn.Module, norm: nn.Module, x_BLD: Tensor, *further: object) -> Tensor:
        if not self.recalls:
            return block(norm(x_BLD), *further)  # type: ignore[no-any-return]
        normed_BLD = norm(x_BLD)
        with recalling(normed_BLD, lambda: norm(x_BLD.detach())):
            return block(normed_BLD, *further)  # type: ignore[no-any-return]


class Decoder(nn.Module):
    """Embedding, layers, final norm: token ids to hidden states. Or one stage of that: what it lacks is None.

    Layers keep their numbers in the whole model. A last stage whose output layer is the embedding has that, too.
    ``place`` says where in the run the next input stands, for dropout. ``recomputed`` names layers that keep nothing
    but their input, and compute again in the backward pass.
    """

    frequencies_C: Tensor

    def __init__(self, options: ModelOptions, precision: Precision, stage: Stage) -> None:
        super().__init__()
        self.precision = precision
        self.stage = stage
        has_table = stage.first or (stage.last and options.tie_embeddings)
        self.embed_tokens = Embedding(options.vocab_size, options.hidden_size) if has_table else None
        self.layers = nn.ModuleDict({str(number): DecoderLayer(options, precision) for number in stage.layers})
        norm = TORCH_DTYPES[precision.norm]
        self.norm = RMSNorm(options.hidden_size, options.rms_norm_eps, norm) if stage.last else None
        self.place = Place()
        self.recomputed: frozenset[int] = frozenset()
        frequencies_C, self.rope_factor = rope_frequencies(options)
        self.register_buffer("frequencies_C", frequencies_C, persistent=False)

    def forward(
        self,
        x: Tensor,
        *,
        positions: Tensor | None = None,
        mask: Mask | None = None,
        caches: Sequence[LayerCache] | None = None,
    ) -> Tensor:
        """Hidden states ``(B, L, D)`` after the last layer here, and after the final norm where that is here.

        Args:
            x: token ids ``(B, L)``; in a later stage the hidden states of the one before it.
            positions: ``(L,)`` or ``(B, L)``; 0, 1, 2… where None.
            mask: boolean ``(B | 1, 1, L, S)``, True where a key is seen; causal where None.
            caches: one a layer, for generation.
        """
        if positions is None:
            positions = torch.arange(x.shape[1], device=x.device)
        rotary = TORCH_DTYPES[self.precision.rotary]
        rope = rope_tables(self.frequencies_C, self.rope_factor, positions, rotary)
        if self.stage.first:
            assert self.embed_tokens is not None, "a first stage has the embedding"
            x = self.embed_tokens(x).to(TORCH_DTYPES[self.precision.compute])
        for index, (number, layer) in enumerate(self.layers.items()):
            cache = None if caches is None else caches[index]
            if int(number) in self.recomputed and torch.is_grad_enabled():
                x = self._recomputing(layer, x, rope, mask, cache)
            else:
                x = layer(x, rope, mask, cache)
        return x if self.norm is None else self.norm(x)

    def _recomputing(self, layer: nn.Module, x: Tensor, *further: object) -> Tensor:
        """A layer's output; of all that leads to it only the input is kept for the backward pass."""
        place = replace(self.place)  # by then the model may have gone on to other rows

        def again(x: Tensor) -> Tensor:
            self.place.rows_B, self.place.positions_L = place.rows_B, place.positions_L
            return layer(x, *further)  # type: ignore[no-any-return]

        return checkpoint(again, x, use_reentrant=False, preserve_rng_state=False)  # type: ignore[no-any-return]


class CausalLM(nn.Module):
    """The decoder with its output layer, which is the embedding itself where they are tied; or one stage of that.

    ``num_kv_heads`` is how many key-value heads of each layer are here.
    """

    def __init__(self, options: ModelOptions, precision: Precision, stage: Stage | None = None) -> None:
        super().__init__()
        self.options = options
        self.precision = precision
        self.num_kv_heads = options.num_kv_heads
        stage = stage or Stage(range(options.num_layers))
        self.model = Decoder(options, precision, stage)
        self.lm_head: nn.Module | None = None
        if stage.last and not options.tie_embeddings:
            self.lm_head = Linear(options.hidden_size, options.vocab_size, bias=False)

    @property
    def layers(self) -> dict[int, DecoderLayer]:
        """The layers that are here, by their numbers in the whole model."""
        return {int(number): cast(DecoderLayer, layer) for number, layer in self.model.layers.items()}

    @property
    def place(self) -> Place:
        """Where in the run the next input stands, for dropout."""
        return self.model.place

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return self.model.frequencies_C.device

    @property
    def head_weight_VD(self) -> Tensor:
        """The weight that turns hidden states into logits."""
        layer = self.model.embed_tokens if self.lm_head is None else self.lm_head
        assert layer is not None, "only a last stage has an output layer"
        assert isinstance(layer.weight, Tensor)
        return layer.weight

    def forward(
        self,
        x: Tensor,
        *,
        positions: Tensor | None = None,
        mask: Mask | None = None,
        caches: Sequence[LayerCache] | None = None,
    ) -> Tensor:
        """Hidden states ``(B, L, D)``: training and generation each need logits of only some of them.

        Arguments are those of ``Decoder``.
        """
        hidden_BLD: Tensor = self.model(x, positions=positions, mask=mask, caches=caches)
        return hidden_BLD

    def logits(self, hidden: Tensor) -> Tensor:
        """``(..., D)`` to ``(..., V)`` float32; the product runs in the compute dtype."""
        if self.lm_head is None:
            return at_least_float32(F.linear(hidden, self.head_weight_VD.to(hidden.dtype)))
        return at_least_float32(self.lm_head(hidden))
