"""The tokens that a number is largest at: a ranking of fixed length for each of many numbers.

Records are in a total order: the larger value first, then the lesser context id, then the lesser
position. The first n of a union are among the first n of each part, so that a ranking is the same
however its tokens were cut into forwards and shards, and in whatever order they came.

With one record for each context, f(A) takes the best record of every context in A, and the first n
of these. Then f(A or B) = f(f(A) or B), which is what adding and merging do. A context that is in
f(A or B) with its best record r from A is in f(A): r is the best of its context in A, and fewer
than n contexts of A come before it, as fewer than n of A or B do. So every record of f(A or B) is
at hand, and it stays the best of its context and keeps its place, since nothing is at hand that is
not in A or B. A bounded list of the best of each context is therefore enough.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from geomhooks.accumulators import Accumulator, Field
from geomhooks.forwards.tokens import Tokens

__all__ = ["NO_ID", "Candidates", "TokenRows", "TopTokens", "TopValues"]

NO_ID = -1
BITS = 32
LAST = (1 << BITS) - 1


class TokenRows(NamedTuple):
    """The N = B T entries of a forward in a row, with what is written down of each.

    Attributes:
        contexts: how many contexts the forward may have, C.
        context: (N,) int64, which of them an entry is in, C for none.
        context_id: (N,) int64, the id of that context.
        position: (N,) int64.
        windows: (N, 2 w + 1) int32, ids of the tokens around each, which is in the middle; -1
            where there is none of the same context, or it has no id.
        order: (N,) int64, the entries by context id, then position.
        rank: (N,) int64, the place of each entry in that order.
    """

    contexts: int
    context: Tensor
    context_id: Tensor
    position: Tensor
    windows: Tensor
    order: Tensor
    rank: Tensor

    @classmethod
    def of(cls, tokens: Tokens, reach: int) -> TokenRows:
        """The entries of a forward, with windows of ``reach`` tokens to each side.

        A window has the columns beside a token's own, as far as their tokens are real and of its
        context, and what this forward has alone.

        Example:
            >>> grid = torch.arange(4)[None]
            >>> tokens = Tokens(grid >= 1, grid, 0, torch.tensor([9]), torch.tensor([-1]))
            >>> tokens.ids = grid + 5
            >>> TokenRows.of(tokens, 1).windows[1:].tolist()
            [[-1, 6, 7], [6, 7, 8], [7, 8, -1]]
        """
        real, number = tokens.real, tokens.number
        if tokens.segments is not None:
            context = tokens.segments
        else:
            rows = tokens.rows
            if rows is None:
                rows = torch.arange(number, device=real.device)
            context = rows[:, None].expand_as(real)
        context = torch.where(real, context, number)
        position = tokens.positions.expand_as(real).reshape(-1)
        context_id = torch.nn.functional.pad(tokens.keys, (0, 1))[context].reshape(-1)
        order = position.argsort(stable=True)
        order = order[context_id[order].argsort(stable=True)]
        rank = torch.empty_like(order)
        rank[order] = torch.arange(len(order), device=order.device)
        windows = windows_of(tokens.ids, real, context, reach)
        return cls(number, context.reshape(-1), context_id, position, windows, order, rank)


def windows_of(ids: Tensor | None, real: Tensor, context: Tensor, reach: int) -> Tensor:
    """Ids around each entry of (B, T), (B T, 2 reach + 1) int32; -1 where there is none."""
    if ids is None:
        ids = torch.full_like(context, NO_ID)
    around = torch.where(real, ids, NO_ID).to(torch.int32)
    pad = torch.nn.functional.pad
    windows = pad(around, (reach, reach), value=NO_ID).unfold(1, 2 * reach + 1, 1)
    whose = pad(context, (reach, reach), value=-1).unfold(1, 2 * reach + 1, 1)
    windows = torch.where(whose == context[..., None], windows, NO_ID)
    return windows.flatten(0, 1)


class Records(NamedTuple):
    """Tokens at which numbers are large."""

    value: Tensor
    """(F, k) float32, 0 where there is none"""
    context: Tensor
    """(F, k) int64 context ids"""
    position: Tensor
    """(F, k) int32"""
    window: Tensor
    """(F, k) int64, where their windows are in a table"""


class Candidates:
    """The leading tokens of one forward for each of F numbers, part of the forward after part.

    Each token and value is one int64: the bits of the value as float32, which are in the order of
    the values where these are positive, and below them the place of the token in the forward. So
    one ``topk`` finds the first in the order of the records, with ties resolved.

    Args:
        rows: the forward's tokens.
        number: how many at most, n.
        distinct: one of each context.
    """

    def __init__(self, rows: TokenRows, number: int, distinct: bool) -> None:
        self.rows = rows
        self.number = number
        self.distinct = distinct
        self._keys: Tensor | None = None

    def add(self, values: Tensor, part: slice, where: Tensor) -> None:
        """Take in a part of the forward's tokens.

        Args:
            values: (m, F); those that are not positive are not listed.
            part: which m of the N tokens.
            where: (m,) bool, tokens that count.
        """
        rows = self.rows
        values = values.to(torch.float32)
        bits = values.contiguous().view(torch.int32).to(torch.int64)
        keys = (bits << BITS) | (LAST - rows.rank[part])[:, None]
        keys = torch.where(where[:, None] & (values > 0), keys, 0)
        if not self.distinct:
            found = keys.T if self._keys is None else torch.cat([self._keys, keys.T], 1)
            self._keys = found.topk(min(self.number, found.shape[1]), 1).values
            return
        if self._keys is None:
            self._keys = keys.new_zeros(rows.contexts + 1, keys.shape[1])
        self._keys.scatter_reduce_(0, rows.context[part, None].expand_as(keys), keys, "amax")

    def leading(self) -> tuple[Tensor, Tensor]:
        """Values (F, k) float32, 0 for none, and which of the N tokens (F, k)."""
        keys = self._keys
        assert keys is not None
        if self.distinct:
            keys = keys[:-1].T
            keys = keys.topk(min(self.number, keys.shape[1]), 1).values
        place = (LAST - (keys & LAST)).clamp(max=len(self.rows.order) - 1)
        return (keys >> BITS).to(torch.int32).view(torch.float32), self.rows.order[place]


class TopTokens(Accumulator):
    """For each of F numbers the n tokens at which it is largest: the records behind a ranking.

    A record is the value, the context id, the position, and the ids of the tokens around. Rows are
    in the order of the records; what is left is filled with values of 0.

    Args:
        numbers: F.
        length: n.
        reach: tokens to each side in a window, w.
        distinct: one record of each context, its best.

    Example:
        >>> grid = torch.arange(3)[None]
        >>> tokens = Tokens(grid >= 0, grid, 0, torch.tensor([9]), torch.tensor([-1]))
        >>> rows, top = TokenRows.of(tokens, 0), TopTokens(2, 2, 0).allocate()
        >>> found = Candidates(rows, 2, distinct=False)
        >>> codes = torch.tensor([[1.0, 0.0], [3.0, 0.0], [1.0, 5.0]])
        >>> found.add(codes, slice(0, 3), torch.tensor([True, True, True]))
        >>> top.add(found)
        >>> top["value"], top["position"]
        (tensor([[3., 1.], [5., 0.]]), tensor([[ 1,  0], [ 2, -1]], dtype=torch.int32))
    """

    def __init__(self, numbers: int, length: int, reach: int, distinct: bool = False) -> None:
        self.length = length
        self.distinct = distinct
        shape = (numbers, length)
        super().__init__(
            {
                "value": Field(shape, torch.float32),
                "context": Field(shape, torch.int64, NO_ID),
                "position": Field(shape, torch.int32, -1),
                "window": Field((*shape, 2 * reach + 1), torch.int32, NO_ID),
            }
        )

    def add(self, candidates: Candidates) -> None:
        """Take in the leading tokens of a forward."""
        value, at = candidates.leading()
        rows = candidates.rows
        records = Records(value, rows.context_id[at], rows.position[at].to(torch.int32), at)
        if value.device.type != "cpu":
            self._take_in(records, rows.windows)
            return
        # What is below the last of a full ranking stays out of it, which after a while is nearly
        # everything. Elsewhere the host would have to wait to find out.
        enters = (value > 0) & (value >= self["value"][:, -1:])
        numbers, most = enters[:, 0].nonzero()[:, 0], int(enters.sum(1).max())
        if most:
            kept = Records(*(column[numbers, :most] for column in records))
            self._take_in(kept, rows.windows, numbers)

    def merge(self, other: TopTokens, plan: Any = None) -> None:
        """Take in another shard's records."""
        theirs = {name: column.to(self.device) for name, column in other.tensors.items()}
        windows = theirs["window"].flatten(0, 1)
        at = torch.arange(len(windows), device=windows.device).view_as(theirs["value"])
        self._take_in(Records(theirs["value"], theirs["context"], theirs["position"], at), windows)

    def _take_in(self, records: Records, windows: Tensor, numbers: Tensor | None = None) -> None:
        """Rank records (F, k), of the given numbers alone, with those that are there.

        Args:
            records: whose windows are rows of
            windows: (M, 2 w + 1).
            numbers: (F',) which numbers they are of; by default all.
        """
        mine = self.tensors
        if numbers is not None:
            mine = {name: column[numbers] for name, column in mine.items()}
        held = mine["window"].flatten(0, 1)
        own = torch.arange(len(held), device=held.device).view_as(mine["value"])
        records = records._replace(window=records.window + len(held))
        columns = mine["value"], mine["context"], mine["position"], own
        both = Records(*(torch.cat(pair, 1) for pair in zip(columns, records, strict=True)))
        value, order = leading(both, self.length, self.distinct)
        there = value > 0
        context, position, at = (column.gather(1, order) for column in both[1:])
        nothing = windows.new_full((1, windows.shape[1]), NO_ID)
        table = torch.cat([held, windows, nothing])
        found = {
            "value": value,
            "context": torch.where(there, context, NO_ID),
            "position": torch.where(there, position, -1),
            "window": table[torch.where(there, at, len(table) - 1)],
        }
        for name, column in found.items():
            if numbers is None:
                self.tensors[name].copy_(column)
            else:
                self.tensors[name].index_copy_(0, numbers, column)


