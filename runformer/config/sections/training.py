"""The sections about training: ``runner_config``, ``runner_wrapper``, ``optimizer``, ``lr_schedule``, ``callbacks``."""
# ruff: noqa: RUF009 - the calls wrap dataclasses.field, which the rule would allow

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from runformer.config.schema import no_effect, refused, sets
from runformer.config.sections.reasons import (
    ALWAYS,
    CHECKPOINT,
    DEAD,
    MOE,
    MONITOR,
    OTHER_OPTIMIZER,
    PLUGIN,
    PROFILER,
    VISION,
)

_ROWS = 2**24  # of a batch, and batches of a step: more than any device holds
_EPOCHS = 10**9


@dataclass(frozen=True, slots=True)
class RunnerConfig:
    """``runner_config``: how long and in what portions to train."""

    epochs: int = sets("train.epochs", "Number of passes over the dataset, in all.", 1, least=1, most=_EPOCHS)
    batch_size: int = sets("train.batch_size", "Rows in a batch.", 1, least=1, most=_ROWS)
    gradient_accumulation_steps: int = sets(
        "train.accumulation_steps", "Batches whose gradients make one optimizer step.", 1, least=1, most=_ROWS
    )
    sink_mode: bool | int = sets("train.loss_line", "Whether the loss line shows the step's loss alone.", True)
    sink_size: int | None = no_effect("every step is reported", "Steps that run on the device between reports.")
    stop_step: int | None = no_effect(DEAD, "Step to stop at.")
    num_classes: int | None = no_effect(VISION, "Number of classes.")
    image_size: int | list[int] | None = no_effect(VISION, "Size of an image.")


@dataclass(frozen=True, slots=True)
class LossScale:
    """``scale_sense`` as a group: a loss scale that may change."""

    type: str | None = sets(
        "train.loss_scale", "Kind of loss scale.", choices=("DynamicLossScaleUpdateCell", "FixedLossScaleUpdateCell")
    )
    loss_scale_value: float = sets("train.loss_scale.initial", "First loss scale.", 65536.0, above=0)
    scale_factor: float = sets("train.loss_scale.factor", "What the scale is multiplied or divided by.", 2.0, least=1)
    scale_window: int = sets("train.loss_scale.window", "Good steps after which the scale grows.", 1000, least=1)


@dataclass(frozen=True, slots=True)
class RunnerWrapper:
    """``runner_wrapper``: one training step. These are the defaults of a section that is written but incomplete."""

    type: str | None = sets("train", "MindFormers' class of a training step.")
    scale_sense: float | LossScale | None = sets("train.loss_scale", "Loss scale: a number, or a group.", above=0)
    use_clip_grad: bool = sets("train.max_grad_norm", "Whether gradients are clipped by their global norm.", False)
    max_grad_norm: float = sets(
        "train.max_grad_norm", "Largest global norm of the gradients.", 1.0, above=0, most=math.inf
    )
    local_norm: bool | None = no_effect(MONITOR, "Whether the norm of every gradient is shown.")
    calculate_per_token_loss: bool | None = no_effect(ALWAYS, "Whether the loss is a mean over tokens.")
    enable_check_overflow: bool | None = no_effect(ALWAYS, "Whether gradients are checked for overflow.")
    sens: float | None = no_effect("a constant loss scale cancels out", "Constant loss scale.")


