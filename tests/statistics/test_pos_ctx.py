"""What PosCtx does beyond the numbers of the conformance suite: limits, noise, gaps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import geomhooks as gh
from tests.models import Stack


def measure(embeddings: Tensor, mask: Tensor | None = None, **options: Any) -> Any:
    """Results at the input of a one-block model."""
    model = Stack(embeddings.shape[-1], depth=1)
    with (
        torch.no_grad(),
        gh.watch(model, sites="blocks.0@in", statistics=[gh.PosCtx(**options)]) as watch,
    ):
        model(inputs_embeds=embeddings, attention_mask=mask)
    return watch.geometry()["blocks.0@in"].pos_ctx


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_balanced_contexts_give_the_plain_means_and_the_analysis_of_variance() -> None:
    C, T = 12, 7
    h = randn(C, T, 5) + randn(1, T, 5, seed=1) + randn(C, 1, 5, seed=2)
    found = measure(h, positions=T)
    h = h.double()
    mu = h.mean((0, 1))
    pos, ctx = h.mean(0) - mu, h.mean(1) - mu
    resid = h - mu - pos - ctx[:, None]
    for name, value in {"mean": mu, "pos": pos, "ctx": ctx}.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6)
    ms_pos = C * pos.square().sum() / (T - 1)
    ms_ctx = T * ctx.square().sum() / (C - 1)
    ms_resid = resid.square().sum() / ((C - 1) * (T - 1))
    torch.testing.assert_close(found.components.pos, (ms_pos - ms_resid) / C, rtol=1e-5, atol=0)
    torch.testing.assert_close(found.components.ctx, (ms_ctx - ms_resid) / T, rtol=1e-5, atol=0)
    torch.testing.assert_close(found.components.resid, ms_resid, rtol=1e-5, atol=0)
    assert abs(float(found.cross_share)) < 1e-9


def test_pure_noise_stays_under_the_floor_and_a_planted_direction_comes_out() -> None:
    C, T, d = 50, 40, 30
    noise = randn(C, T, d)
    found = measure(noise, positions=T)
    assert 0.8 < float(torch.linalg.svdvals(found.pos)[0] / found.singular_value_floor) < 1.1
    lengths = torch.linalg.vector_norm(found.pos, dim=1)
    assert 0.9 < float((lengths / found.pos_standard_error).square().mean().sqrt()) < 1.1
    assert 0.8 < float(found.shares.pos / found.noise_shares.pos) < 1.2
    assert float(found.corrected_shares.pos) < 0.02
    spiral = torch.outer(torch.linspace(-1, 1, T), randn(d, seed=1))
    planted = measure(noise + spiral, positions=T)
    values = torch.linalg.svdvals(planted.pos)
    assert int((values > planted.singular_value_floor).sum()) == 1


def test_the_correction_takes_the_noise_out_of_the_shares() -> None:
    """Planted: ten contexts, whose residuals make the plain share of pos twice what it is."""
    C, T, d = 10, 24, 600
    truth = {"pos": 0.08, "ctx": 0.12, "resid": 0.8}
    h = (
        truth["pos"] ** 0.5 * randn(1, T, d, seed=5)
        + truth["ctx"] ** 0.5 * randn(C, 1, d, seed=6)
        + truth["resid"] ** 0.5 * randn(C, T, d, seed=7)
    )
    found = measure(h, positions=T)
    for name, share in truth.items():
        assert float(found.corrected_shares[name]) == pytest.approx(share, rel=0.04), name
    wrong = {name: float(found.shares[name]) / share - 1 for name, share in truth.items()}
    assert wrong["pos"] > 0.8
    assert wrong["ctx"] > 0.1
    assert wrong["resid"] < -0.1
    noise = float(found.noise_shares.pos)
    assert float(found.shares.pos) - noise == pytest.approx(truth["pos"], rel=0.1)


def test_standard_error_is_the_spread_over_repeated_samples() -> None:
    """Ragged contexts; 200 samples of the same design and truth, with new noise."""
    rng = np.random.default_rng(0)
    T, C, d = 6, 10, 4
    length = rng.integers(2, T + 1, C)
    length[:2] = T
    mask = torch.from_numpy(np.arange(T) < length[:, None])
    truth = randn(1, T, d, seed=1) + randn(C, 1, d, seed=2)
    runs = [measure(truth + randn(C, T, d, seed=10 + s), mask, positions=T) for s in range(200)]
    pos = torch.stack([run.pos for run in runs])
    spread = (pos - pos.mean(0)).square().sum(-1).mean(0).sqrt()
    estimate = torch.stack([run.pos_standard_error.square() for run in runs]).mean(0).sqrt()
    torch.testing.assert_close(estimate, spread, rtol=0.1, atol=0)


def test_ragged_contexts_recover_the_truth_that_plain_means_miss() -> None:
    """Contexts that are longer lie elsewhere; late positions must not take that for their own."""
    T, C, d = 8, 200, 4
    length = torch.arange(C) % T + 1
    mask = torch.arange(T) < length[:, None]
    pos = randn(T, d)
    pos = pos - pos.mean(0)
    states = pos + length[:, None, None].float() + 0.01 * randn(C, T, d, seed=1)
    found = measure(states, mask, positions=T)
    assert float((found.pos - pos).abs().max()) < 0.02
    plain = found.position_mean - found.position_mean.mean(0)
    assert float((plain - pos).abs().max()) > 1


def test_groups_of_positions_that_nothing_connects_are_named() -> None:
    """Contexts cover positions 0..2 or 3..4: one group's pos may be shifted at will."""
    states = randn(6, 5, 4)
    mask = torch.tensor([[1, 1, 1, 0, 0], [0, 0, 0, 1, 1]]).repeat(3, 1)
    found = measure(states, mask, positions=5)
    for name in ("pos", "ctx", "mean", "shares", "components"):
        with pytest.raises(gh.errors.UnidentifiedError, match=r"0\.\.2.*3\.\.4"):
            found[name]
    assert found.position_count.tolist() == [3] * 5
    expected = torch.stack([states[(t > 2) :: 2, t].double().mean(0) for t in range(5)])
    torch.testing.assert_close(found.position_mean, expected, rtol=1e-6, atol=1e-6)


