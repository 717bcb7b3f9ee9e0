"""From a GGUF file of the Llama architecture to a Hugging Face folder.

A GGUF file (llama.cpp's format) holds weights, tokenizer and chat template in one file, the weights
mostly quantised to blocks. Two things differ from a Hugging Face folder besides names: quantised
tensors are expanded to float32 here, and the rows of the q and k projections are in another order,
because llama.cpp rotates neighbouring elements (2i, 2i + 1) of a head where Hugging Face rotates the
two halves (i, i + head_dim / 2).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from runformer.checkpoint.layout import staged_directory, sync_file
from runformer.errors import CheckpointError

if TYPE_CHECKING:
    from gguf import GGUFReader
    from tokenizers import Tokenizer

Float32Array = npt.NDArray[np.float32]

CONTROL_TOKEN = 3  # values of ``tokenizer.ggml.token_type``
USER_DEFINED_TOKEN = 4

LAYER_TENSORS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def gguf_to_hf(gguf_file: Path, out_dir: Path) -> None:
    """Write ``out_dir`` with the config, float32 weights, tokenizer and chat template of ``gguf_file``.

    The folder appears whole, by one rename, or not at all. Tensors keep their shapes (out, in) and
    get Hugging Face's names; a file without ``output.weight`` becomes a model with tied embeddings.

    Raises:
        CheckpointError: the file is missing, damaged, of another architecture or with another kind of
            tokenizer; ``out_dir`` exists already or cannot be written; the package ``gguf`` is missing.
    """
    if out_dir.exists():
        raise CheckpointError(f"{out_dir} exists already", hint="remove it, or convert to another folder")
    metadata = GgufMetadata(gguf_file)
    _require_llama(metadata)
    files = {
        "config.json": _model_config(metadata),
        "generation_config.json": {name: metadata.get(key) for name, key in TOKEN_ID_KEYS.items()},
        "tokenizer_config.json": _tokenizer_config(metadata),
    }
    tokenizer = _tokenizer(metadata)
    tensors = _tensors(metadata)
    try:
        _write_folder(out_dir, files, tokenizer, tensors)
    except OSError as error:
        raise CheckpointError(
            f"cannot write {out_dir}: {error}", hint="check its disk space and permissions"
        ) from error


class GgufMetadata:
    """The keys and tensors of one GGUF file, with errors that name the file."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._reader = _open_reader(file)

    @property
    def tensors(self) -> list[Any]:
        """The file's ``gguf.ReaderTensor`` entries, in file order; their data stays on disk until read."""
        return list(self._reader.tensors)

    def get(self, key: str, default: Any = None) -> Any:
        """The value of ``key`` as Python numbers, text or a list of them."""
        field = self._reader.get_field(key)
        return default if field is None else field.contents()

    def require(self, key: str) -> Any:
        """The value of ``key``; CheckpointError where the file has none."""
        value = self.get(key)
        if value is None:
            raise CheckpointError(f"{self.file}: the key {key} is missing", hint="download the file again")
        return value


def _open_reader(file: Path) -> GGUFReader:
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise CheckpointError(
            f"{file}: reading GGUF files needs the package gguf", hint="pip install 'runformer[gguf]'"
        ) from error
    if not file.is_file():
        raise CheckpointError(f"{file}: there is no such file", hint="check the path of the GGUF file")
    try:
        return GGUFReader(file)
    # gguf checks little: a damaged file shows as whichever error the first wrong number causes.
    except Exception as error:
        raise CheckpointError(
            f"{file}: not a whole GGUF file ({type(error).__name__}: {error})", hint="download the file again"
        ) from error


def _require_llama(metadata: GgufMetadata) -> None:
    architecture = metadata.require("general.architecture")
    if architecture != "llama":
        raise CheckpointError(
            f"{metadata.file}: the architecture is {architecture!r}", hint="only GGUF files of 'llama' can be converted"
        )


TOKEN_ID_KEYS = {
    "bos_token_id": "tokenizer.ggml.bos_token_id",
    "eos_token_id": "tokenizer.ggml.eos_token_id",
    "pad_token_id": "tokenizer.ggml.padding_token_id",
}


def _model_config(metadata: GgufMetadata) -> dict[str, Any]:
    hidden_size, num_heads = metadata.require("llama.embedding_length"), metadata.require("llama.attention.head_count")
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": len(metadata.require("tokenizer.ggml.tokens")),
        "hidden_size": hidden_size,
        "intermediate_size": metadata.require("llama.feed_forward_length"),
        "num_hidden_layers": metadata.require("llama.block_count"),
        "num_attention_heads": num_heads,
        "num_key_value_heads": metadata.get("llama.attention.head_count_kv", num_heads),
        "head_dim": metadata.get("llama.rope.dimension_count", hidden_size // num_heads),
        "max_position_embeddings": metadata.require("llama.context_length"),
        "rms_norm_eps": _shortest(metadata.require("llama.attention.layer_norm_rms_epsilon")),
        "rope_theta": _shortest(metadata.get("llama.rope.freq_base", 10000.0)),
        "rope_scaling": None,
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "initializer_range": 0.02,
        "tie_word_embeddings": all(tensor.name != "output.weight" for tensor in metadata.tensors),
        "use_cache": True,
        "torch_dtype": "float32",
        **{name: metadata.get(key) for name, key in TOKEN_ID_KEYS.items()},
    }


