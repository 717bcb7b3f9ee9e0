"""Published task files beside MindFormers' own scripts: the scripts stay untouched, and the files load as before."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from test_compat_configs import FILES, _stand_ins, is_described_by_a_folder, load  # noqa: F401 - a fixture

from runformer.config import Task
from runformer.errors import ConfigError

SCRIPT = (
    "raise SystemExit('run')\nimport mindspore\nfrom mindformers import LlamaTokenizer\n\nclass Qwen2Tokenizer: ...\n"
)
NAMES = ("qwen2_5_tokenizer", "llama3_1_tokenizer", "convert_weight", "qwen2_preprocess", "glm4_config")


@pytest.fixture
def scripts(tmp_path: Path) -> Path:
    """A folder as MindFormers publishes it, and as anyone on the machine may change it."""
    folder = tmp_path / "research"
    folder.mkdir()
    for name in NAMES:
        (folder / f"{name}.py").write_text(SCRIPT)
    folder.chmod(0o777)
    return folder


def outcome(name: str, *arguments: str) -> Task | str:
    folder = ("--pretrained_model_dir", "hf") if is_described_by_a_folder(name) else ()
    try:
        return dataclasses.replace(load(name, *folder, *arguments), notices=())
    except ConfigError as error:
        return str(error)


@pytest.mark.usefixtures("shared_dir", "no_plugins")
@pytest.mark.parametrize("name", FILES)
def test_files_load_as_without_the_folder(name: str, scripts: Path) -> None:
    assert outcome(name, "--register_path", str(scripts)) == outcome(name)
    assert sorted(path.stem for path in scripts.iterdir()) == sorted(NAMES), "not even compiled"
