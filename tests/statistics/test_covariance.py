"""What Covariance does beyond the conformance suite: known spectra, few digits, fractions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import geomhooks as gh
from geomhooks.integrations.monitor import lacks_results
from tests.conformance.harness import compare
from tests.models import Stack
from tests.reference import Observations, covariance

SITE = "blocks.0@in"
PHI = (1 + 5**0.5) / 2


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def new_watch(width: int, *statistics: gh.Statistic, dtype: torch.dtype = torch.float32) -> Any:
    model = Stack(width, depth=1, dtype=dtype)
    return model, gh.watch(model, sites=SITE, statistics=list(statistics), positions=512)


def measure(batches: Any, *statistics: gh.Statistic, mask: Tensor | None = None) -> Any:
    """Results at the input of a one-block model."""
    model, watch = new_watch(batches[0].shape[-1], *statistics, dtype=batches[0].dtype)
    with torch.no_grad(), watch:
        for batch in batches:
            model(inputs_embeds=batch, attention_mask=mask)
    return watch.geometry()[SITE]


def observe(*batches: Tensor) -> Observations:
    states = np.concatenate([b.double().numpy().reshape(-1, b.shape[-1]) for b in batches])
    nowhere = np.zeros(len(states), np.int64)
    return Observations(states, nowhere, nowhere)


def test_planted_eigenvalues_come_out() -> None:
    """Of vectors that have exactly this covariance, not of a sample of a distribution."""
    d, n = 32, 2048
    values = torch.logspace(2, -3, d, dtype=torch.float64)
    directions = torch.linalg.qr(randn(d, d).double()).Q
    cloud = torch.linalg.qr(randn(n, d + 1, seed=1).double()).Q
    cloud = torch.linalg.qr(torch.cat([torch.ones(n, 1).double(), cloud], 1)).Q[:, 1 : d + 1]
    states = n**0.5 * cloud * values.sqrt() @ directions.T + 5 * randn(d, seed=2).double()
    found = measure([states.float().view(8, 256, d)], gh.Covariance()).covariance
    torch.testing.assert_close(found.eigenvalues, values, rtol=1e-5, atol=1e-5)
    shares = values / values.sum()
    expected = {
        "trace": values.sum(),
        "leading_share": shares[0],
        "effective_rank": (-shares * shares.log()).sum().exp(),
        "participation_ratio": 1 / shares.square().sum(),
        "condition_number": values[0] / values[-1],
    }
    for name, value in expected.items():
        assert float(found[name]) == pytest.approx(
            float(value), rel=1e-3 if "cond" in name else 1e-5
        )
    leading = torch.linalg.eigh(found.covariance).eigenvectors[:, -1]
    assert abs(float(leading @ directions[:, 0])) == pytest.approx(1, abs=1e-6)
    assert torch.equal(found.covariance, found.covariance.T)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dimensions_with_a_mean_of_ten_thousand_deviations(dtype: torch.dtype) -> None:
    """And half a million tokens in many forwards."""
    d = 24
    mean = randn(d, seed=1)
    mean[[3, 17]] = torch.tensor([1e4, -1e4])
    batches = [(mean + randn(16, 256, d, seed=10 + s)).to(dtype) for s in range(128)]
    found = measure(batches, gh.Covariance()).covariance
    expected = covariance(observe(*batches))
    compare(found, expected, SITE)
    assert int(found.forwards) == 128


def test_a_hundred_thousand_contexts() -> None:
    states = randn(100_000, 3, 6) @ randn(6, 6, seed=1) + 3
    found = measure(states.split(1000), gh.Covariance()).covariance
    compare(found, covariance(observe(states)), SITE)


def test_one_product_serves_both_statistics() -> None:
    batches = [randn(4, 16, 8, seed=s) for s in range(3)]
    calls = []
    real = torch.Tensor.__matmul__

    def counted(a: Tensor, b: Tensor) -> Tensor:
        calls.append((tuple(a.shape), tuple(b.shape)))
        return real(a, b)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "__matmul__", counted)
        model, watch = new_watch(8, gh.Covariance(), gh.PosCtx(second_moment=True))
        with torch.no_grad(), watch:
            for batch in batches:
                model(inputs_embeds=batch)
    assert calls.count(((8, 64), (64, 8))) == 3
    found = watch.geometry()[SITE]
    assert torch.equal(found.covariance.covariance, found.pos_ctx.covariance)


def test_masked_and_non_finite_tokens_count_nothing() -> None:
    states, mask = randn(6, 9, 5), torch.ones(6, 9, dtype=torch.int64)
    mask[2, 4:] = 0
    states[2, 4:] = float("nan")
    states[0, 3, 1], states[5, 8, 2] = float("inf"), float("nan")
    found = measure([states], gh.Covariance(), mask=mask).covariance
    keep = torch.isfinite(states).all(-1)
    compare(found, covariance(observe(states[keep][None])), SITE)
    assert int(found.count) == 6 * 9 - 5 - 2


def test_fewer_tokens_than_dimensions() -> None:
    found = measure([randn(1, 4, 9)], gh.Covariance()).covariance
    assert int((found.eigenvalues > 0).sum()) == 3
    assert float(found.condition_number) == float("inf")
    alone = measure([randn(1, 1, 9)], gh.Covariance()).covariance
    assert float(alone.trace) == 0
    assert torch.isnan(alone.effective_rank)


def test_a_site_where_nothing_is_finite_says_so() -> None:
    found = measure([torch.full((2, 3, 4), float("nan"))], gh.Covariance()).covariance
    assert int(found.count) == 0
    for name in ("mean", "covariance", "effective_rank"):
        with pytest.raises(gh.errors.UnidentifiedError, match="no finite token"):
            found[name]


def test_matrices_are_computed_when_they_are_read() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.linalg, "eigvalsh", lambda _: pytest.fail("decomposed"))
        found = measure([randn(2, 9, 4)], gh.Covariance()).covariance
        assert found.mean.shape == (4,)
        assert found.covariance.shape == found.second_moment.shape == (4, 4)
        assert "effective_rank=not computed yet" in repr(found)
    scalars = found.scalars()
    assert {"count", "forwards", "trace", "effective_rank", "condition_number"} <= set(scalars)
    assert not {"covariance", "eigenvalues"} & set(scalars)
    assert found.eigenvalues is found.eigenvalues


def test_results_are_stacked_over_sites_and_named_where_they_are_missed() -> None:
    model = Stack(4)
    with gh.watch(model, sites="blocks", statistics=[gh.Covariance()], positions=8) as watch:
        model(inputs_embeds=randn(2, 8, 4))
    geometry = watch.geometry()
    assert geometry.stack("covariance.eigenvalues").shape == (4, 4)
    assert geometry.stack("covariance.covariance").shape == (4, 4, 4)
    with pytest.raises(gh.errors.SiteError, match=r"covariance\.eigenvalues"):
        watch.geometry().stack("covariance.nothing")


# A fraction of the forwards


def chosen(number: int, fraction: float) -> bool:
    """By the definition, in other arithmetic."""
    return number * PHI % 1 < fraction


@pytest.mark.parametrize("fraction", [0.1, 0.4, 0.9])
def test_a_fraction_is_of_the_forwards_chosen(fraction: float) -> None:
    batches = [randn(2, 5 + s % 7, 6, seed=s) * (1 + s % 3) for s in range(40)]
    taken = [batch for s, batch in enumerate(batches) if chosen(s, fraction)]
    assert abs(len(taken) - 40 * fraction) <= 2
    statistics = [gh.Covariance(fraction), gh.PosCtx(64, second_moment=True)]
    found = measure(batches, *statistics)
    compare(found.covariance, covariance(observe(*taken)), SITE)
    assert int(found.covariance.forwards) == len(taken)
    everything = covariance(observe(*batches))
    assert int(found.pos_ctx.count) == everything["count"].value
    np.testing.assert_allclose(
        found.pos_ctx.covariance, everything["covariance"].value, rtol=1e-4, atol=1e-5
    )


def test_forwards_that_are_passed_over_cost_nothing() -> None:
    """Neither are the states read; they are still seen to have run."""
    batches = [randn(2, 5, 6, seed=s) for s in range(5)]
    with pytest.MonkeyPatch.context() as patch:
        model, watch = new_watch(6, gh.Covariance(0.1))
        with torch.no_grad(), watch:
            model(inputs_embeds=batches[0])
            patch.setattr("geomhooks.forwards.routing.reduce", lambda *_: pytest.fail("read"))
            for batch in batches[1:]:
                model(inputs_embeds=batch)
    geometry = watch.geometry()
    assert geometry.uneven == {}
    assert geometry.tokens[""]["forwards"] == 5
    compare(geometry[SITE].covariance, covariance(observe(batches[0])), SITE)


def test_prompts_and_tokens_that_take_turns_have_their_share() -> None:
    """Every tenth forward would see prompts alone, or none of them."""
    batches = [randn(1, 8 if s % 10 == 0 else 1, 3, seed=s) + (s % 10 == 0) for s in range(1000)]
    found = measure(batches, gh.Covariance(0.1)).covariance
    everything = covariance(observe(*batches))
    assert int(found.forwards) == pytest.approx(100, abs=3)
    assert int(found.count) == pytest.approx(170, abs=20)
    np.testing.assert_allclose(found.mean, everything["mean"].value, atol=0.2)
    assert float(found.trace) == pytest.approx(float(everything["trace"].value), rel=0.15)


def test_the_estimate_of_a_fraction_is_not_biased() -> None:
    """Over many streams, its mean is that of all tokens, within what is left of chance."""
    errors = []
    for seed in range(60):
        batches = list(randn(20, 1, 30, 4, seed=seed))
        found = measure(batches, gh.Covariance(0.3)).covariance
        n = int(found.count)
        errors.append(found.covariance * n / (n - 1) - torch.eye(4).double())
    stacked = torch.stack(errors)
    standard_error = stacked.std(0) / len(errors) ** 0.5
    assert float((stacked.mean(0) / standard_error).abs().max()) < 4


def test_a_fraction_saved_and_resumed_goes_on_choosing(tmp_path: Path) -> None:
    batches = [randn(2, 5, 6, seed=s) for s in range(30)]
    model, watch = new_watch(6, gh.Covariance(0.3))
    with torch.no_grad(), watch:
        for batch in batches[:11]:
            model(inputs_embeds=batch)
    torch.save(watch.state_dict(), tmp_path / "state.pt")
    watch.geometry().save(tmp_path / "g.safetensors")
    for load in (
        lambda: torch.load(tmp_path / "state.pt", weights_only=True),
        lambda: gh.load(tmp_path / "g.safetensors").state_dict(),
    ):
        model, again = new_watch(6, gh.Covariance(0.3))
        again.load_state_dict(load())
        with torch.no_grad(), again:
            for batch in batches[11:]:
                model(inputs_embeds=batch)
        found = again.geometry()[SITE].covariance
        taken = [batch for s, batch in enumerate(batches) if chosen(s, 0.3)]
        compare(found, covariance(observe(*taken)), SITE)


def test_fractions_of_shards_merge_and_a_reset_begins_anew() -> None:
    batches = [randn(2, 5, 6, seed=s) for s in range(21)]
    geometries, taken = [], []
    model, watch = new_watch(6, gh.Covariance(0.3))
    for shard in (batches[:8], batches[8:]):
        with torch.no_grad(), watch:
            for batch in shard:
                model(inputs_embeds=batch)
        geometries.append(watch.geometry())
        watch.reset()
        taken += [batch for s, batch in enumerate(shard) if chosen(s, 0.3)]
    found = gh.merge(geometries)[SITE].covariance
    compare(found, covariance(observe(*taken)), SITE)
    assert int(found.forwards) == len(taken)


def test_a_fraction_under_padding_and_masks() -> None:
    batches = [randn(2, 6, 4, seed=s) for s in range(12)]
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    for batch in batches:
        batch[mask == 0] = float("nan")
    found = measure(batches, gh.Covariance(0.4), mask=mask).covariance
    taken = [batch[mask > 0][None] for s, batch in enumerate(batches) if chosen(s, 0.4)]
    compare(found, covariance(observe(*taken)), SITE)


def test_a_module_that_runs_twice_in_a_forward() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList([nn.Identity()])

        def forward(self, inputs_embeds: Tensor) -> Tensor:
            return self.blocks[0](self.blocks[0](inputs_embeds))

    model, batches = Twice(), [randn(2, 5, 4, seed=s) for s in range(10)]
    statistics = [gh.Covariance(0.4), gh.PosCtx(second_moment=True, second_moment_fraction=0.4)]
    with torch.no_grad(), gh.watch(model, sites="blocks.0", statistics=statistics) as watch:
        for batch in batches:
            model(inputs_embeds=batch)
    with pytest.warns(UserWarning, match="other numbers of forwards"):
        found = watch.geometry()["blocks.0"]
    taken = [batch for s, batch in enumerate(batches) if chosen(s, 0.4)]
    compare(found.covariance, covariance(observe(*taken, *taken)), "blocks.0")
    assert torch.equal(found.pos_ctx.covariance, found.covariance.covariance)


def test_the_laws_that_a_fraction_obeys() -> None:
    laws = gh.statistics.LAWS
    assert gh.Covariance().laws == gh.PosCtx().laws == laws
    assert gh.PosCtx(second_moment_fraction=0.5).laws == laws  # it takes no second moment
    lost = {"batching", "order", "packing", "generation"}
    assert gh.Covariance(0.5).laws == laws - lost
    assert gh.PosCtx(second_moment=True, second_moment_fraction=0.5).laws == laws - lost


# The second moment of PosCtx


def test_a_fraction_of_pos_ctx_gives_a_covariance_and_no_more() -> None:
    batches = [randn(3, 7, 5, seed=s) for s in range(20)]
    statistic = gh.PosCtx(64, second_moment=True, second_moment_fraction=0.3)
    found = measure(batches, statistic).pos_ctx
    whole = measure(batches, gh.PosCtx(64, second_moment=True)).pos_ctx
    taken = covariance(observe(*(batch for s, batch in enumerate(batches) if chosen(s, 0.3))))
    np.testing.assert_allclose(found.covariance, taken["covariance"].value, rtol=1e-5, atol=1e-6)
    assert int(found.covariance_count) == taken["count"].value
    for name in ("mean", "pos", "ctx", "count"):
        torch.testing.assert_close(found[name], whole[name])
    with pytest.raises(gh.errors.UnidentifiedError, match=r"second_moment_fraction=0\.3.*=1"):
        found["resid_covariance"]


@pytest.mark.filterwarnings("ignore:tokens left out because an entry")
def test_what_was_not_asked_for_is_not_missed() -> None:
    """Callbacks warn of windows whose data do not determine all results."""
    geometries = []
    for states in (randn(3, 7, 5), randn(3, 7, 5) * float("nan")):
        model, watch = new_watch(5, gh.PosCtx(64, second_moment=True, second_moment_fraction=0.3))
        with torch.no_grad(), watch:
            model(inputs_embeds=states)
        geometries.append(watch.geometry())
    assert [lacks_results(geometry) for geometry in geometries] == [False, True]


@pytest.mark.filterwarnings("ignore:tokens left out because an entry")
def test_a_fraction_of_which_nothing_was_finite() -> None:
    batches = [torch.full((2, 3, 4), float("nan")), randn(2, 3, 4)]
    statistic = gh.PosCtx(64, second_moment=True, second_moment_fraction=0.01)
    found = measure(batches, statistic, gh.Covariance(0.01))
    assert int(found.pos_ctx.count) == 6
    with pytest.raises(gh.errors.UnidentifiedError, match=r"second_moment_fraction=0\.01"):
        found.pos_ctx["covariance"]
    with pytest.raises(gh.errors.UnidentifiedError, match=r"fraction=0\.01"):
        found.covariance["mean"]


# What is refused


@pytest.mark.parametrize("fraction", [0, 1.5, -1, "0.1", True, float("nan")])
def test_what_is_no_fraction(fraction: Any) -> None:
    allowed = r"above 0 and at most 1"
    with pytest.raises(ValueError, match=rf"Covariance\(fraction=.*{allowed}"):
        gh.Covariance(fraction=fraction)
    with pytest.raises(ValueError, match=rf"PosCtx\(second_moment_fraction=.*{allowed}"):
        gh.PosCtx(second_moment_fraction=fraction)


@pytest.mark.parametrize("positions", [0, -3, 2.5, "4"])
def test_what_is_no_capacity(positions: Any) -> None:
    with pytest.raises(ValueError, match=r"Covariance\(positions=.*positive integer"):
        gh.Covariance(positions=positions)


def test_a_state_too_large_is_refused() -> None:
    model, watch = new_watch(64, gh.Covariance(max_bytes=30_000))
    refused = pytest.raises(gh.errors.SiteError, match=r"d = 64.*33,296 bytes.*max_bytes=30,000")
    with refused, watch:
        model(inputs_embeds=randn(1, 2, 64))


def test_other_fractions_do_not_merge() -> None:
    geometries = []
    for fraction in (0.5, 0.25):
        model, watch = new_watch(4, gh.Covariance(fraction))
        with torch.no_grad(), watch:
            model(inputs_embeds=randn(2, 3, 4))
        geometries.append(watch.geometry())
    with pytest.raises(gh.errors.SchemaError, match=r"covariance\.fraction differs: 0\.5.*0\.25"):
        gh.merge(geometries)
