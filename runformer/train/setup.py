"""The parts of a training run: data from its files, the model with its first weights."""

from __future__ import annotations

import logging
from dataclasses import replace

import torch

from runformer.checkpoint import WeightSource, find_weights, load_weights
from runformer.config.task import Task
from runformer.data.dataset import TokenDataset
from runformer.data.loader import BatchLoader
from runformer.data.order import SampleOrder
from runformer.errors import TokenizerError
from runformer.models.build import build_model, initialise
from runformer.models.decoder import CausalLM
from runformer.models.families import resolve_options
from runformer.parallel.compiler import should_compile
from runformer.parallel.group import Group
from runformer.tokenizer import load_tokenizer

logger = logging.getLogger(__name__)


def open_data(task: Task, group: Group | None = None) -> BatchLoader:
    """The training set as global batches: the samples of all micro-batches of a step on all ranks together."""
    assert task.train is not None, "the task trains"
    options = task.train
    dataset = TokenDataset(options.data, task.model.sequence_length, resolve_options(task.model).vocab_size)
    order = SampleOrder(len(dataset), options.data.shuffle, options.data.seed)
    rank, world_size = (0, 1) if group is None else (group.rank, group.size)
    rows = task.global_batch_size
    return BatchLoader(dataset, order, rows, options.data.drop_remainder, rank=rank, world_size=world_size)


def check_tokenizer(task: Task) -> None:
    """Whether the recipe's tokenizer fits the model, where its files are there; training itself needs none.

    Raises:
        TokenizerError: it has tokens that the model lacks.
    """
    files = task.tokenizer
    if files.tokenizer_file is None and files.vocab_file is None:
        return
    try:
        tokenizer = load_tokenizer(None, files)
    except TokenizerError as error:
        logger.warning("the tokenizer was not compared with the model: %s", error.message)
        return
    tokenizer.require_fit(resolve_options(task.model).vocab_size)


def build_for_training(task: Task, device: torch.device) -> tuple[CausalLM, WeightSource | None]:
    """The model with the weights that training or evaluation starts from, and where those were; None: random ones.

    Those are ``load_checkpoint``'s, else those of ``pretrained_model_dir``, else random. A run that resumes gets
    them from its checkpoint instead.
    """
    model = build_model(resolve_options(task.model), task.model.precision, device, task.model.lora)
    path = None if task.load.resume else task.load.path or task.model.pretrained_dir
    if path is None or task.model.lora is not None:
        initialise(model, task.seed, adapters_only=path is not None)
    source = None if path is None else find_weights(replace(task.load, path=path), model.options)
    if source is not None:
        load_weights(source, dict(model.named_parameters()), tied=model.options.tie_embeddings)
    if should_compile(task, device):
        compile_layers(model)
    return model.train(), source


def compile_layers(model: CausalLM) -> None:
    """Compile each layer by itself: they share one graph, so the compiler runs once, not once a layer."""
    for layer in model.model.layers:
        layer.compile()
