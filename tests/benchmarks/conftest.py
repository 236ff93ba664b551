from __future__ import annotations

from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the benchmarks, whose modules can be imported as the scripts import them."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return FOLDER
