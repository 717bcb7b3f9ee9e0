"""The schema in words: every key can be explained, the page is current, and a wrong key is met with the right one."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runformer.config.explain import explain, page
from runformer.config.schema import section_in, slots_of
from runformer.config.sections import Config
from runformer.errors import UsageError


def every_path(section: type = Config, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Each key of the schema under each of its names, with its meaning."""
    for name, slot in slots_of(section).items():
        yield prefix + name, slot.key.meaning
        if slot.key.variants:
            for kind, inner in slot.key.variants.items():
                yield from every_path(inner, f"{prefix}{name}.{kind}.")
        elif (inside := section_in(slot.hint)) is not None:
            yield from every_path(inside, f"{prefix}{name}.")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "runformer", "config", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_every_key_is_explained_and_is_on_the_page() -> None:
    paths = dict(every_path())
    assert len(paths) > 500
    text = page()
    for path, meaning in paths.items():
        assert meaning in explain(path), path
        assert f"`{path.rpartition('.')[2]}`" in text, path
        assert meaning in text, path


def test_the_page_in_docs_is_current(repository: Path) -> None:
    written = (repository / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert page() == written, "run: python -m runformer config --page > docs/configuration.md"


def test_an_explanation_has_meaning_values_effect_and_other_names() -> None:
    assert explain("model.model_config.num_key_value_heads").splitlines() == [
        "model.model_config.n_kv_heads: an integer, at least 1, at most 16777216",
        "  Number of key and value heads.",
        "  Sets model.options.num_kv_heads.",
        "  Also known as n_kv_heads, num_query_groups.",
    ]
    assert "at most 4294967295; 1 if left out" in explain("seed")
    assert "No effect here: " in explain("context.jit_level")
    assert "Not supported: " in explain("lr_scale")


def test_a_section_lists_its_keys_and_a_list_its_kinds() -> None:
    assert "    max_grad_norm " in explain("runner_wrapper")
    assert "    CheckpointMonitor " in explain("callbacks")
    assert "First part of the checkpoints' names." in explain("callbacks.CheckpointMonitor.prefix")


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("runer_config.epochs", "there is no key 'runer_config': did you mean 'runner_config'?"),
        ("runner_config.epoch", "runner_config has no key 'epoch': did you mean 'epochs'?"),
        ("callbacks.CheckpointMonitr", "callbacks has no key 'CheckpointMonitr': did you mean 'CheckpointMonitor'?"),
        ("seed.x", "seed has no key 'x'"),
        ("", "there is no key ''"),
    ],
)
def test_a_wrong_key_is_met_with_the_nearest(path: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        explain(path)
    assert words in caught.value.message


@given(st.text(max_size=40) | st.sampled_from([path for path, _ in every_path()]).map(lambda path: path[:-1]))
def test_any_text_is_explained_or_refused(path: str) -> None:
    with contextlib.suppress(UsageError):
        assert explain(path)


def test_the_command_explains_several_keys_without_torch() -> None:
    done = run("--explain", "seed", "runner_config.epochs")
    assert done.returncode == 0
    assert done.stdout == f"{explain('seed')}\n\n{explain('runner_config.epochs')}\n"
    code = "import sys; from runformer.cli.config import main; main(['--page']); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, check=True)


def test_the_command_ends_with_2_for_a_wrong_key_and_prints_the_page() -> None:
    wrong = run("--explain", "runner_config.epoch")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "did you mean 'epochs'?" in wrong.stderr
    assert "Traceback" not in wrong.stderr
    assert run("--page").stdout == page()
