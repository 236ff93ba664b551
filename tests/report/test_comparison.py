"""The page that compares runs, as a text and as a browser shows it, and its figures."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import geomhooks as gh
from geomhooks.comparing import Options, compare_geometries, compare_histories
from geomhooks.errors import FigureError
from geomhooks.report import comparison_page, figures, write_comparison
from tests.report.browser import Browser, browser
from tests.report.geometries import SCRIPT, history
from tests.report.test_page import SHOWS, draw_all

WIDTH, LENGTH, CONTEXTS = 8, 9, 24
FILES = [f"{SCRIPT}.safetensors", "b.safetensors", "c.safetensors"]


@pytest.fixture(scope="module")
def runs() -> list[gh.Geometry]:
    """Three runs over the same contexts, of which the last is far from the others."""
    torch.manual_seed(0)
    states = torch.randn(CONTEXTS, LENGTH, WIDTH) + 2 * torch.randn(LENGTH, WIDTH)
    states += 2 * torch.randn(CONTEXTS, 1, WIDTH)
    found = []
    for scale in (1.0, 1.01, 3.0):
        model = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(2)))
        for number, weight in enumerate(model.parameters()):
            weight.data = torch.randn(
                *weight.shape, generator=torch.Generator().manual_seed(number)
            )
            weight.data = weight.data * (scale if number else 1)
        model.add_module(f"2{SCRIPT}", nn.Identity())
        watch = gh.watch(model, "*", statistics=[gh.PosCtx(positions=LENGTH), gh.Sphere()])
        with torch.no_grad(), watch, watch.tokens(contexts=torch.arange(CONTEXTS)):
            model(states)
        found.append(watch.geometry())
    return found


@pytest.fixture(scope="module")
def found(runs: list[gh.Geometry]) -> Any:
    return compare_geometries(FILES, runs, Options(dimensions=2, permutations=9))


def test_a_comparison_in_a_browser(runs: Any, found: Any, tmp_path: Path) -> None:
    write_comparison(runs, found, tmp_path / "comparison.html")
    page: Browser
    with browser() as page:
        page.open(tmp_path / "comparison.html")
        names = draw_all(page)
        assert {
            "compared_pos_ctx_shares_pos",
            "run_differences",
            "agreement_cka",
            "agreement_positions",
            "spirals",
            "grams",
        } < set(names)
        sites = page.run("return [...document.querySelectorAll('#layer option')].map(o => o.value)")
        page.run(
            "const picker = document.getElementById('layer'); picker.value = arguments[0];"
            "picker.dispatchEvent(new Event('change'))",
            sites[0],
        )
        page.wait(SHOWS, "spirals", [[sites[0]] * 3, 0])
        # Half of a matrix is in the page, and the whole in the figure and in the CSV.
        gram = page.run(
            "const { data } = document.querySelector(\".figure[data-name='grams']\");"
            "return data[0].z.map((row) => [...row])"
        )
        expected = figures.position_context_gram(runs[0], positions=48, contexts=48).data[0].z
        np.testing.assert_allclose(np.array(gram), expected, atol=4e-5)
        rows = page.run("return geomhooks.figureRows('singular_values')")
        first = runs[1][sites[0]].pos_ctx.singular_values[0]
        (row,) = (r for r in rows if r[:2] == [f"b, {sites[0]}, singular values of pos", 1])
        assert row[2] == pytest.approx(float(first))
        rows = page.run("return geomhooks.tableRows('differences')")
        assert rows[0][:3] == ["runs", "site", "shares pos"]
        share = found["pairs"][1]["sites"]["1"]["scalars"]["pos_ctx/shares/pos"]["difference"]
        (row,) = (r for r in rows if r[:2] == [f"c less {Path(FILES[0]).stem}", "1"])
        assert row[2] == pytest.approx(share)
        page.run("document.querySelectorAll('table[data-name=differences] th')[2].click()")
        shares = [r[2] for r in page.run("return geomhooks.tableRows('differences')")[1:]]
        assert shares == sorted(shares)
        page.run("document.getElementById('theme').click()")
        page.wait(
            "return document.querySelector(\".figure[data-name='grams']\")"
            "._fullLayout.paper_bgcolor === '#171b21'"
        )
        # On a narrow page panels stand below each other, and nothing sticks out.
        page.narrow(400)
        page.open(tmp_path / "comparison.html")
        draw_all(page, ["compared_sphere_radius_mean", "run_differences", "spirals"])
        domains = page.run(
            "const { xaxis, xaxis2, yaxis, yaxis2 } ="
            " document.querySelector(\".figure[data-name='spirals']\").layout;"
            "return [xaxis.domain, xaxis2.domain, yaxis.domain[0] > yaxis2.domain[1]]"
        )
        assert domains == [[0, 1], [0, 1], True]
        wide = page.run(
            "return [...document.querySelectorAll('body *')].filter((e) => !e.closest('.wide') &&"
            " e.getBoundingClientRect().right > 401).map((e) => e.outerHTML.slice(0, 80))"
        )
        assert wide == []
        assert page.run("return typeof taken") == "undefined"
        assert set(page.requests()) == {(tmp_path / "comparison.html").as_uri()}
        assert page.errors() == []


def test_figures_of_several_runs(runs: list[gh.Geometry], found: Any) -> None:
    called = dict(zip("abc", runs, strict=True))
    lines = figures.runs_compared(called, "sphere/step_angle/mean").data
    for line, run in zip(lines, runs, strict=True):
        site = run.sites[-1]
        moments = run[site].sphere.step_angle
        assert line.y[-1] == pytest.approx(float(moments.mean.rad2deg()))
        error = (moments.variance / (moments.count - 1)).sqrt().rad2deg()
        assert line.error_y.array[-1] == pytest.approx(1.96 * float(error))
    bars = figures.run_differences(called, ["pos_ctx/shares/pos", "sphere/radius/mean"])
    (first, chance, *_), site = bars.data, runs[0].sites[-1]
    one, other = (run[site].pos_ctx for run in runs[:2])
    assert first.y[-1] == pytest.approx(float(other.shares.pos - one.shares.pos))
    assert chance.y[-1] == pytest.approx(float(other.noise_shares.pos - one.noise_shares.pos))
    assert [step.label for step in bars.layout.sliders[0].steps] == ["shares pos", "radius"]
    names = dict(zip(FILES, "abc", strict=True))
    agreement = figures.agreement_by_layer(found["pairs"], "cka", names).data
    assert [t.name for t in agreement[::2]] == ["a and b", "a and c", "b and c"]
    assert agreement[1].name == "a and b, by chance"
    cka = found["pairs"][0]["sites"]["1"]["ctx"]["cka"]
    at = list(found["pairs"][0]["sites"]).index("1")
    assert agreement[0].y[at] == pytest.approx(cka["value"])
    assert agreement[0].error_y.array[at] == pytest.approx(cka["high"] - cka["value"])
    spirals = figures.side_by_side({n: figures.position_spiral(r) for n, r in called.items()})
    shown = [trace for trace in spirals.data if trace.visible]
    assert [trace.xaxis for trace in shown] == ["x", "x2", "x3"]
    with pytest.raises(FigureError, match="needs two runs or more, found 1"):
        figures.run_differences({"a": runs[0]}, ["sphere/radius/mean"])
    with pytest.raises(FigureError, match="the figure of 'a' has no slider"):
        figures.side_by_side({"a": figures.step_angles(runs[0])})
    with pytest.raises(FigureError, match="no pair of runs has CKA of ctx"):
        figures.agreement_by_layer([], "cka", names)


def test_sites_of_other_names_go_by_their_order(runs: list[gh.Geometry]) -> None:
    model = nn.Sequential()
    for number in range(len(runs[0].sites)):
        model.add_module(f"layer{number}", nn.Linear(WIDTH, WIDTH))
    with torch.no_grad(), gh.watch(model, "layer*", statistics=[gh.Sphere()]) as watch:
        model(torch.randn(4, LENGTH, WIDTH))
    lines = figures.runs_compared({"a": runs[0], "b": watch.geometry()}, "sphere/norm/mean").data
    assert lines[0].hovertext[0] == f"{runs[0].sites[0]} | layer0"
    assert len(lines[0].y) == len(lines[1].y) == len(runs[0].sites)


def test_what_differs_is_said_in_words(runs: Any, found: Any) -> None:
    page = comparison_page(runs, found)
    for name, file in zip("bc", FILES[1:], strict=True):
        assert f"{name} ({file}): Sequential unnamed (144 parameters), " in page, "which is which"
    text = re.sub(r"<[^>]*>", "", page[page.index("<dl>") : page.index("</dl>")])
    radius = found["pairs"][1]["sites"]["1"]["scalars"]["sphere/radius/mean"]
    assert radius["second"] > 2 * radius["first"], "planted"
    assert re.search(r"differs most\s+How long states are without the mean entry: by", text)
    assert f"{radius['second']:.4g} in c" in text or "in c" in text
    assert "Most alike are" in text
    assert " and b, whose numbers differ" in text
    same = compare_geometries(["x", "y"], [runs[0], runs[0]], Options(permutations=0))
    assert "All numbers that are compared are equal." in comparison_page([runs[0]] * 2, same)


def test_histories_over_training() -> None:
    other = gh.History()
    for step in history().steps:
        other.append(step, history()[step])
    names = ["a", "b"]
    found = compare_histories(names, [history(), other], Options())
    page = comparison_page([history(), other], found)
    drawn = re.findall(r'class="figure" data-name="([^"]*)"', page)
    assert {"training_pos_ctx_shares_pos", "training_sphere_anisotropy"} < set(drawn)
    assert "a, b: 3 steps in common, 0 to 20." in page
    assert "All curves that are compared are equal." in page
    other = gh.History()
    for step, source in zip(history().steps, (20, 10, 0), strict=True):
        other.append(step, history()[source])
    found = compare_histories(names, [history(), other], Options(scalars=("*/norm/mean",)))
    page = comparison_page([history(), other], found)
    norms = [run.scalars(20)["0/sphere/norm/mean"] for run in (history(), other)]
    assert f"0: {norms[0]:.4g} in a and {norms[1]:.4g} in b" in page
    lines = figures.runs_over_training({"a": history(), "b": other}, "sphere/norm/mean").data
    assert lines[0].y.tolist() == pytest.approx(history().curve("0/sphere/norm/mean")[1].tolist())
