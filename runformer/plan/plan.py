"""The plan of a task: plain data, which the console shows and ``plan.json`` holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class ModelPlan:
    """The model: numbers of parameters, and the dtypes of its weights and of its products."""

    name: str
    parameters: int
    trainable_parameters: int
    layers: int
    hidden_size: int
    vocabulary: int
    weights_dtype: str
    compute_dtype: str


@dataclass(frozen=True, slots=True)
class WeightsPlan:
    """What the run starts from. ``path`` None: random weights. ``step`` is set where a training run goes on."""

    path: str | None
    tensors: int | None = None
    step: int | None = None
    not_loaded: tuple[str, ...] = ()
    passed_over: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DatasetPlan:
    """One dataset: its files, and how many rows of how many tokens are read."""

    files: tuple[str, ...]
    rows: int
    tokens_in_row: int


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One optimizer step over all devices. ``flops`` are the model's, forward and backward."""

    rows_in_batch: int
    accumulated_batches: int
    copies_of_the_model: int
    rows: int
    tokens: int
    flops: float


@dataclass(frozen=True, slots=True)
class RunPlan:
    """How long a training run is; ``tokens`` are those of all its steps."""

    epochs: int
    steps_in_epoch: int
    steps: int
    tokens: int


@dataclass(frozen=True, slots=True)
class CurvePlan:
    """The learning rate: ``values`` at the 0-based ``steps``, at most a hundred of them."""

    kind: str
    steps: tuple[int, ...]
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class PromptsPlan:
    """What a predict run answers. ``longest_prompt`` counts tokens; None: there is no tokenizer so far."""

    prompts: int
    rows_in_batch: int
    longest_prompt: int | None
    longest_text: int
    settings: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class OutputPlan:
    """A file or folder that the run writes. ``count`` of them, at most ``kept`` at a time; bytes of one, if known."""

    path: str
    what: str
    count: int = 1
    kept: int | None = None
    bytes: int | None = None


@dataclass(frozen=True, slots=True)
class StagePlace:
    """Ranks that have the same layers: ``ranks`` of them from ``first_rank`` on, and spans of layers.

    ``memory`` is that of the fullest of them at the peak of a training step, in bytes, by kind.
    """

    layers: tuple[tuple[int, int], ...]
    first_rank: int
    ranks: int
    memory: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LayoutPlan:
    """How a model lies over several devices.

    Heads are those of each of the ranks that share a layer; ``sent`` are bytes of a device and a training step, and
    ``idle_part`` is how much of the time of a step the schedule of a pipeline leaves a device waiting.
    """

    stages: tuple[StagePlace, ...]
    query_heads: tuple[int, ...]
    key_value_heads: tuple[int, ...]
    sent: Mapping[str, int] = field(default_factory=dict)
    idle_part: float = 0.0


@dataclass(frozen=True, slots=True)
class Plan:
    """A whole task. Parts that cannot be known before the keys ``to_fill_in`` are given are None."""

    run_mode: str
    config_file: str
    output_dir: str
    seed: int
    device: str
    parallel: Mapping[str, int | bool]
    devices: int
    model: ModelPlan | None = None
    weights: WeightsPlan | None = None
    dataset: DatasetPlan | None = None
    evaluation_dataset: DatasetPlan | None = None
    step: StepPlan | None = None
    run: RunPlan | None = None
    learning_rate: CurvePlan | None = None
    prompts: PromptsPlan | None = None
    memory_of_a_device: Mapping[str, int] | None = None
    layout: LayoutPlan | None = None
    writes: tuple[OutputPlan, ...] = ()
    to_fill_in: Mapping[str, str] = field(default_factory=dict)
    not_built: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()
    without_effect: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
