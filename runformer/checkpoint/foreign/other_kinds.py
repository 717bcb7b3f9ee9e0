"""Files that are not loaded as they are: quantised ones of llama.cpp, and pickles."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from runformer.errors import CheckpointError

PICKLES = (".bin", ".pt", ".pth")
_INDEX = "pytorch_model.bin.index.json"
_PROBLEM = 3  # exit code of a child that has said what is wrong


@contextmanager
def as_loadable(path: Path, *, allow_pickle: bool) -> Iterator[Path]:
    """The path of the same weights in a form that can be loaded: itself, or a folder that is gone afterwards.

    Raises:
        CheckpointError: it is a pickle and those are not allowed, or it cannot be read.
    """
    pickles = _pickles(path)
    if path.suffix != ".gguf" and not (pickles and allow_pickle):
        yield path
        return
    with TemporaryDirectory(prefix="runformer-") as folder:
        into = Path(folder) / "weights"
        if path.suffix == ".gguf":
            # Imported late: the library is an extra.
            from runformer.checkpoint.foreign.gguf import gguf_to_hf

            gguf_to_hf(path, into)
        else:
            into.mkdir()
            for number, file in enumerate(pickles):
                _unpickle(file, into / f"{number:05}.safetensors")
            if path.is_dir() and (path / "config.json").is_file():
                (into / "config.json").write_bytes((path / "config.json").read_bytes())
        yield into


def _pickles(path: Path) -> list[Path]:
    """The pickles that a path means; none where there is anything better."""
    if path.is_file():
        return [path] if path.suffix in PICKLES else []
    if not path.is_dir() or list(path.glob("*.safetensors")) or list(path.glob("*.ckpt")):
        return []
    if (path / _INDEX).is_file():
        try:
            names = sorted(set(json.loads((path / _INDEX).read_bytes())["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{path / _INDEX}: not an index of files: {error!r}") from None
        return [path / Path(str(name)).name for name in names]
    return sorted(file for file in path.glob("*") if file.suffix in PICKLES)


def _unpickle(file: Path, into: Path) -> None:
    """Turn a pickle of tensors into safetensors, in a process of its own that only unpickles tensors."""
    command = [sys.executable, "-m", "runformer.checkpoint.foreign.unpickle", str(file), str(into)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        why = done.stderr.strip().splitlines()[-1:] if done.returncode == _PROBLEM else [f"exit code {done.returncode}"]
        raise CheckpointError(f"{file}: cannot be read as tensors alone: {''.join(why)}", hint="nothing of it was run")
