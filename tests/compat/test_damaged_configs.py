"""Damaged task files end in a Task or in an error that says where, after a bounded amount of work."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from published_files import FILES, SHARED, STAND_INS, make_stand_ins, paths_in

from runformer.config import Task, load_task, schema
from runformer.config.problems import MAX_LINES
from runformer.config.schema import MAX_SUGGESTIONS
from runformer.config.yaml_file import MAX_BASE_CONFIGS, MAX_DEPTH, Node, read_yaml
from runformer.errors import ConfigError

SMALL = [name for name in FILES if "finetune_qwen2_5_0_5b" in name or "llama_lora" in name]
# Sections of which the schema knows nothing, so that nothing in them can be misspelt.
OPAQUE = {"jit_config", "ascend_config", "parallel_optimizer_config", "metric", "strategy_ckpt_config"}
TAKES_A_GROUP = ("recompute", "select_recompute")
PLACE = re.compile(r"damaged\.yaml:\d+:\d+: |command line: --")
# What is missing stands nowhere.
MISSING = re.compile(r"damaged\.yaml: [\w.]+ (is not set|does not describe a model)")
LONGEST_LINE = 2500
WRONG: list[Any] = [
    None, True, False, -1, 0, 1.5, -0.5, 2**31, 2**63, 10**30, 10**400, -(10**30), 1e308, 1e-320, float("inf"),
    float("nan"), "", "None", "text", "path/to", "~nobody-at-all/x", "/", "\\n", "1e400", "x" * 50_000, "{a}", "ü\x85",
    [], [1, "x"], [[1]], [None], [{}], [10**400], [1] * 3000, {}, {"type": "x"}, {"type": None}, {"type": [1]},
    {"type": {"a": 1}}, [{"type": "x"}], [{"type": 1}], {"a": {"b": {"c": {}}}},
]  # fmt: skip
FUZZ = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
pytestmark = pytest.mark.usefixtures("shared_dir")


@pytest.fixture(autouse=True)
def _stand_ins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_stand_ins(tmp_path)


class Plain(yaml.SafeDumper):
    def ignore_aliases(self, data: object) -> bool:  # noqa: ARG002
        return True


def tree_of(name: str) -> dict[str, Any]:
    tree = yaml.safe_load((SHARED / name).read_text(encoding="utf-8"))
    return unshared(tree)


def unshared(tree: Any) -> Any:
    """A tree in which no alias joins two places."""
    if isinstance(tree, dict):
        return {key: unshared(value) for key, value in tree.items()}
    return [unshared(item) for item in tree] if isinstance(tree, list) else tree


def load(content: str | dict[str, Any], *arguments: str) -> Task:
    text = content if isinstance(content, str) else yaml.dump(content, Dumper=Plain, sort_keys=False)
    Path("damaged.yaml").write_text(text, encoding="utf-8")
    return load_task(["--config", "damaged.yaml", *arguments])


def error_of(content: str | dict[str, Any], *arguments: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(content, *arguments)
    assert_it_says_where(caught.value)
    return caught.value.message


def assert_it_says_where(error: ConfigError) -> None:
    headline, *lines = error.message.split("\n")
    if re.fullmatch(r"damaged\.yaml: \d+ problems", headline):
        assert len(lines) <= MAX_LINES + 1
        lines = [line for line in lines if not re.fullmatch(r"  … and \d+ more", line)]
    else:
        lines.insert(0, headline)
    for line in lines:
        assert len(line) <= LONGEST_LINE
        assert PLACE.search(line) or MISSING.search(line), line


def load_or_say_where(content: str | dict[str, Any], *arguments: str) -> None:
    try:
        task = load(content, *arguments)
    except ConfigError as error:
        assert_it_says_where(error)
    else:
        modes = (task.train, task.predict, task.evaluation if task.run_mode == "eval" else None)
        assert sum(mode is not None for mode in modes) == 1


# --- Values -----------------------------------------------------------------------------------------------------


def parent_of(tree: Any, path: tuple[Any, ...]) -> Any:
    for key in path[:-1]:
        tree = tree[key]
    return tree


def damage(data: st.DataObject, tree: dict[str, Any], path: tuple[Any, ...], how: str) -> None:
    parent, key = parent_of(tree, path), path[-1]
    if how == "drop":
        del parent[key]
    elif how == "retype":
        parent[key] = unshared(data.draw(st.sampled_from(WRONG)))
    elif how == "nest":
        parent[key] = {str(key): parent[key]}
    elif how == "deepen":
        for _ in range(data.draw(st.sampled_from([4, MAX_DEPTH - 5, MAX_DEPTH + 5]))):
            parent[key] = {"a": parent[key]} if data.draw(st.booleans()) else [parent[key]]
    elif how == "unnest" and isinstance(parent[key], dict):
        tree |= parent.pop(key)
    elif how == "misspell" and isinstance(parent, dict):
        parent[f"{key}x"] = parent.pop(key)
    elif how in ("swap", "copy"):
        other = data.draw(st.sampled_from(list(paths_in(tree))))
        if path[: len(other)] != other and other[: len(path)] != path:
            there = parent_of(tree, other)
            parent[key], mine = unshared(there[other[-1]]), parent[key]
            if how == "swap":
                there[other[-1]] = mine


@settings(FUZZ, max_examples=250)
@given(data=st.data())
def test_damaged_values_give_a_task_or_an_error_with_a_place(data: st.DataObject) -> None:
    tree = tree_of(data.draw(st.sampled_from(FILES)))
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from(list(paths_in(tree)) or [()]))
        assume(path)
        ways = ["drop", "retype", "retype", "nest", "deepen", "unnest", "misspell", "swap", "copy"]
        damage(data, tree, path, data.draw(st.sampled_from(ways)))
    modes = [[], ["--run_mode=predict"], ["--run_mode=eval"], ["--do_eval=True"], ["--dry_run=True"]]
    load_or_say_where(tree, *data.draw(st.sampled_from([[], STAND_INS])), *data.draw(st.sampled_from(modes)))


@pytest.mark.parametrize("name", SMALL)
def test_every_misspelt_key_is_found_and_put_right(name: str) -> None:
    original = tree_of(name)
    paths = [path for path in paths_in(original) if isinstance(path[-1], str) and not OPAQUE & set(path[:-1])]
    assert len(paths) > 80
    for path in paths:
        tree = copy.deepcopy(original)
        parent = parent_of(tree, path)
        parent[f"{path[-1]}x"] = parent.pop(path[-1])
        message = error_of(tree, *STAND_INS)
        if path not in (("run_mode",), ("callbacks", 0, "type"), ("callbacks", 1, "type")):
            assert f"{path[-1]}x is not a known key: did you mean {path[-1]!r}?" in message


@pytest.mark.parametrize("name", SMALL)
def test_a_group_of_keys_is_no_plain_value_and_a_plain_value_no_section(name: str) -> None:
    original = tree_of(name)
    for path in paths_in(original):
        if OPAQUE & set(path) or path[-1] in TAKES_A_GROUP or not isinstance(path[-1], str):
            continue
        tree = copy.deepcopy(original)
        parent = parent_of(tree, path)
        parent[path[-1]] = "text" if isinstance(parent[path[-1]], dict) else {"zz": 1}
        written = ".".join(map(str, path)).replace(".0.", "[0].").replace(".1.", "[1].")
        assert re.search(
            rf"{re.escape(written)}(\.zz)? (must be|is not a known key|is not set)|needs a", error_of(tree)
        )


# --- Text -------------------------------------------------------------------------------------------------------


def entries_of(node: Node) -> Iterator[tuple[str, int, int]]:
    """Every key of a file with its line and column."""
    for name, entry in node.value.items() if isinstance(node.value, dict) else ():
        assert entry.key.line is not None
        assert entry.key.column is not None
        yield name, entry.key.line, entry.key.column
        yield from entries_of(entry.node)
    for item in node.value if isinstance(node.value, list) else ():
        yield from entries_of(item)


@settings(FUZZ, max_examples=100)
@given(data=st.data())
def test_a_key_that_stands_twice_is_refused_with_both_places(data: st.DataObject) -> None:
    path = SHARED / data.draw(st.sampled_from(FILES))
    lines = path.read_text(encoding="utf-8").splitlines()
    name, line, column = data.draw(st.sampled_from(list(entries_of(read_yaml(path)))))
    assume(not lines[line - 1][: column - 1].strip())  # not in a list's first line, nor in braces
    lines.insert(line - 1, f"{' ' * (column - 1)}{name}: 1")
    message = error_of("\n".join(lines), *STAND_INS)
    assert (
        message == f"damaged.yaml:{line + 1}:{column}: the key {name!r} was set before, at damaged.yaml:{line}:{column}"
    )


@settings(FUZZ, max_examples=150)
@given(data=st.data())
def test_damaged_text_gives_a_task_or_an_error_with_a_place(data: st.DataObject) -> None:
    lines = (SHARED / data.draw(st.sampled_from(FILES))).read_text(encoding="utf-8").splitlines()
    for _ in range(data.draw(st.integers(1, 2))):
        at = data.draw(st.integers(0, len(lines) - 1))
        line, following = lines[at], lines[min(at + 1, len(lines) - 1)]
        key, _, value = line.partition(":")
        mark = data.draw(
            st.sampled_from(["&x", "*x", "&x *x", "!!int", "!!python/name:os.system", "|", ">", "{", "[", "'"])
        )
        changed = {
            "repeat": [line, line],
            "swap": [following, line],
            "drop": [],
            "cut": [line[: len(line) // 2]],
            "tab": ["\t" + line],
            "indent": [" " + line],
            "mark": [f"{key}: {mark}{value}"],
            "merge": [line, " " * (len(line) - len(line.lstrip())) + "<<: {seed: 1, zz: 2}"],
            "insert": [line, data.draw(st.text(max_size=20))],
        }
        lines[at : at + 1] = changed[data.draw(st.sampled_from(sorted(changed)))]
    load_or_say_where("\n".join(lines), *STAND_INS)


@settings(FUZZ, max_examples=100)
@given(data=st.data())
def test_damaged_bytes_give_a_task_or_an_error(data: st.DataObject) -> None:
    content = bytearray((SHARED / data.draw(st.sampled_from(FILES))).read_bytes())
    at = data.draw(st.integers(0, len(content)))
    content[at : at + data.draw(st.integers(0, 200))] = data.draw(st.binary(max_size=8))
    Path("damaged.yaml").write_bytes(content)
    try:
        load_task(["--config", "damaged.yaml", *STAND_INS])
    except ConfigError as error:
        assert "damaged.yaml" in error.message  # noqa: PT017 - either outcome is right


# --- Bounds -----------------------------------------------------------------------------------------------------


def test_thousands_of_unknown_keys_are_counted_not_all_shown_and_few_are_compared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(schema, "suggestion", lambda name, _: asked.append(name) or "")
    text = (SHARED / SMALL[0]).read_text(encoding="utf-8") + "\n".join(f"key_{number}: 1" for number in range(9000))
    message = error_of(text, *STAND_INS)
    assert message.startswith("damaged.yaml: 9000 problems\n")
    assert message.count("is not a known key") == MAX_LINES
    assert message.endswith(f"  … and {9000 - MAX_LINES} more")
    assert len(asked) == MAX_SUGGESTIONS


@pytest.mark.parametrize(
    "value",
    [
        "1" + "0" * 400,
        "-1" + "0" * 400,
        "0x" + "f" * 5000,
        "0b" + "1" * 50_000,
        "9" * 50_000,
        "1" * 5000 + ".5",
        "1e999",
    ],
)
@pytest.mark.parametrize(
    "key", ["seed", "eval_callbacks", "grouped_lr_schedule", "context: {jit_config", "optimizer: {eps", "layer_decay"]
)
def test_no_number_is_too_large_to_be_judged(key: str, value: str) -> None:
    text = re.sub(rf"(?m)^{key.partition(':')[0]}:(.*\n( .*\n)*)", "", (SHARED / SMALL[0]).read_text(encoding="utf-8"))
    load_or_say_where(f"{text}\n{key}: {value}{'}' if '{' in key else ''}\n", *STAND_INS)


@pytest.mark.parametrize("value", [2**40, 2**63 - 1, 2.0**70, 1e300])
@pytest.mark.parametrize(
    "key", ["vocab_size", "hidden_size", "intermediate_size", "num_layers", "head_dim", "seq_length"]
)
def test_sizes_of_no_model_are_refused_before_anything_is_multiplied(key: str, value: float) -> None:
    message = error_of(tree_of(SMALL[0]), *STAND_INS, f"--model.model_config.{key}", str(value))
    assert re.search(rf"command line: --model.model_config.{key}: .*{key} must be (at most|an integer)", message)


@pytest.mark.parametrize(
    "key",
    [
        "runner_config.epochs",
        "runner_config.batch_size",
        "runner_config.gradient_accumulation_steps",
        "parallel_config.micro_batch_num",
        "parallel_config.data_parallel",
        "micro_batch_interleave_num",
    ],
)
def test_counts_of_no_run_are_refused(key: str) -> None:
    assert re.search(
        rf"command line: --{key}: {key} must be at most \d+, not", error_of(tree_of(SMALL[0]), f"--{key}=9{'0' * 17}")
    )


@pytest.mark.parametrize(
    "key", ["zz", "run_mode", "output_dir", "load_checkpoint", "model_name", "type", "dataset_dir"]
)
def test_a_long_text_is_cut_in_the_message(key: str) -> None:
    tree = tree_of(SMALL[0]) | {"zz": ""}
    for path in list(paths_in(tree)):
        if path[-1] == key:
            parent_of(tree, path)[key] = "x" * 6_000
    load_or_say_where(tree, "--use_parallel=False")


def test_base_configs_are_read_a_bounded_number_of_times(monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[Path] = []

    def counted(path: Path, rank: int = 0) -> Node:
        reads.append(path)
        return read_yaml(path, rank)

    monkeypatch.setattr("runformer.config.yaml_file.read_yaml", counted)
    for number in range(8):
        Path(f"base{number}.yaml").write_text(f"base_config: [{', '.join([f'base{number + 1}.yaml'] * 9)}]\n")
    Path("base8.yaml").write_text("seed: 1\n")
    with pytest.raises(
        ConfigError, match=rf"base8.yaml: base_config is followed through at most {MAX_BASE_CONFIGS} files"
    ):
        load("base_config: base0.yaml\n")
    assert len(reads) == MAX_BASE_CONFIGS + 1


def test_published_files_as_bases_and_a_circle() -> None:
    for number, name in enumerate(SMALL):
        Path(f"base{number}.yaml").write_bytes((SHARED / name).read_bytes())
    assert load("base_config: [base0.yaml, base1.yaml]\nseed: 7\n", *STAND_INS).seed == 7
    assert "base0.yaml:1:1: sead is not a known key" in error_in_base("sead: 1\n")
    assert "damaged.yaml: base_config leads back to this file" in error_in_base("base_config: damaged.yaml\n")


def error_in_base(line: str) -> str:
    Path("base0.yaml").write_text(line + (SHARED / SMALL[0]).read_text(encoding="utf-8"), encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load("base_config: base0.yaml\n", *STAND_INS)
    return str(caught.value)
