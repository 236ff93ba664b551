"""``geomhooks demo``: a real model on real text, from start to end."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

import geomhooks as gh
from tests.models import MINILM, package_folder


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo with little of its text."""
    package_folder(*MINILM)
    monkeypatch.setattr("geomhooks.cli.demo.LONGEST", 300)


@pytest.mark.usefixtures("short")
def test_demo(cli):
    result = cli("demo")
    assert result.code == 0, result.err
    assert result.err == ""
    names = {"geomhooks-demo.safetensors", "geomhooks-demo.html"}
    assert {path.name for path in Path().iterdir()} == names
    page = Path("geomhooks-demo.html").read_text()
    for figure in ("variance_shares", "query_key_logits_place", "singular_value_coverage"):
        assert f'data-name="{figure}"' in page
    geometry = gh.load("geomhooks-demo.safetensors")
    assert re.search(r'"\w[^"]*\(context \d+\)"', page), "what contexts are called"
    assert geometry.sites == ["encoder.layer.0@in", *(f"encoder.layer.{i}" for i in range(6))]
    assert geometry.notes["settings"]["model"] == "all-MiniLM-L6-v2"
    for word in ("pos", "ctx", "resid", "noise", "norm", "radius", "angle", "tropy"):
        assert word in result.out
    for name in geometry.sites:
        row = next(line for line in result.out.splitlines() if f" {name} " in f" {line} ")
        cells = row.split()
        shares = geometry[name].pos_ctx.shares
        assert float(cells[1]) == pytest.approx(float(shares.pos), abs=6e-4)
        assert float(cells[3]) == pytest.approx(float(shares.ctx), abs=6e-4)
        assert float(cells[5]) == pytest.approx(float(shares.resid), abs=6e-4)
        if "@in" in name:
            assert cells[8] == "-"
        else:
            angle = math.degrees(float(geometry[name].sphere.step_angle.mean))
            assert float(cells[8].rstrip("°")) == pytest.approx(angle, abs=0.06)
    assert "geomhooks measure MODEL --text FILE" in result.out
    assert result.out.splitlines()[-1].startswith("figures and what stands out: geomhooks-demo.htm")
    assert cli("demo", "--no-report").code == 0  # may be run again
