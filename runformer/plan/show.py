"""A plan for a person, on the console, and for a program, in ``plan.json``."""

from __future__ import annotations

import json
import os
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from runformer.config.problems import compact
from runformer.errors import RunformerError
from runformer.plan.plan import CurvePlan, DatasetPlan, LayoutPlan, OutputPlan, Plan, StagePlace

PLAN_FILE = "plan.json"

_WIDTH, _LABEL = 110, 12  # columns
_PLOT_ROWS, _PLOT_COLUMNS = 6, 60
_STAGES = 8  # of a pipeline, that are all shown
_BLOCKS = " ▁▂▃▄▅▆▇█"


def write_plan(plan: Plan) -> Path:
    """Write ``plan.json`` into the output directory, whole or not at all, and nothing else.

    Raises:
        RunformerError: the directory cannot be made or written to.
    """
    folder = Path(plan.output_dir)
    path, beside = folder / PLAN_FILE, folder / f".{PLAN_FILE}.{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        beside.write_text(json.dumps(asdict(plan), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        beside.replace(path)
    except OSError as error:
        hint = "choose another --output_dir"
        raise RunformerError(f"{path}: cannot be written: {error.strerror}", hint=hint) from None
    return path


def describe(plan: Plan) -> str:
    """The plan as text of a terminal's width."""
    lines = [f"plan of {plan.config_file}: {plan.run_mode}", ""]
    lines += [f"{label:<{_LABEL}}{text}" for label, text in _facts(plan)]
    if plan.layout is not None:
        lines += ["", *_layout(plan.layout)]
    if plan.learning_rate is not None:
        lines += ["", *plot(plan.learning_rate)]
    if plan.memory_of_a_device is not None:
        lines += ["", *_memory(plan.memory_of_a_device)]
    lines += _listed("writes", [_output(output) for output in plan.writes])
    lines += _listed("to be filled in", [f"{key} {text}" for key, text in plan.to_fill_in.items()])
    lines += _listed("cannot be run yet", plan.not_built)
    lines += _listed("to know", plan.notices)
    without = [f"{compact(keys)}: {reason}" for reason, keys in plan.without_effect.items()]
    return "\n".join([*lines, *_listed("keys without effect here", without)])


def _facts(plan: Plan) -> Iterator[tuple[str, str]]:
    sizes = " × ".join(f"{name} {plan.parallel[name]}" for name in ("data", "tensor", "context", "pipeline"))
    several = f"{plan.devices} devices: {sizes}" if plan.devices > 1 else "1 device"
    yield "devices", f"{several}; {plan.device}"
    yield from _model(plan)
    if plan.dataset is not None or plan.step is not None:
        yield "data", "to be filled in" if plan.dataset is None else _dataset(plan.dataset)
    if plan.evaluation_dataset is not None:
        yield "evaluation", _dataset(plan.evaluation_dataset)
    if (step := plan.step) is not None:
        factors = f"{step.rows_in_batch} a batch × {_count(step.accumulated_batches, 'batch', 'batches')}"
        factors += f" × {_count(step.copies_of_the_model, 'copy', 'copies')}"
        yield "step", f"{step.tokens:,} tokens: {step.rows:,} rows ({factors}); {step.flops:.3g} FLOPs"
    if (run := plan.run) is not None:
        yield "run", f"{run.steps:,} steps: {run.steps_in_epoch:,} an epoch × {run.epochs}; {run.tokens:,} tokens"
    if (prompts := plan.prompts) is not None:
        longest = "" if prompts.longest_prompt is None else f", the longest of {prompts.longest_prompt:,} tokens"
        yield "prompts", f"{prompts.prompts}, {prompts.rows_in_batch} at a time{longest}"
        yield "answers", f"texts of at most {prompts.longest_text:,} tokens; {_settings(prompts.settings)}"


def _model(plan: Plan) -> Iterator[tuple[str, str]]:
    if (model := plan.model) is None:
        yield "model", "to be filled in"
        return
    trained = model.trainable_parameters
    part = f", {trained:,} of them trained" if trained != model.parameters else ""
    shape = f"{model.layers} layers of width {model.hidden_size:,}, {model.vocabulary:,} tokens"
    yield "model", f"{model.name}: {model.parameters:,} parameters{part}"
    yield "", f"{shape}; {model.weights_dtype} weights, {model.compute_dtype} products"
    weights = plan.weights
    if weights is None or (weights.path is None and "load_checkpoint" in plan.to_fill_in):
        yield "weights", "to be filled in"
    else:
        after = "" if weights.step is None else f", going on after step {weights.step:,}"
        yield "weights", f"{weights.path or 'random'}{after}"


def _dataset(dataset: DatasetPlan) -> str:
    files = dataset.files[0] if len(dataset.files) == 1 else f"{len(dataset.files)} files, {dataset.files[0]} first"
    return f"{dataset.rows:,} rows of {dataset.tokens_in_row:,} tokens from {files}"


