"""Rows by key, of which the best few are kept: the accumulator behind samples and rankings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from geomhooks.accumulators import Accumulator, Field
from geomhooks.native import load, usable

__all__ = ["EMPTY", "LAST", "Placement", "Table", "add_rows", "hash_keys"]

EMPTY = torch.iinfo(torch.int64).min  # the key of a row that holds nothing
LAST = torch.iinfo(torch.int64).max  # the priority of a row that holds nothing


@dataclass(frozen=True)
class Placement:
    """Where the rows of a batch go in a table.

    Attributes:
        slot: (M,) row of the table; the table's capacity (a row that nobody reads) for none.
        fresh: (M,) True where the row begins anew and what the slot held before is given up.
    """

    slot: Tensor
    fresh: Tensor


class Table(Accumulator):
    """Rows by key, with columns: of all keys ever placed, the ``capacity`` of least priority stay.

    With the hash of a key as its priority the rows are a uniform sample of all keys that does not
    depend on their order (bottom-k sampling); with minus a value they are the top of a ranking;
    with minus the time they are the most recent. Rows of equal key add up. Every choice is made by
    comparing, so that shapes never depend on the data.

    Args:
        capacity: number of rows K. One more is stored, which takes what is not to be kept.
        columns: fields of one row by name.
    """

    def __init__(
        self,
        capacity: int,
        columns: Mapping[str, tuple[tuple[int, ...], torch.dtype] | Field],
    ) -> None:
        self.capacity = capacity
        self.columns = tuple(columns)
        rows = capacity + 1
        fields = {name: Field(*column) for name, column in columns.items()}
        super().__init__(
            {
                "key": Field((rows,), torch.int64, EMPTY),
                "priority": Field((rows,), torch.int64, LAST),
                **{n: f._replace(shape=(rows, *f.shape)) for n, f in fields.items()},
            }
        )

    def place(self, key: Tensor, priority: Tensor, valid: Tensor) -> Placement:
        """Choose the rows for M keys, all different, and mark them as held.

        Args:
            key: (M,) int64.
            priority: (M,) int64; less is kept rather. A key that is held takes the new priority.
            valid: (M,) bool; a key that is not valid is placed nowhere.
        """
        size = self.capacity
        keys, priorities = self.tensors["key"], self.tensors["priority"]
        if usable(key, priority, keys):
            slot, fresh = torch.empty_like(key), torch.empty_like(valid)
            given = (tensor.contiguous().numpy() for tensor in (key, priority, valid))
            table = self.array("key"), self.array("priority")
            load("places").place(*given, *table, slot.numpy(), fresh.numpy())
            return Placement(slot, fresh)
        match = (key[:, None] == keys[None, :size]) & valid[:, None]
        held = match.any(1)
        at = torch.where(held, match.to(torch.int8).argmax(1), size)
        priorities.index_copy_(0, at, torch.where(held, priority, LAST))
        # The i-th best newcomer faces the i-th worst row, and takes its place if it is better.
        newcomers, order = torch.where(valid & ~held, priority, LAST).sort()
        faced = min(len(key), size)
        worst, rows = priorities[:size].topk(faced)
        won = torch.where(newcomers[:faced] < worst, rows, size)
        slot = torch.full_like(key, size).index_copy_(0, order[:faced], won)
        # A held row that lost its place in this very call is not to be written to any more.
        lost = torch.zeros_like(keys, dtype=torch.bool).index_fill_(0, won, True)[at]
        fresh = slot < size
        slot = torch.where(held & ~lost, at, slot)
        keys.index_copy_(0, slot, torch.where(slot < size, key, EMPTY))
        priorities.index_copy_(0, slot, torch.where(slot < size, priority, LAST))
        return Placement(slot, fresh)

    def write(self, placement: Placement, **values: Tensor) -> None:
        """Add values (M, ...) to the columns of placed rows; a fresh row begins at zero."""
        for name, value in values.items():
            add_rows(self.tensors[name], placement, value)

    def merge(self, other: Table, plan: Any = None) -> Any:
        """Take the other's rows in as if they had been placed here."""
        theirs = {n: t.to(self.tensors["key"].device) for n, t in other.tensors.items()}
        keys = theirs["key"][:-1]
        placement = self.place(keys, theirs["priority"][:-1], keys != EMPTY)
        self.write(placement, **{name: theirs[name][:-1] for name in self.columns})


def add_rows(column: Tensor, placement: Placement, values: Tensor) -> None:
    """Add values (M, ...) to placed rows of a column (K + 1, ...); a fresh row begins at zero."""
    fresh = placement.fresh.view(-1, *[1] * (values.ndim - 1))
    before = torch.where(fresh, 0, column.index_select(0, placement.slot))
    column.index_copy_(0, placement.slot, before + values.to(column.dtype))


def hash_keys(keys: Tensor) -> Tensor:
    """Scramble int64 keys into non-negative int64 numbers that look uniform (splitmix64).

    Equal keys give equal numbers on every machine. Reference: Steele, Lea & Flood, "Fast
    splittable pseudorandom number generators", OOPSLA 2014.

    Example:
        >>> hash_keys(torch.tensor([1, 2, 1])).unique().numel()
        2
    """
    z = keys + -7046029254386353131
    z = (z ^ _shift_right(z, 30)) * -4658895280553007687
    z = (z ^ _shift_right(z, 27)) * -7723592293110705685
    return _shift_right(z ^ _shift_right(z, 31), 1)


def _shift_right(z: Tensor, bits: int) -> Tensor:
    """Logical shift: int64 shifts drag the sign along."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)
