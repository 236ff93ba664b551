"""The table of "How to Dissect a Muppet": the published row, and that the script measures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.benchmarks.test_scripts import run


def test_the_published_row_sums_to_one(benchmarks: Path) -> None:
    from muppet import PUBLISHED

    row = json.loads(PUBLISHED.read_text())
    layers = [*zip(*row["importance"].values(), strict=True)]
    assert len(layers) == len(row["r_squared"]) == 13
    for layer in layers:  # rounded to three digits
        assert sum(value for value in layer if value) == pytest.approx(1, abs=0.003)


def test_the_script(tmp_path: Path) -> None:
    out = tmp_path / "muppet.json"
    shown = run("muppet.py", "--quick", "--out", str(out))
    (one,) = json.loads(out.read_text())["runs"]
    assert one["largest_gap"] < 1e-5
    layers = [*zip(*(term["mean"] for term in one["importance"].values()), strict=True)]
    assert len(layers) == 4
    for layer in layers:
        assert sum(layer) == pytest.approx(1, abs=1e-3)
    assert one["r_squared"][0] is None
    assert 0 < one["r_squared"][1] <= 1
    assert "bert-base-uncased, Europarl, English: mean importance of the terms" in shown
    assert "by origin: tokens" in shown
