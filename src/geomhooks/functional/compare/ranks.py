"""Ranks and their correlation where each entry stands a number of times."""

from __future__ import annotations

import numpy as np

__all__ = ["pearson", "places", "spearman"]


def places(values: np.ndarray) -> np.ndarray:
    """(n,) int64, which of the different values each entry is, ascending from 0."""
    return np.unique(values, return_inverse=True)[1].reshape(-1)


def spearman(first: np.ndarray, second: np.ndarray, weights: np.ndarray) -> float:
    """Spearman's correlation of entries that each stand so many times.

    Sorting is done before, once for all weights.

    Args:
        first: (n,) of :func:`places`.
        second: (n,).
        weights: (n,) how many times each entry stands.

    Returns:
        NaN where one side does not vary.

    Example:
        >>> x, y = places(np.array([1.0, 5.0, 9.0])), places(np.array([2.0, 8.0, 7.0]))
        >>> round(spearman(x, y, np.ones(3)), 6)
        0.5
        >>> round(spearman(x, y, np.array([1, 1, 0])), 6)
        1.0
    """
    total = weights.sum()
    one, other = (_midranks(side, weights) - (total + 1) / 2 for side in (first, second))
    squares = (weights * one) @ one, (weights * other) @ other
    if min(squares) <= 1e-9 * max(1.0, total):  # ranks are whole or half, so this is zero
        return float("nan")
    found = (weights * one) @ other / np.sqrt(squares[0] * squares[1])
    return float(np.clip(found, -1, 1))


def pearson(first: np.ndarray, second: np.ndarray, weights: np.ndarray) -> float:
    """Pearson's correlation of entries that each stand so many times.

    Args:
        first: (n,) numbers.
        second: (n,).
        weights: (n,) how many times each entry stands.

    Returns:
        NaN where one side does not vary.

    Example:
        >>> x, y = np.array([0.0, 1.0, 2.0]), np.array([0.0, 1.0, 5.0])
        >>> round(pearson(x, y, np.ones(3)), 6), round(pearson(x, y, np.array([1, 1, 0])), 6)
        (0.944911, 1.0)
    """
    total = weights.sum()
    centred, squares = [], []
    for side in (first, second):
        rest = side - (weights @ side) / total
        square = float((weights * rest) @ rest)
        # What rounding leaves of a constant.
        if square <= total * (1e-12 * np.abs(side).max()) ** 2:
            return float("nan")
        centred.append(rest)
        squares.append(square)
    found = (weights * centred[0]) @ centred[1] / np.sqrt(squares[0] * squares[1])
    return float(np.clip(found, -1, 1))


def _midranks(place: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Ranks from 1, equal entries sharing the mean of theirs."""
    mass = np.bincount(place, weights)
    ranks: np.ndarray = (mass.cumsum() - (mass - 1) / 2)[place]
    return ranks
