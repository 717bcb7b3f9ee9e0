"""Other people's task files: each becomes a Task or is refused by name; damaged ones never end in a traceback."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runformer.config import ModelOptions, Task, load_task
from runformer.errors import ConfigError

SHARED = Path(__file__).resolve().parents[2].parent / "shared"
FILES = sorted(str(path.relative_to(SHARED)) for path in SHARED.rglob("*.yaml"))
# What a file is refused for, even where everything that it names is there.
REFUSED = {
    "compat/configs/glm4/finetune_glm4_9b.yaml": "the model family of 'ChatGLM2Config' is not supported",
    "compat/configs/general/run_general_task.yaml": "model.model_config does not describe a model",
}
STAND_INS = [
    "--use_parallel=False",
    "--train_dataset_dir=rows.mindrecord",
    "--load_checkpoint=weights",
    "--predict_data=hello",
    "--processor.tokenizer.vocab_file=vocab.json",
    "--processor.tokenizer.merges_file=merges.txt",
]


@pytest.fixture(autouse=True)
def _stand_ins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (
        "rows.mindrecord",
        "vocab.json",
        "merges.txt",
        "tokenizer/tokenizer.json",
        "weights/x",
        "hf/config.json",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()


def load(name: str, *arguments: str) -> Task:
    return load_task(["--config", str(SHARED / name), *STAND_INS, *arguments])


def is_described_by_a_folder(name: str) -> bool:
    return "pretrained_model_dir" in (SHARED / name).read_text(encoding="utf-8")


def test_all_files_are_there(shared_dir: Path) -> None:
    assert shared_dir == SHARED
    assert len(FILES) >= 36


@pytest.mark.parametrize("name", FILES)
def test_every_file_loads_or_is_refused_by_name(name: str) -> None:
    folder = ("--pretrained_model_dir", "hf") if is_described_by_a_folder(name) else ()
    refused = "mixtures of experts (Mixtral" if "mixtral" in name else REFUSED.get(name)
    if refused is None:
        task = load(name, *folder)
        assert (task.train is None) != (task.predict is None)
        assert (task.model.options is None) == bool(folder)
        assert bool(task.not_built) == ("qwen3_32b_4k" in name)
        return
    with pytest.raises(ConfigError) as caught:
        load(name, *folder)
    assert refused in str(caught.value)
    assert "supported" in str(caught.value).lower()


@pytest.mark.usefixtures("shared_dir")
def test_files_that_need_an_edit_load_once_edited() -> None:
    general = "compat/configs/general/run_general_task.yaml"
    task = load(general, "--pretrained_model_dir", "hf")
    assert task.train is not None
    assert task.train.schedule.kind == "PolynomialWithWarmUpLR"
    loader = "--train_dataset.data_loader.type"
    qwen3 = load("compat/configs/qwen3/pretrain_qwen3_32b_4k.yaml", loader, "MindDataset")
    assert qwen3.model.options is not None
    assert (qwen3.model.options.qk_norm, qwen3.model.options.head_dim, qwen3.model.options.num_heads) == (True, 128, 64)
    assert qwen3.train is not None
    assert qwen3.train.data.already_shifted
    qwen3.require_built()
    with pytest.raises(ConfigError, match=r"is 'BlendedMegatronDatasetDataLoader', which cannot be read yet"):
        load("compat/configs/qwen3/pretrain_qwen3_32b_4k.yaml").require_built()


@pytest.mark.usefixtures("shared_dir")
def test_our_recipe_is_the_published_one(repository: Path) -> None:
    name = "research/qwen2_5/finetune_qwen2_5_0_5b_8k.yaml"

    def values(task: Task) -> Task:
        return dataclasses.replace(task, config_file=Path("x"), notices=(), without_effect={})

    ours = load_task(["--register_path", "research/qwen2_5", "--config", "finetune_qwen2_5_0_5b_8k.yaml", *STAND_INS])
    assert ours.config_file == repository / name
    assert "found in the register path" in ours.notices[0]
    assert values(ours) == values(load(f"compat/{name}"))


@pytest.mark.usefixtures("shared_dir")
def test_qwen2_5_0_5b_is_the_model_of_hugging_face() -> None:
    assert load("compat/research/qwen2_5/finetune_qwen2_5_0_5b_8k.yaml").model.options == ModelOptions(
        vocab_size=151936,
        hidden_size=896,
        intermediate_size=4864,
        num_layers=24,
        num_heads=14,
        num_kv_heads=2,
        head_dim=64,
        max_positions=131072,
        rms_norm_eps=1e-6,
        rope_theta=1e6,
        qkv_bias=True,
        tie_embeddings=True,
        bos_token_id=151643,
        eos_token_ids=(151643,),
        pad_token_id=151643,
    )


@pytest.mark.parametrize("mode", ["train", "finetune", "predict"])
@pytest.mark.parametrize("name", [name for name in FILES if name.startswith("oracle")])
def test_one_file_serves_every_run_mode(name: str, mode: str) -> None:
    if mode != "predict" and "predict" in name:
        pytest.skip("a file without a dataset")
    task = load(name, "--run_mode", mode)
    assert task.run_mode == mode
    assert (task.predict is not None) == (mode == "predict")


# --- Damage ---------------------------------------------------------------------------------------------------

_WRONG = st.sampled_from(
    [None, True, -1, 0, 10**30, 1.5, -0.5, "", "None", "text", "path/to", "\\n", [], [1, "x"], [[1]], {}, {"type": "x"}]
)


def _paths(tree: Any, prefix: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield (*prefix, key)
        yield from _paths(value, (*prefix, key))


def _damage(tree: dict[str, Any], path: tuple[Any, ...], how: str, wrong: Any) -> None:
    parent: Any = tree
    for key in path[:-1]:
        parent = parent[key]
    if how == "drop":
        del parent[path[-1]]
    elif how == "retype":
        parent[path[-1]] = wrong
    elif how == "nest":
        parent[path[-1]] = {str(path[-1]): parent[path[-1]]}
    elif how == "unnest" and isinstance(parent[path[-1]], dict):
        tree |= parent.pop(path[-1])
    elif how == "misspell" and isinstance(parent, dict):
        parent[f"{path[-1]}x"] = parent.pop(path[-1])


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
@pytest.mark.usefixtures("shared_dir")
def test_damaged_files_give_a_task_or_a_config_error(tmp_path: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(FILES))
    tree = copy.deepcopy(yaml.safe_load((SHARED / name).read_text(encoding="utf-8")))
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from(list(_paths(tree))))
        how = data.draw(st.sampled_from(["drop", "retype", "nest", "unnest", "misspell"]))
        _damage(tree, path, how, data.draw(_WRONG))
    (tmp_path / "damaged.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    arguments = data.draw(st.sampled_from([[], STAND_INS]))
    try:
        task = load_task(["--config", "damaged.yaml", *arguments])
    except ConfigError as error:
        assert "damaged.yaml" in error.message or "command line" in error.message  # noqa: PT017 - either outcome is right
    else:
        assert (task.train is None) != (task.predict is None)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
@pytest.mark.usefixtures("shared_dir")
def test_damaged_text_gives_a_task_or_a_config_error(tmp_path: Path, data: st.DataObject) -> None:
    lines = (SHARED / data.draw(st.sampled_from(FILES))).read_text(encoding="utf-8").splitlines()
    at = data.draw(st.integers(0, len(lines) - 1))
    how = data.draw(st.sampled_from(["repeat", "cut", "tab", "indent", "insert"]))
    line = lines[at]
    changed = {
        "repeat": [line, line],
        "cut": [line[: len(line) // 2]],
        "tab": ["\t" + line],
        "indent": [" " + line],
        "insert": [line, data.draw(st.text(max_size=20))],
    }[how]
    (tmp_path / "damaged.yaml").write_text("\n".join([*lines[:at], *changed, *lines[at + 1 :]]), encoding="utf-8")
    try:
        assert isinstance(load_task(["--config", "damaged.yaml", *STAND_INS]), Task)
    except ConfigError as error:
        assert str(error)  # noqa: PT017 - either outcome is right


@pytest.mark.parametrize("name", [name for name in FILES if "finetune_qwen2_5_0_5b" in name or "llama_lora" in name])
def test_every_misspelt_key_is_found_and_put_right(tmp_path: Path, name: str) -> None:
    original = yaml.safe_load((SHARED / name).read_text(encoding="utf-8"))
    opaque = {"jit_config", "ascend_config", "parallel_optimizer_config", "metric", "strategy_ckpt_config"}
    paths = [path for path in _paths(original) if isinstance(path[-1], str) and not opaque & set(path[:-1])]
    assert len(paths) > 80
    for path in paths:
        tree = copy.deepcopy(original)
        _damage(tree, path, "misspell", None)
        (tmp_path / "damaged.yaml").write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
        with pytest.raises(ConfigError) as caught:
            load_task(["--config", "damaged.yaml", *STAND_INS])
        if path not in (("run_mode",), ("callbacks", 0, "type"), ("callbacks", 1, "type")):
            assert f"{path[-1]}x is not a known key: did you mean {path[-1]!r}?" in str(caught.value)
