"""The numbers that leaders are described by, of tokens and of contexts."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from geomhooks.accumulators import Moments
from geomhooks.forwards.tokens import Tokens
from geomhooks.functional.hardmax.follower_graphs import FollowerGraph, sum_by_home
from geomhooks.functional.hardmax.hard_attention import HardAttention, Leading
from geomhooks.results import Result

__all__ = [
    "GRAPH",
    "LEADING",
    "OF_TOKENS",
    "add_both",
    "add_by_first",
    "by_feature",
    "described",
    "furthest_of_context",
    "leader_numbers",
    "token_numbers",
]

OF_TOKENS = (
    "sink",
    "largest",
    "entropy",
    "softness",
    "ties",
    "distance",
    "distance_after",
    "ratio",
    "step",
    "unexplained",
)
LEADING = (
    "leaders",
    "leader_share",
    "new_leaders",
    "leaders_so_far",
    "overlap",
    "initial_fraction",
    "first_index_leaders",
)
GRAPH = FollowerGraph._fields

# Rows of moments of which each number is one of a choice of tokens.
EVERYTHING, WITHOUT_FIRST = 0, 1


def token_numbers(found: HardAttention, first: Tensor, reach: Tensor) -> Tensor:
    """(F, B, H, T) of each token in each head, as :data:`OF_TOKENS` names them."""
    at_first = first[:, None].expand_as(found.targets).gather(-1, found.targets)
    near = found.before <= reach[:, None].to(found.before)
    return torch.stack(
        [
            at_first.to(found.largest),
            found.largest,
            found.entropy,
            found.softness,
            found.ties.to(found.largest),
            found.before,
            found.after,
            (found.after / found.before).masked_fill(near, math.nan),
            found.step,
            found.unexplained,
        ]
    )


def leader_numbers(
    leading: Leading,
    begun: Tensor | None,
    first_index: Tensor,
    counted: Tensor,
    home: Tensor,
) -> Tensor:
    """(F, B, H + 1, T) of each context at its home column, as :data:`LEADING` names them.

    The last head is any of them. Elsewhere, and where there is none, NaN.

    Args:
        leading: who leads.
        begun: (B, H, T) bool, who led in the first layer; None where that was not seen.
        first_index: (B, H, T) bool, whose first target is itself.
        counted: (B, T) bool, the tokens that count.
        home: (B, T) column of the first token of each token's context.
    """
    seen = leading.now if begun is None else begun
    given = [leading.now, leading.new, leading.so_far, seen, first_index]
    now, new, so_far, begun_, index = (
        torch.cat([one, one.any(1, keepdim=True)], 1) & counted[:, None] for one in given
    )
    # New in some head is not new of any where it led in another before.
    before_any = (leading.so_far & ~leading.new).any(1) & counted
    new = torch.cat([new[:, :-1], (new[:, -1] & ~before_any)[:, None]], 1)
    at = home[:, None]

    def number(which: Tensor) -> Tensor:
        return sum_by_home(which.to(torch.float32), at)

    total = number(counted[:, None].expand_as(now))
    leaders, initial = number(now), number(begun_)
    overlap = number(now & begun_) / number(now | begun_)
    numbers = [leaders, leaders / total, number(new), number(so_far), overlap, initial / leaders]
    if begun is None:
        numbers[2:] = [torch.full_like(total, math.nan)] * 4
    both = torch.stack([*numbers, number(index)])
    both = both.masked_fill(total == 0, math.nan)
    return both.masked_fill(both.isinf(), math.nan)  # no leader is left


def furthest_of_context(values: Tensor, there: Tensor, home: Tensor) -> Tensor:
    """(B, T) the largest of values (B, T) over the tokens of each token's context."""
    lowest = torch.zeros_like(values)
    return lowest.scatter_reduce(1, home, values.masked_fill(~there, 0), "amax").gather(1, home)


def add_by_first(moments: Moments, values: Tensor, counted: Tensor, tokens: Tokens) -> None:
    """Add (F, B, T) to row 1 for tokens at position 0 and to row 0 for others."""
    rows = tokens.first.to(torch.int64)
    Moments.add_each([moments], values[:, None], rows, counted[None])


def add_both(moments: Moments, everything: Tensor, without_first: Tensor) -> None:
    """Add (F, B, T) with all tokens, and the same without those at position 0."""
    for row, values in ((EVERYTHING, everything), (WITHOUT_FIRST, without_first)):
        shape = values.shape[1:]
        rows = torch.full(shape, row, dtype=torch.int64, device=values.device)
        where = torch.ones(shape, dtype=torch.bool, device=values.device)
        Moments.add_each([moments], values[:, None], rows, where[None])


def described(moments: Moments, names: tuple[str, ...], rows: slice) -> dict[str, Result]:
    """Mean, variance, extremes and count of each feature, (H,) or () of one head."""
    pooled = moments.summary(rows)
    each = {key: value.view(len(names), -1) for key, value in pooled.items()}
    return {
        name: Result(**{key: value[row] for key, value in each.items()})
        for row, name in enumerate(names)
    }


def by_feature(numbers: Tensor) -> Tensor:
    """(F, B, H, T) as (F H, B, T)."""
    return numbers.transpose(1, 2).flatten(0, 1)
