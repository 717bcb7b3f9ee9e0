"""What ``_native.c`` has: see there."""

import mmap

import numpy as np
from numpy.typing import NDArray

_Positions = NDArray[np.int64]

CONTRACT: int

def unpack_rows(
    data: mmap.mmap | bytes,
    rows: _Positions,
    first_rows: _Positions,
    first_places: _Positions,
    begins: _Positions,
    places: NDArray[np.uint32],
    known: NDArray[np.bool_],
    stride: int,
    field: int,
    fields: int,
    width: int,
    packed: bool,
    out: NDArray[np.int64],
) -> int: ...
def boundaries(
    data: mmap.mmap | bytes, begin: int, end: int, rows: int, stride: int, out: NDArray[np.uint32]
) -> bool: ...
def blend(
    weights: NDArray[np.float64],
    limits: NDArray[np.float64],
    taken: NDArray[np.float64],
    out_datasets: NDArray[np.int16],
    out_samples: NDArray[np.int64],
) -> None: ...
def shuffle(items: NDArray[np.int64], seed: int) -> None: ...
