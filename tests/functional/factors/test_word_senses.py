"""Senses told by one number: planted ones, and scores counted by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from geomhooks.errors import UnidentifiedError
from geomhooks.functional import best_threshold, sense_scores, sense_separation


def test_scores_by_hand() -> None:
    said, truth = torch.tensor([1, 1, 1, 0, 0]), torch.tensor([1, 0, 1, 1, 0])
    found = sense_scores(said, truth)
    assert found == pytest.approx((2 / 3, 2 / 3, 2 / 3))
    assert math.isnan(sense_scores(said * 0, truth).precision)
    assert math.isnan(sense_scores(said, truth * 0).recall)


@given(
    st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=12).filter(
        lambda pairs: any(sense for _, sense in pairs)
    )
)
def test_no_threshold_is_better(pairs: list[tuple[int, bool]]) -> None:
    """Against all that take another set of occurrences; ties are taken together."""
    activation = torch.tensor([float(value) for value, _ in pairs])
    truth = torch.tensor([sense for _, sense in pairs])
    chosen = best_threshold(activation, truth)
    best = sense_scores(activation >= chosen, truth).f1
    others = [sense_scores(activation >= value, truth).f1 for value in activation.unique()]
    assert best == pytest.approx(max(others))


def test_planted_senses() -> None:
    """Two overlapping normals: what is found is near what the best rule can do."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.rand(4000, generator=generator) < 0.5
    activation = torch.randn(4000, generator=generator) + 3.0 * truth
    found = sense_separation(activation, truth, seed=1)
    best = 0.5 * (1 + math.erf(1.5 / math.sqrt(2)))  # of each class, at the middle
    for scores in (found.by_threshold, found.by_logistic):
        assert scores == pytest.approx((best, best, best), abs=0.04)
    assert found.logistic_threshold == pytest.approx(1.5, abs=0.1)
    assert found.threshold == pytest.approx(1.5, abs=0.4)
    assert int(found.train.sum()) == int(truth.sum()) // 2 + int((~truth).sum()) // 2
    # In other units the same classes, and what is held out alone is scored.
    scaled = sense_separation(1000 * activation, truth, train=found.train)
    assert scaled.by_logistic == found.by_logistic
    unrelated = sense_separation(torch.randn(4000, generator=generator), truth)
    assert unrelated.by_logistic.precision == pytest.approx(0.5, abs=0.05)


def test_what_is_held_out_is_not_fitted_to() -> None:
    train = torch.tensor([True] * 4 + [False] * 4)
    activation = torch.tensor([0.0, 0, 1, 1, 0, 0, 1, 1])
    truth = torch.tensor([0, 0, 1, 1, 1, 1, 0, 0])
    found = sense_separation(activation, truth, train=train)
    assert found.threshold == 0.5
    assert found.by_threshold == (0.0, 0.0, 0.0)
    assert found.by_logistic == (0.0, 0.0, 0.0)


def test_bad_input() -> None:
    one, both = torch.ones(4), torch.tensor([0, 1, 0, 1])
    with pytest.raises(ValueError, match=r"\(N,\) both are needed, found \(4,\) and \(3,\)"):
        sense_separation(one, both[:3])
    with pytest.raises(ValueError, match="numbers that are not finite"):
        sense_separation(one / 0, both)
    with pytest.raises(UnidentifiedError, match="training has 2 occurrences, and needs some"):
        sense_separation(one, both, train=torch.tensor([0, 1, 0, 1]))
    with pytest.raises(ValueError, match=r"train: shape \(4,\) is needed, found \(2,\)"):
        sense_separation(one, both, train=both[:2])
    with pytest.raises(ValueError, match="no occurrence has the sense"):
        best_threshold(one, both * 0)
