"""A rank that was started with something else than the others is named, and what it is, before anything is learnt."""

from __future__ import annotations

import numpy as np
from launching import REPOSITORY, launch
from tiny_task import TinyTask

from runformer.data.mindrecord import Column, MindRecordWriter

# The real command, of which one rank gets other arguments, or another version of torch.
SCRIPT = f"""
import os, sys
sys.path.insert(0, {str(REPOSITORY)!r})
from runformer.cli.main import main

arguments, mark = sys.argv[1:], sys.argv.index("--only")
own, arguments = sys.argv[mark + 2 :], sys.argv[1:mark]
if os.environ["RANK"] == sys.argv[mark + 1]:
    if own == ["torch"]:
        import torch
        torch.__version__ = "2.0.0"
    else:
        arguments += own
sys.exit(main(arguments))
"""


def said_by(tiny: TinyTask, *only: str) -> str:
    (tiny.folder / "some.py").write_text(SCRIPT)
    arguments = ["--config", "config.yaml", "--use_parallel", "True", "--parallel_config.data_parallel", "3"]
    done = launch(tiny.folder, 3, "some.py", *arguments, "--batch_size", "1", "--only", *only)
    assert done.exit_code not in (0, None)
    assert not (tiny.folder / "output/training.jsonl").exists()
    assert (tiny.folder / "logs/worker_2.log").read_text().count("differs from the other ranks") == 1
    return "\n".join(done.summary)


def test_another_setting_is_named(tiny: TinyTask) -> None:
    said = said_by(tiny, "1", "--lr_schedule.learning_rate", "0.5")
    assert "rank 1 differs from the other ranks in train.schedule.parameters.learning_rate (" in said


def test_another_version_of_the_code_is_named(tiny: TinyTask) -> None:
    assert "rank 0 differs from the other ranks in the version of torch (" in said_by(tiny, "0", "torch")


def test_other_data_is_named(tiny: TinyTask) -> None:
    columns = {name: Column("int32", (-1,)) for name in ("input_ids", "labels")}
    with MindRecordWriter(tiny.folder / "other.mindrecord", columns) as writer:
        for _ in range(15):
            writer.write([dict.fromkeys(columns, np.arange(17, dtype=np.int32))])
    said = said_by(tiny, "2", "--train_dataset_dir", "other.mindrecord")
    assert "rank 2 differs from the other ranks in samples of the dataset (" in said
    assert "bytes of the dataset's files (" in said
