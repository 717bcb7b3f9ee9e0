"""From a task to its plan: headers of files are read, the model is built without memory, nothing is written."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import torch

from runformer.checkpoint import as_it_is, check_weights, find_resume, find_weights
from runformer.config.task import DataOptions, ModelOptions, Task
from runformer.data.dataset import TokenDataset
from runformer.models.build import build_model
from runformer.models.decoder import CausalLM
from runformer.models.families import resolve_options
from runformer.plan.layout import bytes_sent, idle_part, plan_layout
from runformer.plan.memory import evaluation_memory, prediction_memory, training_memories
from runformer.plan.plan import DatasetPlan, LayoutPlan, ModelPlan, OutputPlan, Plan, PromptsPlan, WeightsPlan
from runformer.plan.training import TrainingPlan, plan_training, planned_device
from runformer.predict.run import length_limit, model_folder, read_batches
from runformer.predict.settings import read_generation_config, resolve_settings
from runformer.tokenizer import load_tokenizer


def make_plan(task: Task) -> Plan:
    """Work a task out.

    Data and weights are opened as the run would open them, as far as their headers; where the task does not name
    them yet, what hangs on them is left out.

    Raises:
        RunformerError: what the run itself would stop at before its first step.
    """
    plan = Plan(
        run_mode=task.run_mode,
        config_file=str(task.config_file.resolve()),
        output_dir=str(task.output_dir),
        seed=task.seed,
        device=task.device.kind or "the best there is",
        parallel=asdict(task.parallel),
        devices=task.parallel.devices,
        to_fill_in=task.to_fill_in,
        not_built=task.not_built,
        notices=tuple(text for text in task.notices if not text.startswith("keys without effect")),
        without_effect=task.without_effect,
    )
    if task.model.options is None and task.model.pretrained_dir is None:
        return plan
    options = resolve_options(task.model)
    model = build_model(options, task.model.precision, torch.device("meta"), task.model.lora)
    plan = replace(plan, model=_model(task, options, model))
    if task.parallel.devices > 1:
        plan = replace(plan, layout=plan_layout(options, task.parallel))
    if _awaits_weights(task):
        text = f"is {str(task.model.pretrained_dir)!r}: there are no weights in it"
        plan = replace(plan, to_fill_in={**plan.to_fill_in, "pretrained_model_dir": text})
    else:
        plan = replace(plan, weights=_weights(task, model))
    if task.predict is not None:
        return _with_prompts(plan, task, options)
    if task.evaluation is not None:
        plan = replace(plan, evaluation_dataset=_dataset(task, task.evaluation.data, options))
    if task.train is None:
        return _with_evaluation(plan, task, options)
    plan = _with_training(plan, task, plan_training(task, options, model))
    return replace(plan, layout=_with_messages(plan, task, options))


def _with_messages(plan: Plan, task: Task, options: ModelOptions) -> LayoutPlan | None:
    """The layout with what a device sends in a training step, and each stage's memory, where that is known."""
    if plan.layout is None or plan.step is None or task.train is None:
        return plan.layout
    length = plan.step.tokens // plan.step.rows
    sent = bytes_sent(task.model, options, task.train, task.parallel, length)
    memories = training_memories(task.model, options, task.train, length, task.parallel, planned_device(task))
    stages = [replace(stage, memory=kinds) for stage, kinds in zip(plan.layout.stages, memories, strict=True)]
    idle = idle_part(task.parallel, task.train.accumulation_steps)
    return replace(plan.layout, stages=tuple(stages), sent=sent, idle_part=idle)


def _model(task: Task, options: ModelOptions, model: CausalLM) -> ModelPlan:
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return ModelPlan(
        name=task.model.name,
        parameters=sum(size for size, _ in sizes),
        trainable_parameters=sum(size for size, trained in sizes if trained),
        layers=options.num_layers,
        hidden_size=options.hidden_size,
        vocabulary=options.vocab_size,
        weights_dtype=task.model.precision.parameters,
        compute_dtype=task.model.precision.compute,
    )


def _awaits_weights(task: Task) -> bool:
    """Whether the folder that describes the model holds nothing else so far, as it may for a plan."""
    folder = task.model.pretrained_dir
    if folder is None or task.load.path is not None or task.load.resume:
        return False
    return all(path.suffix not in (".safetensors", ".bin", ".pt", ".pth", ".ckpt") for path in folder.iterdir())


