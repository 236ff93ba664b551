"""The dynamics: against the formula, its laws, its published runs, softmax as it gets cold."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from geomhooks.functional import (
    attention_scores,
    coincident,
    connected_tokens,
    convergence_rate,
    follower_basins,
    follower_counts,
    form_norm,
    hard_targets,
    hardmax_path,
    hardmax_step,
    leaders_over_depth,
    maximisers,
    softmax_step,
    step_gain,
    supports,
)
from tests.functional.hardmax.systems import EMERGING, dense_layer, square, system

seeds = st.integers(0, 2**32 - 1)
few = settings(deadline=None, max_examples=40)


@few
@given(seeds)
def test_a_layer_is_its_formula(seed: int) -> None:
    states, form, step = system(seed)
    expected = states.numpy()
    path = hardmax_path(states, step, 3, form=form)
    for layer in range(3):
        expected = dense_layer(expected, form.numpy(), step)
        np.testing.assert_allclose(path[layer + 1], expected, rtol=1e-9, atol=1e-12)
    assert torch.equal(hardmax_step(states, step, form=form), path[1])


def test_ties_are_averaged_over_exactly() -> None:
    """Of the square, (1/2, 0) ties two corners, and the origin all tokens."""
    states = square(0, (0.5, 0.0), (0.0, 0.0), inside=0)
    after = hardmax_step(states, 1.0)
    assert after[4].tolist() == [0.75, 0.0]
    torch.testing.assert_close(after[5], 0.5 * states.mean(0))
    assert torch.equal(after[:4], states[:4])


@few
@given(seeds)
def test_a_zero_token_goes_towards_the_mean(seed: int) -> None:
    """The eighth fact: it ties with everybody."""
    states, form, step = system(seed)
    states[1] = 0
    assert int(hard_targets(states @ form @ states.T).ties[1]) == len(states)
    after = hardmax_step(states, step, form=form)[1]
    torch.testing.assert_close(after, step / (1 + step) * states.mean(0))


@few
@given(seeds)
def test_hulls_shrink_and_norms_grow(seed: int) -> None:
    """The first two facts: no direction reaches farther, no token comes nearer to the origin."""
    states, form, step = system(seed)
    path = hardmax_path(states, step, 12, form=form)
    directions = system(seed, tokens=64, width=states.shape[1]).states
    assert float(supports(path, directions).diff(dim=0).max()) < 1e-9
    assert float(form_norm(path, form).diff(dim=0).min()) > -1e-9


@few
@given(seeds, st.floats(0.1, 10))
def test_what_the_dynamics_commute_with(seed: int, factor: float) -> None:
    """Permutations, scales of tokens and of A, and the change of variables to A = I."""
    states, form, step = system(seed)
    path = hardmax_path(states, step, 4, form=form)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(states)))
    close = {"rtol": 1e-8, "atol": 1e-10}
    for told, weight, expected in (
        (states[order], form, path[:, order]),
        (factor * states, form, factor * path),
        (states, factor * form, path),
    ):
        torch.testing.assert_close(hardmax_path(told, step, 4, form=weight), expected, **close)
    root = torch.linalg.cholesky(form)
    torch.testing.assert_close(hardmax_path(states @ root, step, 4), path @ root, **close)


@few
@given(seeds)
def test_masked_tokens_are_as_if_they_were_not_there(seed: int) -> None:
    """In a batch of systems of different sizes, whatever the padding holds."""
    systems = [system(seed + n, tokens=4 + n, width=3) for n in range(3)]
    padded = torch.full((3, 7, 3), float("nan"), dtype=torch.float64)
    valid = torch.zeros(3, 7, dtype=torch.bool)
    for row, one in enumerate(systems):
        where = torch.arange(4 + row) + (row == 1)
        padded[row, where], valid[row, where] = one.states, True
    padded[2] = padded[2].nan_to_num(1e6)
    form = systems[0].form
    for told in ({}, {"temperature": 0.3}):
        path = hardmax_path(padded, 0.7, 3, form=form, valid=valid, **told)
        for row, one in enumerate(systems):
            alone = hardmax_path(one.states, 0.7, 3, form=form, **told)
            torch.testing.assert_close(path[:, row, valid[row]], alone)
        assert torch.equal(path[-1][~valid].isnan(), padded[~valid].isnan())


@few
@given(seeds)
def test_softmax_becomes_hardmax_as_it_gets_cold(seed: int) -> None:
    """As fast as exp(-gap / T), where the gap is to the second largest score."""
    states, form, step = system(seed)
    top = (states @ form @ states.T).topk(2, dim=1).values
    gap = float((top[:, 0] - top[:, 1]).min())
    cold = gap / 40
    hard = hardmax_step(states, step, form=form)
    size = float(states.abs().max())
    for temperature in (cold, cold / 2):
        soft = softmax_step(states, step, temperature=temperature, form=form)
        bound = 2 * size * len(states) * math.exp(-gap / temperature)
        assert float((soft - hard).abs().max()) <= bound + 1e-12 * size
    warm = softmax_step(states, step, temperature=1e9, form=form)
    mean = states + step / (1 + step) * (states.mean(0) - states)
    torch.testing.assert_close(warm, mean, rtol=1e-6, atol=1e-6)


def test_cold_softmax_shares_ties_alike() -> None:
    states = square(0, (0.5, 0.0), inside=0)
    soft = softmax_step(states, 1.0, temperature=1e-3)
    torch.testing.assert_close(soft, hardmax_step(states, 1.0))


def test_a_step_that_learns() -> None:
    """Gradients of the step and of the states, against differences."""
    states, form, _ = system(3)
    states.requires_grad_(True)
    step = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(lambda s, a: hardmax_step(s, a, form=form), (states, step))
    torch.autograd.gradcheck(
        lambda s, a: softmax_step(s, a, temperature=0.7, form=form), (states, step)
    )


@pytest.mark.parametrize(
    ("direction", "values", "largest"), [((1.0, 1.0), 10, 6.29), ((0.5, -0.5), 50, 6.73)]
)
def test_values_of_rank_one(direction: tuple[float, float], values: int, largest: float) -> None:
    """V = u v^T: tokens move along u alone. The published run of 50 tokens, NumPy's seed 1."""
    drawn = np.random.RandomState(1).uniform(-5, 5, (2, 50)).T.copy()
    states, u = torch.from_numpy(drawn), torch.tensor(direction).double()
    v = torch.ones(2).double()
    path = hardmax_path(states, torch.outer(u, v), 100)
    across = torch.stack((-u[1], u[0]))
    torch.testing.assert_close((path - path[0]) @ across, torch.zeros(101, 50).double())
    last = path[-1].numpy()
    assert len(np.unique(np.round(last @ v.numpy(), 6))) == values
    assert len(np.unique(np.round(last, 6), axis=0)) == 50
    assert round(float(np.abs(last).max()), 2) == largest
    inverse = np.eye(2) - np.outer(u, v) / (1 + float(u @ v))
    one = (states + hardmax_means(states) @ torch.outer(u, v).T) @ torch.from_numpy(inverse).T
    torch.testing.assert_close(path[1], one)


