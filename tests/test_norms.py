"""What a norm module is found to be, and norms over the entries of each head in both layouts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import geomhooks as gh
from geomhooks.accumulators.norm_weights import NormWeights
from geomhooks.errors import SiteError
from geomhooks.forwards.heads import find_time_axis
from geomhooks.norms import inspect_norm
from tests.anatomy.models import make, token_ids

B, T, H, K = 3, 7, 4, 6


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Norm(nn.Module):
    """A norm of one's own: nothing says its epsilon, and the gain is the weight plus an offset."""

    def __init__(self, width: int, centred: bool, offset: float, hidden: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))
        self.centred, self.offset, self.hidden = centred, offset, (hidden,)

    def forward(self, x: Tensor) -> Tensor:
        x = x - x.mean(-1, keepdim=True) if self.centred else x
        scale = (x.square().mean(-1, keepdim=True) + self.hidden[0]).rsqrt()
        return x * scale * (self.weight + self.offset).to(x.dtype)


@pytest.mark.parametrize("weights", ["zero", "one of hundreds", "random"])
@pytest.mark.parametrize("hidden", [1e-12, 1e-5, 0.3])
@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("centred", [True, False])
def test_a_norm_is_known_whatever_its_weights_are(
    centred: bool, offset: float, hidden: float, weights: str
) -> None:
    norm = Norm(12, centred, offset, hidden)
    with torch.no_grad():
        if weights != "zero":
            norm.weight.copy_(randn(12))
        if weights == "one of hundreds":
            norm.weight[3] = 700.0
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        found = inspect_norm(norm.to(dtype))
        assert found is not None
        assert (found.centred, found.offset, found.width) == (centred, offset, 12)
        assert found.eps == pytest.approx(hidden, rel=1e-3, abs=1e-11)
        gain, bias = found.affine(torch.empty(12))
        torch.testing.assert_close(gain.double(), norm.weight.detach().double() + offset)
        assert not bias.any()


def test_torch_norms_without_weights_and_without_epsilon() -> None:
    for norm, centred in (
        (nn.LayerNorm(9, elementwise_affine=False), True),
        (nn.RMSNorm(9), False),
        (nn.RMSNorm(9, elementwise_affine=False), False),
    ):
        found = inspect_norm(norm)
        assert found is not None
        assert (found.centred, found.width) == (centred, 9)
        expected = norm.eps or torch.finfo(torch.float32).eps
        assert found.eps == pytest.approx(expected, rel=1e-3)
        model = nn.Sequential(norm)
        with torch.no_grad(), gh.watch(model, sites="norms") as watch:
            model(1e-3 * randn(2, 5, 9))  # epsilon counts for as much as the states
        sphere = watch.geometry()["0"].sphere
        assert float(sphere.sphere_gap.max) < 1e-6
        assert float(sphere.ellipsoid.largest_axis) == 3
        assert float(sphere.ellipsoid.shift_length) == 0
        assert ("plane_distance" in sphere.ellipsoid) == centred


def test_what_is_no_norm_over_entries() -> None:
    assert inspect_norm(nn.LayerNorm((2, 3))) is None
    assert inspect_norm(nn.Identity()) is None
    weighed = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
    model = nn.Sequential(nn.GroupNorm(2, 4), nn.InstanceNorm1d(4), nn.LayerNorm(4), weighed)
    with gh.watch(model, sites="norms") as watch:
        model(randn(2, 4, 4))
    assert watch.geometry().sites == ["2"]


def test_a_norm_whose_gains_are_all_zero_has_no_gaps() -> None:
    norm = nn.LayerNorm(5)
    nn.init.zeros_(norm.weight)
    model = nn.Sequential(norm)
    with torch.no_grad(), gh.watch(model, sites="norms") as watch:
        model(randn(2, 3, 5))
    sphere = watch.geometry()["0"].sphere
    assert int(sphere.sphere_gap.count) == int(sphere.plane_gap.count) == 0
    assert torch.isnan(sphere.sphere_gap.max)
    assert int(sphere.norm.count) == 6


