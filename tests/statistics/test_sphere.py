"""What Sphere does beyond the numbers of the conformance suite: norms, outliers, histograms."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import geomhooks as gh
from geomhooks.statistics import sphere_notes
from tests.models import Stack
from tests.reference import histogram_fits, log_radius


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def measure(model: nn.Module, states: Tensor, sites: str, site: str) -> Any:
    with torch.no_grad(), gh.watch(model, sites=sites, statistics=[gh.Sphere()]) as watch:
        model(inputs_embeds=states)
    return watch.geometry()[site].sphere


class Normed(nn.Module):
    """One norm module that is watched as any model would be."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, inputs_embeds: Tensor) -> Tensor:
        return self.norm(inputs_embeds)


@pytest.mark.parametrize("eps", [1e-5, 0.5])
def test_layer_norm_is_on_the_sphere_and_in_the_plane(eps: float) -> None:
    """A large epsilon draws the output inwards by just what is taken into account."""
    norm = nn.LayerNorm(16, eps=eps)
    norm.weight.data = 1 + 0.3 * randn(16, seed=1)
    norm.bias.data = randn(16, seed=2)
    found = measure(Normed(norm), 3 + randn(4, 6, 16), "norms", "norm")
    assert float(found.sphere_gap.max) < 1e-5
    assert float(found.plane_gap.max) < 1e-5
    assert int(found.sphere_gap.count) == 24


@pytest.mark.parametrize("eps", [1e-6, 0.5])
def test_rms_norm_is_on_the_sphere_and_knows_no_plane(eps: float) -> None:
    norm = nn.RMSNorm(16, eps=eps)
    norm.weight.data = 1 + 0.3 * randn(16, seed=1)
    found = measure(Normed(norm), 3 + randn(4, 6, 16), "norms", "norm")
    assert float(found.sphere_gap.max) < 1e-5
    assert "plane_gap" not in found


def test_an_output_off_the_sphere_and_the_plane_is_found_out() -> None:
    """A hook of somebody else doubles what the norm gives and moves it along the ones direction."""
    norm = nn.LayerNorm(16)
    norm.register_forward_hook(lambda module, args, out: 2 * out + 0.5)
    found = measure(Normed(norm), randn(4, 6, 16), "norms", "norm")
    length = (4 + 0.5**2) ** 0.5  # of twice the unit sphere, moved by half a unit across it
    assert float(found.sphere_gap.mean) == pytest.approx(length - 1, rel=1e-4)
    assert float(found.plane_gap.mean) == pytest.approx(0.5 * 16**0.5, rel=1e-4)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_tokens_are_counted_and_kept_out(value: float) -> None:
    states = randn(3, 4, 8)
    clean = measure(Stack(8, depth=1), states[:2], "blocks", "blocks.0")
    states[2, :, 5] = value
    with pytest.warns(UserWarning, match=r"NaN or infinite: 4 at 'blocks.0@in', 4 at 'blocks.0'\."):
        found = measure(Stack(8, depth=1), states, "blocks", "blocks.0")
    assert (int(found.non_finite), int(found.without_first.non_finite)) == (4, 3)
    for name in ("norm", "radius", "step_angle", "path_length", "tortuosity"):
        assert int(found[name].count) == 8
        assert float(found[name].mean) == pytest.approx(float(clean[name].mean), rel=1e-6)
        assert float(found[name].max) == pytest.approx(float(clean[name].max), rel=1e-6)
    assert float(found.mean_cosine) == pytest.approx(float(clean.mean_cosine), rel=1e-6)


def test_histogram_of_log_radius() -> None:
    """Radii over many orders of magnitude, some beyond the outermost edges."""
    scale = torch.logspace(-8, 8, 60)[None, :, None]
    states = scale * randn(3, 60, 8)
    found = measure(Stack(8, depth=1), states, "blocks", "blocks.0@in")
    counts, edges = np.asarray(found.log_radius_histogram), np.asarray(found.log_radius_edges)
    assert counts[0] > 0, "the planted radii are to reach below the first edge"
    assert counts[-1] > 0, "and above the last"
    values = log_radius(states.double().numpy().reshape(-1, 8))
    assert histogram_fits(counts, edges, values)
    later = log_radius(states[:, 1:].double().numpy().reshape(-1, 8))
    assert histogram_fits(np.asarray(found.without_first.log_radius_histogram), edges, later)


def test_constant_states_have_no_direction() -> None:
    """A state along the ones direction has a centred radius of zero; it must spoil nothing."""
    states = randn(2, 4, 8)
    states[0, 1] = 2.0
    found = measure(Stack(8, depth=1), states, "blocks", "blocks.0@in")
    assert float(found.radius.min) == 0
    assert float(found.ones_share.max) == pytest.approx(1)
    others = states.double().reshape(-1, 8)[[0, 2, 3, 4, 5, 6, 7]]
    unit = nn.functional.normalize(others - others.mean(-1, keepdim=True), dim=-1)
    assert float(found.resultant_length) == pytest.approx(float(unit.mean(0).norm()), rel=1e-6)


def test_one_outlying_first_token_is_left_out_where_asked() -> None:
    states = randn(5, 6, 8)
    states[:, 0] *= 1000
    found = measure(Stack(8, depth=1), states, "blocks", "blocks.0@in")
    assert float(found.norm.max) > 1000
    assert float(found.without_first.norm.max) < 10
    assert int(found.without_first.norm.count) == 25


def test_norms_that_are_the_blocks_of_a_stack() -> None:
    model = torch.nn.Sequential(torch.nn.LayerNorm(8), torch.nn.LayerNorm(8))
    with torch.no_grad(), gh.watch(model, sites="norms", statistics=[gh.Sphere()]) as watch:
        model(torch.randn(2, 3, 8))
    geometry = watch.geometry()
    for site in ("0", "1"):
        assert float(geometry[site].sphere.sphere_gap.max) < 1e-5
        assert float(geometry[site].sphere.plane_gap.max) < 1e-5


@pytest.mark.parametrize("together", [1, 2, 3])
@pytest.mark.parametrize("loops", ["compiled", "tiled"])
def test_sites_are_added_up_as_many_at_once_as_may_wait(
    monkeypatch: pytest.MonkeyPatch, loops: str, together: int
) -> None:
    """The path along the blocks and the chord go on from those to the next."""
    if loops == "tiled":
        monkeypatch.setattr("geomhooks.native.usable", lambda *_: False)
        monkeypatch.setattr("geomhooks.reductions.usable", lambda *_: False)
        monkeypatch.setattr("geomhooks.forwards.shortcut.usable", lambda *_: False)
    batches = torch.randn(3, 2, 5, 8)

    def measured() -> dict[str, float]:
        torch.manual_seed(0)
        model = nn.Sequential(*[nn.Linear(8, 8) for _ in range(5)])
        with torch.no_grad(), gh.watch(model, statistics=[gh.Sphere()]) as watch:
            for batch in batches:
                model(batch)
        return watch.geometry().scalars()

    expected = measured()
    assert any("tortuosity" in name for name in expected)
    most = 64 * 10 * together
    monkeypatch.setattr("geomhooks.reductions.plain.MAY_WAIT", most)
    waiting: list[int] = []
    add_notes = sphere_notes.add_notes

    def add(notes: Any, paths: Any) -> None:
        waiting.append(len(notes))
        add_notes(notes, paths)

    monkeypatch.setattr("geomhooks.statistics.sphere.add_notes", add)
    found = measured()
    assert max(waiting) == together
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-12, nan_ok=True), name
