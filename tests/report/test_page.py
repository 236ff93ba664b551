"""The report as a text, and as a browser shows it."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from selenium.webdriver.common.action_chains import ActionChains
from torch import nn

import geomhooks as gh
from geomhooks.cli.commands import run as command
from geomhooks.errors import FigureError, MissingExtraError
from geomhooks.report import report_page, write_report
from geomhooks.report.summary import find_outstanding
from tests.cli.conftest import save_tokenizer
from tests.report.browser import Browser, browser
from tests.report.geometries import LENGTH, SCRIPT, everything, history, hostile
from tests.storage.damage import hostile_file

STATE = "document.querySelector(`.figure[data-name='${arguments[0]}']`).dataset.state"
SHOWN = """(() => {
const element = document.querySelector(`.figure[data-name='${arguments[0]}']`);
return [element.data.filter((trace) => trace.visible === true).map((trace) => trace.name),
        element.layout.sliders[0].active];
})()"""
SHOWS = f"return JSON.stringify({SHOWN}) === JSON.stringify(arguments[1])"


@pytest.fixture(scope="module")
def opened() -> Any:
    with browser() as found:
        yield found


def names_of(page: Browser) -> list[str]:
    return page.run("return [...document.querySelectorAll('.figure')].map((f) => f.dataset.name)")


def draw_all(page: Browser, names: Sequence[str] = ()) -> Sequence[str]:
    """Scroll to each figure, or to some, and wait until it is drawn."""
    names = names or names_of(page)
    for name in names:
        page.run("document.getElementById(arguments[0]).scrollIntoView()", name)
        page.wait(f"return {STATE} === 'drawn'", name)
    return names


def test_a_report_in_a_browser(opened: Browser, tmp_path: Path) -> None:
    geometry = everything()
    write_report(geometry, tmp_path / "report.html", words=lambda token: SCRIPT)
    opened.open(tmp_path / "report.html")
    names = names_of(opened)
    assert {"variance_shares", "word_paths", "component_importance"} < set(names)
    assert opened.run(f"return {STATE}", names[-1]) is None, "drawn before it comes into view"
    draw_all(opened)

    # The picker shows a layer in all figures that have a slider; a slider shows it in its own.
    site = geometry.sites[-1]
    opened.run(
        "const picker = document.getElementById('layer'); picker.value = arguments[0];"
        "picker.dispatchEvent(new Event('change'))",
        site,
    )
    last = len(geometry) - 1
    for name in ("position_spiral", "position_context_gram", "position_fourier"):
        opened.wait(SHOWS, name, [[site], last])
    first = "[data-name='position_spiral'] .slider-label-group"
    opened.run("document.getElementById('position_spiral').scrollIntoView()")
    label = opened.driver.find_element("css selector", first)
    ActionChains(opened.driver).move_to_element_with_offset(label, 0, -18).click().perform()
    opened.wait(SHOWS, "position_spiral", [[geometry.sites[0]], 0])

    # Numbers.
    rows = opened.run("return geomhooks.figureRows('variance_shares')")
    shares = [row[2] for row in rows if row[0] == "resid"]
    assert shares == pytest.approx(geometry.stack("pos_ctx.shares.resid").tolist(), rel=1e-6)
    table = opened.run("return geomhooks.tableRows('sites')")
    assert [row[0] for row in table[1:]] == geometry.sites
    assert table[1][1] == pytest.approx(float(geometry[geometry.sites[0]].pos_ctx.shares.pos))
    assert opened.run("return geomhooks.quote('=1+\"a\"')") == '"\'=1+""a"""'
    for _ in range(2):  # ascending, then descending
        opened.run("document.querySelectorAll('table.sortable th')[1].click()")
    sorted_shares = [row[1] for row in opened.run("return geomhooks.tableRows('sites')")[1:]]
    assert sorted_shares == sorted(sorted_shares, reverse=True)

    # Light and dark.
    ground = "return getComputedStyle(document.body).backgroundColor"
    before = opened.run(ground)
    opened.run("document.getElementById('theme').click()")
    opened.wait("return getComputedStyle(document.body).backgroundColor !== arguments[0]", before)
    opened.wait(
        "return document.querySelector(\".figure[data-name='variance_shares']\")"
        "._fullLayout.paper_bgcolor === '#171b21'"
    )

    # Nobody is asked, nothing goes out, nothing of others ran.
    assert opened.run("return document.querySelector('[data-title^=\"Share\"]')") is None
    assert opened.run("return typeof taken") == "undefined"
    assert opened.requests() == [(tmp_path / "report.html").as_uri()]
    assert opened.errors() == []