def test_constants_are_of_the_weights_of_the_last_forward() -> None:
    norm = nn.LayerNorm(4)
    model = nn.Sequential(norm)
    with torch.no_grad(), gh.watch(model, sites="norms", statistics=[gh.Sphere()]) as watch:
        model(randn(2, 3, 4))
        first = watch.geometry()
        norm.weight.copy_(torch.tensor([2.0, -1.0, 0.5, 4.0]))
        norm.bias.fill_(3.0)
        model(randn(2, 3, 4))
        second = watch.geometry()
        watch.reset()
        with pytest.raises(gh.errors.GeomhooksError):
            watch.geometry()["0"].sphere.ellipsoid  # noqa: B018
    assert float(first["0"].sphere.ellipsoid.anisotropy) == 1
    found = second["0"].sphere.ellipsoid
    assert (float(found.largest_axis), float(found.smallest_axis)) == (8, 1)
    assert (float(found.anisotropy), float(found.shift_length)) == (8, 6)
    # 3 sum 1 / gamma over the length of 1 / gamma.
    assert float(found.plane_distance) == pytest.approx(3 * 1.75 / 5.3125**0.5)


def test_weights_of_shards() -> None:
    """A merge takes what the other has, should it have any; a reset forgets."""
    one, other, none = (NormWeights(2).allocate() for _ in range(3))
    one.add(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]))
    other.add(torch.tensor([5.0, 6.0]), torch.tensor([7.0, 8.0]))
    one.merge(none)
    assert (one["gain"].tolist(), one["bias"].tolist()) == ([1, 2], [3, 4])
    one.merge(other)
    none.merge(one)
    for weights in (one, none):
        assert (weights["gain"].tolist(), weights["bias"].tolist()) == ([5, 6], [7, 8])
        assert bool(weights["known"])
        weights.reset()
        assert not bool(weights["known"])


class Heads(nn.Module):
    """Norms each head of its states, in one of three layouts."""

    def __init__(self, layout: str, heads: int = H) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(K)
        self.layout, self.heads = layout, heads
        with torch.no_grad():
            self.norm.weight.copy_(randn(K, seed=8))
            self.norm.bias.copy_(randn(K, seed=9))

    def forward(self, inputs_embeds: Tensor, attention_mask: Any = None,
                position_ids: Any = None) -> Tensor:  # fmt: skip
        apart = inputs_embeds.unflatten(-1, (self.heads, K))
        if self.layout == "heads first":
            return self.norm(apart.transpose(1, 2))
        return self.norm(apart.flatten(0, 1) if self.layout == "packed" else apart)


class Rows(Heads):
    """The same states, where somebody has made each head a row of its own."""

    def forward(self, inputs_embeds: Tensor, attention_mask: Any = None,
                position_ids: Any = None) -> Tensor:  # fmt: skip
        return self.norm(inputs_embeds)


STATISTICS = (
    lambda: gh.Sphere(),
    lambda: gh.PosCtx(second_moment=True, positions=16),
    lambda: gh.GroupMeans(3),
    lambda: gh.Covariance(),
)


def measured(model: nn.Module, calls: list[dict[str, Any]]) -> Any:
    chosen = [make() for make in STATISTICS]
    watching = gh.watch(model, sites="norms", statistics=chosen, positions=16)
    with torch.no_grad(), watching as watch:
        for call in calls:
            told = {n: call[n] for n in ("contexts", "groups") if n in call}
            with watch.tokens(**told):
                model(**{n: v for n, v in call.items() if n not in told})
    return watch.geometry()


def by_rows(call: dict[str, Any], heads: int) -> dict[str, Any]:
    """What says of rows, one for each head, that they are of the contexts that they are of."""
    states = call["inputs_embeds"].unflatten(-1, (heads, K)).permute(2, 0, 1, 3).flatten(0, 1)
    others = {n: torch.cat([v] * heads) for n, v in call.items() if n != "inputs_embeds"}
    return {"inputs_embeds": states} | others


