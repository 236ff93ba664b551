"""The callbacks on several ranks: what torchrun runs, a test to each check."""

# ruff: noqa: E402 - whether the packages are there is asked before they are imported

from __future__ import annotations

import pytest

from tests.distributed.launch import expect_success
from tests.integrations.training import needs

needs("transformers", "trainer")
needs("accelerate", "trainer")
needs("lightning", "lightning")

from tests.integrations import ranks_monitor, ranks_trainers

SECONDS = 240.0
PROGRAMS = [(4, ranks_monitor), (2, ranks_trainers)]


@pytest.mark.parametrize(
    ("ranks", "program", "check"),
    [
        pytest.param(ranks, program.__name__, check.__name__, id=f"{name}-{check.__name__}")
        for ranks, program in PROGRAMS
        for name in [program.__name__.rpartition("_")[2]]
        for check in program.CHECKS
    ],
)
def test_ranks(ranks: int, program: str, check: str) -> None:
    expect_success(ranks, check, program, SECONDS)
