"""What PosCtx derives from pos and ctx: planted cases, gaps, short inputs, and when it is done."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor

import geomhooks as gh
from geomhooks import functional
from geomhooks.results import Lazy, Result
from geomhooks.statistics import pos_ctx_derived
from tests.models import Stack
from tests.published import published_screenot
from tests.statistics.test_pos_ctx import measure, randn


def spiral_states(C: int = 40, T: int = 64, d: int = 96, turns: float = 1.5) -> Tensor:
    """Positions on a circle of a plane, each context around its own centre, and noise."""
    angle = torch.linspace(0, 2 * math.pi * turns, T)
    axes = torch.linalg.qr(randn(d, 2, seed=1)).Q.T
    path = 5 * torch.stack([angle.cos(), angle.sin()], dim=1) @ axes
    return 3 + path + randn(C, 1, d, seed=2) + 0.5 * randn(C, T, d, seed=3)


def test_a_planted_spiral() -> None:
    found = measure(spiral_states(), positions=64, second_moment=True)
    singular = torch.linalg.svdvals(found.pos)
    torch.testing.assert_close(found.singular_values, singular, rtol=0, atol=1e-7 * singular[0])
    assert float(found.rank) == 2 == published_screenot(found.pos.numpy())[0]
    assert singular[1] > found.rank_threshold > singular[2]
    assert float(found.rank_above_noise) == 2
    assert float(found.stable_rank) == pytest.approx(2, abs=0.3)
    assert 2 < float(found.effective_rank) < 60
    ratio = singular[:2].sum() / singular.sum()
    assert float(found.explained_ratio) == pytest.approx(float(ratio), rel=1e-6)
    assert float(found.smoothness.low_frequency_share) > 0.97
    assert 0.03 < float(found.smoothness.mean_difference) < 0.1
    assert float(found.smoothness.largest_difference) >= float(found.smoothness.mean_difference)
    assert float(found.spiral.winding) == pytest.approx(1.5, abs=0.2)  # less where off centre
    assert float(found.spiral.explained_share) > 0.95
    assert [tuple(found.spiral[n].shape) for n in ("scores", "axes", "shares")] == [
        (64, 2),
        (2, 96),
        (2,),
    ]
    assert float(found.incoherence.mean) == pytest.approx(
        float(found.incoherence.expected_mean), rel=0.3
    )
    assert 0.5 < float(found.relative_norm.centred) <= 1.01
    assert float(found.relative_norm.uncentred) < float(found.relative_norm.centred)


def test_relative_norm_is_that_of_all_contexts_in_the_published_form() -> None:
    h = spiral_states()
    found = measure(h, positions=64, second_moment=True)
    pos = h.double().mean(0) - h.double().mean((0, 1))
    expected = functional.relative_norm_of_sample(h.double(), pos)
    assert float(found.relative_norm.centred) == pytest.approx(float(expected.centred), rel=1e-5)
    assert float(found.relative_norm.uncentred) == pytest.approx(
        float(expected.uncentred), rel=1e-5
    )
    assert "relative_norm" not in measure(h, positions=64)


def test_positions_that_do_not_occur_are_left_out() -> None:
    h = spiral_states()
    mask = torch.ones(h.shape[:2])
    mask[:, [0, 1, 2, 30]] = 0
    found = measure(h, mask, positions=64)
    seen = mask[0].bool()
    assert torch.isnan(found.pos).any(1).tolist() == (~seen).tolist()
    assert torch.isnan(found.spiral.scores).any(1).tolist() == (~seen).tolist()
    pos = found.pos[seen]
    assert float(found.rank) == float(functional.screenot(pos).rank) == 2
    torch.testing.assert_close(found.stable_rank, functional.stable_rank(pos))
    torch.testing.assert_close(
        found.smoothness.low_frequency_share, functional.low_frequency_share(pos)
    )
    torch.testing.assert_close(found.incoherence.max, functional.incoherence(pos, found.ctx).max)


def labelled(labels: Tensor | None, states: Tensor) -> Any:
    model = Stack(states.shape[-1], depth=1)
    watched = gh.watch(model, sites="blocks.0@in", statistics=[gh.PosCtx()])
    with torch.no_grad(), watched as watch, watch.tokens(groups=labels):
        model(inputs_embeds=states)
    return watch.geometry()["blocks.0@in"].pos_ctx


def test_similarity_of_labelled_contexts() -> None:
    labels = torch.arange(30) % 3
    states = randn(30, 8, 48) + 4 * randn(3, 1, 48, seed=1)[labels]
    found = labelled(labels, states)
    expected = functional.group_similarity(found.ctx, found.context_group)
    torch.testing.assert_close(found.similarity.intra, expected.intra)
    torch.testing.assert_close(found.similarity.inter, expected.inter)
    assert float(found.similarity.intra) > 0.8
    assert float(found.similarity.inter) < 0  # ctx sums to zero over contexts
    for labels in (None, torch.ones(30, dtype=torch.int64), torch.arange(30) // 15 - 1):
        without = labelled(labels, states)
        assert "similarity" not in without
        with pytest.raises(
            gh.errors.UnidentifiedError,
            match=r"similarity: it needs contexts with two different labels .*groups=labels\)",
        ):
            without.similarity  # noqa: B018


def test_what_was_not_asked_for_says_what_to_do() -> None:
    """It is none of the names, so that one can go through all of these."""
    found = measure(randn(5, 6, 4), positions=8)
    for name in ("covariance", "resid_covariance", "relative_norm"):
        assert name not in found
        with pytest.raises(
            gh.errors.UnidentifiedError, match=f"{name}: .*PosCtx\\(second_moment=True"
        ):
            found[name]
    names = [name for name in found if name != "clusters"]
    assert "similarity" not in names
    assert len(names) == len(found) - 1
    assert all(found[name] is not None for name in names)


@pytest.mark.parametrize(("C", "T", "d"), [(1, 1, 3), (1, 5, 3), (5, 1, 3), (2, 2, 2), (6, 3, 1)])
def test_short_inputs_give_nan_and_no_error(C: int, T: int, d: int) -> None:
    found = measure(randn(C, T, d), positions=8, second_moment=True)
    scalars = found.scalars()
    nan = {name for name, value in scalars.items() if math.isnan(value)}
    assert "rank" in nan  # nothing to tell signal from noise in so few singular values
    assert ("stable_rank" in nan) == (T == 1)
    assert ("smoothness/mean_difference" in nan) == (T == 1)
    assert ("spiral/winding" in nan) == (T == 1 or d == 1)
    assert ("incoherence/max" in nan) == (T == 1 or C == 1)
    if T > 1 and C > 1:
        assert 0 <= scalars["incoherence/mean"] <= scalars["incoherence/max"] <= 1 + 1e-12


def test_what_is_not_identified_names_its_reason() -> None:
    mask = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 1]])
    found = measure(randn(2, 4, 3), mask, positions=4, second_moment=True)
    for name in (*pos_ctx_derived.DERIVED, *pos_ctx_derived.MOMENTS):
        with pytest.raises(gh.errors.UnidentifiedError, match="2 groups that no context connects"):
            found[name]
    assert "rank" not in found.scalars()


@pytest.mark.filterwarnings("ignore:tokens left out because an entry")
def test_plain_means_have_ranks_but_no_floor() -> None:
    h = spiral_states()
    h[3, 5, 0] = float("nan")
    found = measure(h, positions=64)
    assert not bool(found.exact)
    assert float(found.rank) == 2
    with pytest.raises(gh.errors.UnidentifiedError, match="plain means"):
        _ = found.rank_above_noise


def test_nothing_is_computed_before_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def count(name: str) -> None:
        function = getattr(pos_ctx_derived, name)
        monkeypatch.setattr(
            pos_ctx_derived, name, lambda *a, **k: calls.append(name) or function(*a, **k)
        )

    for name in ("fast_singular_values", "principal_components", "incoherence", "screenot"):
        count(name)
    model = Stack(8, depth=1)
    with torch.no_grad(), gh.watch(model, statistics=[gh.PosCtx()]) as watch:
        model(inputs_embeds=randn(10, 12, 8))
    geometry = watch.geometry()
    found = geometry["blocks.0"].pos_ctx
    assert "rank=not computed yet" in repr(found)
    shares = geometry.scalars(only="*/pos_ctx/shares/*")
    assert {name.rpartition("/")[0] for name in shares} == {
        "blocks.0@in/pos_ctx/shares",
        "blocks.0/pos_ctx/shares",
    }
    assert calls == []
    rank = float(found.rank)
    assert found.rank is found["rank"]
    assert calls == ["fast_singular_values", "screenot"]
    assert f"rank={rank:.6g}, rank_threshold=not computed yet" in repr(found)
    assert geometry.scalars(only=["blocks.0/pos_ctx/rank"]) == {"blocks.0/pos_ctx/rank": rank}
    assert calls == ["fast_singular_values", "screenot"]
    assert geometry.scalars()["blocks.0/pos_ctx/rank"] == rank
    assert sorted(calls) == sorted(2 * list(dict.fromkeys(calls)))  # once at each of two sites
    torch.testing.assert_close(geometry.stack("pos_ctx.rank")[1], found.rank)


def test_a_lazy_result_is_computed_once_and_can_be_copied() -> None:
    calls = []
    result = Result(a=Lazy(lambda: calls.append(1) or torch.tensor(2.0)))
    twin = copy.deepcopy(result)
    assert float(twin.a) == float(result.a) == 2
    assert result.scalars() == twin.scalars() == {"a": 2.0}
    assert calls == [1]


def test_a_name_that_does_not_exist_is_corrected_to_what_can_be_computed() -> None:
    model = Stack(4, depth=1)
    with torch.no_grad(), gh.watch(model, statistics=[gh.PosCtx()]) as watch:
        model(inputs_embeds=randn(3, 5, 4))
    with pytest.raises(gh.errors.SiteError, match=r"did you mean pos_ctx\.rank\?"):
        watch.geometry().stack("pos_ctx.rang")


def anisotropic(C: int, T: int, d: int, strongest: float) -> Tensor:
    """Noise that is much larger along one direction than along the others."""
    noise = randn(C, T, d)
    noise[..., 0] *= strongest
    return noise


def test_the_floor_knows_the_directions_of_the_noise_from_the_second_moment() -> None:
    """Planted: noise alone, mostly along one direction; taken as isotropic it looks like pos."""
    h = anisotropic(60, 40, 64, strongest=12.0)
    blind = measure(h, positions=40)
    told = measure(h, positions=40, second_moment=True)
    assert float(blind.rank_above_noise) >= 1
    assert float(told.rank_above_noise) == 0
    assert 0.7 < float(told.singular_values[0] / told.singular_value_floor) < 1
    planted = 6 * torch.outer(torch.linspace(-1, 1, 40), torch.eye(64)[1])
    found = measure(h + planted, positions=40, second_moment=True)
    assert float(found.rank_above_noise) == 1
    isotropic = randn(60, 40, 64)
    floors = [measure(isotropic, positions=40, second_moment=m) for m in (False, True)]
    ratio = floors[1].singular_value_floor / floors[0].singular_value_floor
    assert 1 < float(ratio) < 1.1  # the largest eigenvalue of a sample is above that of the truth


def test_clusters_of_contexts_without_labels() -> None:
    """Planted, three of unequal size; in no list of scalars, and in a copy once they are there."""
    size, centres = (12, 8, 5), 6 * torch.linalg.qr(randn(16, 3)).Q.T
    which = torch.repeat_interleave(torch.arange(3), torch.tensor(size))
    h = centres[which][:, None] + 0.3 * randn(25, 10, 16, seed=4)
    found = measure(h, positions=10)
    assert not any(name.startswith("clusters") for name in found.scalars())
    with pytest.raises(gh.errors.UnidentifiedError, match=r"not computed before.*copied"):
        _ = copy.deepcopy(found).clusters.labels
    ids = found.context_id - found.context_id.min()
    expected = which[ids.argsort().argsort()]
    assert found.clusters.labels.tolist() == expected.tolist()
    assert found.clusters.centres.shape == (3, 16)
    assert float(found.clusters.silhouette) > 0.8
    assert torch.equal(copy.deepcopy(found).clusters.labels, found.clusters.labels)
    with pytest.raises(gh.errors.UnidentifiedError, match=r"2 vectors need some number from 2"):
        _ = measure(h[:2], positions=10).clusters.labels


def test_contexts_without_a_label_are_in_no_group() -> None:
    """Neither those of forwards without labels nor those that are labelled as in none."""
    centres = 4 * torch.eye(6)[:2]
    labels = torch.tensor([0, 1] * 5)
    labelled = centres[labels][:, None] + randn(10, 8, 6)
    others = randn(12, 8, 6, seed=3)
    model = torch.nn.Sequential(torch.nn.Identity())
    with gh.watch(model, sites="0", statistics=[gh.PosCtx(positions=8)]) as watch:
        with watch.tokens(groups=labels):
            model(labelled)
        model(others[:6])
        with watch.tokens(groups=torch.full((6,), -1)):
            model(others[6:])
    found = watch.geometry()["0"].pos_ctx
    group = found.context_group
    assert torch.bincount(group + 1).tolist() == [12, 5, 5]
    some = group >= 0
    expected = functional.group_similarity(found.ctx[some], group[some])
    assert float(found.similarity.intra) == pytest.approx(float(expected.intra))
    assert float(found.similarity.inter) == pytest.approx(float(expected.inter))
    assert float(found.similarity.intra) > 0.5
