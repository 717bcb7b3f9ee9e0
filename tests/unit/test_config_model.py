"""From ``model`` to ModelTask: sizes, aliases, derived widths, rotary scaling, dtypes, LoRA, families, folders."""

from __future__ import annotations

from pathlib import Path

import pytest
from config_tasks import DATA, MINIMAL, MODEL, load

from runformer.config import LoraOptions, ModelOptions, ModelTask, Precision, RopeScaling
from runformer.errors import ConfigError


@pytest.fixture(autouse=True)
def _inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def model_of(folder: Path, extra: str = "", *arguments: str) -> ModelTask:
    """The model of the minimal task with more keys in ``model_config``."""
    lines = "".join(f"    {line}\n" for line in extra.splitlines())
    return load(folder, MINIMAL + lines, *arguments).model


def options_of(folder: Path, extra: str = "", *arguments: str) -> ModelOptions:
    options = model_of(folder, extra, *arguments).options
    assert options is not None
    return options


def error_of(folder: Path, extra: str, *arguments: str) -> str:
    with pytest.raises(ConfigError) as caught:
        model_of(folder, extra, *arguments)
    return str(caught.value)


def test_defaults_are_those_of_llama_config(tmp_path: Path) -> None:
    assert model_of(tmp_path) == ModelTask(
        name="model",
        options=ModelOptions(
            vocab_size=512,
            hidden_size=64,
            intermediate_size=256,
            num_layers=2,
            num_heads=4,
            num_kv_heads=4,
            head_dim=16,
            max_positions=48,
            bos_token_id=1,
            eos_token_ids=(2,),
            pad_token_id=0,
        ),
        pretrained_dir=None,
        precision=Precision(parameters="float16", compute="float16"),
        sequence_length=48,
    )


def test_hugging_face_names_say_the_same(tmp_path: Path) -> None:
    ours = (
        "n_kv_heads: 2\ntheta: 5e5\nqkv_has_bias: True\nmax_position_embedding: 96\n"
        "param_init_type: fp32\nqk_layernorm: True"
    )
    theirs = (
        "num_key_value_heads: 2\nrope_theta: 500000\nattention_bias: true\nmax_position_embeddings: 96\n"
        "params_dtype: float32\nuse_qk_norm: true"
    )
    assert model_of(tmp_path, ours) == model_of(tmp_path, theirs)
    assert options_of(tmp_path, ours).max_positions == 96
    assert options_of(tmp_path, theirs).rope_theta == 5e5


@pytest.mark.parametrize(
    ("hidden", "extra", "expected"),
    [
        (4096, "", 11008),  # Llama 2 7B
        (5120, "", 13824),  # Llama 2 13B
        (8192, "ffn_dim_multiplier: 1.3", 28672),  # Llama 2 70B
        (4096, "multiple_of: 1024\nffn_dim_multiplier: 1.3", 14336),  # Llama 3 8B
        (4096, "intermediate_size: 99", 99),
    ],
)
def test_intermediate_sizes_of_published_models(tmp_path: Path, hidden: int, extra: str, expected: int) -> None:
    options = options_of(tmp_path, extra, "--model.model_config.hidden_size", str(hidden))
    assert options.intermediate_size == expected


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ("scaling_factor: 1.0", None),
        ("extend_method: PI\nscaling_factor: 4", RopeScaling("linear", 4.0)),
        ("extend_method: NTK\nscaling_factor: 2.0", RopeScaling("ntk", 2.0)),
        (
            "extend_method: YARN\nscaling_factor: {factor: 40.0, original_max_position_embeddings: 4096, mscale: 0.7}",
            RopeScaling("yarn", 40.0, 4096, mscale=0.7),
        ),
        (
            "extend_method: LLAMA3\nscaling_factor: {factor: 8.0, high_freq_factor: 4.0, low_freq_factor: 1.5}",
            RopeScaling("llama3", 8.0, low_freq_factor=1.5),
        ),
        ("rope_scaling: {rope_type: llama3, factor: 8.0}", RopeScaling("llama3", 8.0)),
        ("rope_scaling: {type: linear, factor: 3}", RopeScaling("linear", 3.0)),
        ("rope_scaling: {type: default}", None),
        ("position_embedding_type: yarn\nrotary_scaling_factor: 16", RopeScaling("yarn", 16.0)),
    ],
)
def test_rotary_scaling(tmp_path: Path, extra: str, expected: RopeScaling | None) -> None:
    assert options_of(tmp_path, extra).rope_scaling == expected


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ("extend_method: DYNAMIC_NTK", "model.model_config.extend_method is DYNAMIC_NTK: use PI, NTK, YARN or LLAMA3"),
        ("extend_method: YARM", "did you mean 'YARN'?"),
        ("scaling_factor: {factor: 4.0}", "extend_method must say how"),
        ("extend_method: YARN\nscaling_factor: {mscale: 1.0}", "scaling_factor lacks 'factor'"),
        ("rope_scaling: {type: longrope, factor: 4.0}", "model.model_config.rope_scaling has the type 'longrope'"),
        ("n_kv_heads: 3", "task.yaml:14:17: model.model_config.n_kv_heads is 3, which does not divide the 4 heads"),
        ("head_dim: 15", "rotary positions need an even width"),
        ("emb_dropout_prob: 0.1\nattention_dropout: 0.2", "2 problems"),
        ("compute_dtype: fp8", "must be one of float32, fp32"),
        ("hidden_act: gelu", "hidden_act cannot be 'gelu': SwiGLU is the only one"),
        ("rotary_pct: 0.5", "all of a head is rotated"),
        ("quantization_config: {quant_method: ptq}", "quantised weights are not supported"),
        ("tie_word_embeddings: True\nuntie_embeddings_and_output_weights: True", "contradicts"),
        ("pet_config: {lora_rank: 8}", "pet_config.pet_type is not set: lora is the only kind"),
        ("pet_config: {pet_type: prefixtuning}", "pet_type is 'prefixtuning': lora is the only kind"),
        ("pet_config: {pet_type: lora, target_modules: '*wq'}", "target_modules is no regular expression"),
        ("pet_config: {pet_type: lora, lora_rnk: 8}", "did you mean 'lora_rank'?"),
    ],
)
def test_what_does_not_fit(tmp_path: Path, extra: str, expected: str) -> None:
    assert expected in error_of(tmp_path, extra)