def _settings(settings: Mapping[str, object]) -> str:
    if not settings.get("do_sample"):
        settings = {name: settings[name] for name in ("repetition_penalty",) if settings.get(name) != 1.0}
        return ", ".join(["the likeliest token", *(f"{name} {value}" for name, value in settings.items())])
    names = ("temperature", "top_k", "top_p", "repetition_penalty")
    return ", ".join(["drawn at random", *(f"{name} {settings[name]}" for name in names)])


def plot(curve: CurvePlan) -> list[str]:
    """The curve of the learning rate, a few lines high; its axis begins at 0."""
    highest = max((*curve.values, 0.0)) or 1.0
    columns = [curve.values[index * len(curve.values) // _PLOT_COLUMNS] for index in range(_PLOT_COLUMNS)]
    eighths = [round(max(0.0, value) / highest * _PLOT_ROWS * 8) for value in columns]
    lines = [f"learning rate ({curve.kind})"]
    for row in reversed(range(_PLOT_ROWS)):
        label = f"{highest:.3g}" if row == _PLOT_ROWS - 1 else "0" if row == 0 else ""
        blocks = "".join(_BLOCKS[min(8, max(0, height - 8 * row))] for height in eighths)
        lines.append(f"{label:>{_LABEL - 2}} ▕{blocks}")
    last = f"step {curve.steps[-1] + 1:,}"
    return [*lines, f"{'':<{_LABEL}}step 1{last:>{_PLOT_COLUMNS - 6}}"]


def _memory(kinds: Mapping[str, int]) -> list[str]:
    total = sum(kinds.values())
    lines = [f"memory of a device: about {size(total)}"]
    return lines + [f"{size(bytes_):>{_LABEL}}  {kind}" for kind, bytes_ in kinds.items() if bytes_]


def _layout(layout: LayoutPlan) -> list[str]:
    """Which ranks have which layers, the heads of each of those that share a layer, and what a device sends."""
    lines = ["layout"]
    stages = layout.stages
    shown = [*range(len(stages))] if len(stages) <= _STAGES else [0, 1, 2, -1, len(stages) - 1]
    for number in shown:
        if number < 0:
            lines.append(f"{'':>{_LABEL}}  …")
            continue
        stage = stages[number]
        layers = ", ".join(f"{begin} to {end - 1}" if end - begin > 1 else f"{begin}" for begin, end in stage.layers)
        ranks = f"ranks {stage.first_rank} to {stage.first_rank + stage.ranks - 1}"
        memory = f"; {size(sum(stage.memory.values()))} each" if stage.memory else ""
        lines.append(f"{f'stage {number + 1}':>{_LABEL}}  {ranks}: layers {layers}{_ends(stage, stages)}{memory}")
    if len(layout.query_heads) > 1:
        heads = f"{_heads(layout.query_heads)} query heads, {_heads(layout.key_value_heads)} key-value heads"
        lines.append(f"{'a layer':>{_LABEL}}  {heads}")
    if layout.idle_part:
        lines.append(f"{'waiting':>{_LABEL}}  {layout.idle_part:.0%} of a step, if all stages are equally slow")
    if layout.sent:
        sent = ", ".join(f"{size(count)} ({kind})" for kind, count in layout.sent.items())
        lines.append(f"{'a step':>{_LABEL}}  a device sends about {sent}")
    return lines


def _ends(stage: StagePlace, stages: Sequence[StagePlace]) -> str:
    first, last = (choose(span for place in stages for span in place.layers) for choose in (min, max))
    text = " and the embedding" if first in stage.layers else ""
    return text + (" and the output" if last in stage.layers else "")


def _heads(counts: Sequence[int]) -> str:
    """``4, 3, 4, 3``; or one number where all are the same, or the least and the most of many."""
    if len(set(counts)) == 1:
        return f"{len(counts)} × {counts[0]}"
    return ", ".join(map(str, counts)) if len(counts) <= _STAGES else f"{len(counts)} × {min(counts)} or {max(counts)}"


def size(count: int) -> str:
    """Bytes in the largest unit that leaves at least 1."""
    value, units = float(count), ["B", "KiB", "MiB", "GiB"]
    while value >= 1024 and len(units) > 1:
        value /= 1024
        units.pop(0)
    return f"{value:.1f} {units[0]}" if units[0] != "B" else f"{count} B"


def _output(output: OutputPlan) -> str:
    each = "" if output.bytes is None else f", {size(output.bytes)} each"
    kept = "" if output.kept is None else f", the last {output.kept} kept"
    return f"{output.path}: {output.what}{each}{kept}"


def _listed(title: str, items: Sequence[str]) -> list[str]:
    lines = [line for item in items for part in item.splitlines() for line in _wrapped(part, "  ")]
    return ["", title, *lines] if lines else []


def _wrapped(text: str, indent: str) -> list[str]:
    """Lines no wider than the page; paths stay whole, so that they can be copied."""
    return textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=indent,
        subsequent_indent=indent + "  ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def _count(number: int, one: str, more: str) -> str:
    return f"{number} {one if number == 1 else more}"
