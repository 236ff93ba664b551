"""Hidden states on a device that is not the CPU: the same numbers, nothing mixed, nobody waits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import pytest

from tests.once import once

ROOT = Path(__file__).parents[2]
SECONDS = 600


@cache
def outcomes() -> dict[str, str]:
    """What went wrong in each check."""
    found: dict[str, str] = once("elsewhere", run_checks)
    return found


def run_checks() -> dict[str, str]:
    """The same, by running them in a process of their own: torch knows the device in no other."""
    path = Path(mkdtemp(prefix="geomhooks-elsewhere-")) / "outcomes.json"
    paths = [str(ROOT / "src"), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, "-m", "tests.elsewhere.program", str(path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        cwd=path.parent,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert path.exists(), f"{done.stdout}\n{done.stderr}"
    noted: dict[str, str] = json.loads(path.read_text())
    return noted


KINDS = {
    "law": 15,
    "with": 26,
    "examples": 200,
    "moved_there_and_back": 1,
    "generation_there": 1,
    "handed_on": 1,
    "command_line": 1,
}


@pytest.mark.parametrize("kind", KINDS)
def test_on_another_device(kind: str) -> None:
    found = {name: wrong for name, wrong in outcomes().items() if name.startswith(kind)}
    wrong = [f"{name}:\n{trace}" for name, trace in found.items() if trace]
    assert not wrong, f"{len(wrong)} of {len(found)} checks\n\n" + "\n\n".join(wrong)
    assert len(found) >= KINDS[kind]


def test_other_tests_have_no_such_device() -> None:
    assert "tests.elsewhere.device" not in sys.modules
