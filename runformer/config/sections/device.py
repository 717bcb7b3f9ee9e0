"""The sections about devices: ``context``, ``parallel``, ``parallel_config``, ``recompute_config``, ``swap_config``."""
# ruff: noqa: RUF009 - the calls wrap dataclasses.field, which the rule would allow

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from runformer.config.schema import group, no_effect, sets
from runformer.config.sections.reasons import ALWAYS, ASCEND, MOE, PARALLEL, RECOMPUTE, STRATEGY

_SCHEDULERS = ("1f1b", "gpipe", "zero_bubble_v", "seqpipe", "seqvpp", "seqsmartvpp")
_DEVICES = 2**20  # of one dimension: more than any cluster has


@dataclass(frozen=True, slots=True)
class Context:
    """``context``: the device, and how MindSpore compiles for it."""

    mode: int | None = sets(
        "compile", "Run mode of the model: 0 compiles it as a graph, 1 runs it eagerly.", least=0, most=1
    )
    device_target: str | None = sets("device.kind", "Kind of device: Ascend, GPU or CPU.")
    device_id: int = sets("device.index", "Which device of that kind to use, counted from 0.", 0, least=0)
    max_device_memory: str | None = sets(
        "search.memory", "Memory of a device, such as 58GB, for which parallel_mode 2 (AUTO_PARALLEL) finds a layout."
    )
    max_call_depth: int | None = no_effect(ASCEND, "Upper limit of nested calls in a graph.")
    save_graphs: bool | int | None = no_effect(ASCEND, "Whether compiled graphs are written to disk.")
    save_graphs_path: str | None = no_effect(ASCEND, "Folder for compiled graphs.")
    jit_config: dict[str, Any] | None = no_effect(ASCEND, "Options of MindSpore's just-in-time compiler.")
    jit_level: str | None = no_effect(ASCEND, "Optimisation level of MindSpore's compiler.")
    ascend_config: dict[str, Any] | None = no_effect(ASCEND, "Options of the Ascend backend.")
    gpu_config: dict[str, Any] | None = no_effect(ASCEND, "Options of MindSpore's GPU backend.")
    memory_optimize_level: str | None = no_effect(ASCEND, "How hard MindSpore optimises memory: O0 or O1.")
    mempool_block_size: str | None = no_effect(ASCEND, "Size of one block of the memory pool.")
    affinity_cpu_list: Any = no_effect(ASCEND, "Which CPU cores each device's process is bound to.")
    affinity_config: Any = no_effect(ASCEND, "Which CPU cores each device's process is bound to.")
    enable_graph_kernel: bool | None = no_effect(ASCEND, "Whether small operators are fused into kernels.")
    graph_kernel_flags: str | None = no_effect(ASCEND, "Flags of that fusion.")
    infer_boost: str | bool | None = no_effect(ASCEND, "Whether Ascend's inference accelerator is used.")
    deterministic: str | bool | None = no_effect(ASCEND, "Whether Ascend's kernels run deterministically.")
    op_timeout: int | None = no_effect(ASCEND, "Seconds after which an operator counts as hanging.")
    print_file_path: str | None = no_effect(ASCEND, "File for what MindSpore's Print operator writes.")
    runtime_num_threads: int | None = no_effect(ASCEND, "Number of threads of MindSpore's runtime.")
    kernel_launch_group: Any = no_effect(ASCEND, "Groups of threads that launch kernels.")
    pynative_synchronize: bool | None = no_effect(ASCEND, "Whether eager operators wait for the device.")


@dataclass(frozen=True, slots=True)
class PipelineConfig:
    """``parallel.pipeline_config``: in which order stages compute."""

    pipeline_interleave: bool | None = no_effect(ALWAYS, "Whether a device may have several stages.")
    pipeline_scheduler: str | None = sets(
        "parallel.schedule", "Order of forward and backward passes.", choices=_SCHEDULERS
    )


