"""Strategy files say which rank holds what, without anything being started."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_task import TinyTask

from runformer.config.layout import ParallelOptions
from runformer.config.task import ModelOptions, Precision
from runformer.models.build import outline
from runformer.parallel.strategy import write_strategies

OPTIONS = ModelOptions(
    vocab_size=61, hidden_size=56, intermediate_size=50, num_layers=5, num_heads=14, num_kv_heads=2, head_dim=4,
    max_positions=16, qkv_bias=True, tie_embeddings=True,
)  # fmt: skip
LAYOUT = ParallelOptions(data=2, tensor=4, pipeline=2)


def read(folder: Path, rank: int) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / f"strategy_rank_{rank}.json").read_text())
    return content


def test_every_element_is_owned_by_one_rank_of_each_copy(tmp_path: Path) -> None:
    write_strategies(tmp_path, range(16), LAYOUT, OPTIONS, Precision(), None)
    shapes = {name: tuple(parameter.shape) for name, parameter in outline(OPTIONS, Precision()).named_parameters()}
    files = [read(tmp_path, rank) for rank in range(16)]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        f"strategy_rank_{rank}.json" for rank in range(16)
    )
    for copy in range(2):
        owned = {name: torch.zeros(shape) for name, shape in shapes.items()}
        for file in (file for file in files if file["place"]["data"] == copy):
            for name, part in file["parameters"].items():
                assert tuple(part["shape"]) == shapes[name]
                for begin, end in part["owned"]:
                    owned[name].narrow(part["dim"], begin, end - begin).add_(1)
        for name, counts in owned.items():
            assert torch.equal(counts, torch.ones_like(counts)), name


def test_a_rank_is_told_where_it_stands(tmp_path: Path) -> None:
    write_strategies(tmp_path, [13], LAYOUT, OPTIONS, Precision(), None)
    file = read(tmp_path, 13)
    assert (file["rank"], file["world_size"]) == (13, 16)
    assert file["place"] == {"pipeline": 1, "data": 1, "context": 0, "tensor": 1}
    assert file["stages"] == [{"index": 1, "layers": [3, 5], "first": False, "last": True}]
    # Query heads 4 to 6 of 14, the one key-value head that they read, and the last stage's share of the tied table.
    prefix = "model.layers.4.self_attn."
    assert file["parameters"][prefix + "q_proj.weight"]["spans"] == [[16, 28]]
    assert file["parameters"][prefix + "k_proj.weight"] == {"shape": [8, 56], "dim": 0, "spans": [[0, 4]], "owned": []}
    assert file["parameters"]["model.embed_tokens.weight"]["owned"] == []
    assert not any(name.startswith("model.layers.0.") for name in file["parameters"])


def test_the_command_writes_them_and_nothing_else(tiny: TinyTask) -> None:
    """Without the data that the task names, and for all ranks at once."""
    (tiny.folder / "data.mindrecord").unlink()
    layout = ["--use_parallel", "True", "--parallel_config.model_parallel", "4", "--parallel_config.data_parallel", "2"]
    done = tiny.run("--only_save_strategy", "True", *layout)
    assert done.returncode == 0, done.stderr
    written = sorted(path.name for path in (tiny.folder / "output").rglob("*") if path.is_file())
    assert written == [f"strategy_rank_{rank}.json" for rank in range(8)]
    own = tiny.run(
        "--only_save_strategy", "True", *layout, "--output_dir", "own", environment={"RANK": "3", "WORLD_SIZE": "8"}
    )
    assert own.returncode == 0, own.stderr
    assert [path.name for path in (tiny.folder / "own/strategy").iterdir()] == ["strategy_rank_3.json"]


@pytest.mark.slow
def test_thousands_of_ranks_of_a_large_model_are_planned_in_seconds(repository: Path, tmp_path: Path) -> None:
    """One rank's file of a layout of 16,384 for a model of 72 B parameters: under 10 s and 1 GB."""
    program = (
        "import sys\nfrom pathlib import Path\n"
        "from runformer.config.task import ModelOptions, ParallelOptions, Precision\n"
        "from runformer.parallel.strategy import write_strategies\n"
        "options = ModelOptions(152064, 8192, 29568, 80, 64, 8, 128, 32768, qkv_bias=True)\n"
        "layout = ParallelOptions(data=256, tensor=8, pipeline=8)\n"
        "write_strategies(Path(sys.argv[1]), [9999], layout, options, Precision(), None)\n"
        # Not of getrusage, which counts what the parent took before this process began.
        "lines = Path('/proc/self/status').read_text().splitlines()\n"
        "print(next(line.split()[1] for line in lines if line.startswith('VmHWM')))\n"
    )
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        cwd=repository, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert time.monotonic() - begun < 10
    assert int(done.stdout) < 1_000_000
