"""Ranks that read Megatron's datasets learn what one process does, and make the index files once."""

from __future__ import annotations

from pathlib import Path

from curves import assert_same_curve, assert_same_weights
from launching import launch
from tiny_task import make_megatron_task

COMMAND = ("run_mindformer.py", "--config", "config.yaml", "--epochs", "1")


def test_two_ranks_learn_what_one_process_does(repository: Path, tmp_path: Path) -> None:
    task = make_megatron_task(repository, tmp_path)
    parallel = ("--use_parallel", "True", "--parallel_config.data_parallel", "2", "--batch_size", "1")
    many = launch(tmp_path, 2, *COMMAND, "--output_dir", "many", *parallel)
    assert many.exit_code == 0, many.err
    folder = tmp_path / "two/cache/GPTDataset_indices"
    names = sorted(path.name.partition("-train-")[2] for path in folder.iterdir())
    assert names == ["description.txt", "document_index.npy", "sample_index.npy", "shuffle_index.npy"]
    one = task.run("--epochs", "1", "--output_dir", "one", "--batch_size", "2")
    assert one.returncode == 0, one.stderr
    assert_same_curve(tmp_path / "many", tmp_path / "one")
    assert_same_weights(tmp_path / "many", tmp_path / "one")
