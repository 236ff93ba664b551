"""Start several processes with torchrun, and read what the ranks noted of each check."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

from tests.once import once

ROOT = Path(__file__).parents[2]
PROGRAM = "tests.distributed.program"
SECONDS = 400


def torchrun(
    ranks: int, *arguments: object, folder: Path | None = None, **environment: str
) -> subprocess.Popen[str]:
    """Start processes on this machine; torchrun finds a port that is free."""
    paths = [str(ROOT / "src"), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    settings = {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return subprocess.Popen(
        [*launcher, f"--nproc-per-node={ranks}", *map(str, arguments)],
        cwd=folder,
        env={**os.environ, **settings, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str], seconds: float = SECONDS) -> tuple[int, str, str]:
    """Exit code, stdout and stderr; processes that take too long are killed, all of them."""
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
        raise AssertionError(f"not done after {seconds} s:\n{out}\n{err}") from None
    return process.returncode, out, err


@cache
def outcomes(ranks: int, program: str = PROGRAM, seconds: float = SECONDS) -> list[dict[str, str]]:
    """What each rank noted of each check: nothing where all was well, else the traceback."""
    found: list[dict[str, str]] = once(
        f"{program}-{ranks}", lambda: run_checks(ranks, program, seconds)
    )
    return found


def run_checks(ranks: int, program: str, seconds: float) -> list[dict[str, str]]:
    """The same, by running them."""
    folder = Path(mkdtemp(prefix="geomhooks-ranks-"))
    _, out, err = finish(torchrun(ranks, "-m", program, folder=folder), seconds)
    noted = []
    for rank in range(ranks):
        path = folder / f"{rank}.json"
        noted.append(json.loads(path.read_text()) if path.exists() else {"": f"{out}\n{err}"})
    return noted


def expect_success(
    ranks: int, check: str, program: str = PROGRAM, seconds: float = SECONDS
) -> None:
    """Raise unless a check went well on every rank."""
    found = outcomes(ranks, program, seconds)
    missing = f"not reached, for another check failed: {[list(f)[-1] for f in found]}"
    wrong = {r: f.get(check, f.get("", missing)) for r, f in enumerate(found)}
    wrong = {rank: what for rank, what in wrong.items() if what}
    assert not wrong, "\n".join(f"rank {rank}: {what}" for rank, what in wrong.items())