def ragged(length: int, seed: int, heads: int = H) -> dict[str, Any]:
    """Padded on the left, with labels, and one context in two rows."""
    real = torch.arange(length) >= torch.tensor([[0], [2], [1]])
    states = randn(B, length, heads * K, seed=seed).masked_fill(~real[..., None], float("nan"))
    return {
        "inputs_embeds": states,
        "attention_mask": real.long(),
        "position_ids": (real.long().cumsum(1) - 1).clamp(min=0),
        "contexts": torch.tensor([5, 2, 5]) + 10 * seed,
        "groups": torch.tensor([0, 2, 1]),
    }


def whole(length: int, seed: int, heads: int = H) -> dict[str, Any]:
    """Without any mask."""
    return {
        "inputs_embeds": randn(B, length, heads * K, seed=seed),
        "contexts": torch.arange(B) + 10 * seed,
        "groups": torch.arange(B),
    }


def packed(length: int, seed: int, heads: int = H) -> dict[str, Any]:
    """Two contexts in each row, where each token has a label."""
    ids = (torch.arange(length) > 2).long().expand(B, -1) + 2 * torch.arange(B)[:, None]
    return {
        "inputs_embeds": randn(B, length, heads * K, seed=seed),
        "position_ids": torch.where(torch.arange(length) > 2, torch.arange(length) - 3,
                                    torch.arange(length)).expand(B, -1),
        "contexts": ids + 10 * seed,
        "groups": ids % 3,
    }  # fmt: skip


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("kind", [ragged, whole, packed])
@pytest.mark.parametrize("layout", ["time first", "heads first", "packed"])
def test_each_head_of_a_token_counts(
    monkeypatch: pytest.MonkeyPatch, layout: str, kind: Any, native: bool
) -> None:
    """As if each head were a row of the same context; also where there are as many as tokens."""
    if not native:
        for place in (
            "native",
            "reductions",
            "forwards.shortcut",
            "accumulators.contexts",
            "accumulators.moments",
            "state",
        ):
            monkeypatch.setattr(f"geomhooks.{place}.usable", lambda *_: False)
    calls = [kind(T, 1), kind(H, 2), kind(5, 3)]
    found = measured(Heads(layout), calls)["norm"]
    expected = measured(Rows(layout), [by_rows(call, H) for call in calls])["norm"]
    assert int(found.sphere.norm.count) == H * int(
        sum(call.get("attention_mask", torch.ones(call["inputs_embeds"].shape[:2])).sum()
            for call in calls)
    )  # fmt: skip
    numbers, others = found.scalars(), expected.scalars()
    assert numbers.keys() == others.keys()
    assert "sphere/plane_gap/max" in numbers
    for name, value in numbers.items():
        assert value == pytest.approx(others[name], rel=1e-8, abs=1e-12, nan_ok=True), name
    for path in ("pos_ctx.pos", "pos_ctx.ctx", "pos_ctx.position_count", "group_means.mean",
                 "sphere.norm.at_position.mean", "covariance.covariance"):  # fmt: skip
        one, other = found, expected
        for part in path.split("."):
            one, other = one[part], other[part]
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10, equal_nan=True)


@pytest.mark.parametrize("layout", ["time first", "heads first"])
def test_as_many_heads_as_tokens_in_the_first_forward(layout: str) -> None:
    calls = [whole(H, 1), whole(T, 2)]
    message = (
        r"'norm' is a norm, .*\(3, 4, 4, 6\); there are as many heads as tokens, 4, so that it "
        r"cannot be told which axis is time.*layout=\{'norm': 'b t h k -> b t h k'\} if time comes "
        r"first, as in Qwen 3, or \{'norm': 'b h t k -> b t h k'\} if heads do"
    )
    with pytest.raises(SiteError, match=message):
        measured(Heads(layout), calls)
    told = "b t h k -> b t h k" if layout == "time first" else "b h t k -> b t h k"
    model, first = Heads(layout), Heads(layout)
    with torch.no_grad():
        with gh.watch(model, sites="norms", layout={"norm": told}) as watch:
            for call in calls:
                model(call["inputs_embeds"])
        with gh.watch(first, sites="norms") as other:
            for call in calls[::-1]:  # the longer one tells
                first(call["inputs_embeds"])
    found, expected = (one.geometry()["norm"].scalars() for one in (watch, other))
    for name, value in found.items():
        assert value == pytest.approx(expected[name], rel=1e-6, abs=1e-12, nan_ok=True), name


