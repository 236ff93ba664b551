"""Which forwards are chosen: as many as asked for, everywhere, and the same ones every time."""

from __future__ import annotations

import pytest
import torch

from geomhooks.accumulators.turns import Turns, check_fraction, is_chosen


@pytest.mark.parametrize("fraction", [0.01, 0.1, 1 / 3, 0.5, 0.9])
@pytest.mark.parametrize("period", [1, 2, 3, 7, 10, 32, 100])
def test_evenly_in_every_stretch_and_at_every_step(fraction: float, period: int) -> None:
    """Even where forwards are of kinds that take turns, each kind has its share."""
    for phase in range(min(period, 10)):
        chosen = torch.tensor([is_chosen(phase + period * i, fraction) for i in range(5000)])
        counts = chosen.view(5, 1000).sum(1)
        assert (counts - 1000 * fraction).abs().max() <= 10


def test_the_first_is_always_chosen_and_all_of_them_if_asked() -> None:
    assert is_chosen(0, 1e-12)
    assert all(is_chosen(number, 1.0) for number in range(100))


def test_gaps_are_of_like_size() -> None:
    places = torch.tensor([n for n in range(100_000) if is_chosen(n, 0.1)])
    assert places.diff().unique().tolist() == [5, 8, 13]


def test_the_count_stays_on_the_host() -> None:
    turns = Turns().allocate("meta")
    turns.move(torch.device("meta"))
    copy = turns.clone("meta")
    assert turns.device.type == copy.device.type == "cpu"
    assert [turns.observe(None), turns.observe(None), copy.observe(None)] == [0, 1, 0]
    copy.merge(turns)
    assert copy.observe(None) == 3
    copy.reset()
    assert copy.observe(None) == 0


@pytest.mark.parametrize("fraction", [0, -0.1, 1.5, "0.1", None, True, float("nan")])
def test_what_is_no_fraction(fraction: object) -> None:
    with pytest.raises(ValueError, match=r"Some\(share=.*above 0 and at most 1"):
        check_fraction(fraction, "Some(share")
