"""The same laws without the compiled loops, as on a machine that has no numba."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
import torch

from geomhooks import native
from tests.conformance.cases import CASES
from tests.conformance.harness import Case, Subject, Together, plant
from tests.conformance.test_laws import WAYS, Way


@pytest.fixture(autouse=True)
def without_numba() -> Iterator[None]:
    with mock.patch.object(native, "installed", return_value=False):
        yield


NAMES = ("pos_ctx", "covariance", "sphere", "updates", "next_word", "trajectories")


TOGETHER = Together(tuple(CASES[name] for name in NAMES))
SHARED = set.intersection(*(set(case.statistic().laws) for case in TOGETHER.cases))
PARAMETERS = [
    pytest.param(case, way, id=f"{name}-{law}-{way.__name__}")
    for name, case in {"all": TOGETHER, **{name: CASES[name] for name in NAMES}}.items()
    for law, ways in WAYS.items()
    for way in ways
    if law == "reference" or (name == "all") == (law in SHARED)
    if name == "all" or law in (*CASES[name].statistic().laws, "reference")
]


@pytest.mark.parametrize(("case", "way"), PARAMETERS)
def test_law_in_ordinary_torch(case: Case | Together, way: Way, tmp_path: Path) -> None:
    subject = Subject(case, torch.float32, plant(seed=7))
    subject.check(way(subject, tmp_path))