def test_a_hidden_size_that_heads_do_not_divide(tmp_path: Path) -> None:
    assert "hidden_size is 66, which num_heads 4 does not divide" in error_of(
        tmp_path, "", "--model.model_config.hidden_size", "66"
    )
    assert options_of(tmp_path, "head_dim: 32", "--model.model_config.hidden_size", "66").head_dim == 32


def test_missing_sizes_are_named(tmp_path: Path) -> None:
    text = MINIMAL.replace("    num_layers: 2\n", "").replace("    vocab_size: 512\n", "")
    with pytest.raises(ConfigError, match="does not describe a model: vocab_size, num_layers is missing"):
        load(tmp_path, text)
    with pytest.raises(ConfigError, match="type or model_type is missing"):
        load(tmp_path, MINIMAL.replace("    type: LlamaConfig\n", ""))


def test_dtypes_and_their_aliases(tmp_path: Path) -> None:
    extra = "compute_dtype: bf16\nparam_init_type: float32\nlayernorm_compute_type: fp16\nrotary_dtype: bfloat16"
    expected = Precision("float32", "bfloat16", "float16", "float32", "bfloat16")
    assert model_of(tmp_path, extra).precision == expected


def test_lora_defaults_are_mindformers(tmp_path: Path) -> None:
    assert model_of(tmp_path, "pet_config: {pet_type: LoRA}").lora == LoraOptions(8, 16.0, 0.01, ".*wq|.*wk|.*wv|.*wo")
    extra = "pet_config: {pet_type: lora, lora_rank: 4, lora_alpha: 32, lora_dropout: 0, target_modules: '.*w1'}"
    assert model_of(tmp_path, extra).lora == LoraOptions(4, 32.0, 0.0, ".*w1")


def test_biases_ties_and_token_lists(tmp_path: Path) -> None:
    options = options_of(tmp_path, "add_bias_linear: True\nmlp_has_bias: False\neos_token_id: [7, 8]\npad_token_id: -1")
    assert (options.attention_output_bias, options.mlp_bias, options.qkv_bias) == (True, False, False)
    assert (options.eos_token_ids, options.pad_token_id) == ((7, 8), None)
    assert options_of(tmp_path, "untie_embeddings_and_output_weights: False").tie_embeddings


