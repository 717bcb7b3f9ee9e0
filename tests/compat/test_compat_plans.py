"""Other people's task files, as they are: each is planned, its placeholders listed, or refused by name."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from runformer.cli.main import main
from runformer.config import load_task
from runformer.errors import ConfigError
from runformer.plan import describe, make_plan

SHARED = Path(__file__).resolve().parents[2].parent / "shared"
FILES = sorted(str(path.relative_to(SHARED)) for path in (SHARED / "compat").rglob("*.yaml"))
REFUSED_FAMILIES = {"glm4": "'ChatGLM2Config' is not supported", "mixtral": "mixtures of experts"}


@pytest.fixture(autouse=True)
def _inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def files_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("name", FILES)
def test_every_file_is_planned_as_it_is(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused = next((text for family, text in REFUSED_FAMILIES.items() if family in name), None)
    exit_code = main(["--config", str(SHARED / name), "--dry_run", "True"])
    told = capsys.readouterr()
    if refused is not None:
        assert exit_code == 78
        assert refused in told.err
        assert "supported" in told.err
        assert files_in(tmp_path) == []
        return
    assert exit_code == 0, told.err
    assert files_in(tmp_path) == ["output/plan.json"]
    plan = json.loads((tmp_path / "output/plan.json").read_text())
    assert plan["to_fill_in"] or "32b_4k" in name  # which describes its model, and names a loader that is not built
    assert all(key in told.out for key in plan["to_fill_in"])
    assert (plan["model"] is None) == ("pretrained_model_dir" in plan["to_fill_in"] and "32b_4k" not in name)
    sizes = plan["parallel"]
    assert plan["devices"] == sizes["data"] * sizes["tensor"] * sizes["context"] * sizes["pipeline"]


@pytest.mark.usefixtures("shared_dir")
def test_the_plan_of_72_billion_parameters() -> None:
    name = "compat/research/qwen2_5/finetune_qwen2.5_72B_32K.yaml"
    started = time.perf_counter()
    plan = make_plan(load_task(["--config", str(SHARED / name), "--dry_run", "True"]))
    print(f"planned in {time.perf_counter() - started:.1f} s")  # for whoever looks: machines differ
    assert plan.model is not None
    assert plan.model.parameters == 72_706_203_648
    assert plan.devices == 64
    assert plan.step is not None
    assert plan.step.tokens == 32 * 32768
    assert plan.memory_of_a_device is not None
    # A device holds about a 64th of the weights, and the embedding's share.
    assert 4 * 72.7e9 / 64 < plan.memory_of_a_device["weights"] < 1.3 * 4 * 72.7e9 / 64
    assert "64 devices: data 1 × tensor 8 × context 1 × pipeline 8" in describe(plan)


@pytest.mark.usefixtures("shared_dir")
def test_a_plan_does_not_excuse_mistakes(capsys: pytest.CaptureFixture[str]) -> None:
    name = "compat/research/qwen2_5/finetune_qwen2_5_7b_8k.yaml"
    arguments = ["--config", str(SHARED / name), "--dry_run", "True"]
    assert main([*arguments, "--parallel_config.micro_batch_num", "1"]) == 78
    assert "fewer than the 2 stages" in capsys.readouterr().err
    assert main([*arguments, "--runner_config.epoch", "3"]) == 78
    assert "did you mean 'epochs'?" in capsys.readouterr().err
    with pytest.raises(ConfigError, match=r"train_dataset\.data_loader\.dataset_dir is not set"):
        load_task([*arguments[:2], "--use_parallel", "False"])
