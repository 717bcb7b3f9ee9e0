"""Planted faults in real training runs: the job ends, names the rank, and leaves nothing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from faults import HANGS
from machines import REQUIRED, why_not
from matrix import Case, all_cases, run_case

TELLING = [
    Case("raise", "data", True, 1),
    Case("exit3", "init", False, 1),
    Case("sigkill", "forward", True, 1),
    Case("sigsegv", "collective", False, 1),
    Case("sigstop", "save", False, 1),
    Case("sigterm_ignored", "forward", False, 1),
    Case("out_of_memory", "forward", True, 1),
    Case("deadlock", "collective", True, 1),
    Case("stuck_in_c", "data", True, 1),
    Case("raise", "import", False, 2),
    Case("sigkill", "save", True, 2),
    Case("stuck_in_c", "forward", False, 2),
    Case("sigkill", "exit", False, 2),
]
CODES = {"raise": 1, "exit3": 3, "sigkill": 137, "sigsegv": 139, "sigstop": 147, "sigterm_ignored": 1, "out_of_memory": 1}


def check(case: Case, folder: Path) -> float:
    """Run a case; the seconds that the launcher took, which only the slow run compares with the bound."""
    reason = why_not() if case.machines > 1 else None
    if reason is not None and not os.environ.get(REQUIRED):
        pytest.skip(reason)
    row = run_case(case, "msrun", folder / "case")
    assert row.seconds is not None, "it has not ended"
    assert row.right, (folder / "case/said_0").read_text()[-3000:]
    assert row.orphans == 0
    expected = 124 if case.fault in HANGS else CODES[case.fault]
    assert row.exit_codes == [expected] * case.machines
    return row.seconds


@pytest.mark.parametrize("case", TELLING, ids=str)
def test_the_job_ends_and_the_rank_is_named(tmp_path: Path, case: Case) -> None:
    check(case, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("case", all_cases(), ids=str)
def test_every_row_of_the_matrix_keeps_its_bound(tmp_path: Path, case: Case) -> None:
    assert check(case, tmp_path) <= case.bound