def _shortest(value: float) -> float:
    """The shortest decimal with the same float32: GGUF stores 1e-5 as float32, which reads 9.999999747e-06."""
    return float(str(np.float32(value)))


def _tensors(metadata: GgufMetadata) -> dict[str, Float32Array]:
    """All weights under Hugging Face's names, float32; CheckpointError for one too many or too few."""
    expected = dict(_hf_names(metadata))
    heads = metadata.require("llama.attention.head_count")
    head_counts = {"attn_q": heads, "attn_k": metadata.get("llama.attention.head_count_kv", heads)}
    tensors: dict[str, Float32Array] = {}
    for tensor in metadata.tensors:
        if tensor.name not in expected:
            raise CheckpointError(f"{metadata.file}: the tensor {tensor.name} has no place in a Llama model")
        kind = tensor.name.split(".")[-2]
        array = _dequantise(metadata.file, tensor)
        if kind in head_counts:
            array = _unpermute(metadata.file, tensor.name, array, head_counts[kind])
        tensors[expected.pop(tensor.name)] = array
    expected.pop("output.weight", None)
    if expected:
        raise CheckpointError(f"{metadata.file}: the tensor {min(expected)} is missing", hint="download the file again")
    return tensors


def _hf_names(metadata: GgufMetadata) -> Iterator[tuple[str, str]]:
    yield "token_embd.weight", "model.embed_tokens.weight"
    yield "output_norm.weight", "model.norm.weight"
    yield "output.weight", "lm_head.weight"
    for layer in range(metadata.require("llama.block_count")):
        for gguf_name, hf_name in LAYER_TENSORS.items():
            yield f"blk.{layer}.{gguf_name}.weight", f"model.layers.{layer}.{hf_name}.weight"


def _dequantise(file: Path, tensor: Any) -> Float32Array:
    """One tensor as float32, shape (out, in): GGUF counts dimensions from the innermost."""
    from gguf import dequantize

    try:
        array: Float32Array = dequantize(tensor.data, tensor.tensor_type)
    except NotImplementedError as error:
        kind = tensor.tensor_type.name
        raise CheckpointError(f"{file}: the tensor {tensor.name} has the quantised type {kind}") from error
    return np.ascontiguousarray(array, dtype=np.float32)


def _unpermute(file: Path, name: str, weight: Float32Array, num_heads: int) -> Float32Array:
    """Rows of a q or k projection, (heads · head_dim, in), from neighbouring pairs back to two halves a head."""
    if weight.ndim != 2 or weight.shape[0] % (2 * num_heads):
        raise CheckpointError(
            f"{file}: the tensor {name} of shape {weight.shape} does not split into {num_heads} heads"
        )
    pairs = weight.reshape(num_heads, -1, 2, weight.shape[1])
    return np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(weight.shape))


def _tokenizer(metadata: GgufMetadata) -> Tokenizer:
    """The byte-level BPE of the file, with its control tokens as special tokens."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    kind = (metadata.require("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre", "default"))
    if kind != ("gpt2", "smollm"):
        raise CheckpointError(
            f"{metadata.file}: the tokenizer is of the kind {kind[0]}/{kind[1]}",
            hint="only gpt2/smollm can be converted; take the model's Hugging Face folder instead",
        )
    tokens: list[str] = metadata.require("tokenizer.ggml.tokens")
    merges: list[str] = metadata.require("tokenizer.ggml.merges")
    vocab = {token: index for index, token in enumerate(tokens)}
    pairs = [(left, right) for left, right in (merge.split(" ") for merge in merges)]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=pairs))
    # SmolLM's splitter is GPT-2's after every digit has been set apart.
    splitters = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(splitters)
    tokenizer.decoder = decoders.ByteLevel()
    for token, token_type in zip(tokens, metadata.require("tokenizer.ggml.token_type"), strict=True):
        if token_type in (CONTROL_TOKEN, USER_DEFINED_TOKEN):
            special = token_type == CONTROL_TOKEN
            tokenizer.add_tokens([AddedToken(token, special=special, normalized=False)])
    return tokenizer


def _tokenizer_config(metadata: GgufMetadata) -> dict[str, Any]:
    tokens = metadata.require("tokenizer.ggml.tokens")
    keys = {
        **{name.removesuffix("_id"): key for name, key in TOKEN_ID_KEYS.items()},
        "unk_token": "tokenizer.ggml.unknown_token_id",
    }
    ids = {name: metadata.get(key) for name, key in keys.items()}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": metadata.get("tokenizer.ggml.add_bos_token", False),
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": metadata.require("llama.context_length"),
        "chat_template": metadata.get("tokenizer.chat_template"),
        **{name: None if index is None else tokens[index] for name, index in ids.items()},
    }


def _write_folder(
    out_dir: Path, files: dict[str, dict[str, Any]], tokenizer: Tokenizer, tensors: dict[str, Float32Array]
) -> None:
    """Write all files beside ``out_dir`` and rename: an interrupted conversion leaves no folder."""
    from safetensors.numpy import save_file

    out_dir.parent.mkdir(parents=True, exist_ok=True)
    with staged_directory(out_dir) as folder:
        for name, content in files.items():
            (folder / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        (folder / "tokenizer.json").write_text(tokenizer.to_str(pretty=True), encoding="utf-8")
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        for file in folder.iterdir():
            sync_file(file)
