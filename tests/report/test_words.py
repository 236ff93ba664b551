"""What the top of a page says of samples of which it is known what they have and have not."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor, nn

import geomhooks as gh
from geomhooks.comparing import Options, compare_geometries
from geomhooks.report.comparison_summary import find_differences
from geomhooks.report.depth import PARTS
from geomhooks.report.part_shares import part_shares
from geomhooks.report.summary import describe_input, find_outstanding
from tests.report.geometries import attention, everything, leaders_and_factors


def read(states: Tensor, layers: nn.Sequential | None = None) -> gh.Geometry:
    """The geometry of states that go through layers."""
    model = layers or nn.Sequential(nn.Identity())
    with torch.no_grad(), gh.watch(model, "?", statistics=[gh.PosCtx(), gh.Sphere()]) as watch:
        model(states)
    return watch.geometry()


def said(geometry: gh.Geometry) -> dict[str, str]:
    return {finding.subject: finding.text for finding in find_outstanding(geometry)}


class Add(nn.Module):
    """A part of the states that a layer adds."""

    def __init__(self, part: Tensor) -> None:
        super().__init__()
        self.part = part

    def forward(self, states: Tensor) -> Tensor:
        return states + self.part


class Noise(nn.Module):
    """States of no position and no context."""

    def __init__(self, scales: Tensor) -> None:
        super().__init__()
        self.scales = scales

    def forward(self, states: Tensor) -> Tensor:
        return torch.randn_like(states) * self.scales


@pytest.mark.parametrize("contexts", [5, 12, 60])
def test_pure_noise_is_said_to_be_chance(contexts: int) -> None:
    torch.manual_seed(contexts)
    layers = nn.Sequential(*(nn.Linear(16, 16) for _ in range(6)))
    found = said(read(torch.randn(contexts, 15, 16), layers))
    for part in ("position", "context"):
        assert "has no more than a sample of this size gives by chance, at any site" in found[part]
    assert "position no more than chance, context no more than chance" in found["in short"]
    assert ("caution" in found) == (contexts < 20)
    assert not {"rank of pos", "smoothness", "incoherence", "few positions"} & set(found)


def test_noise_is_rarely_taken_for_a_share() -> None:
    """The errors of shares of noise that is not equal in all directions."""
    torch.manual_seed(0)
    layers = nn.Sequential(*(Noise(torch.linspace(0.1, 3, 24)) for _ in range(100)))
    with gh.watch(layers, "*", statistics=[gh.PosCtx()]) as watch:
        layers(torch.zeros(10, 12, 24))
    geometry = watch.geometry()
    shares = [s for part in PARTS for site, s in part_shares(geometry, part).items() if site]
    assert len(shares) == 200
    assert sum(share.beyond for share in shares) <= 3
    distances = torch.tensor([(share.raw - share.chance) / share.error for share in shares])
    assert 0.7 < float(distances.std()) < 1.2


def test_one_context_tells_nothing() -> None:
    geometry = read(torch.randn(1, 3, 8), nn.Sequential(*(nn.Linear(8, 8) for _ in range(3))))
    found = said(geometry)
    assert found["caution"].startswith("One context cannot separate position from words")
    assert not {"in short", "position", "context", "rank of pos", "smoothness"} & set(found)
    assert "of 1 context, up to 3 positions" in describe_input(geometry)


def test_shares_are_corrected_and_said_by_layer() -> None:
    torch.manual_seed(0)
    path = torch.randn(30, 8)
    path -= path.mean(0)
    layers = nn.Sequential(nn.Identity(), Add(0.3 * path), Add(0.3 * path), Add(2 * path))
    geometry = read(torch.randn(40, 30, 8) + 0.5 * path, layers)
    found = said(geometry)
    corrected = geometry.stack("pos_ctx.corrected_shares.pos")
    first, last = (f"{100 * float(share):.0f} %" for share in (corrected[0], corrected[-1]))
    assert re.search(rf"rises with depth, from {first} .* at 0 to {last} at 3", found["position"])
    assert "(chance, " in found["position"]
    assert "no more than a sample" in found["context"]
    # What does not differ is not ranked.
    same = said(read(torch.randn(40, 30, 8) + path, nn.Sequential(nn.Identity(), nn.Identity())))
    assert "at no site more than at another beyond noise" in same["position"]


def test_special_positions_are_said() -> None:
    torch.manual_seed(0)
    special = torch.zeros(30, 8)
    special[0, 0] = 9
    path = 0.5 * torch.randn(30, 8)
    states = torch.randn(200, 30, 8)
    found = said(read(states + path + special))
    squares = (path + special - (path + special).mean(0)).square().sum(1)
    part = float(squares[0] / squares.sum())
    number = re.search(r"Position 0 alone makes (\d+) % of pos", found["few positions"])
    assert number is not None
    assert float(number[1]) == pytest.approx(100 * part, abs=3)
    number = re.search(r"about ([\d.]+) % of the variance there and not", found["few positions"])
    assert number is not None
    without = said(read(states + path))
    assert "few positions" not in without
    bare = re.search(r"has ([\d.]+) % of the variance", without["position"])
    assert bare is not None
    # The mean of pos without its outlier, and the sum of all that shares are of, differ a little.
    assert float(number[1]) == pytest.approx(float(bare[1]), rel=0.35)


def test_every_statistic_has_words() -> None:
    found = said(everything())
    angle = everything().stack("updates.without_first.mlp.step_angle.mean").rad2deg()
    assert f"{float(angle.max()):.2g}°" in found["updates"]
    assert {"components", "turns"} & set(found)
    found = said(attention())
    shares = attention().stack("attention.mean_shares.pos_pos")
    assert f"{100 * float(shares.max()):.0f} %" in found["attention"]
    found = said(leaders_and_factors())
    importance = leaders_and_factors().stack("factors.importance").nan_to_num()
    active = int((importance.amax(0) > 0).sum())
    assert f"{active} of {importance.shape[1]} factors were active" in found["factors"]
    leaders = leaders_and_factors().stack("leaders.without_first.mean_heads.leaders")
    assert f"{float(leaders.nan_to_num().max()):.2g} tokens of a context lead" in found["leaders"]


def test_words_of_groups_variance_and_linear_layers() -> None:
    from tests.report.geometries import CONTEXTS, model_and_texts

    model, texts = model_and_texts()
    statistics = [gh.PosCtx(), gh.GroupMeans(2), gh.Covariance(), gh.FeedForwardFit()]
    ids = torch.arange(CONTEXTS)
    with (
        torch.no_grad(),
        gh.watch(model, statistics=statistics) as watch,
        watch.tokens(groups=ids % 2, contexts=ids),
    ):
        model(texts)
    geometry = watch.geometry()
    found = said(geometry)
    assert "Groups differ by no more than chance may give" in found["groups"]
    shares = geometry.stack("covariance.leading_share")
    assert f"{100 * float(shares.max()):.0f} % of the variance" in found["variance"]
    assert re.search(r"A linear map makes \d+ % .* at transformer.h.\d", found["feed-forward"])


def test_words_of_a_comparison() -> None:
    torch.manual_seed(0)
    path, texts = torch.randn(12, 8), torch.randn(40, 1, 8)
    layers = nn.Sequential(nn.Identity(), nn.Identity())
    runs, ids = {}, torch.arange(40)
    for name, strength in (("g1", 1.0), ("g2", 3.0)):
        with gh.watch(layers, "?", statistics=[gh.PosCtx()]) as watch, watch.tokens(contexts=ids):
            layers(texts + strength * path + 0.5 * torch.randn(40, 12, 8))
        runs[name] = watch.geometry()
    files = ["/x/g1.safetensors", "/x/g2.safetensors"]
    names = dict(zip(files, runs, strict=True))
    found = compare_geometries(files, list(runs.values()), Options(dimensions=3))
    words = {f.subject: f.text for f in find_differences(runs, found, names)}
    assert list(words)[:2] == ["g1", "g2"]
    assert words["g2"].endswith("read from the file g2.safetensors.")
    share = float(runs["g2"]["1"].pos_ctx.corrected_shares.pos)
    assert "differs beyond noise at 2 of 2 places" in words["position"]
    assert f"{100 * share:.0f} % in g2" in words["position"]
    assert words["contexts"].startswith("Contexts lie nearly the same everywhere: CKA of ctx is")
    assert words["contexts"].endswith("p is at most 0.01, the least that 99 permutations can give.")
    few = compare_geometries(files, list(runs.values()), Options(dimensions=3, permutations=9))
    words = {f.subject: f.text for f in find_differences(runs, few, names)}
    assert (
        "9 permutations are too few to tell it from chance: p is 0.1 at least" in words["contexts"]
    )
    twice = [runs["g1"], runs["g1"]]
    same = compare_geometries(files, twice, Options(permutations=0))
    words = {
        f.subject: f.text
        for f in find_differences(dict(zip(runs, twice, strict=True)), same, names)
    }
    assert words["position"] == "The share of position differs nowhere by more than noise."
    assert words["the same"] == "All numbers that are compared are equal."
