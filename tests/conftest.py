"""Fixtures shared by every test."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_task import TinyTask, make_tiny_task

from runformer.plugins.registry import REGISTRY, Registry

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session", autouse=True)
def _as_in_a_terminal() -> None:
    """Let the commands that tests start hear every signal.

    Under nohup, or in the background of a shell, some are ignored, and whoever is started inherits that.
    """
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the working tree: where ``run_mindformer.py`` and ``configs/`` lie."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder of oracle runs, real text and other people's YAML files, beside the repository."""
    folder = REPOSITORY.parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not here")
    return folder


@pytest.fixture(scope="session")
def oracle_dir(shared_dir: Path) -> Path:
    """What MindFormers itself computed."""
    return shared_dir / "oracle"


@pytest.fixture
def tiny(repository: Path, tmp_path: Path) -> TinyTask:
    """A training task that takes seconds, in a folder of its own."""
    return make_tiny_task(repository, tmp_path)


@pytest.fixture
def table_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The datasets library keeps what it makes in a folder of this test."""
    import datasets

    cache = tmp_path / "cache"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    return cache


@pytest.fixture
def no_plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    """No plug-in is registered yet, and those that a test loads are gone after it."""
    monkeypatch.setattr(REGISTRY, "_entries", {})
    yield REGISTRY
    for name, module in list(sys.modules.items()):
        file = Path(getattr(module, "__file__", None) or "/")
        if file.is_relative_to(tmp_path) or file.is_relative_to(REPOSITORY / "research"):
            del sys.modules[name]