def test_hostile_names_in_a_browser(opened: Browser, tmp_path: Path) -> None:
    geometry = hostile()
    write_report(
        geometry,
        tmp_path / "hostile.html",
        title=SCRIPT,
        labels={int(i): SCRIPT for i in geometry[geometry.sites[0]].pos_ctx.context_id},
    )
    opened.errors(), opened.requests()
    opened.open(tmp_path / "hostile.html")
    draw_all(opened)
    assert opened.run("return document.querySelector('h1').textContent") == SCRIPT
    assert SCRIPT in opened.run("return document.querySelector('table').textContent")
    assert "<script>" in opened.run(
        "return [...document.querySelectorAll('.figure text')].map((t) => t.textContent).join()"
    )
    assert opened.run("return typeof taken") == "undefined"
    assert opened.requests() == [(tmp_path / "hostile.html").as_uri()]
    assert opened.errors() == []


def test_a_hostile_file_in_a_browser(opened: Browser, tmp_path: Path) -> None:
    file, page = tmp_path / "hostile.safetensors", tmp_path / "hostile.html"
    file.write_bytes(hostile_file())
    write_report(gh.load(file), page)
    opened.errors(), opened.requests()
    opened.open(page)
    draw_all(opened, ["variance_shares", "position_singular_values", "component_importance"])
    assert opened.run("return [...document.querySelectorAll('#layer option')].length") == 4
    assert opened.run("return document.querySelector('table').textContent.includes('__proto__')")
    assert opened.run("return typeof taken") == "undefined"
    assert opened.requests() == [page.as_uri()]
    assert opened.errors() == []


def test_a_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    history().save(tmp_path / "history.safetensors")
    out = tmp_path / "training.html"
    assert command(["report", str(tmp_path / "history.safetensors"), "-o", str(out)]) == 0
    assert capsys.readouterr().out.startswith(f"wrote {out} (")
    page = out.read_text()
    found = re.findall(r'class="figure" data-name="([^"]*)"', page)
    assert {"training_pos_ctx_shares_pos", "spiral_over_training", "variance_shares"} < set(found)
    assert "A training, steps 0 to 20." in page
    first, last = (history().scalars(step)["0/sphere/norm/mean"] for step in (0, 20))
    assert f"How long states are: up most at 0, from {first:.4g} at step 0 to {last:.4g}" in page
    chance = [history().scalars(step)["0/pos_ctx/noise_shares/pos"] for step in (0, 20)]
    given = f"give {100 * chance[0]:.1f} % and {100 * chance[1]:.1f} % by chance"
    assert given in page.replace("\u00a0", " ")
    assert command(["report", str(tmp_path / "none.safetensors")]) == 7
    assert command(["report", str(tmp_path / "history.safetensors"), "-o", "/proc/no/x.html"]) == 5


def test_words_of_a_tokenizer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = tmp_path / "geometry.safetensors", tmp_path / "report.html"
    everything().save(file)
    save_tokenizer(tmp_path / "tokenizer", special=False)
    arguments = ["report", str(file), "-o", str(out), "--title", "A & B", "--words"]
    assert command([*arguments, str(tmp_path / "tokenizer")]) == 0
    token = int(everything().stack("trajectories.token_ids")[0, 0, -1])
    assert f'"{LENGTH - 1}: word{token - 1}"' in out.read_text()
    assert "<title>A &amp; B" in out.read_text()
    assert command([*arguments, str(tmp_path / "none")]) == 2
    assert "--words" in capsys.readouterr().err


def test_what_stands_out_is_computed() -> None:
    geometry = everything()
    found = {finding.subject: finding.text for finding in find_outstanding(geometry)}
    shares = geometry.stack("pos_ctx.corrected_shares.pos")
    assert f"{100 * float(shares.max()):.0f} % of the variance" in found["position"]
    angles = geometry.stack("sphere.without_first.step_angle.mean").rad2deg()
    assert f"by {float(angles.max()):.0f}° on average" in found["turns"]
    assert "first token" not in found, "it is no outlier"


def test_what_the_data_do_not_determine_is_said() -> None:
    """Two contexts that have no position in common."""
    model = nn.Sequential(nn.Identity())
    positions = torch.tensor([[0, 1, 2], [3, 4, 5]])
    with (
        gh.watch(model, sites="0", statistics=[gh.PosCtx(positions=6), gh.Sphere()]) as watch,
        watch.tokens(positions=positions),
    ):
        model(torch.randn(2, 3, 4))
    geometry = watch.geometry()
    page = report_page(geometry)
    assert "No figure: shares: the two-way fit is not identified" in page
    assert 'data-name="length_by_layer"' in page
    assert "<td><code>0</code></td>" in geometry._repr_html_()


def test_what_cannot_be_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FigureError, match="a geometry or a history is needed, found a str"):
        report_page("run.safetensors")  # type: ignore[arg-type]
    with pytest.raises(FigureError, match=re.escape("statistics=[gh.PosCtx(), gh.Sphere()]")):
        report_page(gh.History())
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(MissingExtraError, match=re.escape("pip install 'geomhooks[report]'")):
        report_page(everything())
