"""The Task: what one run does, in the terms of PyTorch users.

``runformer.config`` makes it from a MindFormers YAML file and the command line; the rooms above see
only this, never a MindFormers key. It is plain frozen data, and making it imports no torch: dtypes are
names (``"float32"``, ``"bfloat16"``, ``"float16"``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from runformer.config.data_sources import MegatronFiles as MegatronFiles
from runformer.config.data_sources import MindRecordFiles as MindRecordFiles
from runformer.config.dataset import DataOptions as DataOptions
from runformer.config.dataset import DataSource as DataSource
from runformer.config.dataset import DocumentOptions as DocumentOptions
from runformer.config.dataset import PaddingOptions as PaddingOptions
from runformer.config.dataset import Shuffle as Shuffle
from runformer.config.layout import ParallelOptions, SearchOptions
from runformer.config.options import PluginOptions as PluginOptions
from runformer.config.options import TokenizerOptions as TokenizerOptions
from runformer.errors import ConfigError

DType = Literal["float64", "float32", "bfloat16", "float16"]
"""``float64`` is for proofs that two ways to compute are one: no task file can ask for it."""
RunMode = Literal["train", "finetune", "eval", "predict"]


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """How rotary positions are stretched beyond the trained length.

    ``linear`` divides positions by ``factor``; ``ntk`` multiplies the base by it; ``yarn``
    (arXiv:2309.00071) and ``llama3`` (Llama 3.1) blend the two by wavelength.
    """

    kind: Literal["linear", "ntk", "yarn", "llama3"]
    factor: float
    original_max_positions: int | None = None
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0  # llama3
    beta_fast: float = 32.0  # yarn
    beta_slow: float = 1.0  # yarn
    attention_factor: float | None = None  # yarn; None: from factor and the two mscales
    mscale: float | None = None  # yarn
    mscale_all_dim: float | None = None  # yarn


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """The shape of one decoder-only transformer. Sizes are counts of elements, heads or layers."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_positions: int
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    qkv_bias: bool = False
    attention_output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    tie_embeddings: bool = False
    initializer_range: float = 0.02
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    pad_token_id: int | None = None


@dataclass(frozen=True, slots=True)
class Precision:
    """The dtype of each part of the model: stored weights, matrix products, norms, softmax, rotary tables."""

    parameters: DType = "float32"
    compute: DType = "float32"
    norm: DType = "float32"
    softmax: DType = "float32"
    rotary: DType = "float32"


@dataclass(frozen=True, slots=True)
class LoraOptions:
    """Low-rank adapters (arXiv:2106.09685): ``y = W x + (alpha / rank) · B A dropout(x)``.

    ``target_modules`` is a regular expression over MindFormers' names of the linear layers (``wq``, ``w1``, …) or
    Hugging Face's (``q_proj``, ``gate_proj``, …), ``exclude`` others of layers that get none all the same. Beside the
    adapters those parameters are trained that no pattern of ``freeze`` fits, or one of ``spare`` does (``*`` and ``?``
    as in file names).
    """

    rank: int
    alpha: float
    dropout: float
    target_modules: str
    exclude: tuple[str, ...] = ()
    freeze: tuple[str, ...] = ("*",)
    spare: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelTask:
    """Which model to build.

    Either ``options`` (all from the YAML), or ``pretrained_dir`` (a Hugging Face folder whose
    ``config.json`` describes it) with ``overrides``: ModelOptions fields that the YAML sets by name. In a dry run
    both may be missing. ``name`` is the recipe's label for it.
    """

    name: str
    options: ModelOptions | None
    pretrained_dir: Path | None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    precision: Precision = Precision()
    lora: LoraOptions | None = None
    sequence_length: int | None = None


Verify = Literal["full", "sample", "none"]
"""Of which chunks of a checkpoint the hashes are compared while it is read."""


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """Where weights come from, and whether the run goes on from a checkpoint.

    ``path`` is what ``load_checkpoint`` names: one of our checkpoints or the folder that holds them, a
    Hugging Face folder, a safetensors or MindSpore file, a MindFormers folder. ``resume_name`` picks one inside it.
    Adapters alone stand on the weights of ``base``. ``strategy`` names MindSpore's files that say how a folder of
    several ranks is cut. What is read of one of our checkpoints is compared with its hashes as ``verify`` says. A
    resumed run goes on with the next row of the data, or behind ``skip_steps`` batches from its beginning.
    """

    path: Path | None = None
    resume: bool = False
    resume_name: str | None = None
    base: Path | None = None
    strategy: Path | None = None
    verify: Verify = "full"
    skip_steps: int | None = None


@dataclass(frozen=True, slots=True)
class OptimizerOptions:
    """AdamW with decoupled weight decay (arXiv:1711.05101); without ``bias_correction`` moments count as they are."""

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    bias_correction: bool = True


@dataclass(frozen=True, slots=True)
class PluginOptimizerOptions(PluginOptions):
    """An optimizer of a plug-in. ``weight_decay`` is that of matrices; biases and norms have none."""

    weight_decay: float = 0.0


@dataclass(frozen=True, slots=True)
class ScheduleOptions:
    """A learning-rate curve: ``kind`` is MindFormers' name of it, ``parameters`` its arguments by name.

    ``total_steps`` and ``warmup_*`` left out or -1 follow from the length of the run.
    """

    kind: str
    parameters: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class PluginScheduleOptions(PluginOptions):
    """A learning-rate curve of a plug-in. ``total_steps`` None: those of the run."""

    total_steps: int | None = None


