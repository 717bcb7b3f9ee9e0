"""A predict task from its Task to its texts."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch

from runformer.config.launched import launched
from runformer.config.task import ModelOptions, PredictTask, Task
from runformer.models.families import resolve_options
from runformer.observe import setup_logging
from runformer.observe.log import write_stdout_line
from runformer.parallel.agreement import require_same_task
from runformer.parallel.compiler import should_compile
from runformer.parallel.device import resolve_device
from runformer.parallel.group import join
from runformer.parallel.mesh import Mesh, lay_out
from runformer.predict.engine import Generator
from runformer.predict.prompts import batch_prompts, encode_prompt, read_prompts
from runformer.predict.result import format_answer, write_results
from runformer.predict.settings import LengthLimit, Settings, read_generation_config, resolve_eos_ids, resolve_settings
from runformer.predict.weights import load_model
from runformer.tokenizer import Tokenizer, load_tokenizer

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Answer:
    """One prompt on its way through the run; ``ids`` are the prompt's, then those of the whole text."""

    prompt: str
    ids: list[int]
    prompt_length: int


def predict(task: Task) -> None:
    """Answer the task's prompts: texts on the console and in the result file.

    All that can be wrong with prompts and options shows before the weights are read.

    Raises:
        PredictError: a prompt, a generation option or the result file cannot be used.
        TokenizerError, CheckpointError, ConfigError, DeviceError: what it takes is missing or damaged.
    """
    assert task.predict is not None, "the task predicts"
    place = launched()
    setup_logging(task.output_dir / "log", 0 if place is None else place.rank, notices=task.notices)
    options = resolve_options(task.model)
    folder = model_folder(task)
    tokenizer = load_tokenizer(folder, task.tokenizer)
    tokenizer.require_fit(options.vocab_size)
    batches = read_batches(task.predict, tokenizer, options.vocab_size)
    config = read_generation_config(folder)
    settings = resolve_settings(task.predict.generation, config)
    eos_ids = resolve_eos_ids(task.model, options, config, tokenizer.eos_id)
    lengths = length_limit(task, options, settings)
    for answer in chain.from_iterable(batches):
        lengths.of(answer.prompt_length)

    world = join(resolve_device(task.device))
    require_same_task(world, task)
    mesh = lay_out(task.parallel, world)
    model = load_model(task, options, mesh)
    # Several processes talk in the middle of a step, which one graph of it cannot.
    compiled = mesh.model.size == 1 and should_compile(task, mesh.world.device)
    generator = Generator(model, settings, eos_ids=eos_ids, lengths=lengths, seed=task.seed, compile=compiled)
    _generate(generator, batches, mesh)
    save_file = task.predict.save_file
    mesh.world.first(lambda: _show(batches, tokenizer, save_file))
    mesh.world.leave()


def length_limit(task: Task, options: ModelOptions, settings: Settings) -> LengthLimit:
    """How long texts may become: within the model's positions and the sequence length that the task gives."""
    return LengthLimit(settings, min(options.max_positions, task.model.sequence_length or options.max_positions))


def model_folder(task: Task) -> Path | None:
    """Where tokenizer and ``generation_config.json`` lie: beside the weights if those are in a Hugging Face folder."""
    beside = task.load.path.parent if task.load.path and task.load.path.is_file() else task.load.path
    if beside is not None and (beside / "config.json").is_file():
        return beside
    return task.model.pretrained_dir or beside


def read_batches(task: PredictTask, tokenizer: Tokenizer, vocab_size: int) -> list[list[Answer]]:
    """The task's prompts as token ids, batch by batch.

    Raises:
        PredictError: there is none, one has no tokens or one that the model lacks, or they do not fill the batches.
    """

    def encode(prompt: str) -> Answer:
        ids = encode_prompt(tokenizer, prompt, chat=task.chat, vocab_size=vocab_size)
        return Answer(prompt, ids, len(ids))

    return [[encode(prompt) for prompt in batch] for batch in batch_prompts(read_prompts(task.inputs), task.batch_size)]


def _generate(generator: Generator, batches: Iterable[Sequence[Answer]], mesh: Mesh) -> None:
    """Continue all batches in order, each shared out over the copies of the model, and log how fast that was."""
    started = time.perf_counter()
    first_index = new_tokens = 0
    copies, copy = mesh.options.data, mesh.place.data
    for batch in batches:
        own = batch[copy::copies]
        prompts = [answer.ids for answer in own]
        texts = generator.generate(prompts, first_index + copy, copies) if own else []
        for answer, ids in zip(batch, collect_rows(texts, len(batch), mesh), strict=True):
            answer.ids = ids
            new_tokens += len(ids) - answer.prompt_length
        first_index += len(batch)
    seconds = time.perf_counter() - started
    logger.info("generated %d tokens in %.2f s: %.1f tokens/s", new_tokens, seconds, new_tokens / seconds)


def collect_rows(own: Sequence[Sequence[int]], count: int, mesh: Mesh) -> list[list[int]]:
    """All rows of a batch, on every process, in their order.

    Args:
        own: those of this copy of the model: its number among the copies, then every so many further.
        count: how many there are of all.
        mesh: this process among the others.
    """
    copies, copy, group = mesh.options.data, mesh.place.data, mesh.replicas
    if copies == 1:
        return [list(ids) for ids in own]
    lengths = torch.zeros(count, dtype=torch.int64, device=group.device)
    lengths[copy::copies] = torch.tensor([len(ids) for ids in own], dtype=torch.int64, device=group.device)
    group.sum(lengths)
    rows = torch.zeros(count, int(lengths.max()), dtype=torch.int64, device=group.device)
    for row, ids in zip(rows[copy::copies], own, strict=True):
        row[: len(ids)] = torch.tensor(ids, device=group.device)
    return [row[:length] for row, length in zip(group.sum(rows).tolist(), lengths.tolist(), strict=True)]


def _show(batches: Sequence[Sequence[Answer]], tokenizer: Tokenizer, save_file: Path) -> None:
    """Write the result file, then print each prompt with its answer."""
    write_results(save_file, [[tokenizer.decode(answer.ids) for answer in batch] for batch in batches])
    for number, answer in enumerate(chain.from_iterable(batches), start=1):
        text = tokenizer.decode(answer.ids[answer.prompt_length :])
        write_stdout_line(format_answer(number, answer.prompt, text))
    logger.info("texts are in %s", save_file)
