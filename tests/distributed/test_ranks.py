"""Two and four real processes count as one would: what torchrun runs, a test to each check."""

from __future__ import annotations

import pytest

from tests.distributed import states, wrappers
from tests.distributed.launch import Check, expect_success

CHECKS = [
    pytest.param(module.__name__, ranks, check, id=f"{check.__name__}-{ranks} ranks")
    for module in (states, wrappers)
    for ranks in (2, 4)
    for check in module.CHECKS
]


@pytest.mark.parametrize(("module", "ranks", "check"), CHECKS)
def test_ranks(module: str, ranks: int, check: Check) -> None:
    expect_success(module, ranks, check.__name__)
