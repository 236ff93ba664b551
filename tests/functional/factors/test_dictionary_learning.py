"""Steps of a dictionary against the published formulas, and comparisons against brute force."""

from __future__ import annotations

from itertools import combinations, permutations
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor

from geomhooks.errors import MissingExtraError
from geomhooks.functional import (
    dictionary_step,
    initial_dictionary,
    largest_projections,
    match_dictionaries,
    unit_rows,
    word_weights,
)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_steps_are_those_of_the_published_update() -> None:
    """With factors and states as columns, as they stand there."""
    factors, width, number = 6, 4, 10
    dictionary, hessian = unit_rows(draw(factors, width)), torch.zeros(factors).double()
    basis, running = dictionary.T.numpy().copy(), np.zeros(factors)
    for seed in range(1, 4):
        codes = draw(number, factors, seed=seed).clamp(min=0)
        residual, weights = draw(number, width, seed=seed + 9), draw(number, seed=seed + 19).abs()
        dictionary, hessian = dictionary_step(dictionary, hessian, codes, residual, weights)
        a, r, w = codes.T.numpy(), residual.T.numpy(), np.diag(weights.numpy())
        running = running * (300 - 1.0) / 300 + (a**2).mean(1) / 300
        basis = basis + 0.005 * (r @ w @ a.T) / number / (running + 0.001)
        basis = basis / np.linalg.norm(basis, axis=0)
    np.testing.assert_allclose(dictionary.T.numpy(), basis, rtol=1e-12)
    np.testing.assert_allclose(hessian.numpy(), running, rtol=1e-12)


def test_a_step_goes_downhill_and_without_weights_all_count_alike() -> None:
    dictionary, codes = unit_rows(draw(3, 5)), draw(40, 3, seed=1).abs()
    hidden = codes @ unit_rows(draw(3, 5, seed=2))
    hessian = codes.square().mean(0)
    given = dictionary, hessian, codes, hidden - codes @ dictionary
    found = dictionary_step(*given, step=0.1)
    before = (hidden - codes @ dictionary).square().sum()
    assert float((hidden - codes @ found.dictionary).square().sum()) < float(before)
    young = dictionary_step(*given[:1], hessian / 300, *given[2:], step=0.1, weight=1 / 300)
    later = dictionary_step(*given[:1], hessian, *given[2:], step=0.1)
    torch.testing.assert_close(young.hessian, hessian / 300 * (1 + 299 / 300))
    gain = (young.dictionary - later.dictionary).norm()
    assert 0 < float(gain) < float((later.dictionary - dictionary).norm())
    ones = dictionary_step(*given, torch.ones(40).double(), step=0.1)
    assert torch.equal(found.dictionary, ones.dictionary)
    assert torch.equal(found.hessian, hessian)


def test_directions_to_begin_with() -> None:
    before = torch.get_rng_state()
    found = initial_dictionary(2000, 3, seed=5)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(2000))
    assert float(found.mean(0).abs().max()) < 0.05
    assert torch.equal(found, initial_dictionary(2000, 3, seed=5))
    assert not torch.equal(found, initial_dictionary(2000, 3, seed=6))
    assert torch.equal(before, torch.get_rng_state())
    assert word_weights(torch.tensor([[4, 0]])).tolist() == [[0.5, 1.0]]


@pytest.mark.parametrize(("own", "others"), [(3, 4), (4, 3), (3, 3)])
def test_matches_are_the_best_of_all(own: int, others: int) -> None:
    one, other = draw(own, 5), draw(others, 5, seed=1)
    every = (unit_rows(one) @ unit_rows(other).T).numpy()
    if own <= others:
        best = max(
            sum(every[r, c] for r, c in enumerate(p)) for p in permutations(range(others), own)
        )
    else:
        best = max(
            sum(every[r, c] for c, r in enumerate(p)) for p in permutations(range(own), others)
        )
    found = match_dictionaries(one, other)
    matched = found.indices >= 0
    assert int(matched.sum()) == min(own, others) == len(set(found.indices[matched].tolist()))
    assert float(found.cosines[matched].sum()) == pytest.approx(best)
    assert bool(found.cosines[~matched].isnan().all())
    nearest = match_dictionaries(one, other, one_to_one=False)
    np.testing.assert_allclose(nearest.cosines.numpy(), every.max(1))
    assert nearest.indices.tolist() == every.argmax(1).tolist()


def test_largest_projections_leave_the_least() -> None:
    hidden, basis = draw(6, 5), torch.linalg.qr(draw(5, 4, seed=1))[0].T
    for number in (0, 1, 3, torch.tensor([0, 1, 2, 3, 4, 9])):
        found = largest_projections(hidden, basis, number)
        for row, (state, made) in enumerate(zip(hidden, found, strict=True)):
            k = min(int(number[row]) if isinstance(number, Tensor) else number, 4)
            least = min(
                (state - basis[list(some)].T @ (basis[list(some)] @ state)).norm()
                for some in combinations(range(4), k)
            )
            assert float((state - made).norm()) == pytest.approx(float(least))


def test_errors() -> None:
    dictionary, codes = torch.eye(3), torch.ones(4, 3)
    wrong = {
        r"hessian: shape \(3,\) is needed": (torch.ones(2), codes, codes, None),
        r"codes: shape \(4, 3\) is needed": (torch.ones(3), torch.ones(4, 2), codes, None),
        r"residual: shape \(4, 3\)": (torch.ones(3), codes, torch.ones(5, 3), None),
        r"weights: shape \(4,\) is needed": (torch.ones(3), codes, codes, torch.ones(3)),
    }
    for message, given in wrong.items():
        with pytest.raises(ValueError, match=message):
            dictionary_step(dictionary, *given)
    with pytest.raises(ValueError, match="0 factors of width 3: both at least 1"):
        initial_dictionary(0, 3)
    with pytest.raises(ValueError, match="differ in width"):
        largest_projections(torch.ones(2, 4), dictionary, 1)
    with pytest.raises(ValueError, match=r"number: one or shape \(2,\) is needed, found \(3,\)"):
        largest_projections(torch.ones(2, 3), dictionary, torch.ones(3))
    with (
        mock.patch.dict("sys.modules", {"scipy.optimize": None}),
        pytest.raises(MissingExtraError, match=r"pip install 'geomhooks\[compare\]'"),
    ):
        match_dictionaries(dictionary, dictionary)
