"""Where task files and register paths are looked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from runformer.config import find
from runformer.config.find import REPOSITORY_ROOT, find_config, find_register_path
from runformer.errors import ConfigError


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository and, elsewhere, the current directory."""
    root = tmp_path / "repository"
    for folder in ("configs/llama", "configs/qwen", "research/qwen"):
        (root / folder).mkdir(parents=True)
    (tmp_path / "here").mkdir()
    monkeypatch.setattr(find, "REPOSITORY_ROOT", root)
    monkeypatch.chdir(tmp_path / "here")
    return root


def put(path: Path) -> Path:
    path.write_text("a: 1\n")
    return path


def error_of(name: str, register: Path | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        find_config(name, register)
    return str(caught.value)


def test_the_repository_root_holds_the_package() -> None:
    assert (REPOSITORY_ROOT / "runformer" / "config" / "find.py").is_file()


def test_the_order_is_here_repository_register_path_recipes(house: Path, tmp_path: Path) -> None:
    register = house / "research/qwen"
    places = [house / "configs/llama/x.yaml", register / "x.yaml", house / "x.yaml", tmp_path / "here/x.yaml"]
    words = ["the repository's recipes", "the register path", "the repository root", "the current directory"]
    for path, expected in zip(places, words, strict=True):
        put(path)
        assert find_config("x.yaml", register) == (path, expected)


def test_an_absolute_path_is_taken_as_it_is(house: Path) -> None:
    assert find_config(str(put(house / "y.yaml")), None) == (house / "y.yaml", "")


def test_several_recipes_of_one_name_are_listed(house: Path) -> None:
    put(house / "configs/llama/x.yaml")
    put(house / "configs/qwen/x.yaml")
    message = error_of("x.yaml")
    assert "several recipes are called x.yaml" in message
    assert "configs/llama/x.yaml, configs/qwen/x.yaml" in message


def test_a_missing_file_names_every_place_and_the_nearest_name(house: Path, tmp_path: Path) -> None:
    put(house / "research/qwen/finetune_qwen.yaml")
    message = error_of("finetune_qwen2.yaml", house / "research/qwen")
    for place in (tmp_path / "here", house, house / "research/qwen"):
        assert str(place) in message
    assert "configs/" in message
    assert "did you mean" in message
    assert "finetune_qwen.yaml?" in message
    assert "there is no file /nowhere/gone.yaml in /nowhere" in error_of("/nowhere/gone.yaml")


@pytest.mark.parametrize("name", [".", "", "x" * 5000 + ".yaml", "a\0b.yaml", "~nobody-at-all/x.yaml"])
def test_names_that_cannot_be_files(house: Path, name: str) -> None:
    assert house.is_dir()
    assert error_of(name).startswith("command line: --config: ")


def test_register_paths(house: Path, tmp_path: Path) -> None:
    assert find_register_path(None) is None
    assert find_register_path("research/qwen") == house / "research/qwen"
    (tmp_path / "here/research/qwen").mkdir(parents=True)
    assert find_register_path("research/qwen") == tmp_path / "here/research/qwen"
    with pytest.raises(ConfigError, match="--register_path: there is no folder research/gone"):
        find_register_path("research/gone")