def test_pixels_and_tokens_that_nobody_tells_of() -> None:
    model = nn.Sequential(nn.LayerNorm(4))
    message = r"nothing in the call says how many tokens there are"
    with pytest.raises(SiteError, match=message), gh.watch(model, sites="norms"):
        model(randn(2, 3, 5, 4))
    with gh.watch(model, sites="norms", layout="b h w c -> b (h w) c") as watch:
        model(randn(2, 3, 5, 4))
    assert int(watch.geometry()["0"].sphere.norm.count) == 30
    with pytest.raises(SiteError, match=r"the tokens are \(3, 9\), so that"):
        find_time_axis((3, 4, 7, 6), (3, 9), None, "norm")


def test_one_head_is_as_good_as_none() -> None:
    """With one token too, either axis may be time, and nothing is settled by it."""
    heads = Heads("heads first", heads=1)
    with torch.no_grad(), gh.watch(heads, sites="norms", statistics=[gh.Sphere()]) as watch:
        heads(randn(B, 1, K))
        heads(randn(B, T, K, seed=1))
    found = watch.geometry()["norm"].sphere
    assert int(found.norm.count) == B * (1 + T)
    assert found.norm.at_position.count.tolist() == [2 * B, *[B] * (T - 1)]


@pytest.mark.parametrize("family", ["qwen3", "gemma3"])
def test_shards_steps_and_generation(family: str) -> None:
    """Shards merge to one stream, files and ranks bring back what was there, and a cache counts."""
    ids = [token_ids(2, 5, seed) for seed in range(2)]
    model = make(family)

    def watched(*some: Tensor, cached: bool = False) -> gh.Geometry:
        with torch.no_grad(), gh.watch(model, sites="norms", statistics=[gh.Sphere()]) as watch:
            for one in some:
                if cached:
                    cache = model(input_ids=one[:, :4], use_cache=True).past_key_values
                    for column in range(4, one.shape[1]):
                        cache = model(
                            input_ids=one[:, column : column + 1], past_key_values=cache
                        ).past_key_values
                else:
                    model(input_ids=one)
        return watch.geometry()

    expected = watched(*ids).scalars()
    assert any("q_norm/sphere/norm/max" in name for name in expected)
    for found in (gh.merge([watched(one) for one in ids]), watched(*ids, cached=True)):
        numbers = found.scalars()
        assert numbers.keys() == expected.keys()
        for name, value in numbers.items():
            if "_gap" not in name:  # which are rounding, and differ with the shape of a product
                assert value == pytest.approx(expected[name], rel=1e-4, abs=1e-5), name


@pytest.mark.parametrize("family", ["qwen3", "bert"])
def test_compiled(family: str) -> None:
    """With norms of heads, and embedding layers that are called without the mask."""
    torch._dynamo.reset()
    model, ids = make(family), token_ids(2, 5)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    numbers = []
    for run in (model, torch.compile(model, backend="aot_eager")):
        with torch.no_grad(), gh.watch(run, sites="norms", statistics=[gh.Sphere()]) as watch:
            run(input_ids=ids, attention_mask=mask)
        heads = 6 if family == "qwen3" else 1
        first = "model.layers.0.self_attn.q_norm" if heads == 6 else "embeddings.LayerNorm"
        assert int(watch.geometry()[first].sphere.norm.count) == 8 * heads
        numbers.append(watch.geometry().scalars())
    assert numbers[0].keys() == numbers[1].keys()
    for name, value in numbers[0].items():
        if "_gap" not in name:
            assert numbers[1][name] == pytest.approx(value, rel=1e-4, abs=1e-5), name
