"""The benchmarks' scripts, run as a reader would run them, on something tiny."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
QUANTITIES = {
    "position_mean", "context_mean", "shares", "norm", "radius", "step_angle", "resultant_length"
}  # fmt: skip


def run(script: str, *options: str, paths: tuple[Path, ...] = ()) -> str:
    found = [*map(str, paths), str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / script), *options],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(found), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def peers(folder: Path, *names: str) -> dict[str, dict[str, Any]]:
    """The rows of some peers, where nnsight is a package that cannot be imported."""
    (folder / "nnsight.py").write_text("raise ImportError('no nnsight here')\n")
    out = folder / "peers.json"
    options = ("--quick", "--out", str(out), "--peers", *names)
    if not Path("/proc/self/clear_refs").exists():
        options = ("--no-memory", *options)
    run("peers.py", *options, paths=(folder,))
    printed = run("peers.py", "--table", "--out", str(out))
    assert all(f"| {name} |" in printed for name in names)
    return {row["peer"]: row for row in json.loads(out.read_text())["rows"]}


def test_peers(tmp_path: Path) -> None:
    """They agree, and each has its time and, where the system tells it, its memory."""
    names = ("geomhooks", "output_hidden_states", "naive hooks, float64")
    rows = peers(tmp_path, *names, "nnsight")
    assert rows["nnsight"]["failed"] == "ImportError: no nnsight here"
    for name in names:
        row = rows[name]
        assert set(row["errors"]) == QUANTITIES, name
        assert max(row["errors"].values()) < (1e-5 if name == "geomhooks" else 1e-3), name
        assert row["ratio"] > 0, name
        assert row["outside"] > 0, name
        if Path("/proc/self/clear_refs").exists():
            assert [mark["contexts"] for mark in row["memory"]] == [16], name
            assert row["memory"][0]["whole_mib"] >= row["memory"][0]["forwards_mib"], name


def test_scale(tmp_path: Path) -> None:
    """It measures, and fails by itself where a state is not as large as its formula says."""
    out = tmp_path / "scale.json"
    run("scale.py", "--quick", "--out", str(out))
    found = json.loads(out.read_text())
    for table in ("tokens", "sites", "width", "positions", "contexts kept", "7B block"):
        assert len(found[table]) == 2, table
        assert all(row["microseconds_a_site"] > 0 for row in found[table]), table
    assert all(row["milliseconds_a_shard"] > 0 for row in found["shards"])


@pytest.mark.slow
def test_overhead(tmp_path: Path) -> None:
    out = tmp_path / "overhead.json"
    run("overhead.py", "--quick", "--out", str(out))
    rows = json.loads(out.read_text())["rows"]
    assert [row["model"] for row in rows] == [
        *["tiny"] * 4, "tiny, compiled", "Trainer, every=1", "Trainer, every=10"
    ]  # fmt: skip
    assert all(row["ratio"] > 0 for row in rows)
    assert all(row["share_in_hooks"] > 0 for row in rows[:5])