def test_positions_that_are_each_alone_are_not_identified() -> None:
    """Contexts of one token each: the matrix of the fit is singular to the last bit."""
    model, states = Stack(4, depth=1), randn(3, 9, 4)
    with gh.watch(model, sites="blocks", statistics=[gh.PosCtx(positions=9)]) as watch:
        model(states[:, :4])
        for t in range(4, 9):
            model(states[:, t : t + 1], position_ids=torch.full((3, 1), t))
    found = watch.geometry()["blocks.0@in"].pos_ctx
    assert found.position_count.tolist() == [3] * 9
    with pytest.raises(gh.errors.UnidentifiedError, match=r"0\.\.3.*4"):
        found["pos"]


def test_one_context_decides_nothing_about_components() -> None:
    found = measure(randn(1, 6, 4), positions=6)
    assert torch.isnan(found.components.resid)
    assert float(found.shares.ctx) == pytest.approx(0, abs=1e-8)  # sums in float32


def test_tokens_beyond_the_capacity_are_left_out_and_warned_of() -> None:
    states = randn(4, 10, 3)
    model = Stack(3, depth=1)
    with (
        torch.no_grad(),
        gh.watch(model, sites="blocks", statistics=[gh.PosCtx(positions=6)]) as watch,
    ):
        model(inputs_embeds=states)
    geometry = watch.geometry()
    found = geometry["blocks.0@in"].pos_ctx
    assert int(found.count) == 24
    assert found.position_count.tolist() == [4] * 6
    torch.testing.assert_close(
        found.position_mean, states[:, :6].double().mean(0), rtol=1e-6, atol=1e-6
    )


def test_non_finite_tokens_are_kept_out() -> None:
    states = randn(6, 5, 4)
    states[2, 3, 1] = float("nan")
    states[4, 0, 2] = float("inf")
    with pytest.warns(UserWarning, match=r"is NaN or infinite: 2 at '[\w.@]+'.*exact is False"):
        found = measure(states, positions=5)
    keep = torch.isfinite(states).all(-1)
    assert found.position_count.tolist() == keep.sum(0).tolist()
    assert not bool(found.exact)
    expected = torch.where(keep[..., None], states, 0.0).double().sum(0) / keep.sum(0)[:, None]
    torch.testing.assert_close(found.position_mean, expected, rtol=1e-6, atol=1e-6)


def test_a_single_token_has_no_shares() -> None:
    """Whatever rounding leaves of its distance from itself."""
    for seed in range(8):
        states = torch.randn(1, 1, 384, generator=torch.Generator().manual_seed(seed))
        found = measure(states + 0.3, positions=5)
        for name in ("pos", "ctx", "resid"):
            assert found.shares[name].isnan()
            assert found.components[name].isnan()


def test_a_state_too_large_is_refused_with_what_lowers_it() -> None:
    model = Stack(64, depth=1)
    refused = pytest.raises(
        gh.errors.SiteError, match=r"second_moment=False.*max_bytes|max_bytes.*second_moment=False"
    )
    statistic = gh.PosCtx(contexts=10, positions=10, second_moment=True, max_bytes=100_000)
    with refused, gh.watch(model, sites="blocks", statistics=[statistic]):
        model(inputs_embeds=randn(1, 2, 64))


@pytest.mark.parametrize(
    "options", [{"contexts": 0}, {"positions": -1}, {"contexts": 2.5}, {"open_contexts": 0}]
)
def test_sizes_must_be_positive_integers(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        gh.PosCtx(**options)


@pytest.mark.filterwarnings("ignore:tokens left out because an entry")
def test_a_site_that_is_never_finite_says_so() -> None:
    found = measure(torch.full((3, 4, 2), float("nan")), positions=4)
    assert int(found.count) == 0
    assert int(found.contexts) == 3
    assert not found.exact
    with pytest.raises(gh.errors.UnidentifiedError, match="no finite token has been counted"):
        _ = found.pos
