"""The fuzz targets on valid input, and on a few changes of it; where atheris is installed, for a while each."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from targets import TARGETS

FUZZ = Path(__file__).parent

CHANGES = st.lists(
    st.tuples(st.floats(0, 1), st.sampled_from(["put", "insert", "cut"]), st.binary(max_size=9)), max_size=4
)


def changed(data: bytes, changes: list[tuple[float, str, bytes]]) -> bytes:
    for place, how, new in changes:
        at = int(place * len(data))
        data = data[:at] + new + data[at + len(new) if how == "put" else at :] if how != "cut" else data[: at or 1]
    return data


@pytest.mark.parametrize("name", TARGETS)
def test_valid_input(name: str) -> None:
    target, seeds = TARGETS[name]
    inputs = list(seeds())
    assert inputs
    for data in inputs:
        target(data)


@pytest.mark.parametrize("name", TARGETS)
def test_changed_input(name: str) -> None:
    target, seeds = TARGETS[name]
    inputs = list(seeds())

    @settings(max_examples=60, deadline=None, database=None)
    @given(st.sampled_from(inputs), CHANGES)
    def try_it(data: bytes, changes: list[tuple[float, str, bytes]]) -> None:
        target(changed(data, changes))

    try_it()


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="pip install 'runformer[fuzz]'")
@pytest.mark.parametrize("name", TARGETS)
def test_a_fuzzer_finds_nothing(name: str, tmp_path: Path) -> None:
    command = [sys.executable, str(FUZZ / "fuzz.py"), name, "--seconds", "10", "--corpus", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert "Done " in done.stderr
