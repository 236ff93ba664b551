"""How tokens cluster, and whether they leave the hull of others, a few rows at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from geomhooks.functional.shapes import as_float

__all__ = ["cover_tokens", "random_directions", "tokens_outside"]

ROWS = 128


def cover_tokens(
    states: Tensor, there: Tensor, home: Tensor, cosine: float, rows: int = ROWS
) -> Tensor:
    """Which tokens begin a cluster: those whose cosine with no earlier beginner is above a bound.

    A greedy cover in the order of the text: every token is in the cluster of a beginner that it has
    a cosine above the bound with, and no two beginners have one. Clusters therefore do not chain.
    It takes one pass over the cosines, of which some rows are there at a time.

    Args:
        states: (B, T, d), finite. A zero vector has cosine 0 with all.
        there: (..., B, T) bool, which tokens count; several choices at once.
        home: (B, T) which tokens of a row belong together: those with the same number.
        cosine: the bound, from -1 to 1.
        rows: of cosines at a time.

    Returns:
        (..., B, T) bool

    Example:
        >>> states = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [1.0, 0.1], [0.1, 1.0]]])
        >>> there = torch.ones(1, 4, dtype=torch.bool)
        >>> cover_tokens(states, there, torch.zeros(1, 4), 0.9).tolist()
        [[True, True, False, False]]
    """
    states = as_float(states)
    length = states.shape[1]
    norm = torch.linalg.vector_norm(states, dim=-1, keepdim=True)
    units = states / torch.where(norm > 0, norm, 1)
    covered, begins = ~there, []
    for start in range(0, length, rows):
        some = slice(start, min(start + rows, length))
        near = (units[:, some] @ units.mT > cosine) & (home[:, some, None] == home[:, None])
        for row in range(near.shape[1]):
            begin = ~covered[..., start + row]
            begins.append(begin)
            covered = covered | (begin[..., None] & near[:, row])
    found: Tensor = torch.stack(begins, -1)
    return found


def random_directions(number: int, width: int, seed: int = 0) -> Tensor:
    """(n, d) unit vectors evenly spread over the sphere, the same each time.

    Example:
        >>> random_directions(3, 8).norm(dim=1)
        tensor([1.0000, 1.0000, 1.0000])
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(number, width, generator=generator, device="cpu")
    units: Tensor = drawn / torch.linalg.vector_norm(drawn, dim=1, keepdim=True)
    return units


def tokens_outside(
    before: Tensor,
    after: Tensor,
    directions: Tensor,
    there: Tensor,
    home: Tensor,
    tolerance: float = 1e-5,
) -> Tensor:
    r"""Which tokens lie outside of the convex hull of the tokens before, as some directions show.

    With the support :math:`h(u) = \max_j \langle z_j, u \rangle` of a context, a token z' is
    outside where :math:`\langle z', u \rangle > h(u)` for one of the directions. A layer that
    takes each token to a mean of tokens, as hardmax attention does, leaves none outside. None seen
    outside does not prove that there is none.

    Args:
        before: (B, T, d), finite.
        after: (B, T, d), finite.
        directions: (n, d).
        there: (B, T) bool, which tokens count.
        home: (B, T) int64 which tokens of a row are one context: those with the same number, which
            is the column of one of them.
        tolerance: by how much of the longest projection of the context it has to be above.

    Example:
        >>> before, after = torch.tensor([[[0.0], [1.0]]]), torch.tensor([[[0.5], [1.5]]])
        >>> there, home = torch.ones(1, 2, dtype=torch.bool), torch.zeros(1, 2, dtype=torch.int64)
        >>> tokens_outside(before, after, torch.ones(1, 1), there, home).tolist()
        [[False, True]]
    """
    before, after = as_float(before), as_float(after)
    directions = directions.to(before)
    own, new = before @ directions.T, after @ directions.T
    at = home[..., None].expand_as(own)
    hidden = ~there[..., None]
    lowest = torch.full_like(own, -torch.inf)
    support = lowest.scatter_reduce(1, at, own.masked_fill(hidden, -torch.inf), "amax")
    longest = lowest.scatter_reduce(1, at, own.abs().masked_fill(hidden, 0), "amax").amax(-1)
    margin = tolerance * longest.gather(1, home)[..., None]
    outside: Tensor = (new > support.gather(1, at) + margin).any(-1) & there
    return outside
