"""What takes long and many tests ask about is done once for all workers of a test run."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from tempfile import gettempdir
from typing import Any

from filelock import FileLock


def once(name: str, make: Callable[[], Any]) -> Any:
    """What a function gives, as JSON has it; workers that ask meanwhile wait for the first."""
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID", f"process-{os.getpid()}")
    folder = Path(gettempdir()) / f"geomhooks-tests-{run}"
    folder.mkdir(exist_ok=True)
    kept = folder / f"{name}.json"
    with FileLock(folder / f"{name}.lock"):
        if not kept.exists():
            kept.write_text(json.dumps(make()))
    return json.loads(kept.read_text())
