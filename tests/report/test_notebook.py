"""What a notebook shows of a geometry and of a site."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import torch

from geomhooks.report.tables import sparkline
from geomhooks.results import Lazy, Result, Unavailable
from tests.report.geometries import everything, hostile


def rows(html: str) -> list[list[str]]:
    """The texts of the cells, by the parser of XML, which forgives nothing."""
    table = ElementTree.fromstring(html)
    return [["".join(cell.itertext()) for cell in row] for row in table.iter("tr")]


def test_a_geometry() -> None:
    geometry = everything()
    head, *body = rows(geometry._repr_html_())
    assert head[:5] == ["site", "pos", "ctx", "norm", "step"]
    assert head[-2:] == ["|pos| by position", "norm by position"]
    assert [row[0] for row in body] == geometry.sites
    for row, site in zip(body, geometry.sites, strict=True):
        assert row[1] == f"{100 * float(geometry[site].pos_ctx.shares.pos):.1f} %"
        norms = geometry[site].sphere.norm.at_position.mean
        assert row[-1] == f"norm by position, {float(norms.min()):.3g} to {float(norms.max()):.3g}"


def test_a_site() -> None:
    result = Result(
        part=Result(number=torch.tensor(2.5)),
        curve=torch.tensor([0.0, float("nan"), 1.0, 2.0]),
        later=Lazy(lambda: torch.tensor(1.0)),
        none=Unavailable("no"),
        unasked=Unavailable("no", by_choice=True),
        table=torch.zeros(2, 3),
    )
    html = result._repr_html_()
    assert rows(html)[1:] == [
        ["part.number", "2.5", ""],
        ["curve", "(4,)", "curve"],
        ["later", "not computed yet", ""],
        ["none", "unavailable", ""],
        ["table", "(2, 3)", ""],
    ]
    (path,) = re.findall('<path d="([^"]*)"', html)
    assert path == "M1.0 17.0M73.0 9.0L109.0 1.0"
    assert len(rows(everything()["transformer.h.1"]._repr_html_())) > 100


def test_hostile_names_are_texts() -> None:
    geometry = hostile()
    assert [row[0] for row in rows(geometry._repr_html_())][1:] == geometry.sites
    assert "<script" not in geometry._repr_html_()
    assert "<script" not in Result(**{"<script>": torch.ones(2)})._repr_html_()
    assert "<script" not in sparkline([1.0, 2.0], "<script>")