@dataclass(frozen=True, slots=True)
class ParallelOptimizerConfig:
    """``parallel.parallel_optimizer_config``: what ``enable_parallel_optimizer`` splits, and over how many copies."""

    gradient_accumulation_shard: bool | None = sets(
        "parallel.zero", "Whether gradients, and weights between steps, are split, too (ZeRO stage 2)."
    )
    optimizer_level: str | None = sets(
        "parallel.zero",
        "What is split: level1 is optimizer states, level2 gradients, too, level3 weights at all times.",
        choices=("level1", "level2", "level3"),
    )
    optimizer_weight_shard_size: int | None = sets(
        "parallel.sharers", "Over how many copies of the model; -1: over all of them.", least=-1, most=_DEVICES
    )
    parallel_optimizer_threshold: int | None = no_effect(PARALLEL, "Size in KB below which nothing is split.")


@dataclass(frozen=True, slots=True)
class Parallel:
    """``parallel``: MindSpore's parallel context."""

    parallel_mode: int | str | None = sets(
        "parallel", "How work is split: 0 (DATA_PARALLEL) to 3 (HYBRID_PARALLEL), or STAND_ALONE."
    )
    full_batch: bool | None = no_effect(PARALLEL, "Whether every device loads the whole batch.")
    search_mode: str | None = no_effect(PARALLEL, "How automatic parallelism searches for a strategy.")
    enable_parallel_optimizer: bool | None = sets(
        "parallel.zero", "Whether optimizer states are split over the copies of the model."
    )
    gradients_mean: bool | None = sets(
        "train.loss_mean", "Whether gradients are averaged over devices, not summed; with reference_semantics only."
    )
    reference_semantics: bool = sets(
        "train.loss_mean",
        "Whether losses are normalised as the original does: by each rank or micro-batch for itself.",
        default=False,
    )
    gradient_reduce_dtype: str | None = sets(
        "parallel.reduce_dtype",
        "In which dtype copies of the model sum their gradients: bfloat16 halves what they send, and is not exact.",
        default="float32",
        choices=("float32", "bfloat16"),
    )
    loss_repeated_mean: bool | None = no_effect(PARALLEL, "Whether a repeated loss is averaged over devices.")
    enable_alltoall: bool | None = no_effect(PARALLEL, "Whether all-to-all communication may be used.")
    dataset_strategy: Any = no_effect(PARALLEL, "How each input column is split over devices.")
    strategy_ckpt_save_file: str | None = no_effect(STRATEGY, "File for the strategy of each tensor.")
    strategy_ckpt_load_file: str | None = no_effect(STRATEGY, "Strategy file to start from.")
    strategy_ckpt_config: dict[str, Any] | None = no_effect(STRATEGY, "What the strategy file holds.")
    parallel_optimizer_config: ParallelOptimizerConfig = group(
        "How much is split over the copies of the model.", ParallelOptimizerConfig
    )
    pipeline_config: PipelineConfig = group("How pipeline stages are scheduled.", PipelineConfig)
    auto_parallel_search_mode: str | None = no_effect(PARALLEL, "Former name of search_mode.")
    auto_pipeline: bool | None = no_effect(PARALLEL, "Whether the pipeline's layout is searched for.")
    device_num: int | None = no_effect(PARALLEL, "Number of devices.")
    communi_parallel_mode: str | None = no_effect(PARALLEL, "How communication is laid over computation.")
    comm_fusion: Any = no_effect(PARALLEL, "How communication operators are fused.")
    group_ckpt_save_file: str | None = no_effect(STRATEGY, "File for the communication groups.")
    parameter_broadcast: bool | None = no_effect(PARALLEL, "Whether device 0 sends its weights to the others.")


