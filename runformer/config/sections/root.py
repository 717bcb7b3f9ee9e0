"""The top level of a task file."""
# ruff: noqa: RUF009 - the calls wrap dataclasses.field, which the rule would allow

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from runformer.config.plugin_sections import PluginSection
from runformer.config.schema import Key, group, no_effect, refused, sets
from runformer.config.sections.data import Dataset, DatasetTask, Metric
from runformer.config.sections.device import Context, Parallel, ParallelConfig, RecomputeConfig, SwapConfig
from runformer.config.sections.foreign import PYNATIVE_SECTIONS
from runformer.config.sections.model import Model, MoeConfig
from runformer.config.sections.predict import GenerationConfig, Processor
from runformer.config.sections.reasons import (
    ALWAYS,
    ASCEND,
    CHECKPOINT,
    CLOUD,
    LOADING,
    MOE,
    MONITOR,
    NAMES,
    PARALLEL,
    PROFILER,
    RECOMPUTE,
    RESPLIT,
    VISION,
)
from runformer.config.sections.training import (
    CALLBACKS,
    Callback,
    LrSchedule,
    MonitorConfig,
    Optimizer,
    RunnerConfig,
    RunnerWrapper,
)

_TRAIN = ("train",)
_EVAL = ("eval",)
_WITH_DATA = ("train", "eval")
_PREDICT = ("predict",)


def _default_schedule() -> LrSchedule:
    return LrSchedule(type="CosineWithWarmUpLR", lr_end=0.0, warmup_ratio=0.0, total_steps=-1)


@dataclass(frozen=True, slots=True)
class Trainer:
    """``trainer``: MindFormers' class that runs the task."""

    type: str | None = sets("model", "Kind of trainer; CausalLanguageModelingTrainer.")
    model_name: str = sets("model.name", "Label of the model.", "model")


