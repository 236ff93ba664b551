"""Compiled loops are kept on disk: a process that starts compiles nothing that another one has."""

from __future__ import annotations

import os
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


@pytest.mark.skipif(not native.installed(), reason="without numba nothing is compiled")
def test_what_one_process_compiles_the_next_finds() -> None:
    native.prepare([torch.empty(1), torch.empty(1, dtype=torch.bfloat16)])
    root = Path(native.__file__).parents[2]
    path = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
    found = subprocess.run(
        [sys.executable, "-c", HITS],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.split() == ["1"] * 4
