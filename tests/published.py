"""Packages of other authors that serve as oracles."""

from __future__ import annotations

import os

import numpy as np
import pytest

LETTERS = {"imputation": "i", "winsorization": "w", "zero": "0"}


def published_screenot(
    matrix: np.ndarray, bound: int = 20, strategy: str = "imputation"
) -> tuple[int, float]:
    """Rank and threshold by the package of ScreeNOT's authors; skip, or fail in CI, without it."""
    try:
        import screenot
    except ImportError:
        say = "needs the published package: pip install --no-deps screenot"
        if os.environ.get("CI"):
            pytest.fail(say)
        pytest.skip(say)
    _, threshold, rank = screenot.adaptiveHardThresholding(matrix, bound, LETTERS[strategy])
    return int(rank), float(threshold)
