"""Every figure holds the geometry's numbers, and says what is missing."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import geomhooks as gh
from geomhooks.anatomy import attention_parts, find_anatomy, head_spectra
from geomhooks.errors import FigureError, MissingExtraError
from geomhooks.functional import dct_spectrum, principal_components, principal_geodesics
from geomhooks.report import apply_theme, figures
from tests.report.geometries import (
    CONTEXTS,
    HEADS,
    LENGTH,
    SCRIPT,
    attention,
    everything,
    history,
    hostile,
    leaders_and_factors,
    model_and_texts,
)


def same(found: Any, expected: Any) -> None:
    """To single precision."""
    expected = expected.double().numpy() if isinstance(expected, torch.Tensor) else expected
    np.testing.assert_allclose(np.asarray(found, dtype=float), expected, rtol=2e-6, atol=2e-7)


def by_site(figure: Any) -> dict[str, list[Any]]:
    """The traces that the slider shows at each of its steps."""
    steps = figure.layout.sliders[0].steps
    shown = [step.args[0]["visible"] for step in steps]
    assert [trace.visible for trace in figure.data] == shown[figure.layout.sliders[0].active]
    return {
        step.value: [t for t, on in zip(figure.data, visible, strict=True) if on]
        for step, visible in zip(steps, shown, strict=True)
    }


@pytest.mark.parametrize("dimensions", [2, 3])
def test_spiral(dimensions: int) -> None:
    geometry = everything()
    found = by_site(figures.position_spiral(geometry, dimensions))
    assert list(found) == geometry.sites
    for site, (trace,) in found.items():
        expected = principal_components(geometry[site].pos_ctx.pos, dimensions).scores
        for column, axis in enumerate("xyz"[:dimensions]):
            same(trace[axis], expected[:, column])
        same(trace.marker.color, np.arange(LENGTH))
    if dimensions == 2:
        same(found[site][0].x, geometry[site].pos_ctx.spiral.scores[:, 0])
    few = figures.position_spiral(geometry, dimensions, positions=4)
    assert few.data[0].marker.color.tolist() == [0, 4, 7, 11]
    assert few.layout.meta["note"] == f"4 of {LENGTH} positions are drawn, evenly spaced."


def test_singular_values_and_fourier() -> None:
    geometry = everything()
    scree = by_site(figures.position_singular_values(geometry, number=5))
    fourier = by_site(figures.position_fourier(geometry, 4))
    for site in geometry.sites:
        pos_ctx = geometry[site].pos_ctx
        values, floor = scree[site]
        same(values.y, pos_ctx.singular_values[:5])
        same(floor.y, np.full(2, float(pos_ctx.singular_value_floor)))
        (heat,) = fourier[site]
        same(heat.z, (dct_spectrum(pos_ctx.smoothness.gram) / LENGTH)[1:4, 1:4])


def test_gram_with_labels() -> None:
    geometry = everything()
    figure = figures.position_context_gram(geometry, {4: SCRIPT}, groups=["even", "<b>odd</b>"])
    for site, (trace,) in by_site(figure).items():
        pos_ctx = geometry[site].pos_ctx
        order = [*range(0, CONTEXTS, 2), *range(1, CONTEXTS, 2)]
        rows = torch.cat([pos_ctx.pos, pos_ctx.ctx[order]])
        unit = rows / rows.norm(dim=1, keepdim=True)
        same(trace.z, unit @ unit.T)
    names = list(figure.data[0].x)
    assert len(set(names)) == len(names) == LENGTH + CONTEXTS
    assert names[:2] == ["position 0", "position 1"]
    assert names[LENGTH] == "even: context 0"
    assert names[LENGTH + 2].startswith("even: &lt;script&gt;")
    assert names[LENGTH + 2].endswith("(context 4)")
    assert names[-1] == "&lt;b&gt;odd&lt;/b&gt;: context 9"
    few = figures.position_context_gram(geometry, positions=3, contexts=2)
    assert few.data[0].z.shape == (5, 5)
    assert few.layout.meta["note"].startswith(f"3 of {LENGTH} positions and 2 of {CONTEXTS}")


def test_shares_with_noise() -> None:
    geometry = everything()
    bars = {trace.name: np.asarray(trace.y) for trace in figures.variance_shares(geometry).data}
    for part in ("pos", "ctx"):
        shares = geometry.stack(f"pos_ctx.shares.{part}")
        noise = geometry.stack(f"pos_ctx.noise_shares.{part}")
        same(bars[f"{part}, as by chance"], torch.minimum(shares, noise.clamp(min=0)))
        same(bars[part] + bars[f"{part}, as by chance"], shares)
    assert bars.pop("as by chance").tolist() == [None], "of the legend alone"
    same(sum(bars.values()), np.ones(len(geometry)))


@pytest.mark.parametrize("of", ["norm", "radius"])
def test_lengths(of: Any) -> None:
    geometry = everything()
    heat = figures.length_by_position(geometry, of).data[0]
    means = geometry.stack(f"sphere.{of}.at_position.mean")
    same(heat.customdata, means)
    same(heat.z, means.log10())
    band, rest, first = figures.length_by_layer(geometry, of).data
    mean = geometry.stack(f"sphere.without_first.{of}.mean")
    deviation = geometry.stack(f"sphere.without_first.{of}.variance").sqrt()
    same(rest.y, mean)
    same(first.y, means[:, 0])
    same(band.y, torch.cat([mean + deviation, (mean - deviation).flip(0)]))
    same(
        figures.length_by_position(geometry, of, positions=3).data[0].customdata,
        means[:, [0, 6, 11]],
    )


def test_angles_and_directions() -> None:
    geometry = everything()
    _, block, attend, feed = figures.step_angles(geometry).data
    degrees = 180 / math.pi
    same(block.y, geometry.stack("sphere.without_first.step_angle.mean") * degrees)
    for trace, name in ((attend, "attention"), (feed, "mlp")):
        same(trace.y, geometry.stack(f"updates.without_first.{name}.step_angle.mean") * degrees)
    raw, centred = figures.directions_by_layer(geometry).data
    same(raw.y, geometry.stack("sphere.without_first.anisotropy"))
    same(centred.y, geometry.stack("sphere.without_first.mean_cosine"))


def test_words() -> None:
    geometry = everything()
    same(
        figures.next_word_pull(geometry).data[0].y,
        geometry.stack("next_word.without_first.pull.mean"),
    )
    states = geometry.stack("trajectories.states")[:, 1].double()
    plane = principal_geodesics(states.flatten(0, 1), 2, centred=False)
    ids = geometry[geometry.sites[0]].trajectories.token_ids[1].tolist()
    asked = []
    paths = figures.word_paths(
        geometry, lambda token: asked.append(token) or SCRIPT, context=1, dimensions=2, most=3
    )
    for trace, place in zip(paths.data, (0, 6, 11), strict=True):
        expected = plane.transform(states[:, place])
        same(trace.x, expected[:, 0])
        same(trace.y, expected[:, 1])
        assert trace.name.startswith(f"{place}: &lt;script&gt;")
        assert "<script" not in trace.hovertemplate
    assert asked == [ids[0], ids[6], ids[11]]
    assert figures.word_paths(geometry).data[0].z.shape == (len(geometry),)
    with pytest.raises(FigureError, match="context=5: 2 were kept, from 0"):
        figures.word_paths(geometry, context=5)


def test_components() -> None:
    geometry = everything()
    bars = figures.component_importance(geometry).data
    for bar, term in zip(bars, ("input", "attention", "feed_forward", "correction"), strict=True):
        same(bar.y, geometry.stack(f"components.importance.{term}.mean"))


def test_attention() -> None:
    geometry = attention()
    for head in (None, 1):
        for site, (heat,) in by_site(figures.query_key_shares(geometry, head)).items():
            shares = geometry[site].attention.shares
            same(heat.z, shares.mean(0) if head is None else shares[head])
    with pytest.raises(FigureError, match=f"head=9: .* has {HEADS} heads, from 0"):
        figures.query_key_shares(geometry, 9)

    model, texts = model_and_texts()
    split = attention_parts(model, everything(), {"input_ids": texts[:2]}, layer=1)
    parts = by_site(figures.query_key_logits(split, head=1, row=1, words=["<b>"]))
    logits = split.logits[:, :, 1, 1]
    for name, query, key in (("pos with text", [1], [2, 3]), ("text with text", [2, 3], [2, 3])):
        expected = logits[query][:, key].sum((0, 1)).masked_fill(~split.allowed[1, 0], math.nan)
        same(parts[name][0].z, expected)
        assert parts[name][0].x[0] == "0: &lt;b&gt;"
    same(parts["all parts"][0].z[-1], logits.sum((0, 1))[-1])  # the last query sees all keys

    spectra = head_spectra(find_anatomy(model).at(0))
    curves = figures.singular_value_coverage(spectra).data
    for head, curve in enumerate(curves):
        same(curve.y, spectra.values[head].cumsum(0) / spectra.values[head].sum())


def test_leaders() -> None:
    geometry = leaders_and_factors()
    for of in ("leader_share", "basins"):
        heads, mean = figures.leaders_by_layer(geometry, of).data  # type: ignore[arg-type]
        expected = geometry.stack(f"leaders.without_first.{of}.mean")
        same(heads.y, expected.flatten())
        same(mean.y, expected.mean(1))
        assert heads.x[:HEADS] == (0,) * HEADS
    with pytest.raises(FigureError, match="of='x': 'leader_share', "):
        figures.leaders_by_layer(geometry, "x")  # type: ignore[arg-type]


def test_factors() -> None:
    geometry = leaders_and_factors()
    importance = geometry.stack("factors.importance")
    curves = figures.factor_importance(geometry, words=lambda token: f"<{token}>", most=4).data
    assert len(curves) == 4
    for curve in curves:
        factor = int(curve.name.split()[1])
        same(curve.y, importance[:, factor])
        site = geometry.sites[-1]
        token = int(geometry[site].factors.top.token_id[factor, 0])
        assert curve.hovertext[-1].startswith(f"{site}: ")
        assert f"<b>&lt;{token}&gt;</b>" in curve.hovertext[-1] or token < 0
    with pytest.raises(FigureError, match="factor 99: there are 16, from 0 to 15"):
        figures.factor_importance(geometry, factors=[99])


def test_training() -> None:
    kept = history()
    (curve,) = figures.scalar_over_training(kept, "sphere/norm/mean").data
    steps, values = kept.curve("0/sphere/norm/mean")
    same(curve.x, steps)
    same(curve.y, values)
    last = principal_components(kept[20]["0"].pos_ctx.pos, 2)
    found = by_site(figures.spiral_over_training(kept, "0"))
    for step, (trace,) in found.items():
        same(trace.y, (kept[int(step)]["0"].pos_ctx.pos @ last.axes.T)[:, 1])
    with pytest.raises(FigureError, match="no site of the history has 'no/such'; there are"):
        figures.scalar_over_training(kept, "no/such")
    with pytest.raises(FigureError, match="step 0 has no pos_ctx at 'h'; its sites are 0"):
        figures.spiral_over_training(kept, "h")
    with pytest.raises(FigureError, match=re.escape("gh.History(snapshots=8)")):
        figures.spiral_over_training(gh.History(), "0")


def test_runs() -> None:
    kept = history()
    lines = figures.runs_compared({SCRIPT: kept[0], "b": kept[20]}, "sphere/norm/mean").data
    assert lines[0].name.startswith("&lt;script&gt;")
    for line, step in zip(lines, (0, 20), strict=True):
        same(line.y, kept[step].stack("sphere.norm.mean"))
    with pytest.raises(FigureError, match=r"no site of 'a' has the scalar 'x'"):
        figures.runs_compared({"a": kept[0]}, "x")


NEEDS: dict[Callable[..., Any], str] = {
    figures.position_spiral: "gh.PosCtx()",
    figures.position_singular_values: "gh.PosCtx()",
    figures.position_fourier: "gh.PosCtx()",
    figures.position_context_gram: "gh.PosCtx()",
    figures.variance_shares: "gh.PosCtx()",
    figures.length_by_position: "gh.Sphere()",
    figures.length_by_layer: "gh.Sphere()",
    figures.step_angles: "gh.Sphere()",
    figures.directions_by_layer: "gh.Sphere()",
    figures.word_paths: "gh.Trajectories()",
    figures.next_word_pull: "gh.NextWord()",
    figures.component_importance: "gh.Components()",
    figures.query_key_shares: "gh.Attention(geometry_with_pos_ctx)",
    figures.leaders_by_layer: "gh.Leaders()",
    figures.factor_importance: "gh.Factors(dictionary)",
}


@pytest.mark.parametrize("figure", NEEDS, ids=lambda figure: figure.__name__)
def test_missing_statistics_are_named(figure: Callable[..., Any]) -> None:
    lacking = everything() if figure is figures.query_key_shares else attention()
    with pytest.raises(FigureError, match=re.escape(f"statistics=[{NEEDS[figure]}]")):
        figure(lacking)
    with pytest.raises(FigureError, match=r"a geometry is needed, .*, found a dict"):
        figure({})


def test_wrong_arguments() -> None:
    geometry = everything()
    for figure in (figures.position_spiral, figures.word_paths):
        with pytest.raises(FigureError, match="dimensions=4: 2 or 3 can be drawn"):
            figure(geometry, dimensions=4)
    with pytest.raises(FigureError, match="of='length': 'norm' or 'radius' is needed"):
        figures.length_by_layer(geometry, "length")  # type: ignore[arg-type]


def test_hostile_names_are_texts() -> None:
    geometry = hostile()
    for figure in (
        figures.position_spiral(geometry),
        figures.variance_shares(geometry),
        figures.length_by_position(geometry),
        figures.position_context_gram(geometry),
        figures.step_angles(geometry),
    ):
        text = figure.to_json()
        assert "&lt;script" in text
        assert "<script" not in text
        assert "<img" not in text


def test_light_and_dark() -> None:
    figure = figures.variance_shares(everything())
    light = figure.layout.template.layout.paper_bgcolor
    colours = [trace.marker.color for trace in figure.data]
    apply_theme(figure, dark=True)
    assert figure.layout.template.layout.paper_bgcolor != light
    assert [trace.marker.color for trace in figure.data] == colours


def test_without_plotly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "plotly.graph_objects", None)
    with pytest.raises(MissingExtraError, match=re.escape("pip install 'geomhooks[report]'")):
        figures.variance_shares(everything())
