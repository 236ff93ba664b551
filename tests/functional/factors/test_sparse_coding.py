"""Sparse codes against closed forms, scikit-learn, and the conditions of a minimum."""

from __future__ import annotations

import math
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import sparse_encode
from torch import Tensor

from geomhooks.functional import (
    SparseCoder,
    duality_gap,
    objective,
    optimality,
    signal_to_noise,
    sparse_codes,
    unit_rows,
)
from geomhooks.functional.factors import sparse_coding


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def problem(factors: int, width: int, tokens: int = 7, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Hidden states that share a direction, and a dictionary that has it several times over."""
    dictionary = unit_rows(draw(factors, width, seed=seed) + 0.5 * draw(width, seed=seed + 1))
    return draw(tokens, width, seed=seed + 2) + draw(width, seed=seed + 1), dictionary


SIZES = {"gram": (14, 9), "direct": (40, 9), "one factor": (1, 9), "one dimension": (5, 1)}


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES.keys())
def test_against_scikit_learn(sizes: tuple[int, int], relative: bool) -> None:
    hidden, dictionary = problem(*sizes)
    coder = SparseCoder(dictionary, 0.2, relative=relative, iterations=4000)
    codes = coder(hidden)
    for one, row in zip(hidden, codes, strict=True):
        penalty = 0.2 * float(one.norm()) if relative else 0.2
        expected = sparse_encode(
            one[None].numpy(), dictionary.numpy(), algorithm="lasso_cd", alpha=penalty,
            positive=True, max_iter=100_000,
        )  # fmt: skip
        least = objective(one, dictionary, penalty, torch.from_numpy(expected)[0])
        found = objective(one, dictionary, penalty, row)
        assert float(found - least) < 1e-6 * float(one.square().sum())
        if sizes[0] < 2 * sizes[1]:  # the minimum is at one place only
            torch.testing.assert_close(row, torch.from_numpy(expected)[0], rtol=0, atol=1e-4)
    torch.testing.assert_close(coder.decode(codes), codes @ dictionary)


@settings(deadline=None, max_examples=40)
@given(
    factors=st.integers(1, 30),
    width=st.integers(1, 12),
    penalty=st.floats(0.01, 3.0),
    seed=st.integers(0, 10**6),
)
def test_the_conditions_of_a_minimum(factors: int, width: int, penalty: float, seed: int) -> None:
    hidden, dictionary = problem(factors, width, seed=seed)
    codes = sparse_codes(hidden, dictionary, penalty, tolerance=1e-12, iterations=20_000)
    assert codes.shape == (len(hidden), factors)
    assert float(codes.min()) >= 0
    scale = hidden.square().sum(-1)
    gap = duality_gap(hidden, dictionary, penalty, codes)
    assert bool((gap >= 0).all())
    assert bool((gap <= 1e-11 * scale).all())
    # The gradient is off by no more than sqrt(2 L gap).
    largest = torch.linalg.matrix_norm(dictionary, 2).square()
    bound = (2 * largest * gap).sqrt() + 1e-9
    assert bool((optimality(hidden, dictionary, penalty, codes).inactive <= bound).all())
    # Any other codes are worse, and the gap bounds by how much.
    for other in (torch.zeros_like(codes), codes + draw(*codes.shape, seed=seed).abs()):
        worse = objective(hidden, dictionary, penalty, other)
        least = objective(hidden, dictionary, penalty, codes)
        assert bool((worse >= least - 1e-11 * scale).all())
        bound = duality_gap(hidden, dictionary, penalty, other)
        assert bool((bound >= worse - least - 1e-11 * scale).all())


def test_both_conditions_of_a_minimum_that_is_well_determined() -> None:
    hidden, dictionary = problem(14, 9)
    codes = sparse_codes(hidden, dictionary, 0.2, iterations=5000)
    found = optimality(hidden, dictionary, 0.2, codes)
    assert 0 < float((codes > 0).sum(1).double().mean()) < 9
    assert float(torch.stack(found).max()) < 1e-9
    assert float(optimality(hidden, dictionary, 0.2, 1.1 * codes).active.min()) > 1e-3


@given(st.integers(1, 9), st.floats(0.0, 2.0), st.integers(0, 10**6))
def test_of_orthonormal_factors_the_projections_above_the_penalty(
    number: int, penalty: float, seed: int
) -> None:
    dictionary = torch.linalg.qr(draw(9, number, seed=seed))[0].T
    hidden = draw(2, 3, 9, seed=seed + 1)
    expected = (hidden @ dictionary.T - penalty).clamp(min=0)
    found = sparse_codes(hidden, dictionary, penalty, iterations=200)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_one_factor_of_any_length() -> None:
    """max(0, d . x - penalty) / |d|^2."""
    factor, hidden = torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0, 2.0], [-1.0, 0.0]])
    codes = sparse_codes(hidden, factor, torch.tensor([1.0, 0.0]), iterations=300)
    torch.testing.assert_close(codes, torch.tensor([[10 / 25], [0.0]]))


@pytest.mark.parametrize("factors", [20, 80])
def test_one_precision_and_one_way_against_another(factors: int) -> None:
    """Float32 and float64, with the Gram matrix and without it, alone and together."""
    hidden, dictionary = problem(factors, 16, tokens=11)
    exact = sparse_codes(hidden, dictionary, 0.3, iterations=200)
    single = sparse_codes(hidden.float(), dictionary.float(), 0.3, iterations=200)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), exact, rtol=1e-4, atol=1e-4)
    coder = SparseCoder(dictionary, 0.3, iterations=200)
    alone = torch.stack([coder(one) for one in hidden])
    torch.testing.assert_close(alone, exact, rtol=1e-9, atol=1e-12)
    gram = torch.eye(factors).double() - coder.step * dictionary @ dictionary.T
    object.__setattr__(coder, "_transition", gram if factors == 80 else None)
    torch.testing.assert_close(coder(hidden), exact, rtol=1e-9, atol=1e-12)
    with mock.patch.object(sparse_coding, "precision_on", return_value="tf32"):
        wide = sparse_codes(hidden.float(), dictionary.float(), 0.3, iterations=200)
    assert wide.dtype == torch.float32
    torch.testing.assert_close(wide.double(), exact, rtol=1e-5, atol=1e-5)
    rounded = hidden.bfloat16()
    half = sparse_codes(rounded, dictionary.float(), 0.3, iterations=200)
    expected = sparse_codes(rounded.float(), dictionary.float(), 0.3, iterations=200)
    assert torch.equal(half, expected)


@pytest.mark.parametrize("factors", [12, 60])
def test_a_stopping_rule_for_each_token_apart(factors: int) -> None:
    hidden, dictionary = problem(factors, 10, tokens=9)
    hidden[3], hidden[5] = 0.0, math.nan
    penalty = 0.1 * hidden.norm(dim=-1)
    for tolerance in (1e-2, 1e-5):
        codes = sparse_codes(hidden, dictionary, penalty, tolerance=tolerance, iterations=5000)
        real = torch.arange(9) != 5
        gap = duality_gap(hidden, dictionary, penalty, codes)[real]
        assert bool((gap <= tolerance / 2 * hidden.square().sum(-1)[real]).all())
        assert bool(codes[5].isnan().all())
        assert not codes[3].any()
        for row in (0, 8):
            alone = sparse_codes(
                hidden[row], dictionary, float(penalty[row]), tolerance=tolerance, iterations=5000
            )
            torch.testing.assert_close(alone, codes[row], rtol=1e-9, atol=1e-12)
    short = sparse_codes(hidden[:3], dictionary, penalty[:3], tolerance=1e-12, iterations=5)
    fixed = sparse_codes(hidden[:3], dictionary, penalty[:3], iterations=5)
    torch.testing.assert_close(short, fixed, rtol=1e-9, atol=1e-12)


def test_codes_in_units_of_the_length_scale_with_it() -> None:
    hidden, dictionary = problem(20, 8)
    coder = SparseCoder(dictionary.float(), torch.tensor(0.1), relative=True)
    codes = coder(hidden.float())
    torch.testing.assert_close(coder(1000 * hidden.float()), 1000 * codes, rtol=1e-4, atol=1e-2)
    torch.testing.assert_close(coder.penalty_of(hidden), 0.1 * hidden.float().norm(dim=-1))
    moved = coder.to("cpu")
    assert torch.equal(moved(hidden.float()), codes)
    assert (moved.factors, moved.width, moved.relative) == (20, 8, True)


@pytest.mark.parametrize("factors", [3, 12, 60])
def test_the_step_is_that_of_the_largest_eigenvalue(factors: int) -> None:
    dictionary = unit_rows(draw(factors, 12) + 1).float()
    largest = float(torch.linalg.eigvalsh(dictionary.double() @ dictionary.T.double()).max())
    assert 0.97 < float(SparseCoder(dictionary, 0.1).step) * largest <= 1
    assert not sparse_codes(torch.ones(2, 12), torch.zeros(factors, 12), 0.0).any()


def test_signal_to_noise() -> None:
    hidden, decoded = draw(5, 4), draw(5, 4, seed=1)
    expected = hidden.square().sum() / (hidden - decoded).square().sum()
    torch.testing.assert_close(signal_to_noise(hidden, decoded), expected)
    assert signal_to_noise(hidden, hidden).isinf()


def test_errors() -> None:
    hidden, dictionary = torch.ones(4, 3), torch.eye(3)
    for wrong in (torch.ones(3), torch.ones(0, 3)):
        with pytest.raises(ValueError, match=r"dictionary: shape \(F, d\) is needed, found"):
            SparseCoder(wrong, 0.1)
    for wrong in (torch.ones(4, 2), torch.tensor(1.0)):
        with pytest.raises(ValueError, match=r"hidden states \(..., 3\) are needed"):
            sparse_codes(wrong, dictionary, 0.1)
        with pytest.raises(ValueError, match=r"hidden states \(..., 3\) are needed"):
            SparseCoder(dictionary, 0.1)(wrong)
    with pytest.raises(ValueError, match="hidden states on meta and a dictionary on cpu"):
        sparse_codes(hidden.to("meta"), dictionary, 0.1)
    for penalty in (-0.1, math.nan, math.inf):
        with pytest.raises(ValueError, match="a number of at least 0 is needed"):
            sparse_codes(hidden, dictionary, penalty)
    with pytest.raises(ValueError, match=r"one number or shape \(4,\) is needed, found \(3,\)"):
        sparse_codes(hidden, dictionary, torch.ones(3))
    with pytest.raises(ValueError, match=r"one number is needed, found shape \(4,\)"):
        SparseCoder(dictionary, torch.ones(4))
    for number in (-1.0, math.nan):
        with pytest.raises(ValueError, match="numbers of at least 0 are needed, found"):
            sparse_codes(hidden, dictionary, torch.tensor([1.0, 1.0, 1.0, number]))
    with pytest.raises(ValueError, match="found nan in row 0, and 9 such in all"):
        sparse_codes(hidden, dictionary * math.nan, 0.1)
    for iterations in (0, 1.5, True):
        with pytest.raises(ValueError, match="a positive integer is needed"):
            sparse_codes(hidden, dictionary, 0.1, iterations=iterations)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="None or a positive number is needed"):
        sparse_codes(hidden, dictionary, 0.1, tolerance=0.0)
    with pytest.raises(ValueError, match=r"codes of 3 factors are needed, found shape \(4, 2\)"):
        objective(hidden, dictionary, 0.1, torch.ones(4, 2))
    with pytest.raises(ValueError, match="differ"):
        signal_to_noise(hidden, hidden[:2])
