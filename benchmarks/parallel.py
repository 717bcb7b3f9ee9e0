"""How exactly layouts over several processes train what one process does; all of them on this machine, by gloo.

    python benchmarks/parallel.py --output benchmarks/parallel.md

Tiny models of every family learn for ten steps, from batches whose rows count for very different numbers of tokens. The
figures are the largest relative deviations, over the steps, of the loss and of the gradient norm from those of one
process that takes the whole batch at once. Layouts and models are those of ``tests/dist/layouts.py``.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from common import REPOSITORY, describe_machine, write_table

sys.path[:0] = [str(REPOSITORY / "tests/dist"), str(REPOSITORY / "tests")]

from exact_curves import curves, deviation  # noqa: E402
from layouts import LAYOUTS, Layout, reference_of  # noqa: E402


def deviations(layouts: Iterable[Layout]) -> list[tuple[Layout, float, float]]:
    """Of loss and norm, layout by layout; one launch for each number of processes."""
    chosen = sorted(layouts, key=lambda layout: layout.world_size)
    found = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        references = curves(folder, 1, {reference_of(layout): layout.alone() for layout in chosen})
        for size in sorted({layout.world_size for layout in chosen}):
            of_size = [layout for layout in chosen if layout.world_size == size]
            trained = curves(folder, size, {layout.name: layout.case() for layout in of_size})
            for layout in of_size:
                pair = trained[layout.name], references[reference_of(layout)]
                found.append((layout, deviation(*pair, 0), deviation(*pair, 1)))
                print(*found[-1], flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="also write the table to this file")
    arguments = parser.parse_args()
    rows = [
        [str(layout.world_size), layout.name, f"{loss:.1e}", f"{norm:.1e}"]
        for layout, loss, norm in deviations(LAYOUTS)
    ]
    title = f"Largest relative deviation from one process in 10 steps: {len(rows)} layouts, {describe_machine()}"
    write_table(title, ["processes", "layout", "loss", "gradient norm"], rows, arguments.output)


if __name__ == "__main__":
    main()
