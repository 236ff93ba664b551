"""The states of one forward that leaders are looked for among, and the scores they look by."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from geomhooks.forwards.tokens import Tokens
from geomhooks.functional.attention.query_key import QueryKey
from geomhooks.functional.hardmax.follower_graphs import homes_of
from geomhooks.functional.hardmax.hard_attention import BLOCK, LogitRows, logit_rows
from geomhooks.functional.shapes import as_float
from geomhooks.statistics.base import Reading
from geomhooks.statistics.looked_at import continued, looked_at

__all__ = ["Context", "score_rows"]


class Context(NamedTuple):
    """The states of one forward at one block, zero where nothing is to be counted."""

    before: Tensor
    """(B, T, d) what comes in, or at the first block's input what is there"""
    after: Tensor
    """(B, T, d)"""
    tokens: Tokens
    keys: Tensor
    """(B, T) bool, tokens that are looked at"""
    counted: Tensor
    """(B, T) bool, those of them that count"""
    home: Tensor
    """(B, T) the column of the first token of each token's context"""

    @property
    def later(self) -> Tensor:
        """(B, T) bool, those that count, but for position 0."""
        return self.counted & ~self.tokens.first

    @classmethod
    def of(cls, reading: Reading) -> Context:
        """Of a reading."""
        tokens, after = reading.tokens, as_float(reading.taps["out"])
        before = as_float(reading.taps.get("in", after)).to(after)
        finite = torch.isfinite(before).all(-1) & torch.isfinite(after).all(-1)
        keys = tokens.real if tokens.present is None else tokens.present | tokens.real
        keys = keys & finite & ~continued(tokens)
        before, after = (s.masked_fill(~keys[..., None], 0) for s in (before, after))
        home = homes_of(tokens.segments, tokens.real)
        return cls(before, after, tokens, keys, keys & tokens.real, home)


def score_rows(weights: QueryKey, there: Context, block: int | None = None) -> Iterator[LogitRows]:
    """The scores of a block's attention, as the model has them, some queries at a time.

    Args:
        weights: of the block's attention.
        there: the states before it.
        block: queries at a time.
    """
    query, key = (parts.sum(0) for parts in weights.project(there.before[None]))
    batch, length, width = there.before.shape
    columns, distance = torch.arange(length, device=query.device), weights.distance

    def bias(rows: slice) -> Tensor:
        assert distance is not None
        return distance(columns[rows], columns)

    def visible(rows: slice) -> Tensor:
        return looked_at(there.tokens, there.keys, weights.causal, weights.window, rows)

    # Of each query and head a mean of states is made as well.
    block = block or max(1, BLOCK // (batch * query.shape[1] * max(length, width)))
    return logit_rows(
        query,
        key,
        visible,
        scale=weights.scale,
        bias=None if distance is None else bias,
        softcap=weights.softcap,
        block=block,
    )