@dataclass(frozen=True, slots=True)
class Optimizer:
    """``optimizer``: AdamW and its settings. A plug-in's section has the plug-in's keys and weight_decay."""

    type: str | None = sets(
        "train.optimizer", "AdamW; FP32StateAdamWeightDecay, the same without bias correction; or a plug-in's."
    )
    auto_register: str | None = no_effect(PLUGIN, "File and class of a plug-in.")
    betas: list[float] | None = sets(
        "train.optimizer.betas", "Decay rates of the two moments.", aliases=("adamw_betas",), least=0, most=1
    )
    beta1: float | None = sets("train.optimizer.betas", "Decay rate of the first moment.", least=0, most=1)
    beta2: float | None = sets("train.optimizer.betas", "Decay rate of the second moment.", least=0, most=1)
    eps: float | None = sets(
        "train.optimizer.eps", "Added to the denominator of the update.", aliases=("adamw_eps",), least=0
    )
    weight_decay: float = sets("train.optimizer.weight_decay", "Decoupled weight decay.", 0.0, least=0)
    learning_rate: float | None = sets(
        "train.schedule.parameters", "Learning rate where lr_schedule gives none.", least=0
    )
    use_fused: bool | None = no_effect(ALWAYS, "Whether the update is one kernel.", aliases=("use_fused_adamw",))
    amsgrad: bool | None = refused("only plain AdamW is supported", "Whether AMSGrad is used.")
    maximize: bool | None = refused("only minimising is supported", "Whether the loss is maximised.")
    swap: bool | None = no_effect(OTHER_OPTIMIZER, "Whether optimizer states wait in host memory.")
    adamw_learning_rate: float | None = no_effect(OTHER_OPTIMIZER, "Learning rate of Muon's AdamW part.")
    comm_strategy: str | None = no_effect(OTHER_OPTIMIZER, "How Muon communicates.")
    matched_adamw_rms: float | None = no_effect(OTHER_OPTIMIZER, "Size of Muon's update.")
    momentum: float | None = no_effect(OTHER_OPTIMIZER, "Momentum of Muon.")
    nesterov: bool | None = no_effect(OTHER_OPTIMIZER, "Whether Muon uses Nesterov momentum.")
    ns_coefficients: Any = no_effect(OTHER_OPTIMIZER, "Coefficients of Newton-Schulz steps.")
    ns_steps: int | None = no_effect(OTHER_OPTIMIZER, "Number of Newton-Schulz steps.")
    qk_clip_enabled: bool | None = no_effect(OTHER_OPTIMIZER, "Whether attention logits are clipped.")
    qk_clip_threshold: float | None = no_effect(OTHER_OPTIMIZER, "Largest attention logit.")


@dataclass(frozen=True, slots=True)
class LrSchedule:
    """``lr_schedule``: the curve of the learning rate; a curve reads the keys it knows, a plug-in's only its own."""

    type: str | None = sets("train.schedule.kind", "Kind of curve, or a plug-in's.")
    learning_rate: float | None = sets("train.schedule.parameters", "Learning rate after warm-up.", least=0)
    lr_end: float | None = sets("train.schedule.parameters", "Learning rate at the end.")
    warmup_ratio: float | None = sets("train.schedule.parameters", "Warm-up as a share of all steps.", least=0, most=1)
    warmup_steps: int | None = sets("train.schedule.parameters", "Steps of warm-up.", least=-1)
    warmup_epochs: int | None = sets("train.schedule.parameters", "Epochs of warm-up.", least=0)
    warmup_lr_init: float | None = sets("train.schedule.parameters", "Learning rate of the first step.", least=0)
    total_steps: int | None = sets("train.schedule.parameters", "Steps of the curve; -1: those of the run.", least=-1)
    num_cycles: float | None = sets("train.schedule.parameters", "Number of waves of a cosine.")
    power: float | None = sets("train.schedule.parameters", "Exponent of a polynomial.")
    decay_steps: int | None = sets("train.schedule.parameters", "Steps of the falling part.", least=1)
    decay_ratio: float | None = sets(
        "train.schedule.parameters", "Falling part as a share of all steps.", least=0, most=1
    )
    keep_steps: int | None = sets("train.schedule.parameters", "Steps at the full rate.", least=0)
    final_steps: int | None = sets("train.schedule.parameters", "Steps of the second fall.", least=0)
    lr_end1: float | None = sets("train.schedule.parameters", "Learning rate after the first fall.")
    lr_end2: float | None = sets("train.schedule.parameters", "Learning rate after the second fall.")
    decay_start_steps: int | None = sets("train.schedule.parameters", "Step where the fall begins.", least=0)
    decay_start_ratio: float | None = sets(
        "train.schedule.parameters", "Where the fall begins, as a share of all steps.", least=0, most=1
    )
    base_lr: float | None = sets("train.schedule.parameters", "Highest learning rate of annealing.", least=0)
    t_max: int | None = sets("train.schedule.parameters", "Half the period of annealing, in steps.", least=1)
    t_0: int | None = sets("train.schedule.parameters", "Steps until the first restart.", least=1)
    t_mult: int | None = sets("train.schedule.parameters", "Growth of the period at a restart.", least=1)
    eta_min: float | None = sets("train.schedule.parameters", "Lowest learning rate of annealing.")
    auto_register: str | None = no_effect(PLUGIN, "File and class of a plug-in.")


