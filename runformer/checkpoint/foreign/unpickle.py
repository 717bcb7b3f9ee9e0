"""``python -m runformer.checkpoint.foreign.unpickle FROM TO``: tensors of a pickle, nothing else of it, as safetensors.

It is run in a process of its own, by ``convert --allow_pickle`` only.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

_PROBLEM = 3


def tensors_in(content: object) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a state dict, or of one under a key that training programs use."""
    for key in ("state_dict", "model", "module"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if isinstance(content, Mapping):
        yield from ((str(name), value) for name, value in content.items() if isinstance(value, Tensor))


def main(source: Path, target: Path) -> int:
    """Do it; an exit code."""
    try:
        content = torch.load(source, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        print(str(error).splitlines()[0] or type(error).__name__, file=sys.stderr)
        return _PROBLEM
    # Tensors may share memory, as tied ones do; safetensors' files cannot.
    found = {name: tensor.clone().contiguous() for name, tensor in tensors_in(content)}
    if not found:
        print("there are no tensors in it", file=sys.stderr)
        return _PROBLEM
    save_file(found, target, metadata={"format": "pt"})
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
