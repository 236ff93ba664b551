"""Transformer factors: the script learns, compares, and tells what factors stand for."""

from __future__ import annotations

import json
from pathlib import Path

import geomhooks as gh
from tests.benchmarks.test_scripts import run


def test_the_script(tmp_path: Path) -> None:
    (tmp_path / "names.json").write_text(json.dumps({"3": "a name"}))
    options = "--quick", "--out", str(tmp_path), "--candidates", "1"
    shown = run("transformer_factors.py", *options)
    found = json.loads((tmp_path / "tiny.json").read_text())
    held = found["held_out"]
    assert held["learned"]["snr"] > held["random"]["snr"] > 1
    assert held["principal"]["l0"] == held["learned"]["l0"]
    assert abs(held["random"]["l0"] - held["learned"]["l0"]) < 0.1 * held["learned"]["l0"]
    assert sum(found["factors"]["levels"].values()) == found["settings"]["size"] == 40
    assert list(found["factors"]["layers"]) == found["sites"]
    assert "«" in shown
    kept = gh.load_dictionary(tmp_path / "tiny.safetensors")
    assert kept.penalty == found["settings"]["penalty"]
    again = "--dictionary", str(tmp_path / "tiny.safetensors")
    run("transformer_factors.py", *options, *again, "--names", str(tmp_path / "names.json"))
    assert "## 3: a name" in (tmp_path / "tiny.md").read_text()
    named = json.loads((tmp_path / "tiny.json").read_text())
    assert named == found | {"names": {"3": "a name"}}
