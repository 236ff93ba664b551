"""Two and four real processes count as one would: what torchrun runs, a test to each check."""

from __future__ import annotations

import pytest

from tests.distributed.launch import expect_success
from tests.distributed.program import CHECKS


@pytest.mark.parametrize("check", [check.__name__ for check in CHECKS])
@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks(ranks: int, check: str) -> None:
    expect_success(ranks, check)
