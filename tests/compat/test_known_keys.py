"""Every key that more than one published task file has is in the schema, and a key that is not is never let pass."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from runformer.config import load_task
from runformer.config.schema import section_in, slots_of
from runformer.config.sections import Config
from runformer.errors import ConfigError

SHARED = Path(__file__).resolve().parents[2].parent / "shared"
PAGE = SHARED / "reference" / "mindformers_keys.md"
# Headings of the page whose rows stand elsewhere in a task file.
SECTIONS = {"Top level": "", "model.model_config": "model.model_config."}
ITEM = re.compile(r"\[\]<(\w+)>")
PARTS = re.compile(r"(?:\\\.|[^.])+")


def rows() -> Iterator[tuple[str, int]]:
    """Every key with its path, and how many files have it."""
    section = ""
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if line.startswith("### "):
            section = line.removeprefix("### ").strip()
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if len(cells) > 4 and cells[1].isdigit():
            prefix = SECTIONS.get(section, f"{section}.")
            yield f"{prefix}{cells[0]}".replace(".[]", "[]"), sum(map(int, cells[1:5]))


KEYS = sorted(path for path, count in rows() if count > 1)


def known(path: str) -> bool:
    """Whether the schema has a key, or one above it that takes anything."""
    current: type | None = Config
    names = [part.replace("\\.", ".") for part in PARTS.findall(path)]
    for name in names:
        assert current is not None
        kind = ITEM.search(name)
        slot = slots_of(current).get(ITEM.sub("", name))
        if slot is None:  # some sections keep what they do not know, for others to check
            return hasattr(current, "REST") and not hasattr(current, "REST_TYPES")
        if kind is not None and slot.key.variants:
            current = slot.key.variants.get(kind[1], slot.key.otherwise)
            if current is None:
                return False
            if slots_of(current).keys() <= {"type", "auto_register"}:
                return True  # known by its name alone
            continue
        current = section_in(slot.hint)
        if current is None or slot.key.open:
            return True
    return True


def test_the_page_is_read() -> None:
    assert len(KEYS) > 600
    assert {"seed", "model.model_config.num_layers", "callbacks[]<CheckpointMonitor>.prefix"} <= set(KEYS)


@pytest.mark.parametrize("section", sorted({key.partition(".")[0].partition("[")[0] for key in KEYS}))
def test_every_key_of_more_than_one_file_is_known(section: str) -> None:
    mine = [key for key in KEYS if key.partition(".")[0].partition("[")[0] == section]
    assert [key for key in mine if not known(key)] == []


def test_an_unknown_key_is_noticed_by_this_test() -> None:
    assert not known("runner_config.epoch")
    assert not known("callbacks[]<CheckpointMonitor>.prefx")
    assert not known("nothing.here")


FILES = sorted(
    path for path in SHARED.rglob("*.yaml") if not {"glm4", "mixtral"} & {*path.parts, path.name.partition("_")[0]}
)


def paths(tree: Any, prefix: str = "") -> Iterator[tuple[dict[str, Any], str, str]]:
    """Every key of a tree with the mapping that holds it and its path as this module writes it."""
    for name, value in tree.items() if isinstance(tree, dict) else ():
        path = f"{prefix}{name}".replace("\\", "")
        yield tree, name, path
        yield from paths(value, f"{path}.")
        for item in value if isinstance(value, list) else ():
            if isinstance(item, dict):
                yield from paths(item, f"{path}[]<{item.get('type')}>.")


def test_files_are_found() -> None:
    assert len(FILES) > 25


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
@pytest.mark.usefixtures("shared_dir")
def test_no_misspelt_key_is_let_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: st.DataObject) -> None:
    monkeypatch.chdir(tmp_path)
    tree = yaml.safe_load(data.draw(st.sampled_from(FILES)).read_text(encoding="utf-8"))
    mapping, name, path = data.draw(st.sampled_from(list(paths(tree))))
    at, letter = data.draw(st.integers(1, len(name))), data.draw(st.sampled_from("aeiouxz_"))
    wrong = name[:at] + letter + name[at:]
    renamed = path.removesuffix(name) + wrong
    assume(name != "type" and wrong not in mapping and not known(renamed))
    mapping[wrong] = mapping.pop(name)
    (tmp_path / "task.yaml").write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_task(["--config", "task.yaml", "--dry_run", "True"])
    assert re.search(rf"task\.yaml:\d+:\d+.*{re.escape(wrong)} is not a known key", str(caught.value)) or name in (
        "run_mode",
        "base_config",
    )
