"""The graph of who follows whom in each context: attractors, how followers are shared, basins."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from geomhooks.functional.hardmax.leaders import follower_basins

__all__ = ["FollowerGraph", "follower_graph", "homes_of", "sum_by_home"]


class FollowerGraph(NamedTuple):
    """Numbers of each context, (B, H, T), at its home column; elsewhere, and of none, NaN."""

    attractors: Tensor
    """how many tokens are the target of one that counts"""
    in_degree: Tensor
    """largest share of the tokens that have one and the same target"""
    in_degree_entropy: Tensor
    """of the shares that targets have, in nats: 0 where all have the same"""
    basins: Tensor
    """at how many tokens, or cycles, following ends"""
    basin: Tensor
    """largest share of the tokens that end at one and the same"""
    depth: Tensor
    """most steps that it takes one of them"""


def homes_of(segments: Tensor | None, like: Tensor) -> Tensor:
    """(B, T) int64: of each token the column of the first of its context in its row.

    Args:
        segments: (B, T) int64 which context each token is in, or None where a row is one.
        like: (B, T) of a row's shape.

    Example:
        >>> segments = torch.tensor([[2, 2, 0, 0, 0]])
        >>> homes_of(segments, segments)
        tensor([[0, 0, 2, 2, 2]])
    """
    if segments is None:
        return torch.zeros(like.shape, dtype=torch.int64, device=like.device)
    length = segments.shape[1]
    # A context's first column, by rank: the sorted order keeps tokens of one context together.
    order = segments.argsort(dim=1, stable=True)
    ordered = segments.gather(1, order)
    begins = torch.ones_like(ordered, dtype=torch.bool)
    begins[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    columns = torch.arange(length, device=segments.device).expand_as(segments)
    begin = torch.where(begins, columns, 0).cummax(1).values
    return torch.zeros_like(segments).scatter(1, order, order.gather(1, begin))


def sum_by_home(values: Tensor, home: Tensor) -> Tensor:
    """Sums over the tokens of each context, at its home column; elsewhere 0.

    Args:
        values: (..., B, T) or (B, H, T), for a home (B, T) or (B, H, T).
        home: broadcast to the values.
    """
    return torch.zeros_like(values).scatter_add(-1, home.expand_as(values), values)


def follower_graph(
    targets: Tensor, there: Tensor, counted: Tensor, home: Tensor, hidden: Tensor | None = None
) -> FollowerGraph:
    """Describe the graph in which each token points at its hard target.

    Args:
        targets: (B, H, T) int64, each of the token's own context.
        there: (B, T) bool, tokens that may be followed.
        counted: (B, T) bool, the tokens whose following counts.
        home: (B, T) of :func:`homes_of`.
        hidden: (B, T) bool, tokens that count neither as targets nor as ends, such as those at
            position 0; what others follow does not change.

    Example: 0 leads 1 and 2; 3 and 4 follow each other.
        >>> targets = torch.tensor([[[0, 0, 0, 4, 3]]])
        >>> there, home = torch.ones(1, 5, dtype=torch.bool), torch.zeros(1, 5, dtype=torch.int64)
        >>> found = follower_graph(targets, there, there, home)
        >>> [round(float(number[0, 0, 0]), 4) for number in found]
        [3.0, 0.6, 0.9503, 2.0, 0.6, 1.0]
    """
    at = home[:, None].expand_as(targets)
    basins = follower_basins(targets, there[:, None].expand_as(targets))
    if hidden is not None:
        counted = counted & ~hidden
    counts = counted[:, None].expand_as(targets)
    total = sum_by_home(counts.to(torch.int64), at)
    followers = torch.zeros_like(targets).scatter_add(-1, targets, counts.to(targets))
    ending = torch.zeros_like(targets).scatter_add(-1, basins.roots, counts.to(targets))
    if hidden is not None:
        followers, ending = (n.masked_fill(hidden[:, None], 0) for n in (followers, ending))
    depth = torch.where(counts, basins.depth, 0)

    def most(values: Tensor) -> Tensor:
        return torch.zeros_like(values).scatter_reduce(-1, at, values, "amax")

    share = followers / sum_by_home(followers, at).gather(-1, at)
    entropy = sum_by_home(torch.special.entr(torch.where(followers > 0, share, 0.0)), at)
    found = (
        sum_by_home((followers > 0).to(targets), at),
        most(followers) / total,
        entropy.masked_fill(most(followers) == 0, math.nan),
        sum_by_home((ending > 0).to(targets), at),
        most(ending) / total,
        most(depth),
    )
    wide = share.dtype
    return FollowerGraph(*(one.to(wide).masked_fill(total == 0, math.nan) for one in found))
