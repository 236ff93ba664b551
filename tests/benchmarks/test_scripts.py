"""The benchmarks' scripts, on something tiny."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import warnings
from contextlib import redirect_stdout
from importlib import import_module
from pathlib import Path
from unittest import mock

import pytest
import torch

ROOT = Path(__file__).parents[2]
QUANTITIES = {
    "position_mean", "context_mean", "shares", "norm", "radius", "step_angle", "resultant_length"
}  # fmt: skip


def run(script: str, *options: str) -> str:
    """What a script prints, run in this process, where all it needs is loaded already."""
    printed, threads = io.StringIO(), torch.get_num_threads()
    paths, argv = [str(ROOT / "benchmarks"), *sys.path], [script, *options]
    with (
        mock.patch.object(sys, "path", paths),
        mock.patch.object(sys, "argv", argv),
        warnings.catch_warnings(),
        redirect_stdout(printed),
    ):
        warnings.simplefilter("default")
        import_module(script.removesuffix(".py")).main()
    torch.set_num_threads(threads)
    return printed.getvalue()


def run_apart(script: str, *options: str, paths: tuple[Path, ...] = ()) -> str:
    """What a script prints as a process of its own, as a reader would run it."""
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


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from Linux's /proc")
def test_peers(benchmarks: Path, tmp_path: Path) -> None:
    """They agree, and have their time and memory; one that cannot be imported has the reason."""
    from peers_table import table

    (tmp_path / "nnsight.py").write_text("raise ImportError('no nnsight here')\n")
    names, out = ["geomhooks", "output_hidden_states", "naive hooks, float64"], tmp_path / "out"
    options = ("--quick", "--out", str(out), "--peers", *names, "nnsight")
    run_apart("peers.py", *options, paths=(tmp_path,))
    result = json.loads(out.read_text())
    rows = {row["peer"]: row for row in result["rows"]}
    assert rows["nnsight"]["failed"] == "ImportError: no nnsight here"
    for name in names:
        row = rows[name]
        assert set(row["errors"]) == QUANTITIES, name
        assert max(row["errors"].values()) < (1e-5 if name == "geomhooks" else 1e-3), name
        assert row["ratio"] > 0, name
        assert row["outside"] > 0, name
        assert [mark["contexts"] for mark in row["memory"]] == [16], name
        assert row["memory"][0]["whole_mib"] >= row["memory"][0]["forwards_mib"], name
        assert row["memory"][0]["finish_seconds"] > 0, name
    lines = table(result).splitlines()
    assert "| nnsight | failed: ImportError: no nnsight here |  |  |  |  |  |" in lines
    assert sum(line.startswith(f"| {name} |") for name in names for line in lines) == 3


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
    run_apart("overhead.py", "--quick", "--out", str(out))
    rows = json.loads(out.read_text())["rows"]
    assert [row["model"] for row in rows] == [
        *["tiny"] * 4, "tiny, compiled", "Trainer, every=1", "Trainer, every=10"
    ]  # fmt: skip
    assert all(row["ratio"] > 0 for row in rows)
    assert all(row["share_in_hooks"] > 0 for row in rows[:5])


def test_host_time(tmp_path: Path) -> None:
    out = tmp_path / "host.json"
    run("host_time.py", "--quick", "--out", str(out))
    rows = json.loads(out.read_text())["rows"]
    assert [row["statistics"] for row in rows] == ["PosCtx", "Sphere", "both"]


def test_covariance(tmp_path: Path) -> None:
    out = tmp_path / "covariance.json"
    run("covariance.py", "--quick", "--out", str(out))
    assert json.loads(out.read_text())["rows"]
