"""The parts of a training run: data from its files, the model with its first weights."""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import partial

from runformer.checkpoint import WeightSource, find_weights, load_parts
from runformer.config.task import DataOptions, Task
from runformer.data.dataset import TokenDataset
from runformer.data.loader import BatchLoader
from runformer.data.order import sample_order
from runformer.errors import ConfigError, TokenizerError
from runformer.models.build import initialise
from runformer.models.decoder import CausalLM
from runformer.models.families import resolve_options
from runformer.parallel.agreement import require_same
from runformer.parallel.compiler import should_compile
from runformer.parallel.compose import compose
from runformer.parallel.group import Group
from runformer.parallel.mesh import Mesh
from runformer.parallel.model import ParallelModel
from runformer.tokenizer import load_tokenizer

logger = logging.getLogger(__name__)


def open_data(task: Task, mesh: Mesh | None = None) -> BatchLoader:
    """The training set as global batches: the samples of all micro-batches of a step of all copies of the model."""
    assert task.train is not None, "the task trains"
    options = task.train
    dataset = TokenDataset(options.data, task.model.sequence_length, resolve_options(task.model).vocab_size)
    order = sample_order(len(dataset), options.data.shuffle, options.data.seed)
    rank, copies = (0, 1) if mesh is None else (mesh.place.data, mesh.options.data)
    rows = task.global_batch_size
    return BatchLoader(
        dataset,
        order,
        rows,
        options.data.drop_remainder,
        repeat=options.data.repeat,
        rank=rank,
        world_size=copies,
        pin=mesh is not None and mesh.world.device.type == "cuda",
    )


def require_same_data(world: Group, data: DataOptions, loader: BatchLoader) -> None:
    """See that all ranks found the same dataset, wherever that lies on their machines.

    Raises:
        ParallelError: naming those that did not.
    """
    files = [path.stat().st_size for path in data.paths if path.is_file()]
    found = {"samples of the dataset": loader.num_samples, "tokens in a row": loader.sequence_length}
    require_same(world, {**found, "bytes of the dataset's files": files})


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


def build_for_training(task: Task, mesh: Mesh) -> tuple[ParallelModel, WeightSource | None]:
    """This process's part of a model with the weights that training or evaluation starts from, and where those were.

    These are ``load_checkpoint``'s, else ``pretrained_model_dir``'s, else random ones, which were nowhere (None). A run
    that resumes gets them from its checkpoint instead.

    Raises:
        ConfigError: there are adapters on the output layer, which the loss does not go through.
        CheckpointError: as ``find_weights`` and ``load_parts``.
    """
    model = compose(resolve_options(task.model), task.model.precision, task.model.lora, mesh)
    if "lm_head.lora_A.weight" in model.whole:
        raise ConfigError(
            "model.model_config.pet_config.target_modules matches lm_head, which cannot be adapted yet",
            hint="leave it out, as in '(?!lm_head).*'",
        )
    path = None if task.load.resume else task.load.path or task.model.pretrained_dir
    if path is None or task.model.lora is not None:
        for stage in model.stages:
            initialise(stage, task.seed, model.parts, adapters_only=path is not None)
    source = None
    if path is not None:
        source = find_weights(
            replace(task.load, path=path, base=task.model.pretrained_dir),
            model.options,
            partial(_load, model),
            mesh.world,
        )
    if should_compile(task, mesh.world.device):
        for stage in model.stages:
            compile_layers(stage)
    model.train()
    return model, source


def _load(model: ParallelModel, source: WeightSource) -> WeightSource:
    load_parts(source, model)
    return source


def compile_layers(model: CausalLM) -> None:
    """Compile each layer by itself: they share one graph, so the compiler runs once, not once a layer."""
    for layer in model.layers.values():
        layer.compile()
