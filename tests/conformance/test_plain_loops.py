"""The same laws without the compiled loops, as on a machine that has no numba."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
import torch

from geomhooks import native
from geomhooks.statistics import LAWS
from tests.conformance.cases import CASES
from tests.conformance.harness import Subject, plant
from tests.conformance.test_laws import WAYS


@pytest.fixture(autouse=True)
def without_numba() -> Iterator[None]:
    with mock.patch.object(native, "installed", return_value=False):
        yield


NAMES = ("pos_ctx", "covariance", "sphere", "updates", "next_word", "trajectories")


@pytest.mark.parametrize(
    ("name", "law", "way"),
    [
        (name, law, way)
        for name in NAMES
        for law, ways in WAYS.items()
        for way in ways
        if law in CASES[name].statistic().laws or law not in LAWS
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_law_in_ordinary_torch(name: str, law: str, way: object, tmp_path: Path) -> None:
    subject = Subject(CASES[name], torch.float32, plant(seed=7))
    subject.check(way(subject, tmp_path))  # type: ignore[operator]