@dataclass(frozen=True, slots=True)
class Callback:
    """``callbacks``: accepted with all its keys, without effect here."""

    type: str | None = sets("train", "Kind of callback.")
    auto_register: str | None = no_effect(PLUGIN, "File and class of a plug-in.")


@dataclass(frozen=True, slots=True)
class LossMonitor(Callback):
    """``MFLossMonitor``: the loss line on the console."""

    per_print_times: int = sets("train.loss_line.every_steps", "Steps between loss lines.", 1, least=1)
    learning_rate: Any = no_effect(MONITOR, "Shown learning rate.")
    global_batch_size: int | None = no_effect(MONITOR, "Shown batch size.")
    micro_batch_num: int | None = no_effect(MONITOR, "Shown number of micro-batches.")
    micro_batch_interleave_num: int | None = no_effect(MONITOR, "Shown number of interleaved parts.")
    gradient_accumulation_steps: int | None = no_effect(MONITOR, "Shown number of accumulated batches.")
    origin_epochs: int | None = no_effect(MONITOR, "Shown number of epochs.")
    dataset_size: int | None = no_effect(MONITOR, "Shown number of batches.")
    initial_epoch: int | None = no_effect(MONITOR, "Shown first epoch.")
    initial_step: int | None = no_effect(MONITOR, "Shown first step.")
    device_num: int | None = no_effect(MONITOR, "Shown number of devices.")
    print_separate_loss: bool | None = no_effect(MOE, "Whether parts of the loss are shown.")
    check_for_nan_in_loss_and_grad: bool | None = no_effect(ALWAYS, "Whether a loss that is no number stops the run.")
    calculate_per_token_loss: bool | None = no_effect(ALWAYS, "Whether the loss is a mean over tokens.")


@dataclass(frozen=True, slots=True)
class CheckpointMonitor(Callback):
    """``CheckpointMonitor``: saving while training."""

    prefix: str = sets("train.save.prefix", "First part of the checkpoints' names.", "CKP")
    save_checkpoint_steps: int | None = sets(
        "train.save.every_steps", "Steps between checkpoints; 1 unless save_checkpoint_seconds is set.", least=0
    )
    keep_checkpoint_max: int | None = sets(
        "train.save.keep",
        "How many checkpoints are kept, 0: all; 5 unless keep_checkpoint_per_n_minutes is set.",
        least=0,
    )
    save_trainable_params: bool = sets(
        "train.save.trained", "Whether trained weights are also written alone, into checkpoint_trainable.", False
    )
    directory: str | None = no_effect("checkpoints lie in output_dir", "Folder for checkpoints.")
    save_checkpoint_seconds: int | None = sets(
        "train.save.every_seconds", "Seconds between checkpoints, where save_checkpoint_steps is not set.", least=0
    )
    keep_checkpoint_per_n_minutes: int | None = sets(
        "train.save.keep_minutes", "Minutes between kept checkpoints, where keep_checkpoint_max is not set.", least=0
    )
    integrated_save: bool = sets(
        "train.save.whole", "Whether rank 0 gathers tensors that are split over ranks, and writes all by itself.", False
    )
    async_save: bool = sets("train.save.behind", "Whether training goes on while files are written.", False)
    checkpoint_format: str | None = no_effect(CHECKPOINT, "Format of the files: ckpt or safetensors.")
    save_network_params: bool = sets(
        "train.save.weights", "Whether weights are also written by themselves, into checkpoint_network.", False
    )
    remove_redundancy: bool | None = no_effect(
        "each element is written once", "Whether copies on other devices are left out."
    )
    exception_save: bool | None = no_effect(CHECKPOINT, "Whether an error saves first.")
    use_checkpoint_health_monitor: bool | None = no_effect(MONITOR, "Whether healthy checkpoints are listed.")
    health_ckpts_record_dir: str | None = no_effect(MONITOR, "Folder for that list.")
    embedding_local_norm_threshold: float | None = no_effect(MONITOR, "When a checkpoint counts as healthy.")
    append_info: Any = no_effect(CHECKPOINT, "Values written into the files.")
    enc_key: str | None = refused("checkpoints are never encrypted", "Key to encrypt with.")
    enc_mode: str | None = no_effect(CHECKPOINT, "Kind of encryption.")
    global_batch_size: int | None = no_effect(MONITOR, "Noted batch size.")
    resume: bool | None = no_effect("resume_training decides", "Whether the run goes on.")


