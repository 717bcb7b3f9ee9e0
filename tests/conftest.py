"""Fixtures shared by every test."""

from __future__ import annotations

from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


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