def _weights(task: Task, model: CausalLM) -> WeightsPlan:
    path = task.load.path or task.model.pretrained_dir
    if task.load.resume:
        source = find_resume(task.load, task.output_dir, model.options, as_it_is)
    elif path is None:
        return WeightsPlan(None)
    else:
        source = find_weights(replace(task.load, path=path, base=task.model.pretrained_dir), model.options, as_it_is)
    report = check_weights(source, dict(model.named_parameters()), tied=model.options.tie_embeddings)
    step = (source.common or {}).get("step") if task.load.resume else None
    return WeightsPlan(str(source.path), report.loaded, step, report.unexpected, source.notices)


def _dataset(task: Task, data: DataOptions, options: ModelOptions) -> DatasetPlan | None:
    if not data.paths:
        return None
    dataset = TokenDataset(data, task.model.sequence_length, options.vocab_size)
    return DatasetPlan(tuple(map(str, data.paths)), len(dataset), dataset.sequence_length)


def _with_training(plan: Plan, task: Task, training: TrainingPlan) -> Plan:
    evaluation = _evaluation_outputs(task)[1:] if task.evaluation is not None else ()
    return replace(
        plan,
        dataset=training.dataset,
        step=training.step,
        run=training.run,
        learning_rate=training.learning_rate,
        memory_of_a_device=training.memory,
        writes=(*_logs(task), *training.outputs, *evaluation),
    )


def _with_evaluation(plan: Plan, task: Task, options: ModelOptions) -> Plan:
    assert task.evaluation is not None, "the task evaluates"
    dataset, parallel = plan.evaluation_dataset, task.parallel
    length = task.model.sequence_length if dataset is None else dataset.tokens_in_row
    memory = None
    if length is not None:
        rows, device = task.evaluation.batch_size, planned_device(task)
        memory = evaluation_memory(task.model, options, rows, length, parallel, device)
    return replace(plan, memory_of_a_device=memory, writes=_evaluation_outputs(task))


def _logs(task: Task) -> tuple[OutputPlan, ...]:
    return (OutputPlan(str(task.output_dir / "log"), "what the console shows, and errors"),)


def _evaluation_outputs(task: Task) -> tuple[OutputPlan, ...]:
    return (*_logs(task), OutputPlan(str(task.output_dir / "evaluation.jsonl"), "a row an evaluation"))


def _with_prompts(plan: Plan, task: Task, options: ModelOptions) -> Plan:
    assert task.predict is not None, "the task predicts"
    folder = model_folder(task)
    settings = resolve_settings(task.predict.generation, read_generation_config(folder))
    rows = task.predict.batch_size or 1
    limit = length_limit(task, options, settings)
    lengths: list[int] | None = None
    if task.predict.inputs and _may_have_tokenizer(task, folder):
        tokenizer = load_tokenizer(folder, task.tokenizer)
        tokenizer.require_fit(options.vocab_size)
        batches = read_batches(task.predict, tokenizer, options.vocab_size)
        lengths = [answer.prompt_length for batch in batches for answer in batch]
    longest = max(lengths) if lengths else None
    longest_text = limit.of(longest or 1)
    prompts = PromptsPlan(
        prompts=len(lengths) if lengths else len(task.predict.inputs),
        rows_in_batch=rows,
        longest_prompt=longest,
        longest_text=longest_text,
        settings={name: value for name, value in asdict(settings).items() if value is not None},
    )
    memory = prediction_memory(options, task.model.precision, rows, longest_text, task.parallel)
    writes = (*_logs(task), OutputPlan(str(task.predict.save_file), "texts, prompts included"))
    return replace(plan, prompts=prompts, memory_of_a_device=memory, writes=writes)


def _may_have_tokenizer(task: Task, folder: Path | None) -> bool:
    """Whether there is a place to look for a tokenizer: a plan may be made before it is there."""
    if any(name.startswith("processor.tokenizer") for name in task.to_fill_in):
        return False
    files = task.tokenizer
    named = (files.directory, files.tokenizer_file, files.vocab_file, folder)
    return any(path is not None for path in named)
