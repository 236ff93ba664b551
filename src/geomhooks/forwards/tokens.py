"""The tokens of one forward: which entries are real, where they stand, whose context they are."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from geomhooks.native import load

__all__ = ["TokenArrays", "TokenGrids", "Tokens"]

SAMPLE = 63  # tokens that a site's shift is taken from


class TokenArrays(NamedTuple):
    """Tokens as arrays: see :class:`Tokens`.

    Attributes:
        real: (B, T) bool.
        first: (B, T) bool.
        columns: positions are columns, from ``start`` on.
        start: position of column 0.
        positions: (B, T) int64 where they are not.
        by_row: a row is in one context.
        segments: (B, T) int64 where it is not.
        rows: (B,) int64, the context of each row where it is.
    """

    real: Any
    first: Any
    columns: bool
    start: int
    positions: Any
    by_row: bool
    segments: Any
    rows: Any


class TokenGrids(NamedTuple):
    """Tokens as kernels on a GPU are told of them: see :class:`Tokens`.

    Attributes:
        real: (B, T) bool, contiguous as all of them are.
        first: (B, T) bool.
        rows: (B,) int64, the context of each row where a row is in one.
        segments: (B, T) int64, the context of each token where it is not, else None.
        order: (B T,) int64, the tokens sorted by position, those that are not real behind them;
            None where positions are columns.
        sorted: (B T,) int64, their positions, the capacity where they are not real.
    """

    real: Tensor
    first: Tensor
    rows: Tensor
    segments: Tensor | None
    order: Tensor | None
    sorted: Tensor | None


@dataclass
class Tokens:
    """The tokens of one forward of one stream, on one device.

    Attributes:
        real: (B, T) bool, True where a token counts.
        positions: (B, T) int64, within the capacity; meaningless where not real.
        start: first position of every row where positions are consecutive columns, else None.
        keys: (M,) the ids of this forward's contexts.
        groups: (M,) their labels, -1 where none are given.
        rows: (B,) which of the contexts each row is, or None for row = context.
        segments: (B, T) which of the contexts each token is in (M for none), or None.
        token_groups: (B, T) labels, or None where none are given.
        capacity: how many positions there are room for.
        first: (B, T) bool, tokens at position 0.
        continues: every context was open before; nothing has to be closed.
        interval: every context covers an interval of positions for certain.
        last: (B,) the context that each row ended with, or None where the user states contexts.
        end: how many positions a cache of these rows holds afterwards.
        ids: (B, T) int64 ids of the tokens, or None where the call has none of that shape.
        present: (B, T) bool, the entries that no mask hides, some of which may not be counted.
        labels: (B, T) int64 what the model is asked to say, -100 for nothing, or None.
    """

    real: Tensor
    positions: Tensor
    start: int | None
    keys: Tensor
    groups: Tensor
    rows: Tensor | None = None
    segments: Tensor | None = None
    token_groups: Tensor | None = None
    capacity: int = 0
    first: Tensor = field(init=False)
    continues: bool = False
    interval: bool = False
    last: Tensor | None = None
    end: int | Tensor = 0
    ids: Tensor | None = None
    present: Tensor | None = None
    labels: Tensor | None = None

    @cached_property
    def arrays(self) -> TokenArrays:
        """What compiled loops on the CPU are told of the tokens."""
        columns, segments, unused = (
            self.start is not None,
            self.segments,
            np.empty((1, 0), np.int64),
        )
        return TokenArrays(
            np.ascontiguousarray(self.real.numpy()),
            np.ascontiguousarray(self.first.numpy()),
            columns,
            self.start or 0,
            unused if columns else np.ascontiguousarray(self.positions.numpy()),
            segments is None,
            unused if segments is None else np.ascontiguousarray(segments.numpy()),
            np.arange(len(self.real)) if self.rows is None else self.rows.numpy(),
        )

    @cached_property
    def grids(self) -> TokenGrids:
        """What kernels on a GPU are told of the tokens; nothing waits for the device."""
        rows, segments, ordered, order = self.rows, self.segments, None, None
        if rows is None:
            rows = torch.arange(len(self.real), device=self.real.device)
        if self.start is None:
            positions = torch.where(self.real, self.positions, self.capacity)
            ordered, order = positions.reshape(-1).sort()
        return TokenGrids(
            self.real.contiguous(),
            self.first.contiguous(),
            rows.contiguous(),
            None if segments is None else segments.contiguous(),
            order,
            ordered,
        )

    @cached_property
    def record(self) -> Any:
        """Where these arrays are, as compiled loops are told; without what contexts do."""
        return load("site").TokensRecord(self.arrays, self.number)

    @cached_property
    def any_real(self) -> Tensor:
        """() bool, there are real tokens to sample from."""
        return self.real.any()

    @cached_property
    def sample(self) -> Tensor:
        """(S,) some of the real tokens, evenly chosen, as indices into the flattened (B, T)."""
        rank = self.real.reshape(-1).cumsum(0)
        # From the middle of each part, which rows' first tokens, often outliers, seldom are.
        part = (torch.arange(SAMPLE, device=rank.device) + 0.5) / SAMPLE
        wanted = (part * rank[-1]).to(torch.int64) + 1
        return torch.searchsorted(rank, wanted).clamp(max=len(rank) - 1)

    @property
    def number(self) -> int:
        """How many contexts this forward may have, M."""
        return len(self.keys)

    @property
    def length(self) -> int:
        """How long rows are, T."""
        return self.real.shape[1]

    @property
    def at(self) -> Tensor | slice:
        """The rows of a per-position accumulator that (B, T, ...) values belong to."""
        return self.positions if self.start is None else slice(self.start, self.start + self.length)

    def cells(self, positions: int) -> Tensor:
        """How often each context covers each position, (M, positions) int32."""
        number = self.number
        if self.segments is not None or self.start is None:
            segments = self.segments
            if segments is None:
                rows = (
                    self.rows
                    if self.rows is not None
                    else torch.arange(number, device=self.real.device)
                )
                segments = rows[:, None].expand_as(self.real)
            flat = torch.where(self.real, segments * positions + self.positions, number * positions)
            cells = self.real.new_zeros(number * positions + 1, dtype=torch.int32)
            cells.index_add_(0, flat.reshape(-1), self.real.reshape(-1).to(torch.int32))
            return cells[:-1].view(number, positions)
        cells = self.real.new_zeros((number, positions), dtype=torch.int32)
        covered = cells[:, self.start : self.start + self.length]
        real = self.real[:, : covered.shape[1]].to(torch.int32)
        if self.rows is None:
            covered.copy_(real)
        else:
            covered.index_add_(0, self.rows, real)
        return cells

    def count_by_context(self, keep: Tensor) -> Tensor:
        """How many of the tokens ``keep`` (B, T) each context has, (M,) int64."""
        if self.segments is not None:
            counts = keep.new_zeros(self.number + 1, dtype=torch.int64)
            return counts.index_add_(
                0, self.segments.reshape(-1), keep.reshape(-1).to(torch.int64)
            )[:-1]
        counts = keep.sum(1)
        return (
            counts
            if self.rows is None
            else torch.zeros_like(counts).index_add_(0, self.rows, counts)
        )

    def context_labels(self) -> Tensor:
        """The label of each token's context, (B, T); of tokens in none, -1."""
        if self.segments is not None:
            return torch.nn.functional.pad(self.groups, (0, 1), value=-1)[self.segments]
        groups = self.groups if self.rows is None else self.groups[self.rows]
        return groups[:, None].expand_as(self.real)

    def forget_views(self) -> None:
        """Forget what was made of other tensors than these."""
        for name in ("arrays", "record", "grids", "any_real", "sample"):
            self.__dict__.pop(name, None)

    def of_rows(self, rows: slice) -> Tokens:
        """The tokens of some rows; each row a context, where rows are in one context."""
        part = copy.copy(self)
        part.forget_views()
        part.rows = None
        for name in ("real", "positions", "first", "segments", "ids", "present", "labels"):
            value = getattr(self, name)
            setattr(part, name, None if value is None else value[rows])
        return part

    def of_heads(self, heads: int) -> Tokens:
        """The tokens of (heads B, T) rows, each row's once for every head, one head after another.

        They are in the contexts that they are in here.
        """
        parted = copy.copy(self)
        parted.forget_views()
        for name in ("real", "positions", "first", "segments", "token_groups", "ids"):
            value = getattr(self, name)
            setattr(parted, name, None if value is None else value.repeat(heads, 1))
        if self.segments is None:
            own = torch.arange(len(self.real), device=self.real.device)
            parted.rows = (own if self.rows is None else self.rows).repeat(heads)
        return parted

    def to(self, device: torch.device) -> Tokens:
        """Copy to a device."""
        moved = copy.copy(self)
        moved.forget_views()
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(moved, name, value.to(device))
        return moved
