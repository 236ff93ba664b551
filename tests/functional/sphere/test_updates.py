"""Parts of updates and of what heads add, against float64 and by the laws that they obey."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from geomhooks.functional import head_writes, update_parts


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


SEEDS = st.integers(0, 2**32 - 1)


@given(seed=SEEDS, width=st.integers(2, 40), size=st.floats(1e-6, 1e6))
def test_the_parts_of_an_update(seed: int, width: int, size: float) -> None:
    """By plain vectors, and by what they say together of the state afterwards."""
    y, u = random(5, width, seed=seed), size * random(5, width, seed=seed + 1)
    parts = update_parts(y, u)
    y_c, u_c = (v - v.mean(-1, keepdim=True) for v in (y, u))
    r = y_c.norm(dim=-1)
    e = y_c / r[:, None]
    rho = (u_c * e).sum(-1)
    close = {"rtol": 1e-9, "atol": 1e-9 * size}
    torch.testing.assert_close(parts.radius, r)
    torch.testing.assert_close(parts.norm, u.norm(dim=-1))
    torch.testing.assert_close(parts.radial, rho, **close)
    torch.testing.assert_close(parts.tangential, (u_c - rho[:, None] * e).norm(dim=-1), **close)
    after = (y_c + u_c).norm(dim=-1)
    torch.testing.assert_close((r + parts.radial).hypot(parts.tangential), after)
    assert bool(((parts.radial_share >= 0) & (parts.radial_share <= 1)).all())


@given(seed=SEEDS, factor=st.sampled_from([-0.5, 0.25, 3.0]))
def test_an_update_along_the_state_is_radial(seed: int, factor: float) -> None:
    y = random(3, 7, seed=seed).float()
    parts = update_parts(y, factor * y + 2.0)
    torch.testing.assert_close(parts.radial, factor * parts.radius, rtol=1e-5, atol=1e-6)
    assert (parts.tangential < 1e-5 * parts.radius).all()
    torch.testing.assert_close(parts.radial_share, torch.ones(3))


def test_small_angles_keep_their_digits() -> None:
    y = torch.tensor([[300.0, -300.0, 0.0, 0.0]])
    u = torch.tensor([[0.0, 0.0, 1e-3, -1e-3]])
    assert float(update_parts(y, u).angle) == pytest.approx(1e-3 / 300, rel=1e-5)


def test_half_precision_is_not_summed_in_itself() -> None:
    y, u = random(4, 600).half(), (random(4, 600, seed=1) * 30).half()
    found, expected = update_parts(y, u), update_parts(y.double(), u.double())
    assert found.radial.dtype == torch.float32
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-4)


def test_a_state_without_a_direction_and_an_update_that_is_none() -> None:
    flat = update_parts(torch.ones(3), torch.tensor([1.0, -1.0, 0.0]))
    assert math.isnan(float(flat.radial))
    assert float(flat.tangential) == pytest.approx(2**0.5)
    none = update_parts(torch.tensor([1.0, -1.0]), torch.zeros(2))
    assert [float(v) for v in (none.norm, none.radial, none.tangential, none.angle)] == [0.0] * 4
    assert math.isnan(float(none.radial_share))


@given(seed=SEEDS, heads=st.integers(1, 4), k=st.integers(1, 5), width=st.integers(2, 12))
def test_heads(seed: int, heads: int, k: int, width: int) -> None:
    """Each as an update of its own, written out."""
    mixed, weight = random(2, 3, heads, k, seed=seed), random(heads, k, width, seed=seed + 1)
    state = random(2, 3, width, seed=seed + 2)
    found = head_writes(mixed, weight, state)
    written = torch.einsum("bthk,hkd->bthd", mixed, weight)
    whole = update_parts(state[:, :, None].expand_as(written), written)
    torch.testing.assert_close(found.norm, whole.norm)
    torch.testing.assert_close(found.radial, whole.radial)
    # Of a difference of squares half the digits may be lost.
    torch.testing.assert_close(found.tangential, whole.tangential, rtol=1e-6, atol=1e-6)


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"shape \(2, 3\) and an update of shape \(3,\); they"):
        update_parts(torch.ones(2, 3), torch.ones(3))
    with pytest.raises(ValueError, match=r"weights \(H, k, d\) of shape \(2, 3, 4\) need mixed"):
        head_writes(torch.ones(5, 6), torch.ones(2, 3, 4), torch.ones(5, 4))
