"""Every layout trains the same model to the same numbers: the loss and the gradient norm of each step.

The dozen that runs with all tests has every kind of split once and the telling combinations; the table of all of them
is made by ``benchmarks/parallel.py``, and held to its bounds by the slow test here.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from exact_curves import Curve, curves, deviation
from layouts import DOZEN, LAYOUTS, Layout, reference_of


@pytest.fixture(scope="module")
def references(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Curve]:
    """The curves of one process."""
    cases = {reference_of(layout): layout.alone() for layout in LAYOUTS}
    return curves(tmp_path_factory.mktemp("alone"), 1, cases)


@pytest.mark.parametrize("world_size", [2, 4, pytest.param(8, marks=pytest.mark.slow)])
def test_a_dozen_layouts_give_the_curves_of_one_process(tmp_path: Path, references: dict[str, Curve], world_size: int) -> None:
    chosen = [layout for layout in DOZEN if layout.world_size == world_size]
    found = curves(tmp_path, world_size, {layout.name: layout.case() for layout in chosen})
    for layout in chosen:
        assert_same(layout, found[layout.name], references[reference_of(layout)])


@pytest.mark.slow
@pytest.mark.parametrize("world_size", sorted({layout.world_size for layout in LAYOUTS}))
def test_all_layouts_give_the_curves_of_one_process(tmp_path: Path, references: dict[str, Curve], world_size: int) -> None:
    chosen = [layout for layout in LAYOUTS if layout.world_size == world_size]
    found = curves(tmp_path, world_size, {layout.name: layout.case() for layout in chosen})
    for layout in chosen:
        assert_same(layout, found[layout.name], references[reference_of(layout)])


def assert_same(layout: Layout, curve: Curve, reference: Curve) -> None:
    loss, norm = (1e-12, 1e-12) if layout.dtype == "float64" else (1e-6, 5e-6)
    assert deviation(curve, reference, 0) <= loss, layout.name
    assert deviation(curve, reference, 1) <= norm, layout.name
