"""Our launcher beside ``torchrun``: how soon workers are ready, and what becomes of a job with a fault.

    python benchmarks/launcher.py --rounds 5 --output benchmarks/launcher.md
    python benchmarks/launcher.py --rounds 5 --matrix all --peer some --output benchmarks/launcher.md

Start-up is measured alternately. The matrix plants each fault of ``tests/dist/faults.py`` in a training run of a tiny
model and takes the time from the fault to the end of the last launcher; a job that has not ended after a limit is ended
and counts as such. Two machines are network namespaces, which needs root.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from common import REPOSITORY, describe_machine

sys.path[:0] = [str(REPOSITORY / "tests"), str(REPOSITORY / "tests/dist")]

from faults import FAULTS, HANGS, PHASES  # noqa: E402
from launching import LAUNCHER, environment, free_port  # noqa: E402
from matrix import HANG_TIMEOUT, Case, Row, all_cases, run_case  # noqa: E402
from test_fault_matrix import TELLING  # noqa: E402

WORKERS = 8
PEER_LIMIT = 12.0
READY = """
import os, sys, time
import torch, torch.distributed
with open(os.path.join(os.environ["READY"], os.environ["RANK"]), "w") as file:
    file.write(repr(time.time()))
"""


def seconds_to_ready(command: Sequence[str], workers: int, folder: Path) -> float:
    """From the start of a launcher until the last of its workers has imported torch."""
    ready = Path(tempfile.mkdtemp(dir=folder))
    started = time.time()
    done = subprocess.run(
        command, cwd=folder, env=environment({"READY": str(ready)}), capture_output=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    moments = [float((ready / str(rank)).read_text()) for rank in range(workers)]
    return max(moments) - started


def ours(workers: int, folder: Path) -> list[str]:
    numbers = ["--worker_num", str(workers), "--local_worker_num", str(workers), "--master_port", str(free_port())]
    return [*LAUNCHER, *numbers, "--join", "True", "--log_dir", str(folder / "logs"), "ready.py"]


def torchrun(workers: int) -> list[str]:
    numbers = ["--nproc-per-node", str(workers), "--master-port", str(free_port())]
    return [sys.executable, "-m", "torch.distributed.run", *numbers, "ready.py"]


def import_seconds(folder: Path) -> float:
    """From the start of Python until it has imported torch, with the thread limit that the launcher sets."""
    code = "import time, torch, torch.distributed; print(repr(time.time()))"
    started = time.time()
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(), cwd=folder, timeout=120, check=True, capture_output=True, text=True,
    )  # fmt: skip
    return float(done.stdout) - started


def measure_start(rounds: int) -> list[str]:
    """Alternate rounds; a table of medians and ratios."""
    times: dict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "ready.py").write_text(READY)
        for number in range(rounds + 1):
            round_ = {
                "import torch": import_seconds(folder),
                f"msrun, {WORKERS} workers ready": seconds_to_ready(ours(WORKERS, folder), WORKERS, folder),
                f"torchrun, {WORKERS} workers ready": seconds_to_ready(torchrun(WORKERS), WORKERS, folder),
                "msrun, 1 worker ready": seconds_to_ready(ours(1, folder), 1, folder),
                "torchrun, 1 worker ready": seconds_to_ready(torchrun(1), 1, folder),
            }
            if number:  # the first round warms the page cache
                for key, value in round_.items():
                    times[key].append(value)
    lines = ["| | median, s | all rounds, s |", "|---|---|---|"]
    for key, values in times.items():
        lines.append(f"| {key} | {statistics.median(values):.2f} | {', '.join(f'{v:.2f}' for v in values)} |")
    msrun, peer = (statistics.median(times[f"{name}, {WORKERS} workers ready"]) for name in ("msrun", "torchrun"))
    added = statistics.median(times["msrun, 1 worker ready"]) - statistics.median(times["import torch"])
    lines += [
        "",
        f"{WORKERS} workers are ready {peer / msrun:.1f} times sooner than under torchrun. "
        f"To one `import torch` the launcher adds {added:.2f} s.",
    ]
    return lines


def run_matrix(cases: Iterable[Case], peer: set[Case]) -> tuple[dict[Case, Row], dict[Case, Row]]:
    """Every case under us, and those of ``peer`` under torchrun right after."""
    mine: dict[Case, Row] = {}
    theirs: dict[Case, Row] = {}
    with tempfile.TemporaryDirectory() as name:
        for case in cases:
            mine[case] = run_case(case, "msrun", Path(name) / "case")
            print("msrun   ", mine[case], flush=True)
            if case in peer:
                theirs[case] = run_case(case, "torchrun", Path(name) / "case", limit=PEER_LIMIT)
                print("torchrun", theirs[case], flush=True)
    return mine, theirs


def cell(row: Row | None) -> str:
    if row is None:
        return ""
    took = "not ended" if row.seconds is None else f"{row.seconds:.2f}"
    marks = ("" if row.right else ", cause not named") + (f", {row.orphans} orphans" if row.orphans else "")
    return took + marks


def matrix_lines(mine: dict[Case, Row], theirs: dict[Case, Row]) -> list[str]:
    lines = []
    for count in (1, 2):
        for last in (False, True):
            rows = {(c.fault, c.phase): c for c in mine if c.machines == count and c.last == last}
            if not rows:
                continue
            place = f"{count} machine{'s' * (count > 1)}, {'the last rank' if last else 'rank 0'}"
            lines += ["", f"### {place}", "", f"| fault | {' | '.join(PHASES)} |", "|---" * (len(PHASES) + 1) + "|"]
            for fault in FAULTS:
                for name, found in (("", mine), (" (torchrun)", theirs)):
                    cells = [cell(found.get(rows[fault, phase])) if (fault, phase) in rows else "" for phase in PHASES]
                    if any(cells):
                        lines.append(f"| {fault}{name} | " + " | ".join(cells) + " |")
    return lines


def verdict_lines(name: str, rows: dict[Case, Row]) -> list[str]:
    if not rows:
        return []
    ended = [row for row in rows.values() if row.seconds is not None]
    late = [row.case for row in rows.values() if row.seconds is None or row.seconds > row.case.bound]
    right = sum(row.right for row in rows.values())
    orphans = sum(row.orphans for row in rows.values())
    quick = sorted(row.seconds or 0 for row in ended if row.case.fault not in HANGS)
    p95 = f"; without hangs the 95th percentile is {quick[int(0.95 * (len(quick) - 1))]:.2f} s" if quick else ""
    lines = [
        f"- **{name}**: {len(rows)} rows, {len(ended)} ended by themselves{p95}; "
        f"within their bounds {len(rows) - len(late)}; cause named in {right}; {orphans} orphans."
    ]
    return lines + ([f"  Over their bounds: {'; '.join(map(str, late[:20]))}."] if late and name == "msrun" else [])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--matrix", choices=("telling", "all", "none"), default="telling")
    parser.add_argument("--peer", choices=("all", "some", "none"), default="all", help="some: only the last rank")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    cases = {"telling": TELLING, "all": all_cases(), "none": []}[options.matrix]
    peer = {case for case in cases if options.peer == "all" or (options.peer == "some" and case.last)}
    text = [
        "# The launcher beside torchrun",
        "",
        describe_machine(),
        "",
        "## Start",
        "",
        *measure_start(options.rounds),
    ]
    print("\n".join(text), flush=True)
    mine, theirs = run_matrix(cases, peer)
    text += ["", "## Faults", "", EXPLANATION, "", *verdict_lines("msrun", mine), *verdict_lines("torchrun", theirs)]
    text += matrix_lines(mine, theirs)
    print("\n".join(text))
    if options.output:
        options.output.write_text("\n".join(text) + "\n")


EXPLANATION = (
    "Seconds from the fault to the end of the last launcher, of two ranks a machine that train a tiny model. Bounds: "
    "1 s on one machine, 3 s on two, 5 s where the other ranks ignore SIGTERM, and for hangs (`deadlock`, "
    f"`stuck_in_c`) the time limit of {HANG_TIMEOUT:.0f} s and 3 s more. `torchrun` has no such limit, and was ended "
    f"{PEER_LIMIT:.0f} s after the fault: what it then left behind counts as orphans. A cause is named if the "
    'launchers\' summaries name the rank (of torchrun: under "Root Cause").'
)

if __name__ == "__main__":
    os.chdir(REPOSITORY)
    main()