class TopValues(Accumulator):
    """For each of F numbers its n largest positive values.

    Args:
        numbers: F.
        length: n.
    """

    def __init__(self, numbers: int, length: int) -> None:
        self.length = length
        super().__init__({"value": Field((numbers, length), torch.float32)})

    def add(self, values: Tensor, where: Tensor) -> None:
        """Take in the values (m, F) of the tokens ``where`` (m,)."""
        self._take_in(torch.where(where[:, None], values, 0).to(torch.float32).T)

    def merge(self, other: TopValues, plan: Any = None) -> None:
        """Take in another shard's."""
        self._take_in(other["value"].to(self.device))

    def _take_in(self, values: Tensor) -> None:
        both = torch.cat([self["value"], values], 1)
        self["value"].copy_(both.topk(self.length, 1).values)


def leading(records: Records, number: int, distinct: bool) -> tuple[Tensor, Tensor]:
    """The first records of each row of (F, m), in order: their values, and where they were.

    Args:
        records: with a value of 0 where there is none.
        number: how many.
        distinct: of each context one.

    Returns:
        (F, number) both; values of 0 where there are fewer.
    """
    value, context, position, _ = records
    order = position.argsort(dim=1, stable=True)
    if distinct:
        order = order.gather(1, value.gather(1, order).argsort(dim=1, descending=True, stable=True))
    order = order.gather(1, context.gather(1, order).argsort(dim=1, stable=True))
    value = value.gather(1, order)
    if distinct:  # the records of a context stand together, the best one first
        ids = context.gather(1, order)
        again = torch.nn.functional.pad(ids[:, 1:] == ids[:, :-1], (1, 0))
        value = value.masked_fill(again, 0.0)
    value, place = value.sort(dim=1, descending=True, stable=True)
    return value[:, :number], order.gather(1, place[:, :number])
