"""The YAML loader: values as PyYAML reads them, positions, and every kind of damage."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from runformer.config.problems import Place
from runformer.config.schema import plain
from runformer.config.yaml_file import (
    MAX_BASE_CONFIGS,
    MAX_BYTES,
    MAX_DIGITS,
    Node,
    load_tree,
    parse_value,
    read_yaml,
    scalar_value,
)
from runformer.errors import ConfigError

FLAG = Place.flag("--a.b")
FEW = settings(max_examples=60, deadline=None)


def read(folder: Path, text: str | bytes) -> Node:
    path = folder / "a.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_yaml(path)


def error_of(folder: Path, text: str | bytes) -> str:
    with pytest.raises(ConfigError) as caught:
        read(folder, text)
    return str(caught.value).replace(str(folder / "a.yaml"), "a.yaml")


def test_every_published_file_reads_as_pyyaml_reads_it(shared_dir: Path) -> None:
    files = sorted(shared_dir.rglob("*.yaml"))
    assert len(files) >= 36
    for path in files:
        assert plain(load_tree(path)) == yaml.safe_load(path.read_text(encoding="utf-8")), path


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("1E5", 1e5),
        ("1.0e3", 1000.0),
        ("1.e-8", 1e-8),
        (".5", 0.5),
        ("-3", -3),
        ("1_000", 1000),
        ("0x1F", 31),
        ("010", 8),
        ("0b11", 3),
        ("True", True),
        ("no", False),
        ("~", None),
        ("", None),
        ("None", "None"),
        (".inf", math.inf),
        ("-inf", -math.inf),
        ("2024-01-01", "2024-01-01"),
        ("12:30:00", "12:30:00"),
        ("1e", "1e"),
        ("e5", "e5"),
        ("0x_", "0x_"),
        ("9" * 5000, "9" * 5000),
        ("-" + "9" * (MAX_DIGITS - 1), -(10 ** (MAX_DIGITS - 1) - 1)),
        ("0x" + "f" * MAX_DIGITS, "0x" + "f" * MAX_DIGITS),
        ("5.0.1", "5.0.1"),
    ],
)
def test_plain_words(text: str, value: object) -> None:
    result = scalar_value(text)
    assert result == value
    assert type(result) is type(value)


@FEW
@given(st.integers() | st.floats(allow_nan=False) | st.booleans() | st.none())
def test_values_written_by_pyyaml_come_back(value: object) -> None:
    text = yaml.safe_dump(value).splitlines()[0]
    assert scalar_value(text) == value


# PyYAML writes what is text to it without quotes; `1e5` and `inf` are numbers here.
_TEXT = st.text(max_size=8).filter(
    lambda text: isinstance(scalar_value(text), str) or yaml.safe_dump(text).startswith(("'", '"'))
)
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**6), 10**6) | _TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(min_size=1, max_size=6), inner, max_size=3),
    max_leaves=12,
)


@FEW
@given(st.dictionaries(st.text(min_size=1, max_size=6), _VALUES, min_size=1, max_size=4), st.booleans())
def test_any_tree_round_trips(tmp_path_factory: pytest.TempPathFactory, tree: dict[str, object], flow: bool) -> None:
    text = yaml.safe_dump(tree, default_flow_style=flow)
    assert plain(read(tmp_path_factory.getbasetemp(), text)) == tree


@FEW
@given(st.text(max_size=80) | st.binary(max_size=80).map(lambda data: data.decode("latin-1")))
def test_any_text_is_a_mapping_or_a_config_error(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    try:
        root = read(tmp_path_factory.getbasetemp(), text.encode(errors="surrogatepass"))
    except ConfigError as error:
        said = error.message
    else:
        said = root.place.source if isinstance(root.value, dict) else "not a mapping"
    assert "a.yaml" in said


def test_positions_of_keys_and_values(tmp_path: Path) -> None:
    root = read(tmp_path, "a: 1\nb:\n  c:   [x, y]\n")
    assert isinstance(root.value, dict)
    inner = root.value["b"].node
    assert isinstance(inner.value, dict)
    entry = inner.value["c"]
    assert str(entry.key).endswith("a.yaml:3:3")
    assert isinstance(entry.node.value, list)
    assert str(entry.node.value[1].place).endswith("a.yaml:3:12")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: 1\nb: 2\na: 3\n", "a.yaml:3:1: the key 'a' was set before, at a.yaml:1:1"),
        ("a:\n\tb: 1\n", "a.yaml:2:1: this is not YAML"),
        ("a: [1, 2\nb: 3\n", "a.yaml:2:2: this is not YAML"),
        ("a: *x\n", "a.yaml:1:4: no anchor &x stands before *x"),
        ("a: &x [*x]\n", "a.yaml:1:8: *x stands inside what it names"),
        ("? [a, b]\n: 1\n", "a.yaml:1:3: a key must be a plain name"),
        ("a: !!python/object:os.system x\n", "a.yaml:1:4: the tag 'tag:yaml.org,2002:python/object:os.system'"),
        ("a: !!python/tuple [1]\n", "is not allowed"),
        ("a: !!int x\n", "a.yaml:1:4: 'x' does not fit its tag"),
        ("a: 1\n---\nb: 1\n", "a.yaml:2:1: a second YAML document begins here"),
        ("[1, 2]\n", "a task file is a mapping of keys, not a list"),
        ("just words\n", "not the single value 'just words'"),
        ("", "a.yaml: the file is empty"),
        ("# nothing\n", "a.yaml: the file is empty"),
        ("<<: 3\n", "a.yaml:1:5: '<<' merges mappings only"),
        ("<<: {a: 1}\n<<: {b: 1}\n", "a.yaml:2:1: the key '<<' was set before, at a.yaml:1:1"),
        ("a: 1\n? a\n: 2\n", "a.yaml:2:3: the key 'a' was set before, at a.yaml:1:1"),
        ("&x a: 1\nb: *x\n", "no anchor &x stands before *x"),
        (f"a: *{'x' * 5000}\n", "xxx…xxx"),
        (f"? {'x' * 5000}\n: 1\n? {'x' * 5000}\n: 2\n", "xxx…xxx"),
        (b"a: 1\nb: \xff\n", "a.yaml:2:4: a byte that is not UTF-8"),
        (b"a: 1\nbc: \x07\n", "a.yaml:2:5: the character '\\x07' is not allowed"),
        ("a: " + "[" * 40, "a.yaml:1:23: nested more than 20 levels deep"),
        ("a: " + "{b: " * 5000, "nested more than 20 levels deep"),
        ("#" * (MAX_BYTES + 1), "larger than 256 KiB"),
    ],
)
def test_damage_is_named_with_its_place(tmp_path: Path, text: str | bytes, expected: str) -> None:
    assert expected in error_of(tmp_path, text)


def test_a_tab_gets_advice(tmp_path: Path) -> None:
    assert "indent with spaces" in error_of(tmp_path, "a:\n\tb: 1\n")


def test_aliases_cannot_unfold_to_a_bomb(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)]
    assert "more than 20000 values" in error_of(tmp_path, "\n".join(lines))


def test_merges_stop_at_the_bound_and_not_after_they_are_all_made(tmp_path: Path) -> None:
    wide = f"a: &x {{{', '.join(f'k{number}: 1' for number in range(4000))}}}\nb:\n"
    assert "a.yaml:8:3: more than 20000 values" in error_of(tmp_path, wide + "- <<: *x\n" * 15_000)
    lists = "- <<: [*x, *x, *x, *x]\n" * 2
    assert "a.yaml:4:3: more than 20000 values" in error_of(tmp_path, wide + lists)


def test_an_alias_is_the_same_node_and_merging_keeps_the_own_keys(tmp_path: Path) -> None:
    root = read(tmp_path, "a: &x {p: 1, q: 2}\nb: *x\nc: {<<: *x, q: 3}\nd: {<<: [{q: 9}, *x]}\n")
    assert isinstance(root.value, dict)
    assert root.value["a"].node is root.value["b"].node
    assert plain(root.value["c"].node) == {"p": 1, "q": 3}
    assert plain(root.value["d"].node) == {"q": 9, "p": 1}


def test_base_config_is_relative_to_the_child_and_the_child_wins(tmp_path: Path) -> None:
    (tmp_path / "bases").mkdir()
    (tmp_path / "bases/first.yaml").write_text("a: 1\nb: {c: 1, d: 1}\nl: [1, 2]\n")
    (tmp_path / "bases/second.yaml").write_text("base_config: first.yaml\nb: {d: 2}\n")
    (tmp_path / "other.yaml").write_text("a: 5\n")
    child = tmp_path / "child.yaml"
    child.write_text("base_config: [bases/second.yaml, other.yaml]\nb: {e: 3}\nl: [7]\n")
    assert plain(load_tree(child)) == {"a": 5, "b": {"c": 1, "d": 2, "e": 3}, "l": [7]}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("base_config: a.yaml\n", "base_config leads back to this file"),
        ("base_config: b.yaml\n", "is not a file"),
        ("base_config: {a: 1}\n", "must be a file name"),
        ("base_config: [a.yaml, 3]\n", "must be a file name or a list of file names"),
    ],
)
def test_bad_base_configs(tmp_path: Path, text: str, expected: str) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ConfigError, match=expected):
        load_tree(tmp_path / "a.yaml")


def test_a_quoted_merge_key_is_a_key_like_any_other(tmp_path: Path) -> None:
    assert plain(read(tmp_path, '"<<": 3\n<<: {a: 1}\n')) == {"<<": 3, "a": 1}


@pytest.mark.parametrize("name", ["x" * 5000, '"\\0"', "a.yaml/b.yaml", "/", "..", "~nobody-at-all/x.yaml"])
def test_no_name_of_a_base_config_breaks_the_search(tmp_path: Path, name: str) -> None:
    message = error_of_base(tmp_path, name)
    assert "a.yaml:1:14: base_config names " in message
    assert len(message) < 2000


def error_of_base(folder: Path, name: str) -> str:
    (folder / "a.yaml").write_text(f"base_config: {name}\n")
    with pytest.raises(ConfigError) as caught:
        load_tree(folder / "a.yaml")
    return str(caught.value)


def unfolded(graph: list[list[int]], number: int, way: tuple[int, ...] = ()) -> list[int]:
    """The files in the order in which later ones win; ValueError for a circle, or for more reads than are allowed."""
    if number in way:
        raise ValueError("circle")
    files = [file for base in graph[number] for file in unfolded(graph, base, (*way, number))] + [number]
    if len(files) > MAX_BASE_CONFIGS + 1:
        raise ValueError("too many")
    return files


@FEW
@given(st.lists(st.lists(st.integers(0, 4), max_size=3), min_size=5, max_size=5))
def test_any_graph_of_base_configs(tmp_path_factory: pytest.TempPathFactory, graph: list[list[int]]) -> None:
    folder = tmp_path_factory.getbasetemp()
    for number, bases in enumerate(graph):
        names = ", ".join(f"{base}.yaml" for base in bases)
        (folder / f"{number}.yaml").write_text(f"base_config: [{names}]\nlast: {number}\nown: {{k{number}: 1}}\n")
    try:
        files = unfolded(graph, 0)
    except ValueError:
        with pytest.raises(ConfigError, match=r"\.yaml: base_config (leads back|is followed through at most)"):
            load_tree(folder / "0.yaml")
    else:
        assert plain(load_tree(folder / "0.yaml")) == {"last": 0, "own": {f"k{number}": 1 for number in files}}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1.0", 1.0),
        ("1e3", 1000.0),
        ("inf", math.inf),
        ("None", None),
        ("null", None),
        ("true", True),
        ("[1, 2]", [1, 2]),
        ('{"a": 1, "b": [x]}', {"a": 1, "b": ["x"]}),
        ("{a: {b: 1e-5}}", {"a": {"b": 1e-5}}),
        ("a=b=c", "a=b=c"),
        ("https://host/x?y=1&z=2", "https://host/x?y=1&z=2"),
        ("key: value", "key: value"),
        ("# no comment", "# no comment"),
        ("[not yaml", "[not yaml"),
        ("'quoted'", "quoted"),
        ("*star", "*star"),
        ("", None),
    ],
)
def test_values_of_overrides(text: str, value: object) -> None:
    assert plain(parse_value(text, FLAG)) == value


@FEW
@given(st.text(max_size=60))
def test_any_override_text_has_a_value_at_the_flag(text: str) -> None:
    node = parse_value(text, FLAG)
    assert node.place.on_command_line
    assert str(node.place) == "command line: --a.b"


@FEW
@given(_VALUES.filter(lambda value: isinstance(value, list | dict) and value))
def test_lists_and_mappings_of_overrides_are_yaml(value: object) -> None:
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6).strip()
    assert plain(parse_value(text, FLAG)) == value