@dataclass(frozen=True, slots=True)
class LossScaleOptions:
    """Multiply the loss before the backward pass, divide gradients after it (needed by float16).

    Dynamic: on overflow the step is skipped and the scale divided by ``factor``; after ``window`` good
    steps it is multiplied by it.
    """

    initial: float = 1.0
    dynamic: bool = False
    factor: float = 2.0
    window: int = 1000


@dataclass(frozen=True, slots=True)
class SaveOptions:
    """When checkpoints are written, how, and which are kept.

    One is due every ``every_steps``, or, where ``every_seconds`` is set, when so many have passed since the last. The
    ``keep`` newest stay, or, where that is None, one for every ``keep_minutes``, or all. Processes write their own
    parts; with ``whole`` rank 0 gathers all of them. ``behind``: training goes on meanwhile. With ``weights``
    parameters are written by themselves, too, with ``trained`` those that are trained.
    """

    prefix: str = "CKP"
    every_steps: int | None = 1
    every_seconds: int | None = None
    keep: int | None = 5
    keep_minutes: int | None = None
    whole: bool = False
    behind: bool = False
    weights: bool = False
    trained: bool = False


@dataclass(frozen=True, slots=True)
class LossLineOptions:
    """The console loss line: printed every ``every_steps``; ``running_mean`` adds the epoch's mean."""

    every_steps: int = 1
    running_mean: bool = False


LossMean = Literal["global", "micro_batch", "rank_summed", "rank_averaged"]
"""What a step's loss is a mean over: the counted tokens of the whole global batch; or as the original has it, those of
each micro-batch over all ranks, averaged over micro-batches; or those of each rank, with gradients summed or averaged
over ranks."""


@dataclass(frozen=True, slots=True)
class TrainTask:
    """Everything that a training run needs besides the model.

    Each data-parallel copy of the model takes ``batch_size`` rows at a time, ``accumulation_steps`` times a step:
    these are the micro-batches, in a pipeline, too.
    """

    data: DataOptions
    epochs: int
    batch_size: int
    accumulation_steps: int
    optimizer: OptimizerOptions | PluginOptimizerOptions
    schedule: ScheduleOptions | PluginScheduleOptions
    loss_scale: LossScaleOptions
    max_grad_norm: float | None
    save: SaveOptions | None
    loss_mean: LossMean = "global"
    loss_line: LossLineOptions = LossLineOptions()
    callbacks: tuple[PluginOptions, ...] = ()


@dataclass(frozen=True, slots=True)
class EvaluationTask:
    """The loss and perplexity on a dataset that is not trained on: by itself, or in between while training.

    ``every_steps`` and ``every_epochs`` say how often a training run evaluates; None: not at such points.
    """

    data: DataOptions
    batch_size: int
    every_steps: int | None = None
    every_epochs: int | None = None


@dataclass(frozen=True, slots=True)
class GenerationOptions:
    """How tokens are picked. None: the model folder's ``generation_config.json``, then Hugging Face's default."""

    max_new_tokens: int | None = None
    max_length: int | None = None
    do_sample: bool | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float | None = None


@dataclass(frozen=True, slots=True)
class PredictTask:
    """Prompts and how to answer them. ``inputs`` is what ``--predict_data`` gave: texts, or one ``.txt`` file."""

    inputs: tuple[str, ...]
    batch_size: int | None
    chat: bool
    generation: GenerationOptions
    save_file: Path


@dataclass(frozen=True, slots=True)
class DeviceOptions:
    """``kind`` None: the best there is (NPU, CUDA, then CPU). ``index`` counts devices of that kind."""

    kind: Literal["cpu", "cuda", "npu"] | None
    index: int = 0


@dataclass(frozen=True, slots=True)
class Task:
    """One run, whole. ``train`` is set when training, ``predict`` when predicting; never both.

    ``evaluation`` is set by itself when evaluating, and beside ``train`` where the run evaluates in between.
    ``compile``: ``never``, ``accelerator`` (only there) or ``always``. ``notices`` tell the user what
    was read differently from how it is written, and which keys mean nothing here; ``without_effect`` has the latter
    as reason → keys. ``plugins`` are the files whose code was run for it.

    Where ``search`` is set, ``parallel`` only says for how many copies of the model the rows of a step are written.

    ``not_built`` names, with their places, parts of a valid task that cannot be run yet: see ``require_built``.

    With ``dry_run`` the run is only planned; ``to_fill_in`` are keys whose paths are missing so far, with what they
    say now, and the parts of the task that they lead to are absent. With ``only_save_strategy`` it writes down which
    rank would hold which part of the model, and nothing else.
    """

    run_mode: RunMode
    config_file: Path
    output_dir: Path
    seed: int
    device: DeviceOptions
    compile: Literal["never", "accelerator", "always"]
    model: ModelTask
    tokenizer: TokenizerOptions
    load: LoadOptions
    train: TrainTask | None
    predict: PredictTask | None
    evaluation: EvaluationTask | None = None
    parallel: ParallelOptions = field(default_factory=ParallelOptions)
    search: SearchOptions | None = None
    notices: tuple[str, ...] = ()
    without_effect: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    plugins: tuple[str, ...] = ()
    not_built: tuple[str, ...] = ()
    dry_run: bool = False
    only_save_strategy: bool = False
    to_fill_in: Mapping[str, str] = field(default_factory=dict)

    def require_built(self) -> None:
        """Stop before a run that cannot be made yet.

        Raises:
            ConfigError: naming everything that is not built.
        """
        if self.not_built:
            hint = "--dry_run True plans it as it is"
            raise ConfigError("\n".join(self.not_built), hint=hint)

    @property
    def global_batch_size(self) -> int:
        """Rows of one training step, over all copies of the model."""
        assert self.train is not None, "the task trains"
        return self.train.batch_size * self.train.accumulation_steps * self.parallel.data