# Callbacks of the original that are not run here, and why.
OTHER_CALLBACKS = {
    "ObsMonitor": "it uploads to Huawei's cloud",
    "SummaryMonitor": "MindInsight is not written",
    "ProfileMonitor": PROFILER,
    "EvalCallBack": "do_eval and the eval_… intervals decide",
    "TrainingStateMonitor": MONITOR,
    "MaxLogitsMonitor": MONITOR,
    "LossMonitor": "MFLossMonitor prints the loss",
    "TimeMonitor": "MFLossMonitor prints the time of a step",
    "ColdHotExpertMonitor": MOE,
    "TopkBiasBalanceCallback": MOE,
    "MoEDropRateCallback": MOE,
    "StressDetectCallBack": "it tests Ascend hardware",
    "SDCMonitor": "it tests Ascend hardware",
    "TrainFaultTolerance": "it restarts Ascend processes",
}

CALLBACKS: dict[str, type] = {
    "MFLossMonitor": LossMonitor,
    "CheckpointMonitor": CheckpointMonitor,
    **dict.fromkeys(OTHER_CALLBACKS, Callback),
}


@dataclass(frozen=True, slots=True)
class MonitorConfig:
    """``monitor_config``: extra figures about a run."""

    monitor_on: bool | None = no_effect(MONITOR, "Whether extra figures are watched.")
    dump_path: str | None = no_effect(MONITOR, "Folder for them.")
    target: Any = no_effect(MONITOR, "Tensors that are watched.")
    invert: bool | None = no_effect(MONITOR, "Whether all other tensors are watched instead.")
    step_interval: int | None = no_effect(MONITOR, "Steps between figures.")
    local_loss_format: Any = no_effect(MONITOR, "Where the local loss goes.")
    device_local_loss_format: Any = no_effect(MONITOR, "Where the device's loss goes.")
    local_norm_format: Any = no_effect(MONITOR, "Where local norms go.")
    device_local_norm_format: Any = no_effect(MONITOR, "Where the device's norm goes.")
    optimizer_state_format: Any = no_effect(MONITOR, "Where norms of optimizer states go.")
    weight_state_format: Any = no_effect(MONITOR, "Where norms of weights go.")
    max_attention_logit_format: Any = no_effect(MONITOR, "Where the largest attention logit goes.")
    throughput_baseline: float | None = no_effect(MONITOR, "Throughput that counts as 100 %.")
    print_struct: bool | None = no_effect(MONITOR, "Whether the model's structure is shown.")
    check_for_global_norm: bool | None = no_effect(MONITOR, "Whether spikes of the norm are counted.")
    global_norm_spike_threshold: float | None = no_effect(MONITOR, "Norm that counts as a spike.")
    global_norm_spike_count_threshold: int | None = no_effect(MONITOR, "Number of spikes that stops the run.")
    stable_rank_config: Any = no_effect(MONITOR, "How the stable rank of weights is watched.")
    health_checkpoint: Any = no_effect(MONITOR, "How healthy checkpoints are watched.")
