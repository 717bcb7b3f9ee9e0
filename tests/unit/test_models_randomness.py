"""Dropout by place: the right share, no patterns, and the same elements however the work is split."""

from __future__ import annotations

import pytest
import torch

from runformer.models.randomness import Place, dropout, key_of

X_BLD = torch.ones(16, 32, 64)


def dropped(probability: float, place: Place, layer: int = 3, first: int = 0, x: torch.Tensor = X_BLD) -> torch.Tensor:
    return dropout(x, probability, place, layer, first) == 0


@pytest.mark.parametrize("probability", [0.05, 0.1, 0.5, 0.9])
def test_as_many_are_dropped_as_should_be(probability: float) -> None:
    gone = dropped(probability, Place(torch.tensor(11)))
    sigma = (probability * (1 - probability) / gone.numel()) ** 0.5
    assert abs(gone.float().mean().item() - probability) < 5 * sigma
    for dim in range(3):  # along every dimension, too
        others = [other for other in range(3) if other != dim]
        shares = gone.float().mean(others)
        assert (shares - probability).abs().max() < 6 * sigma * gone.shape[dim] ** 0.5


def test_the_mean_stays_and_nothing_is_drawn_where_nothing_is_dropped() -> None:
    assert dropout(X_BLD, 0.25, Place(), 1, 0).mean().item() == pytest.approx(1, abs=0.02)
    assert dropout(X_BLD, 0.0, Place(), 1, 0) is X_BLD


def test_steps_layers_rows_and_neighbours_are_independent() -> None:
    """Two masks of a half that have nothing to do with each other agree in a half of the elements."""
    one = dropped(0.5, Place(torch.tensor(1)))
    others = [
        dropped(0.5, Place(torch.tensor(2))),
        dropped(0.5, Place(torch.tensor(1)), layer=4),
        one.roll(1, 0),
        one.roll(1, 1),
        one.roll(1, 2),
    ]
    for other in others:
        assert abs((one == other).float().mean().item() - 0.5) < 0.02


def test_a_part_drops_what_the_whole_does() -> None:
    place = Place(torch.tensor(5))
    whole = dropped(0.3, place)
    rows, positions = torch.tensor([3, 9, 11]), torch.arange(8, 24)
    part = Place(torch.tensor(5), rows, positions)
    some = dropped(0.3, part, first=16, x=torch.ones(3, 16, 20))
    assert torch.equal(some, whole[rows][:, 8:24, 16:36])


def test_keys_hang_on_every_name() -> None:
    assert len({key_of(1, 2), key_of(2, 1), key_of(12), key_of("1", "2", "")}) == 4
    assert 0 <= key_of("x") < 2**32
