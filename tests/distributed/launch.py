"""Start a module in several processes with torchrun, and read what each of its checks said.

The checks of a module run one after the other in the same processes, since to start these takes
longer than the checks do. Every rank notes each check's outcome in a file; the first that fails
ends the processes, for the ranks are no longer at the same place.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import torch

Check = Callable[[], None]
ROOT = Path(__file__).parents[2]
SECONDS = 120


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
def outcomes(module: str, ranks: int) -> list[dict[str, str]]:
    """What each rank noted of each check: nothing where all was well, else the traceback."""
    folder = Path(mkdtemp(prefix="geomhooks-ranks-"))
    _, out, err = finish(torchrun(ranks, "-m", module, folder=folder))
    noted = []
    for rank in range(ranks):
        path = folder / f"{rank}.json"
        noted.append(json.loads(path.read_text()) if path.exists() else {"": f"{out}\n{err}"})
    return noted


def expect_success(module: str, ranks: int, check: str) -> None:
    """Raise unless a check went well on every rank."""
    found = outcomes(module, ranks)
    missing = f"not reached, for another check failed: {[list(f)[-1] for f in found]}"
    wrong = {r: f.get(check, f.get("", missing)) for r, f in enumerate(found)}
    wrong = {rank: what for rank, what in wrong.items() if what}
    assert not wrong, "\n".join(f"rank {rank}: {what}" for rank, what in wrong.items())


def run_checks(checks: Sequence[Check]) -> None:
    """Be one of the processes: run all checks, and note the outcomes in the working folder."""
    torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=60))
    noted: dict[str, str] = {}
    path = Path(f"{torch.distributed.get_rank()}.json")
    check = checks[0]
    try:
        for check in checks:
            check()
            noted[check.__name__] = ""
    except BaseException:
        noted[check.__name__] = traceback.format_exc()
        raise
    finally:
        path.write_text(json.dumps(noted))
    torch.distributed.destroy_process_group()