def hardmax_means(states: torch.Tensor) -> torch.Tensor:
    return states[(states @ states.T).argmax(1)]


def test_a_matrix_that_is_a_number() -> None:
    states, form, step = system(5)
    width = states.shape[1]
    matrix = step * torch.eye(width).double()
    close = {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close(
        hardmax_step(states, matrix, form=form), hardmax_step(states, step, form=form), **close
    )
    assert convergence_rate(matrix) == pytest.approx(1 / (1 + step))
    assert convergence_rate(step) == pytest.approx(1 / (1 + step))


def test_maximisers_and_targets() -> None:
    """Ties exact and within a tolerance, masks of keys and of pairs, rows without anything."""
    nan, inf = float("nan"), math.inf
    scores = torch.tensor(
        [[1.0, 2.0, 2.0], [3.0, 3.0 - 1e-6, nan], [nan, 1.0, 0.0], [-2.0, -1, -1]]
    )
    found = hard_targets(scores)
    assert found.targets.tolist() == [1, 0, 0, 1]
    assert found.ties.tolist() == [2, 0, 0, 2]
    keys = torch.tensor([[True, True, False]])
    found = hard_targets(scores, keys)
    assert (found.targets.tolist(), found.ties.tolist()) == ([1, 0, 0, 1], [1, 1, 0, 1])
    found = hard_targets(scores, keys, tolerance=1e-5)
    assert (found.targets.tolist(), found.ties.tolist()) == ([1, 0, 0, 1], [1, 2, 0, 1])
    pairs = torch.ones(4, 3, dtype=torch.bool)
    pairs[3], pairs[2, 0] = False, False
    found = hard_targets(scores, pairs)
    assert (found.targets.tolist(), found.ties.tolist()) == ([1, 0, 1, 0], [2, 0, 1, 0])
    told = torch.tensor([[-inf, -inf], [inf, 1.0], [-inf, -3.0]])
    for tolerance in (0.0, 1e-3):
        chosen = maximisers(told, tolerance=tolerance)
        assert chosen.tolist() == [[False, False], [True, False], [False, True]]
    # The window is relative to the size of the largest, also of a negative one.
    assert maximisers(torch.tensor([[-100.0, -100.5, -102.0]]), tolerance=0.01).tolist() == [
        [True, True, False]
    ]


def test_narrow_types_are_computed_in_float32() -> None:
    states = EMERGING.to(torch.bfloat16)
    found = hardmax_step(states, 0.5)
    assert found.dtype == torch.float32
    assert torch.equal(found, hardmax_step(states.float(), 0.5))


def test_what_is_refused() -> None:
    states = torch.ones(4, 2)
    swapped = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    needed = "form: a symmetric positive definite matrix"
    for told, message in (
        ({"step": 0.0}, r"step=0.0: a positive number, or a matrix \(d, d\), is needed"),
        ({"step": float("nan")}, "step=nan: a positive number"),
        ({"step": "a"}, "step='a': a positive number"),
        ({"step": torch.tensor(-1.0)}, r"step=-1.0: a positive number"),
        ({"step": torch.tensor(0.0, requires_grad=True)}, r"step=0.0: a positive number"),
        ({"step": torch.tensor(1e300, dtype=torch.float64)}, "step=inf: a positive number"),
        ({"tolerance": float("nan")}, "tolerance=nan: a finite number, 0 or more, is needed"),
        ({"tolerance": -1.0}, "tolerance=-1.0: a finite number"),
        ({"form": [[1.0]]}, r"\(2, 2\) is needed, found list"),
        ({"step": torch.eye(3)}, r"a matrix \(2, 2\) is needed, found \(3, 3\)"),
        ({"step": -torch.eye(2)}, r"I \+ V has no inverse; no eigenvalue of V may be -1"),
        ({"form": torch.eye(3)}, rf"{needed} \(2, 2\) is needed, found \(3, 3\)"),
        ({"form": swapped}, f"{needed} is needed, found eigenvalues from -1 to 1"),
        ({"form": torch.diag(torch.tensor([1.0, 0]))}, f"{needed} is needed, found eigenvalues"),
        (
            {"form": torch.tensor([[2.0, 1.0], [0.0, 2.0]])},
            f"{needed} is needed, found entries that differ by 1 across it",
        ),
        ({"form": torch.full((2, 2), float("nan"))}, "found entries that differ by nan"),
        (
            {"valid": torch.ones(2, 4, dtype=torch.bool)},
            r"valid: a bool for each token of \(4,\) is needed, found \(2, 4\)",
        ),
        ({"valid": torch.ones(4)}, "valid: .* integers 0 and 1, is needed, found torch.float32"),
        ({"valid": [True]}, "valid: a tensor of bool, .* is needed, found list"),
        ({"layers": -1}, "layers=-1: an integer, 0 or more, is needed"),
        ({"layers": 2.5}, "layers=2.5: an integer"),
        ({"temperature": 0.0}, "temperature=0.0: a number above 0 is needed, and None for hardmax"),
        ({"temperature": "a"}, "temperature='a': a number above 0"),
        ({"states": [[1.0, 2.0]]}, r"states: shape \(\.\.\., n, d\) is needed, found list"),
        ({"states": torch.ones(2)}, r"states: shape \(\.\.\., n, d\) is needed, found \(2,\)"),
        ({"states": torch.ones(0, 2)}, r"found \(0, 2\)"),
    ):
        with pytest.raises(ValueError, match=message):
            hardmax_path(**({"states": states, "step": 1.0, "layers": 1} | told))  # type: ignore[arg-type]
    assert float(step_gain(torch.tensor(3.0), states)) == 0.75
    with pytest.raises(ValueError, match="tolerance=nan: a finite number"):
        maximisers(states, tolerance=float("nan"))
    with pytest.raises(ValueError, match=r"visible: a tensor of bool.*found torch.float32"):
        maximisers(states, states)


def test_an_attention_mask_of_integers_is_one_of_bool() -> None:
    states, directions = torch.randn(2, 5, 3), torch.eye(3)
    valid = torch.arange(5) < torch.tensor([[5], [3]])
    path = hardmax_path(states, 0.5, 3, valid=valid)
    targets = hard_targets(attention_scores(path), valid[:, None]).targets[-1]
    near = coincident(states, tolerance=0.5)
    for dtype in (torch.int64, torch.uint8):
        mask = valid.to(dtype)
        assert torch.equal(hardmax_path(states, 0.5, 3, valid=mask), path)
        assert torch.equal(hard_targets(attention_scores(path), mask[:, None]).targets[-1], targets)
        for one, other in (
            (leaders_over_depth(path, valid=mask), leaders_over_depth(path, valid=valid)),
            (follower_basins(targets, mask), follower_basins(targets, valid)),
            (connected_tokens(near, mask), connected_tokens(near, valid)),
            ([follower_counts(targets, mask)], [follower_counts(targets, valid)]),
            ([coincident(states, mask)], [coincident(states, valid)]),
            ([supports(states, directions, mask)], [supports(states, directions, valid)]),
        ):
            assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert torch.equal(supports(path, directions, valid)[1], supports(path[1], directions, valid))
    for call in (
        lambda wrong: leaders_over_depth(path, valid=wrong),
        lambda wrong: follower_basins(targets, wrong),
        lambda wrong: connected_tokens(near, wrong),
        lambda wrong: follower_counts(targets, wrong),
        lambda wrong: coincident(states, wrong),
        lambda wrong: supports(states, directions, wrong),
    ):
        for wrong, message in (
            (valid.float(), "valid: a tensor of bool, .* found torch.float32"),
            (valid[:, :4], r"valid: a bool for each token of \(2, 5\) is needed, found \(2, 4\)"),
            (valid[:, :1], r"found \(2, 1\)"),
            (valid[None, :, :], r"found \(1, 2, 5\)"),
        ):
            with pytest.raises(ValueError, match=message):
                call(wrong)
    for flat in (states[0, 0], states[0]):
        with pytest.raises(ValueError, match=r"path: shape \(K \+ 1, \.\.\., n, d\) is needed"):
            leaders_over_depth(flat)
    with pytest.raises(ValueError, match="ties=-1: a finite number, 0 or more"):
        leaders_over_depth(path, ties=-1)