@dataclass(frozen=True, slots=True)
class ParallelConfig:
    """``parallel_config``: over how many devices each dimension is split. Their product is the number of devices."""

    data_parallel: int | None = sets(
        "parallel.data", "Number of copies of the model, each with its own rows.", least=1, most=_DEVICES
    )
    model_parallel: int | None = sets(
        "parallel.tensor", "Number of devices that share each layer.", least=1, most=_DEVICES
    )
    context_parallel: int | None = sets(
        "parallel.context", "Number of devices that share each sequence.", least=1, most=_DEVICES
    )
    expert_parallel: int | None = no_effect(MOE, "Number of devices that share the experts.", accepted=(1,))
    pipeline_stage: int | None = sets(
        "parallel.pipeline", "Number of stages that the layers are cut into.", least=1, most=_DEVICES
    )
    micro_batch_num: int | None = sets(
        "train.accumulation_steps",
        "Number of micro-batches in the pipeline; at least its stages.",
        least=1,
        most=_DEVICES,
    )
    seq_split_num: int | None = no_effect(PARALLEL, "Number of parts of a sequence in the pipeline.", accepted=(1,))
    use_seq_parallel: bool | None = sets(
        "parallel.sequence_parallel", "Whether activations between layers are split by position."
    )
    optimizer_shard: bool | None = sets("parallel.zero", "Former name of parallel.enable_parallel_optimizer.")
    gradient_aggregation_group: int | None = sets(
        "parallel.gradient_groups",
        "In how many messages copies of the model that are not cut into stages sum their gradients; "
        "without it each has 25 MiB.",
        least=1,
        most=_DEVICES,
    )
    vocab_emb_dp: bool | None = sets(
        "parallel.copies_embedding",
        "Whether all who share layers have the whole embedding; not where it is the output layer as well.",
    )
    context_parallel_algo: str | None = sets(
        "parallel.context",
        "Algorithm of context parallelism.",
        choices=("colossalai_cp", "ulysses_cp", "hybrid_cp"),
    )
    ulysses_degree_in_cp: int | None = sets(
        "parallel.context", "Share of Ulysses in hybrid context parallelism.", least=1, most=_DEVICES
    )
    mem_coeff: float | None = no_effect(PARALLEL, "Weight of memory in the strategy search.")


@dataclass(frozen=True, slots=True)
class RecomputeConfig:
    """``recompute_config``: which activations are computed again instead of kept."""

    recompute: Any = sets("parallel.recompute", "Layers that are recomputed: a switch, or their number in each stage.")
    select_recompute: Any = sets(
        "parallel.recompute_products",
        "Operators that are recomputed: True, numbers of layers, or either for regular expressions of their names. "
        "What they make is computed again if they are of the MLP's gate (feed_forward.mul) or a layer's norms.",
    )
    select_comm_recompute: Any = no_effect(RECOMPUTE, "Communication operators that are recomputed.")
    select_recompute_exclude: Any = no_effect(RECOMPUTE, "Operators that are not recomputed.")
    select_comm_recompute_exclude: Any = no_effect(RECOMPUTE, "Communication operators that are not recomputed.")
    parallel_optimizer_comm_recompute: bool | None = sets(
        "parallel.zero", "Whether gathered weights are let go, and gathered again in the backward pass (ZeRO stage 3)."
    )
    mp_comm_recompute: bool | None = no_effect(RECOMPUTE, "Whether tensor-parallel communication is repeated.")
    recompute_slice_activation: bool | None = no_effect(RECOMPUTE, "Whether kept activations are sliced.")


@dataclass(frozen=True, slots=True)
class SwapConfig:
    """``swap_config``: activations that wait in host memory."""

    swap: bool | None = no_effect(RECOMPUTE, "Whether activations are moved to host memory.")
    layer_swap: Any = no_effect(RECOMPUTE, "Layers whose activations are moved.")
    op_swap: Any = no_effect(RECOMPUTE, "Operators whose activations are moved.")
    default_prefetch: int | None = no_effect(RECOMPUTE, "How many layers ahead they are fetched back.")
