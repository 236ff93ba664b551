"""Moments of several features, in rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from geomhooks.accumulators.basic import Accumulator, Field, counts
from geomhooks.gpu import load as load_kernels
from geomhooks.gpu import runs_on
from geomhooks.native import load, usable

__all__ = ["Moments"]


class Moments(Accumulator):
    """Count, mean, variance, minimum and maximum of several features in each of some rows.

    Values are summed about a fixed shift, a number for each feature taken from the first values
    that count. With a shift everything stays a plain sum, so that merging stays addition, and a
    variance keeps its digits where the mean is thousands of standard deviations.

    Args:
        shape: (rows, features).

    Example:
        >>> moments = Moments((1, 2)).allocate()
        >>> values = torch.tensor([[[1.0, 5.0]], [[3.0, float("nan")]]])
        >>> moments.add(values, at=slice(0, 1), where=torch.isfinite(values))
        >>> moments.summary()["mean"], moments.summary()["count"]
        (tensor([2., 5.], dtype=torch.float64), tensor([2, 1]))
    """

    def __init__(self, shape: tuple[int, int]) -> None:
        rows, features = shape
        super().__init__(
            {
                "count": counts((features, rows)),
                "shift": Field((features,), torch.float64),
                "shifted": Field((features,), torch.bool, False),
                "total": Field((features, rows), torch.float64),
                "squares": Field((features, rows), torch.float64),
                "min": Field((features, rows), torch.float64, float("inf")),
                "max": Field((features, rows), torch.float64, -float("inf")),
            }
        )

    def add(self, values: Tensor, at: Tensor | slice, where: Tensor) -> None:
        """Add values.

        Args:
            values: (..., features); entries that are not finite count nothing.
            at: rows (...), or a slice of rows for values (batch, rows, features).
            where: (...) or (..., features) bool; entries that are False count nothing.
        """
        if where.ndim == values.ndim:
            values, where = torch.where(where, values, float("nan")), where.any(-1)
        two = (-1, values.shape[-2]) if values.ndim > 2 else (1, -1)
        values = values.movedim(-1, 0).reshape(values.shape[-1], 1, *two)
        if not isinstance(at, slice):
            at = at.reshape(two)
        self.add_each([self], values, at, where.reshape(1, *two))

    @staticmethod
    def add_each(
        moments: Sequence[Moments], values: Tensor, at: Tensor | slice, where: Tensor
    ) -> None:
        """Add values (features, L, B, T) to L accumulators, with as few operations as can be.

        Args:
            moments: L accumulators of one shape.
            values: (features, L, B, T); entries that are not finite count nothing.
            at: rows (B, T), or a slice of T rows; the same for all.
            where: (L, B, T) bool; tokens that are False count nothing.
        """
        values = values.to(moments[0]["total"].dtype)
        if usable(values, where, moments[0]["total"]):
            Moments._add_each_native(moments, values.contiguous(), at, where.contiguous())
            return
        if isinstance(at, slice) and runs_on(values, where, moments[0]["total"]):
            given = values.contiguous(), at.start or 0, where.contiguous()
            load_kernels().add_moments(moments, *given)
            return
        where = where & torch.isfinite(values)
        shifts = Moments._settle_shifts(moments, values.flatten(2), where.flatten(2))
        omitted = ~where
        about = (values - shifts[..., None, None]).masked_fill_(omitted, 0.0)
        low, high = (values.masked_fill(omitted, sign * float("inf")) for sign in (1, -1))
        if isinstance(at, slice):
            total, squares, count = about.sum(2), about.square().sum(2), where.sum(2)
            low, high = low.amin(2), high.amax(2)
            for index, one in enumerate(moments):
                t = {name: one[name][:, at] for name in ("count", "total", "squares", "min", "max")}
                t["count"].add_(count[:, index])
                t["total"].add_(total[:, index])
                t["squares"].add_(squares[:, index])
                torch.minimum(t["min"], low[:, index], out=t["min"])
                torch.maximum(t["max"], high[:, index], out=t["max"])
            return
        rows = at.reshape(1, -1).expand(len(values), -1)
        about, low, high, counts = (v.flatten(2) for v in (about, low, high, where.to(torch.int64)))
        for index, one in enumerate(moments):
            one["count"].scatter_add_(1, rows, counts[:, index])
            one["total"].scatter_add_(1, rows, about[:, index])
            one["squares"].scatter_add_(1, rows, about[:, index].square())
            one["min"].scatter_reduce_(1, rows, low[:, index], "amin")
            one["max"].scatter_reduce_(1, rows, high[:, index], "amax")

    @staticmethod
    def _settle_shifts(moments: Sequence[Moments], values: Tensor, where: Tensor) -> Tensor:
        """Take the first value that counts as a feature's shift, once; returns all (features, L).

        Args:
            moments: L accumulators.
            values: (features, L, n).
            where: (features, L, n) bool.
        """
        shifts = torch.stack([one["shift"] for one in moments], 1)
        known = torch.stack([one["shifted"] for one in moments], 1)
        first = where.to(torch.uint8).argmax(2, keepdim=True)
        found = where.gather(2, first)[..., 0]
        shifts = torch.where(found & ~known, values.gather(2, first)[..., 0], shifts)
        known = known | found
        for index, one in enumerate(moments):
            one["shift"].copy_(shifts[:, index])
            one["shifted"].copy_(known[:, index])
        return shifts

    @staticmethod
    def _add_each_native(
        moments: Sequence[Moments], values: Tensor, at: Tensor | slice, where: Tensor
    ) -> None:
        columns = isinstance(at, slice)
        start = at.start or 0 if isinstance(at, slice) else 0
        rows = np.empty((1, 0), np.int64) if isinstance(at, slice) else at.numpy()
        given = values.numpy(), where.numpy()
        names = ("shift", "shifted", "count", "total", "squares", "min", "max")
        for index, one in enumerate(moments):
            held = (one.array(name) for name in names)
            load().moments(*given, index, columns, start, rows, *held)

    def merge(self, other: Moments, plan: Any = None) -> None:
        """Add the other's values, moved to this shift where both have one."""
        mine, theirs = self.tensors, other.clone(self.tensors["total"].device).tensors
        mine["shift"].copy_(torch.where(mine["shifted"], mine["shift"], theirs["shift"]))
        mine["shifted"].logical_or_(theirs["shifted"])
        delta = (theirs["shift"] - mine["shift"])[:, None]
        count = theirs["count"]
        theirs["squares"] += 2 * delta * theirs["total"] + count * delta.square()
        theirs["total"] += count * delta
        for name in ("count", "total", "squares"):
            mine[name] += theirs[name]
        mine["min"].copy_(torch.minimum(mine["min"], theirs["min"]))
        mine["max"].copy_(torch.maximum(mine["max"], theirs["max"]))

    def summary(self, rows: slice = slice(None), *, pooled: bool = True) -> dict[str, Tensor]:
        """Mean, population variance, minimum, maximum and count of chosen rows.

        Returns:
            Tensors (features,) over all chosen rows, or (rows, features) when not ``pooled``;
            NaN where nothing was counted.
        """
        names = ("count", "total", "squares", "min", "max")
        count, total, squares, low, high = (self.tensors[name][:, rows] for name in names)
        shift = self.tensors["shift"]
        if pooled:
            count, total, squares = count.sum(1), total.sum(1), squares.sum(1)
            nothing = total.new_full((len(total), 1), float("inf"))
            low = torch.cat([low, nothing], 1).amin(1)
            high = torch.cat([high, -nothing], 1).amax(1)
        else:
            count, total, squares, low, high = (v.T for v in (count, total, squares, low, high))
        offset = total / count
        return {
            "mean": shift + offset,
            "variance": (squares / count - offset.square()).clamp(min=0),
            "min": low.masked_fill(count == 0, float("nan")),
            "max": high.masked_fill(count == 0, float("nan")),
            "count": count,
        }
