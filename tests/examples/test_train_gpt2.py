"""The training script, run as a reader would run it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import geomhooks as gh

ROOT = Path(__file__).parents[2]


def run(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    paths = [str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.run(
        [sys.executable, str(ROOT / "examples" / "train_gpt2.py"), *options],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_what_cannot_be_written_is_found_before_it_trains(tmp_path: Path) -> None:
    done = run(tmp_path, "--steps", "1000000", "--out", "nowhere/run.safetensors")
    assert done.returncode == 1
    assert "no such folder to save into: nowhere" in done.stderr


def test_train_gpt2(tmp_path: Path) -> None:
    done = run(tmp_path, "--steps", "8", "--measure-every", "4", "--out", "run.safetensors")
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("step")]
    history = gh.History.load(tmp_path / "run.safetensors")
    assert history.steps == history.kept == [0, 4, 8]
    last = history[8].sites[-1]
    for step, line in zip(history.steps, lines, strict=True):
        words = line.split()
        scalars = history.scalars(step)
        assert words[1] == str(step)
        assert scalars[f"{last}/pos_ctx/count"] == 256 * 64, "only what was held out"
        share = scalars[f"{last}/pos_ctx/shares/pos"]
        assert float(words[words.index("pos") + 1]) == pytest.approx(share, abs=6e-4)
        rank = scalars[f"{last}/pos_ctx/stable_rank"]
        assert float(words[words.index("rank") + 1]) == pytest.approx(rank, abs=6e-3)
    losses = [float(line.split()[3]) for line in lines]
    assert losses == sorted(losses, reverse=True), "it learns"
    assert losses[0] == pytest.approx(5.5, abs=0.3), "log 256, before it has"
