"""|cos| of all pairs against NumPy, and chance against the beta distribution and against draws."""

from __future__ import annotations

import sys
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import beta

from geomhooks.functional import expected_incoherence, incoherence


def directions(rng: np.random.Generator, number: int, dimension: int) -> np.ndarray:
    vectors = rng.standard_normal((number, dimension))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@given(st.integers(0, 2**31), st.sampled_from([1e-20, 1.0, 1e20]))
def test_all_pairs(seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    a, b = directions(rng, 6, 4), directions(rng, 7, 4)
    cosine = np.abs(a @ b.T)
    lengths = rng.uniform(0.1, 9, (7, 1))
    found = incoherence(torch.from_numpy(scale * a), torch.from_numpy(lengths * b))
    assert float(found.mean) == pytest.approx(cosine.mean(), rel=1e-12)
    assert float(found.max) == pytest.approx(cosine.max(), rel=1e-12)


def test_more_pairs_than_are_held_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    a, b = (torch.from_numpy(directions(rng, number, 4)) for number in (11, 5))
    expected = incoherence(a, b)
    for block in (1, 10, 17):
        monkeypatch.setattr(
            sys.modules["geomhooks.functional.position.incoherence"], "BLOCK", block
        )
        torch.testing.assert_close(incoherence(a, b), expected)


def test_planted_angles() -> None:
    pos = torch.eye(4)[:2]
    assert torch.stack(incoherence(pos, torch.eye(4)[2:])).tolist() == [0, 0]
    assert float(incoherence(pos, -pos).max) == 1


@pytest.mark.parametrize("dimension", [2, 3, 8, 64, 768, 20_000])
@pytest.mark.parametrize("pairs", [2, 300, 10**7])
def test_chance_is_that_of_the_beta_distribution(dimension: int, pairs: int) -> None:
    square = beta(0.5, (dimension - 1) / 2)
    found = expected_incoherence(dimension, pairs)

    def some_pair_above(x: float) -> float:
        return -np.expm1(pairs * np.log1p(-square.sf(x * x))) if x > 0 else 1.0

    def integral(of: Callable[[float], float]) -> float:
        points = np.linspace(0, min(1.0, 12 / dimension**0.5), 41)
        return sum(quad(of, low, high)[0] for low, high in pairwise(points))

    assert float(found.mean) == pytest.approx(integral(lambda x: square.sf(x * x)), rel=1e-6)
    assert float(found.max) == pytest.approx(integral(some_pair_above), rel=1e-5)


@pytest.mark.parametrize(("dimension", "m", "n"), [(3, 4, 5), (16, 20, 30), (256, 100, 50)])
def test_chance_is_that_of_drawn_directions(dimension: int, m: int, n: int) -> None:
    rng = np.random.default_rng(0)
    drawn = np.array(
        [
            torch.stack(
                incoherence(
                    torch.from_numpy(directions(rng, m, dimension)),
                    torch.from_numpy(directions(rng, n, dimension)),
                )
            ).numpy()
            for _ in range(300)
        ]
    )
    expected = torch.stack(expected_incoherence(dimension, m * n)).numpy()
    error = drawn.std(0) / len(drawn) ** 0.5
    np.testing.assert_array_less(np.abs(drawn.mean(0) - expected), 4 * error + 2e-3 * expected)


def test_trivial_chances() -> None:
    assert torch.stack(expected_incoherence(1, 10)).tolist() == [1, 1]
    one = expected_incoherence(9, 1)
    assert one.mean == one.max


def test_zero_has_no_direction() -> None:
    found = incoherence(torch.zeros(2, 3), torch.ones(2, 3))
    assert torch.isnan(torch.stack(found)).all()


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="widths 2 and 3"):
        incoherence(torch.ones(1, 2), torch.ones(1, 3))
    with pytest.raises(ValueError, match=r"dimension=0, pairs=5\): positive"):
        expected_incoherence(0, 5)
