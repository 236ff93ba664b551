"""Which contexts a token stream has shown: the part of a statistic that all its sites share.

A context's sums enter a two-way fit divided by its length, so a context must be complete before it
is added up. Contexts therefore wait in a small table of *open* contexts, to which later forwards of
the same context add (generation, chunks of one document). When a new context needs the row, the one
that was heard of least recently is *closed*: its positions go into the design of the fit, and it
is entered in the table of contexts *kept*, a uniform sample chosen by hashing.

``Contexts`` sees tokens only and decides; the vectors at every site follow its decisions
(:class:`Step`), so that they are taken once for all sites.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cached_property
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from geomhooks.accumulators import Accumulator, Field, counts
from geomhooks.accumulators.table import EMPTY, Placement, Table, hash_keys
from geomhooks.functional.position.two_way import Design, connected_positions
from geomhooks.native import load, usable

if TYPE_CHECKING:
    from geomhooks.forwards.tokens import Tokens

__all__ = ["Contexts", "Fold", "MergePlan", "Step"]


# What the compiled loop of `Contexts.observe` changes.
OBSERVED = (
    *("open_key", "open_priority", "open_cells", "open_group"),
    *("kept_key", "kept_priority", "kept_cells", "kept_group"),
    *("design", "covered", "averaged", "closed", "split", "time"),
)


@dataclass(frozen=True)
class Fold:
    """Which open contexts are closed, and how their sums S_c enter R = sum_c W_c S_c / n_c.

    W_c in {0, 1, ...}^T counts how often a context covers each position. R is held as differences
    along the positions, so that a context which covers an interval touches two rows only.

    Attributes:
        slot: (M,) rows of the open table.
        weight: (M,) float64, 1 / n_c, and 0 for rows that are not closed.
        ends: (M, 2) first position and last position + 1 of contexts known to be intervals, or
            None, and then
        edges: (T' + 1, M) float64, the differences of W_c along the positions.
        kept: where the closed contexts go among those kept.
    """

    slot: Tensor
    weight: Tensor
    ends: Tensor | None
    edges: Tensor | None
    kept: Placement


@dataclass(frozen=True)
class Step:
    """What every site does with the contexts ``rows`` of one forward: close, then add.

    Attributes:
        rows: which of the forward's contexts.
        fold: what is closed before, None where nothing can be.
        open: where the forward's contexts are among those open.
    """

    rows: slice
    fold: Fold | None
    open: Placement

    def again(self) -> Step:
        """For a site that runs once more in the forward: nothing is closed, and no row is new."""
        same = replace(self.open, fresh=torch.zeros_like(self.open.fresh))
        return replace(self, fold=None, open=same)

    @cached_property
    def arrays(self) -> tuple[Any, ...]:
        """What the compiled loop of ``TwoWay.follow`` is told, the same at every site."""
        opened = self.rows.start, self.open.slot.numpy(), self.open.fresh.numpy()
        fold = self.fold
        none = np.empty(0, np.int64), np.empty(0), np.empty(0, np.bool_)
        if fold is None:
            ends, edges = np.empty((0, 2), np.int64), np.empty((0, 0))
            return (*opened, none[0], none[1], False, ends, edges, none[0], none[2])
        return (
            *opened,
            fold.slot.numpy(),
            fold.weight.numpy(),
            fold.ends is not None,
            np.empty((0, 2), np.int64) if fold.ends is None else fold.ends.numpy(),
            np.empty((0, 0)) if fold.edges is None else fold.edges.numpy(),
            fold.kept.slot.numpy(),
            fold.kept.fresh.numpy(),
        )


@dataclass(frozen=True)
class MergePlan:
    """How the rows of two shards come together; index tensors into the united tables.

    ``open_*`` map the rows of each open table into ``united`` rows, of which ``fold`` closes some
    and ``stay`` are the open table of the result. ``kept_*`` place both shards' kept contexts.
    """

    united: int
    open_mine: Tensor
    open_theirs: Tensor
    fold: Fold | None
    stay: Tensor
    kept_theirs: Placement


class Contexts(Accumulator):
    """Open and kept contexts of one token stream, and the design of their two-way fit.

    Args:
        kept: how many contexts to keep, K.
        positions: how many positions, T.
        unfinished: how many contexts may be open at once.
    """

    def __init__(self, kept: int, positions: int, unfinished: int) -> None:
        self.positions = positions
        columns = columns_of(positions)
        self.open, self.kept = Table(unfinished, columns), Table(kept, columns)
        self.reach = 0  # no position at or beyond this has been seen
        self._memo: dict[Any, Any] = {}  # of a finished state, which changes no more
        tables = {
            f"{side}_{name}": field
            for side, table in (("open", self.open), ("kept", self.kept))
            for name, field in table.fields.items()
        }
        super().__init__(
            {
                **tables,
                "design": Field((positions + 1, positions + 1), torch.float64),
                "covered": Field((positions + 1,), torch.int64),
                "averaged": Field((positions + 1,), torch.float64),
                "position_count": counts((positions,)),
                "closed": counts(()),
                "split": counts(()),
                "time": counts(()),
            }
        )

    # The two tables' tensors are this accumulator's own; the tables are ways to work on them.

    def allocate(self, device: torch.device | str = "cpu") -> Contexts:
        """Create the tensors on a device and return the accumulator itself."""
        super().allocate(device)
        self._share()
        return self

    def move(self, device: torch.device) -> None:
        """Take the tensors to another device."""
        super().move(device)
        self._share()

    def clone(self, device: torch.device | str | None = None) -> Contexts:
        """Return an independent copy, optionally on another device."""
        other = super().clone(device)
        other._share()
        other._memo = {}
        return other

    def unpack(self, tensors: Mapping[str, Tensor], where: str = "contexts") -> None:
        """Overwrite the tensors in place."""
        super().unpack(tensors, where)
        self._reach_from_counts()

    def adopt(self, tensors: Mapping[str, Tensor], where: str = "contexts") -> None:
        """Take tensors as this accumulator's own."""
        super().adopt(tensors, where)
        self._share()
        self._reach_from_counts()

    def _reach_from_counts(self) -> None:
        seen = self["position_count"].nonzero()
        self.reach = int(seen.max()) + 1 if len(seen) else 0

    def _share(self) -> None:
        for side in ("open", "kept"):
            table: Table = getattr(self, side)
            twin = object.__new__(Table)
            twin.__dict__.update(table.__dict__)
            twin.tensors = {name: self.tensors[f"{side}_{name}"] for name in table.fields}
            setattr(self, side, twin)

    def observe(self, tokens: Tokens) -> list[Step]:
        """Take in one forward's tokens and say what every site is to do.

        A step can hold as many contexts as the open table has rows; a larger batch takes several.
        """
        if tokens.start is None:
            self.reach = self.positions
        else:
            self.reach = min(max(self.reach, tokens.start + tokens.length), self.positions)
        number, size = tokens.number, self.open.capacity
        parts = [slice(first, min(first + size, number)) for first in range(0, number, size)]
        if usable(tokens.real, tokens.keys, self["design"]):
            counted = np.zeros((number, self.positions), np.int32)
            real, _, *where = tokens.arrays
            load("folds").cover(real, *where, counted, self.array("position_count"))
            return [self._step_native(tokens, counted[rows], rows) for rows in parts]
        cells = tokens.cells(self.positions)
        self["position_count"].add_(cells.sum(0))
        return [self._step(tokens, cells[rows], rows) for rows in parts]

    def _step(self, tokens: Tokens, cells: Tensor, rows: slice) -> Step:
        self["time"].add_(1)
        key = tokens.keys[rows]
        valid = cells.any(1)
        before = self.open["key"].clone()
        placement = self.open.place(key, (-self["time"]).expand_as(key), valid)
        fold = None
        if not tokens.continues:
            closing = placement.fresh & (before[placement.slot] != EMPTY)
            fold = self._fold(placement.slot, before[placement.slot], closing, tokens.interval)
        group = torch.where(placement.fresh, tokens.groups[rows], 0)
        self.open.write(placement, cells=cells, group=group)
        return Step(rows, fold, placement)

    def _step_native(self, tokens: Tokens, cells: Any, rows: slice) -> Step:
        """What :meth:`_step` does, in one compiled loop."""
        number, interval = len(cells), tokens.interval
        slot, fresh = np.empty(number, np.int64), np.empty(number, np.bool_)
        kept_slot, kept_fresh = np.empty(number, np.int64), np.empty(number, np.bool_)
        weight, ends = np.empty(number), np.empty((number if interval else 0, 2), np.int64)
        edges = np.zeros((self.reach + 1, 0 if interval else number))
        keys, groups = (t[rows].contiguous().numpy() for t in (tokens.keys, tokens.groups))
        load("folds").observe(
            *(cells, keys, groups, tokens.continues, interval, self.reach),
            *(self.array(name) for name in OBSERVED),
            *(slot, fresh, weight, ends, edges, kept_slot, kept_fresh),
        )
        placement = Placement(torch.from_numpy(slot), torch.from_numpy(fresh))
        fold = None
        if not tokens.continues:
            kept = Placement(torch.from_numpy(kept_slot), torch.from_numpy(kept_fresh))
            weights, last, touched = map(torch.from_numpy, (weight, ends, edges))
            fold = Fold(
                placement.slot,
                weights,
                last if interval else None,
                None if interval else touched,
                kept,
            )
        return Step(rows, fold, placement)

    def _fold(self, slot: Tensor, key: Tensor, closing: Tensor, interval: bool) -> Fold:
        """Close the contexts ``closing`` (M,) that are in the open rows ``slot`` (M,)."""
        cells = torch.where(closing[:, None], self.open["cells"][slot], 0)
        weight, ends, edges = self._enter(cells, closing, interval)
        self["closed"].add_(closing.sum())
        kept = self.kept.place(key, hash_keys(key), closing)
        self["split"].add_((closing & ~kept.fresh & (kept.slot < self.kept.capacity)).sum())
        group = torch.where(kept.fresh, self.open["group"][slot], 0)
        self.kept.write(kept, cells=cells, group=group)
        return Fold(slot, weight, ends, edges, kept)

    def _enter(
        self, cells: Tensor, closing: Tensor, interval: bool
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Enter complete contexts in the design; returns their weights, and ends or edges.

        Args:
            cells: (M, T) what those that are closing cover.
            closing: (M,) bool.
            interval: each is known to cover an interval.
        """
        if usable(cells, closing, self["design"]):
            return self._enter_native(cells, closing, interval)
        reach = self.reach
        length = cells.sum(1)
        weight = torch.where(length > 0, 1.0 / length.to(self["design"].dtype), 0.0)
        differences = difference(cells[:, :reach])
        self["covered"][: reach + 1].add_(differences.sum(0))
        if interval:
            ends = self._interval_ends(cells[:, :reach] > 0)
            first, last = ends[:, 0], ends[:, 1]
            corner = (
                torch.stack([first, first, last, last]),
                torch.stack([first, last, first, last]),
            )
            signs = weight.new_tensor([1.0, -1.0, -1.0, 1.0])[:, None]
            flat = (corner[0] * (self.positions + 1) + corner[1]).reshape(-1)
            self["design"].view(-1).index_add_(0, flat, (signs * weight).reshape(-1))
            self["averaged"].index_add_(
                0, ends.reshape(-1), (weight[:, None] * signs[:2, 0]).reshape(-1)
            )
            return weight, ends, None
        edges = differences.to(weight.dtype).T.contiguous()
        weighted = edges * weight
        self["design"][: reach + 1, : reach + 1].addmm_(weighted, edges.T)
        self["averaged"][: reach + 1].add_(weighted.sum(1))
        return weight, None, edges

    def _enter_native(
        self, cells: Tensor, closing: Tensor, interval: bool
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        number, reach = len(closing), self.reach
        weight, ends = np.empty(number), np.empty((number if interval else 0, 2), np.int64)
        edges = np.zeros((reach + 1, 0 if interval else number))
        held = (self.array(name) for name in ("design", "covered", "averaged"))
        given = cells.numpy(), closing.numpy(), interval, reach
        load("folds").fold(*given, *held, weight, ends, edges)
        if interval:
            return torch.from_numpy(weight), torch.from_numpy(ends), None
        return torch.from_numpy(weight), None, torch.from_numpy(edges)

    @staticmethod
    def _interval_ends(covered: Tensor) -> Tensor:
        """First position and last + 1 of each row of (M, T) bool; (0, 0) for an empty row."""
        number = covered.shape[1]
        flags = covered.to(torch.int8)
        first = flags.argmax(1)
        last = number - flags.flip(1).argmax(1)
        return torch.where(covered.any(1)[:, None], torch.stack([first, last], 1), 0)

    def reset(self) -> None:
        """Forget everything, in place."""
        super().reset()
        self.reach = 0

    def closed(self) -> tuple[Contexts, Fold]:
        """Close every context in a copy, and say how the sites' sums follow."""
        if "closed" not in self._memo:
            copy = self.clone()
            slot = torch.arange(copy.open.capacity, device=copy["time"].device)
            key = copy.open["key"][:-1].clone()
            fold = copy._fold(slot, key, key != EMPTY, interval=False)
            copy.open.reset()
            self._memo["closed"] = copy, fold
        found: tuple[Contexts, Fold] = self._memo["closed"]
        return found

    def fit_design(self, length: int) -> tuple[Design | None, list[list[int]]]:
        """The design of the fit over the positions that occur below ``length``, and its groups.

        All contexts have to be closed. The groups are the positions' connected components; there
        is a design if there is one of them, else its matrix is singular.
        """
        if "design" not in self._memo:
            count = self["position_count"][:length]
            seen = count > 0
            gram = self["design"].cumsum(0).cumsum(1)[:length, :length][seen][:, seen]
            groups = connected_positions(gram)
            design = None
            if len(groups) == 1:
                design = Design.of(count[seen], gram, int(self["closed"]))
            self._memo["design"] = design, groups
        found: tuple[Design | None, list[list[int]]] = self._memo["design"]
        return found

    def merge(self, other: Contexts, plan: Any = None) -> MergePlan:
        """Take in another shard's contexts; the sites' sums follow the plan that is returned.

        Contexts open on both sides become one. Where more are open than the table holds, those
        heard of least recently are closed. Not for a forward: it waits for the device. Warns where
        both have tokens of one context at one position: they count twice.
        """
        other = other.clone(self["time"].device)
        tables = product((self.open, self.kept), (other.open, other.kept))
        twice = len(set[int]().union(*(covered_by_both(*pair) for pair in tables)))
        if twice:  # before anything is changed: a warning may be made an error
            warnings.warn(
                f"{twice} contexts have tokens at the same positions in both shards, which count "
                "twice: the same text was measured twice, or its pieces overlap",
                stacklevel=2,
            )
        self.reach = max(self.reach, other.reach)
        for name in ("design", "covered", "averaged", "position_count", "closed", "split"):
            self.tensors[name] += other.tensors[name]
        self["time"].copy_(torch.maximum(self["time"], other["time"]))

        mine, theirs = self.open["key"][:-1].tolist(), other.open["key"][:-1].tolist()
        number: dict[int, int] = {}
        for key in (*mine, *theirs):
            if key != EMPTY:
                number.setdefault(key, len(number))
        size = len(number)
        device = self["time"].device
        rows = [
            torch.tensor([number.get(k, size) for k in side] + [size], device=device)
            for side in (mine, theirs)
        ]
        united = Table(size, columns_of(self.positions))
        united.allocate(device)
        for side, table in zip(rows, (self.open, other.open), strict=True):
            united["cells"].index_add_(0, side, table["cells"])
            united["group"].index_copy_(0, side, table["group"])
            united["key"].index_copy_(0, side, table["key"])
            united["priority"].scatter_reduce_(0, side, table["priority"], "amin")
        united["key"][size] = EMPTY

        # Kept contexts of the other shard first, then what has to be closed.
        their_keys = other.kept["key"][:-1]
        kept = self.kept.place(their_keys, other.kept["priority"][:-1], their_keys != EMPTY)
        same = (kept.slot < self.kept.capacity) & ~kept.fresh
        self["split"].add_(same.sum())
        self.kept.write(
            kept,
            cells=other.kept["cells"][:-1],
            group=torch.where(kept.fresh, other.kept["group"][:-1], 0),
        )

        recent = united["priority"][:size].argsort()
        stay, leave = recent[: self.open.capacity], recent[self.open.capacity :]
        self.open, narrow = united, self.open
        fold = None
        if len(leave):
            fold = self._fold(
                leave, united["key"][leave], torch.ones_like(leave, dtype=torch.bool), False
            )
        narrow.reset()
        for name, column in narrow.tensors.items():
            column[: len(stay)] = united[name][stay]
        self.open = narrow
        return MergePlan(size, rows[0], rows[1], fold, stay, kept)


def covered_by_both(mine: Table, theirs: Table) -> set[int]:
    """Ids of contexts that both tables hold, and that cover some position in both."""
    keys = [table["key"][:-1].cpu().numpy() for table in (mine, theirs)]
    common, *rows = np.intersect1d(keys[0], keys[1], return_indices=True)
    here, there = (
        table["cells"][torch.from_numpy(at).to(table["cells"].device)] > 0
        for table, at in zip((mine, theirs), rows, strict=True)
    )
    both = (here & there).any(1).cpu().numpy() & (common != EMPTY)
    return set(common[both].tolist())


def columns_of(positions: int) -> dict[str, Field]:
    """What is kept of a context: how often it covers each position, and its label."""
    return {"cells": counts((positions,), torch.int32), "group": Field((), torch.int64)}


def difference(cells: Tensor) -> Tensor:
    """Differences along the positions: (M, T) to (M, T + 1); a cumulative sum undoes it."""
    return torch.diff(
        cells, dim=1, prepend=cells.new_zeros(len(cells), 1), append=cells.new_zeros(len(cells), 1)
    )


def again(plan: Any) -> Any:
    """What a site that runs once more in one forward does: add to the same rows, begin none.

    What has no such distinction holds for each time.
    """
    if isinstance(plan, list):
        return [again(item) for item in plan]
    return plan.again() if hasattr(plan, "again") else plan


def to_device(plan: Any, device: torch.device) -> Any:
    """Copy the tensors of a plan, however nested, to a device."""
    if isinstance(plan, Tensor):
        return plan.to(device)
    if isinstance(plan, list):
        return [to_device(item, device) for item in plan]
    if is_dataclass(plan) and not isinstance(plan, type):
        return replace(
            plan, **{f.name: to_device(getattr(plan, f.name), device) for f in fields(plan)}
        )
    return plan
