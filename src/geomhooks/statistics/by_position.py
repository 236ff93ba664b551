"""Moments of several features by position, as results have them."""

from __future__ import annotations

from collections.abc import Sequence

from geomhooks.accumulators import Moments
from geomhooks.results import Result

__all__ = ["by_position"]


def by_position(moments: Moments, names: Sequence[str], first: int = 0) -> dict[str, Result]:
    """Of each feature the moments over all positions, and under ``at_position`` at each.

    Args:
        moments: (positions, features).
        names: of the features.
        first: positions before it are left out.
    """
    seen = moments["count"].any(0).nonzero()
    rows = slice(first, int(seen.max()) + 1 if len(seen) else 0)
    pooled, single = moments.summary(rows), moments.summary(rows, pooled=False)
    return {
        name: Result(
            **{key: value[..., column] for key, value in pooled.items()},
            at_position=Result(**{key: value[..., column] for key, value in single.items()}),
        )
        for column, name in enumerate(names)
    }
