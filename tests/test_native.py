"""Compiled loops are kept on disk: a process that starts compiles nothing that another one has."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from geomhooks import native

HITS = """
import torch
from geomhooks import native
for dtype in (torch.float32, torch.bfloat16):
    print(*(native.load(name).work(dtype).cache_hits for name in ("site", "moves")))
"""
MOVES = """
import torch
from geomhooks import native
print(native.load("moves").work(torch.float32).cache_hits)
"""

pytestmark = pytest.mark.skipif(not native.installed(), reason="without numba nothing is compiled")


def run(program: str, *path: str) -> list[str]:
    """What a process prints that finds the package there."""
    found = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
        capture_output=True,
        text=True,
        check=True,
    )
    return found.stdout.split()


def test_what_one_process_compiles_the_next_finds() -> None:
    native.prepare([torch.empty(1), torch.empty(1, dtype=torch.bfloat16)])
    root = Path(native.__file__).parents[2]
    told = [str(root), *filter(None, [os.environ.get("PYTHONPATH")])]
    assert run(HITS, *told) == ["1"] * 4


def test_what_was_compiled_of_other_sources_is_not_found(tmp_path: Path) -> None:
    """Those of a loop that is called are in another file than the one that calls it."""
    package = Path(native.__file__).parents[1]
    shutil.copytree(package, tmp_path / package.name, ignore=shutil.ignore_patterns("__pycache__"))
    assert run(MOVES, str(tmp_path)) == ["0"]
    assert run(MOVES, str(tmp_path)) == ["1"]
    with (tmp_path / package.name / "native" / "sums.py").open("a") as source:
        source.write("# another\n")
    assert run(MOVES, str(tmp_path)) == ["0"]
