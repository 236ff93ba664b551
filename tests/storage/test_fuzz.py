"""Files that are wrong in any way: nothing but a plain error, or a geometry that can be used.

A run takes some hundred files, the same ones every time. ``GEOMHOOKS_FUZZ=10000`` takes so many,
others every time, and says what it has seen:

    GEOMHOOKS_FUZZ=10000 python -m pytest -n 0 -s tests/storage/test_fuzz.py
"""

from __future__ import annotations

import os
import resource
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from geomhooks.report import report_page
from tests.storage.damage import Marker, damaged
from tests.storage.laws import (
    Page,
    check_command,
    read_dictionary,
    read_geometry,
    read_history,
)
from tests.storage.written import MADE, valid

LONG = int(os.environ.get("GEOMHOOKS_FUZZ", "0"))
READERS = {"history": read_history, "dictionary": read_dictionary}
SEEN: Counter[str] = Counter()
MOST = 512 << 20  # bytes that all these files together may make the process grow by


def fuzzed(examples: int) -> settings:
    return settings(
        max_examples=LONG or examples,
        derandomize=not LONG,
        deadline=20_000,  # milliseconds, for a machine that is busy
        database=None,
        suppress_health_check=list(HealthCheck),
    )


@cache
def page() -> Page:
    """What a page may consist of."""
    pages = (report_page(MADE[name]()) for name in ("everything", "history"))
    return Page("".join(pages))


@cache
def folder() -> Path:
    return Path(tempfile.mkdtemp())


@pytest.fixture(scope="module", autouse=True)
def counted() -> Iterator[None]:
    """Nothing grows without bound, no pickle is opened; how many files there were."""
    for name in (*MADE, "dictionary"):
        path = folder() / f"{name}.safetensors"
        path.write_bytes(valid(name).bytes())
        assert READERS.get(name, read_geometry)(path, page()), name
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert Marker.opened == 0
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
    if LONG:
        sys.stdout.write(f"\n{dict(SEEN)}, {grown >> 20} MiB\n")
    assert LONG or grown < MOST


@fuzzed(150)
@given(st.data())
def test_any_file(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from((*MADE, "dictionary")))
    path = folder() / f"{name}.safetensors"
    path.write_bytes(data.draw(damaged(name)))
    shown = page() if data.draw(st.integers(0, 14)) == 0 else None
    fine = READERS.get(name, read_geometry)(path, shown)
    SEEN[f"{name} {'used' if fine else 'refused'}"] += 1


@fuzzed(40)
@given(st.data())
def test_any_file_on_the_command_line(
    capsys: pytest.CaptureFixture[str], data: st.DataObject
) -> None:
    name = data.draw(st.sampled_from(sorted(MADE)))
    path, out = folder() / f"{name}.safetensors", folder() / "out"
    path.write_bytes(data.draw(damaged(name)))
    command = data.draw(st.sampled_from(("report", "compare", "merge", "factors")))
    arguments = {
        "report": ["report", str(path), "-o", str(out)],
        "compare": ["compare", str(path), str(path), "-o", str(out)],
        "merge": ["merge", str(path), str(path), "-o", str(out), "--overwrite"],
        "factors": ["factors", str(path)],
    }
    code = check_command(arguments[command], capsys)
    SEEN[f"{command} {code}"] += 1
