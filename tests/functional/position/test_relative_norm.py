"""The relative norm from moments against the rows stacked as the paper has them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from geomhooks.functional import relative_norm, relative_norm_of_sample


def states(seed: int, C: int = 9, T: int = 6, d: int = 4) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (
        3 * rng.standard_normal(d)
        + rng.standard_normal((1, T, d))
        + rng.standard_normal((C, 1, d))
        + 0.5 * rng.standard_normal((C, T, d))
    )


def operator_norm(matrix: np.ndarray) -> float:
    return float(np.linalg.norm(matrix, 2))


def moments(rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Covariance and mean of all tokens."""
    centred = rows - rows.mean(0)
    return torch.from_numpy(centred.T @ centred / len(rows)), torch.from_numpy(rows.mean(0))


@given(st.integers(0, 2**31))
def test_moments_of_whole_contexts(seed: int) -> None:
    h = states(seed)
    pos = h.mean(0) - h.mean((0, 1))
    rows = h.reshape(-1, h.shape[-1])
    P = np.tile(pos, (len(h), 1))
    found = relative_norm(torch.from_numpy(pos), *moments(rows))
    centred = operator_norm(P) / operator_norm(rows - rows.mean(0))
    assert float(found.centred) == pytest.approx(centred, rel=1e-10)
    assert float(found.uncentred) == pytest.approx(
        operator_norm(P) / operator_norm(rows), rel=1e-10
    )
    sampled = relative_norm_of_sample(torch.from_numpy(h), torch.from_numpy(pos))
    torch.testing.assert_close(torch.stack(sampled), torch.stack(found))


def test_moments_of_contexts_of_different_lengths() -> None:
    h = states(0)
    cells = [(c, t) for c in range(9) for t in range(6) if t <= c]
    rows = np.stack([h[c, t] for c, t in cells])
    pos = np.random.default_rng(1).standard_normal((6, 4))
    P = np.stack([pos[t] for _, t in cells])
    count = torch.tensor([sum(t == at for _, t in cells) for at in range(6)])
    found = relative_norm(torch.from_numpy(pos), *moments(rows), count)
    centred = operator_norm(P) / operator_norm(rows - rows.mean(0))
    assert float(found.centred) == pytest.approx(centred, rel=1e-10)
    assert float(found.uncentred) == pytest.approx(
        operator_norm(P) / operator_norm(rows), rel=1e-10
    )


def test_a_few_fresh_contexts_as_published() -> None:
    many, fresh = states(3, C=50), states(3, C=60)[50:]
    pos = many.mean(0) - many.mean((0, 1))
    rows, P = fresh.reshape(-1, 4), np.tile(pos, (len(fresh), 1))
    found = relative_norm_of_sample(torch.from_numpy(fresh), torch.from_numpy(pos))
    centred = operator_norm(P) / operator_norm(rows - rows.mean(0))
    assert float(found.centred) == pytest.approx(centred, rel=1e-12)
    assert float(found.uncentred) == pytest.approx(
        operator_norm(P) / operator_norm(rows), rel=1e-12
    )


@pytest.mark.parametrize("scale", [1e-20, 1e20])
def test_neither_rotation_nor_scale_changes_it(scale: float) -> None:
    h = torch.from_numpy(states(4))
    rotation = torch.linalg.qr(torch.from_numpy(states(5, 1, 4)[0])).Q
    results = []
    for values in (h, scale * h @ rotation):
        pos = values.mean(0) - values.mean((0, 1))
        results.append(torch.stack(relative_norm(pos, *moments(values.flatten(0, 1).numpy()))))
        results.append(torch.stack(relative_norm_of_sample(values, pos)))
    for result in results[1:]:
        torch.testing.assert_close(result, results[0])


def test_nothing_below_is_nan() -> None:
    zeros = torch.zeros(3, 2)
    found = relative_norm(zeros, torch.zeros(2, 2), torch.ones(2))
    assert torch.isnan(found.centred)
    assert float(found.uncentred) == 0
    found = relative_norm(torch.ones(3, 2), torch.full((2, 2), float("nan")), torch.ones(2))
    assert torch.isnan(torch.stack(found)).all()
    assert torch.isnan(relative_norm_of_sample(torch.ones(4, 3, 2), zeros).centred)


def test_what_is_refused() -> None:
    pos, covariance, mean = torch.ones(3, 2), torch.eye(2), torch.ones(2)
    with pytest.raises(ValueError, match=r"covariance \(2, 2\) and a mean \(2,\)"):
        relative_norm(pos, torch.eye(3), mean)
    with pytest.raises(ValueError, match=r"count: shape \(3,\) is needed, found \(2,\)"):
        relative_norm(pos, covariance, mean, torch.ones(2))
    with pytest.raises(ValueError, match=r"shape \(n, 3, 2\) is needed"):
        relative_norm_of_sample(torch.ones(4, 2, 2), pos)