@pytest.mark.parametrize(
    ("family", "qkv_bias", "qk_norm"), [("llama", False, False), ("qwen2", True, False), ("qwen3", False, True)]
)
def test_newer_models_have_their_family_s_defaults(tmp_path: Path, family: str, qkv_bias: bool, qk_norm: bool) -> None:
    task = load(tmp_path, MINIMAL.replace("type: LlamaConfig", f"model_type: {family}"))
    options = task.model.options
    assert options is not None
    assert (options.qkv_bias, options.qk_norm, options.pad_token_id) == (qkv_bias, qk_norm, None)
    assert task.model.precision == Precision("float32", "bfloat16")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            MODEL.replace("LlamaConfig", "ChatGLM2Config"),
            "task.yaml:8:11: model.model_config.type: the model family of 'Chat",
        ),
        (MODEL.replace("LlamaConfig", "LlamaConfg"), "did you mean 'LlamaConfig'?"),
        (MODEL + "  arch: {type: TelechatForCausalLM}\n", "model.arch.type: the model family of 'TelechatForCausalLM'"),
        (MODEL + "    architectures: [DeepseekV3ForCausalLM]\n", "'DeepseekV3ForCausalLM' is not supported"),
        (MODEL + "moe_config: {expert_num: 8}\n", "mixtures of experts"),
        (MODEL + "    n_routed_experts: 64\n", "n_routed_experts is 64: mixtures of experts"),
        (MODEL + "    moe_intermediate_size: 768\n", "no support for mixtures of experts"),
        (MODEL + "    kv_lora_rank: 512\n", "no support for multi-head latent attention"),
        (MODEL + "trainer: {type: ImageClassificationTrainer}\n", "'ImageClassificationTrainer' is not supported"),
        ("training: {}\nparallelism: {}\n", "MindSpore Transformers 2's PyNative trainer"),
    ],
)
def test_other_families_are_refused_by_name_before_their_keys(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, f"run_mode: train\n{DATA}{text}key_of_that_family: 1\n")
    assert expected in str(caught.value)
    assert "key_of_that_family" not in str(caught.value)
    assert caught.value.hint is not None


def test_one_expert_is_a_dense_model(tmp_path: Path) -> None:
    extra = "moe_config: {expert_num: 1, capacity_factor: 1.05, some_kernel_switch: True}\n"
    assert load(tmp_path, MINIMAL + extra).model == load(tmp_path).model


def test_a_pretrained_folder_with_overrides(tmp_path: Path) -> None:
    (tmp_path / "hf").mkdir()
    text = f"run_mode: train\n{DATA}use_legacy: False\npretrained_model_dir: hf\n"
    model = "model: {model_config: {compute_dtype: bf16, add_qkv_bias: True, eos_token_id: 5, seq_length: 32}}\n"
    task = load(tmp_path, text + model + "generation_config: {eos_token_id: [9], bos_token_id: 3}\n")
    assert task.model.options is None
    assert task.model.pretrained_dir == tmp_path / "hf"
    assert task.model.overrides == {"qkv_bias": True, "eos_token_ids": (5,), "bos_token_id": 3}
    assert task.model.precision == Precision("float32", "bfloat16")
    assert task.model.sequence_length == 32
    assert task.tokenizer.directory == tmp_path / "hf"


def test_a_missing_folder_names_the_key_and_the_flag(tmp_path: Path) -> None:
    text = f"run_mode: train\n{DATA}"
    with pytest.raises(
        ConfigError, match=r"task.yaml:6:23: pretrained_model_dir is '/path/hf_dir': replace this placeh"
    ):
        load(tmp_path, text + "pretrained_model_dir: /path/hf_dir\n")
    with pytest.raises(ConfigError, match=r"command line: --pretrained_model_dir: .* there is nothing at hf"):
        load(tmp_path, text, "--pretrained_model_dir", "hf")


def test_weights_and_resuming(tmp_path: Path) -> None:
    (tmp_path / "init").mkdir()
    assert load(tmp_path, MINIMAL, "--load_checkpoint", "init").load.path == tmp_path / "init"
    by_name = MINIMAL + "    checkpoint_name_or_path: init\n"
    assert load(tmp_path, by_name).load.path == tmp_path / "init"
    task = load(tmp_path, by_name.replace("path: init", "path: llama2_7b"))
    assert task.load.path is None
    assert "weights are never downloaded" in task.notices[1]
    with pytest.raises(ConfigError, match=r"resume_training is True, and there is nothing to go on from"):
        load(tmp_path, MINIMAL, "--resume_training", "True")
    (tmp_path / "output/checkpoint").mkdir(parents=True)
    assert load(tmp_path, MINIMAL, "--resume_training", "True").load.resume
    named = load(tmp_path, MINIMAL, "--resume_training", "x_rank_0-1_2.safetensors").load
    assert (named.resume, named.resume_name) == (True, "x_rank_0-1_2.safetensors")
    assert not load(tmp_path, MINIMAL + "resume_training: 'False'\n").load.resume
    with pytest.raises(ConfigError, match=r"command line: --load_checkpoint: load_checkpoint is 'gone'"):
        load(tmp_path, MINIMAL, "--load_checkpoint", "gone")
