"""The plain reductions on a CPU without compiled loops, by pieces that stay in its cache.

A temporary of the size of a hidden state is faulted in page by page, which costs more than all that
is done with it; so a few rows are worked on at a time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from geomhooks.reductions.plain import Directions, Reduced, gather_rows, reduce_plain

if TYPE_CHECKING:
    from geomhooks.forwards.tokens import Tokens

__all__ = ["reduce_tiled"]

TILE_BYTES = 1 << 21
OVER_TOKENS = ("position_sum", "context_sum", "directions")


def reduce_tiled(
    needs: frozenset[str],
    out: Tensor,
    into: Tensor | None,
    tokens: Tokens,
    shift: Tensor,
    known: Reduced | None = None,
    position_sum: Tensor | None = None,
) -> Reduced:
    """Compute what :func:`~geomhooks.reductions.plain.reduce_plain` computes."""
    batch, length, width = out.shape
    size = max(1, TILE_BYTES // max(1, length * width * 4))
    parts = []
    for first in range(0, batch, size):
        rows = slice(first, first + size)
        before = None
        if known is not None and known.squared_norm is not None and known.ones is not None:
            square, ones = known.squared_norm[rows], known.ones[rows]
            before = Reduced(known.keep[rows], squared_norm=square, ones=ones)
        entered = None if into is None else into[rows]
        given = needs, out[rows], entered, tokens.of_rows(rows), shift, before, position_sum
        parts.append(reduce_plain(*given))
    r = Reduced(torch.cat([part.keep for part in parts]))
    for name in Reduced.__annotations__:
        found = [getattr(part, name) for part in parts]
        if name not in OVER_TOKENS and found[0] is not None:
            setattr(r, name, torch.cat(found))
    positions = [part.position_sum for part in parts if part.position_sum is not None]
    contexts = [part.context_sum for part in parts if part.context_sum is not None]
    directions = [part.directions for part in parts if part.directions is not None]
    if positions:
        r.position_sum = sum_of(positions)
    if contexts:
        by_row = tokens.segments is None
        r.context_sum = gather_rows(torch.cat(contexts), tokens) if by_row else sum_of(contexts)
    if directions:
        added = (sum_of([getattr(d, n) for d in directions]) for n in Directions._fields[1:])
        r.directions = Directions(directions[0].about, *added)
    return r


def sum_of(parts: list[Tensor]) -> Tensor:
    """The sum of tensors of one shape."""
    return torch.stack(parts).sum(0) if len(parts) > 1 else parts[0]