@dataclass(frozen=True, slots=True)
class Config:
    """A whole task file. Where MindFormers replaces a missing section by a template, the default here is that."""

    OTHERS: ClassVar[Mapping[str, Key]] = PYNATIVE_SECTIONS

    seed: int = sets("seed", "Seed of all random numbers.", 1, least=0, most=2**32 - 1)
    output_dir: str = sets("output_dir", "Folder for everything that is written.", "./output")
    run_mode: str | None = sets("run_mode", "What to do: train, finetune, eval or predict.")
    use_parallel: bool = sets("device", "Whether several devices work together.", False)
    load_checkpoint: str | None = sets("load.path", "Weights to start from: a file or a folder.")
    resume_training: bool | str = sets("load.resume", "Whether to go on from a checkpoint, or its name.", False)
    pretrained_model_dir: str | None = sets("model.pretrained_dir", "Hugging Face folder that describes the model.")
    use_legacy: bool | None = no_effect(ALWAYS, "Whether the model is described in the file, not in a folder.")
    save_file: str = sets("predict.save_file", "File for predicted texts.", "text_generation_result.txt")
    input_data: str | list[str] | None = sets("predict.inputs", "Prompts, or a .txt file with one a line.")
    predict_batch_size: int | None = sets("predict.batch_size", "Prompts that are answered together.", least=1)
    trainer: Trainer = group("MindFormers' class that runs the task.", Trainer)
    model: Model = group("The model.", Model)
    context: Context = group("The device, and how MindSpore compiles for it.", Context)
    runner_config: RunnerConfig = group("How long and in what portions to train.", RunnerConfig, modes=_WITH_DATA)
    runner_wrapper: RunnerWrapper = group("One training step.", lambda: RunnerWrapper(use_clip_grad=True), modes=_TRAIN)
    optimizer: Optimizer | PluginSection = group("The optimizer.", Optimizer, modes=_TRAIN, plugin="optimizer")
    lr_schedule: LrSchedule | PluginSection = group(
        "The curve of the learning rate.", _default_schedule, modes=_TRAIN, plugin="schedule"
    )
    train_dataset: Dataset = group("The dataset to train on.", Dataset, modes=_TRAIN)
    train_dataset_task: DatasetTask = group("MindFormers' class around it.", DatasetTask, modes=_TRAIN)
    callbacks: list[Callback | PluginSection] = group(
        "What happens during training.", list, variants=CALLBACKS, modes=_TRAIN, plugin="callback"
    )
    do_eval: bool = sets("evaluation", "Whether a training run evaluates in between.", False)
    eval_step_interval: int = sets("evaluation.every_steps", "Steps between evaluations; -1: none.", 100)
    eval_epoch_interval: int = sets("evaluation.every_epochs", "Epochs between evaluations; -1: none.", -1)
    eval_dataset: Dataset = group("The dataset to evaluate on.", Dataset, modes=_EVAL)
    eval_dataset_task: DatasetTask = group("MindFormers' class around it.", DatasetTask, modes=_EVAL)
    metric: Metric = group("What evaluation measures.", Metric, modes=_EVAL)
    micro_batch_interleave_num: int | None = sets(
        "train.accumulation_steps", "Parts of a batch whose work overlaps; each is a micro-batch.", least=1, most=1024
    )
    processor: Processor = group("What turns text into tokens.", Processor)
    generation_config: GenerationConfig = group("How tokens are picked.", GenerationConfig, modes=_PREDICT)
    parallel: Parallel = group("MindSpore's parallel context.", Parallel)
    parallel_config: ParallelConfig = group("Over how many devices work is split.", ParallelConfig)
    moe_config: MoeConfig = group("Experts.", MoeConfig, open=True)
    recompute_config: RecomputeConfig = group("Activations that are recomputed.", RecomputeConfig, modes=_TRAIN)
    swap_config: SwapConfig = group("Activations in host memory.", SwapConfig, modes=_TRAIN)
    monitor_config: MonitorConfig = group("Extra figures.", MonitorConfig, modes=_TRAIN)
    # Accepted without effect, or refused.
    eval_callbacks: Any = no_effect(ALWAYS, "What happens during evaluation.", modes=_EVAL)
    load_ckpt_format: str | None = no_effect(CHECKPOINT, "Format of the weights to load.")
    load_ckpt_async: bool | None = no_effect(CHECKPOINT, "Whether weights load in the background.")
    auto_trans_ckpt: bool | None = no_effect(RESPLIT, "Whether weights are re-split on loading.")
    transform_process_num: int | None = no_effect(RESPLIT, "Processes that re-split weights.", accepted=(1,), least=1)
    transform_by_rank: bool | None = no_effect(RESPLIT, "Whether each device re-splits its own weights.")
    src_strategy_path_or_dir: str | None = sets(
        "load.strategy", "MindSpore's strategy files: how the weights to load are split over ranks."
    )
    verify_checkpoint: str = sets(
        "load.verify",
        "Which chunks of a checkpoint are compared with their hashes when they are read: all, one in 16, or none.",
        "full",
        choices=("full", "sample", "none"),
    )
    only_save_strategy: bool | None = sets(
        "only_save_strategy", "Whether only the strategy files are written: which rank holds which part of the model."
    )
    remove_redundancy: bool | None = no_effect(PARALLEL, "Whether copies on other devices were left out.")
    balanced_load: bool | None = no_effect(PARALLEL, "Whether devices share reading of weights.")
    reshard_worker_num: int | None = no_effect(PARALLEL, "Processes that re-split weights.")
    use_legacy_format: bool | None = no_effect(CHECKPOINT, "Whether checkpoints have the former layout.")
    ignore_data_skip: bool = sets(
        "load.skip_steps", "Whether a resumed run begins with the first row again, not with the next one.", False
    )
    data_skip_steps: int | None = sets(
        "load.skip_steps", "Batches that a resumed run skips, rather than those that were trained on.", least=0
    )
    resume_by_last_timestamp_ckpt: bool | None = no_effect(CHECKPOINT, "Whether the newest file is taken.")
    use_graceful_exit: bool | None = no_effect(CHECKPOINT, "Whether a flag file stops the run.")
    use_checkpoint_health_monitor: bool | None = no_effect(MONITOR, "Whether healthy checkpoints are listed.")
    use_skip_data_by_global_norm: bool | None = refused("no batch is ever skipped", "Whether bad batches are.")
    print_separate_loss: bool | None = no_effect(MOE, "Whether parts of the loss are shown.")
    calculate_per_token_loss: bool | None = no_effect(ALWAYS, "Whether the loss is a mean over tokens.")
    check_for_nan_in_loss_and_grad: bool | None = no_effect(ALWAYS, "Whether a loss that is no number stops the run.")
    tensorboard: Any = no_effect(MONITOR, "Settings of TensorBoard.")
    profile: bool | None = no_effect(PROFILER, "Whether the run is profiled.")
    profile_communication: bool | None = no_effect(PROFILER, "Whether communication is.", modes=())
    profile_memory: bool | None = no_effect(PROFILER, "Whether memory is.", modes=())
    init_start_profile: bool | None = no_effect(PROFILER, "Whether profiling begins at once.", modes=())
    profile_start_step: int | None = no_effect(PROFILER, "First profiled step.", modes=())
    profile_stop_step: int | None = no_effect(PROFILER, "Last profiled step.", modes=())
    profile_rank_ids: Any = no_effect(PROFILER, "Profiled devices.", modes=())
    profile_pipeline: bool | None = no_effect(PROFILER, "Whether one device a stage is profiled.", modes=())
    profile_level: int | None = no_effect(PROFILER, "Depth of profiling.", aliases=("profiler_level",), modes=())
    mstx: bool | None = no_effect(PROFILER, "Whether ranges are marked.", modes=())
    auto_tune: bool | None = no_effect(LOADING, "Whether reading is tuned.")
    filepath_prefix: str | None = no_effect(LOADING, "Where that tuning is kept.", modes=())
    autotune_per_step: int | None = no_effect(LOADING, "How often reading is tuned.", modes=())
    train_precision_sync: bool | None = no_effect(ASCEND, "Whether training is deterministic.")
    infer_precision_sync: bool | None = no_effect(ASCEND, "Whether predicting is deterministic.")
    exclude_cann_cpu: bool | None = no_effect(ASCEND, "Whether Ascend's own cores are left free.")
    postprocess_use_numpy: bool | None = no_effect(ASCEND, "Whether tokens are picked on the host.")
    kernel_launch_group: Any = no_effect(ASCEND, "Groups of threads that launch kernels.")
    jit_level: str | None = no_effect(ASCEND, "Optimisation level of MindSpore's compiler.")
    npu_num_per_node: int | None = no_effect(PARALLEL, "Devices of a machine.")
    remote_save_url: str | None = no_effect(CLOUD, "Where results are uploaded.")
    layer_scale: bool | None = no_effect(VISION, "Whether layers have rates of their own.")
    layer_decay: float | None = no_effect(VISION, "Decay of those rates.")
    lr_scale: bool | None = refused("give the learning rate outright", "Whether the rate grows with the batch.")
    lr_scale_factor: int | None = no_effect("lr_scale is off", "Batch size at which it does not.")
    grouped_lr_schedule: Any = refused("one curve serves all weights", "Curves for groups of weights.")
    adapter_id: str | list[str] | None = refused("one adapter is used for all prompts", "Adapter of each prompt.")
    modal_type: str | list[str] | None = refused(
        "only text can be predicted", "Kind of each prompt.", accepted=("text", ["text"])
    )
    trust_remote_code: bool = sets(
        "plugins", "On the command line: whether plug-ins run that every user of the machine can change.", False
    )
    top_k: int | None = no_effect("model.model_config.top_k decides", "Number of answers of a classifier.")
    offload: Any = no_effect(RECOMPUTE, "What waits in host memory.")
    task_name: str | None = no_effect(NAMES, "Label.")
