"""How near the estimate of a plan's memory comes to what every rank then takes; all of them on this machine, by gloo.

    python benchmarks/memory.py --output benchmarks/memory.md

A model of 134 M parameters learns for two steps in one layout after another. Measured is the most memory that was
resident, above that after imports and the first collective; estimated is what ``plan/memory.py`` says of that rank.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import REPOSITORY, describe_machine, write_table

sys.path[:0] = [str(REPOSITORY / "tests/dist"), str(REPOSITORY / "tests")]

from launching import flags, start  # noqa: E402

WORKER = str(REPOSITORY / "benchmarks/memory_worker.py")
SECONDS = 900
CASES: list[dict[str, Any]] = [
    {"layout": {}, "rows": 1, "length": 256},
    {"layout": {}, "rows": 8, "length": 512},
    {"layout": {}, "rows": 8, "length": 512, "compute": "bfloat16"},
    {"layout": {"recompute": True}, "rows": 8, "length": 512},
    {"layout": {}, "rows": 4, "length": 512, "micro_batches": 2},
    {"layout": {"data": 2}, "rows": 4, "length": 512},
    {"layout": {"data": 2, "zero": 1}, "rows": 4, "length": 512},
    {"layout": {"data": 2, "zero": 2}, "rows": 4, "length": 512},
    {"layout": {"data": 2, "zero": 3}, "rows": 4, "length": 512},
    {"layout": {"tensor": 2}, "rows": 4, "length": 512},
    {"layout": {"tensor": 2, "sequence_parallel": True}, "rows": 8, "length": 512},
    {"layout": {"context": 2}, "rows": 4, "length": 1024},
    {"layout": {"pipeline": 2}, "rows": 2, "length": 512, "micro_batches": 4},
    {"layout": {"pipeline": 2, "schedule": "GPipe"}, "rows": 2, "length": 512, "micro_batches": 4},
    {
        "layout": {"pipeline": 2, "chunks": 2, "schedule": "Interleaved1F1B"},
        "rows": 2,
        "length": 512,
        "micro_batches": 4,
    },
    {"layout": {"pipeline": 2, "chunks": 2, "schedule": "ZBVZeroBubble"}, "rows": 2, "length": 512, "micro_batches": 4},
    {"layout": {"data": 2, "tensor": 2, "zero": 3}, "rows": 4, "length": 512},
    {"layout": {"tensor": 2, "pipeline": 2}, "rows": 2, "length": 512, "micro_batches": 4},
]


def measure(case: dict[str, Any]) -> list[list[str]]:
    """A row for each rank."""
    case = {"compute": "float32", "micro_batches": 1} | case
    sizes = [value for name, value in case["layout"].items() if name in ("data", "tensor", "context", "pipeline")]
    ranks = 1
    for size in sizes:
        ranks *= size
    name = ", ".join(f"{key} {value}" for key, value in case["layout"].items()) or "one process"
    name += f"; {case['rows']} × {case['length']} tokens × {case['micro_batches']}, {case['compute']}"
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "case.json"
        path.write_text(json.dumps(case))
        command = [*flags(ranks, Path(folder) / "logs"), WORKER, str(path), str(Path(folder) / "rank")]
        process = start(command, Path(folder))
        _, err = process.communicate(timeout=SECONDS)
        assert process.returncode == 0, err
        for rank in range(ranks):
            found = json.loads((Path(folder) / f"rank_{rank}.json").read_text())
            estimated, measured = sum(found["estimated"].values()), found["measured"]
            kinds = ", ".join(f"{kind} {size / 2**20:.0f}" for kind, size in found["estimated"].items() if size)
            figures = [f"{measured / 2**20:.0f}", f"{estimated / 2**20:.0f}", f"{estimated / measured:.2f}"]
            rows.append([name if rank == 0 else "", str(rank), *figures, kinds])
            print(*rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="also write the table to this file")
    parser.add_argument("--only", type=int, nargs="*", help="numbers of cases, from 0")
    arguments = parser.parse_args()
    cases = CASES if arguments.only is None else [CASES[number] for number in arguments.only]
    rows = [row for case in cases for row in measure(case)]
    title = f"Peak memory of each rank in MiB, two steps of a model of 134 M parameters; {describe_machine()}"
    columns = ["layout", "rank", "measured", "estimated", "ratio", "estimated by kind"]
    write_table(title, columns, rows, arguments.output)


if __name__ == "__main__":
    main()
