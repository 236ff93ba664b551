"""Sums of outer products of hidden states: a matrix product of many rows, none of them widened.

A few rows at a time are multiplied in float32 and added to the float64 state. Sums over so few rows
keep their digits: entry (i, j) is right to a few 1e-7 of sqrt(c_ii c_jj). Only the upper triangle
is computed, by blocks of columns, which takes little more than half of the work.

Float32 products of reduced precision (TF32, or bfloat16 on some CPUs) are not good enough, and
whether torch uses them is a setting of the user's, which is none of a hook's business: it is looked
up, not changed. Where it is on, each factor is split in parts that such products are exact for, or
widened.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import ceil

import torch
from torch import Tensor

from geomhooks.accumulators.second_moment import SecondMoment
from geomhooks.functional.precision import precision_on

__all__ = ["add_products"]

# Rows multiplied at a time, and columns of a block. Few and small where they stay in a CPU's cache.
ROWS, COLUMNS = 1024, 256
ROWS_ON_DEVICES, COLUMNS_ON_DEVICES = 4096, 1024
SPLITTER = 2.0**13 + 1  # leaves 11 of float32's 24 digits to the first part: those of TF32


def add_products(targets: Sequence[SecondMoment], out: Tensor, keep: Tensor, shift: Tensor) -> None:
    """Add a forward's sums of x and x x^T, x = h - shift, to each of the targets.

    Args:
        targets: what they are added to.
        out: (B, T, d) hidden states h.
        keep: (B, T) bool, tokens that count; others may hold NaN.
        shift: (d,).
    """
    on_cpu = out.device.type == "cpu"
    rows, columns = (ROWS, COLUMNS) if on_cpu else (ROWS_ON_DEVICES, COLUMNS_ON_DEVICES)
    dtype = torch.float64 if out.dtype == torch.float64 else torch.float32
    precision = "highest" if dtype == torch.float64 else precision_on(out.device)
    shift = shift.to(dtype)
    for piece in pieces(keep.shape[0], keep.shape[1], rows):
        x = torch.sub(out[piece], shift) if out.dtype == dtype else out[piece].to(dtype).sub_(shift)
        x = x.masked_fill_(~keep[piece][..., None], 0.0).flatten(0, 1)
        total = x.sum(0)
        left, right = factors(x, precision)
        for target in targets:
            target["total"].add_(total)
        for first in range(0, x.shape[1], columns):
            block = left[:, first : first + columns].T @ right[:, first:]
            for target in targets:
                target["outer"][first : first + columns, first:].add_(block)
    number = keep.sum()
    for target in targets:
        target["count"].add_(number)
        target["forwards"].add_(1)


def pieces(batch: int, length: int, rows: int) -> Iterator[tuple[slice, slice]]:
    """Parts of (batch, length) that have about as many entries as ``rows``, and no more.

    Example:
        >>> list(pieces(3, 4, 8))
        [(slice(0, 2, None), slice(0, 4, None)), (slice(2, 4, None), slice(0, 4, None))]
        >>> list(pieces(1, 9, 8))
        [(slice(0, 1, None), slice(0, 5, None)), (slice(0, 1, None), slice(5, 10, None))]
    """
    together, span = max(1, rows // length), ceil(length / ceil(length / rows))
    for first in range(0, batch, together):
        for start in range(0, length, span):
            yield slice(first, first + together), slice(start, start + span)


def factors(x: Tensor, precision: str) -> tuple[Tensor, Tensor]:
    """Two matrices whose product left.T @ right is x.T @ x, whatever the precision does to it.

    Args:
        x: (n, d).
        precision: "highest"; "tf32", and then x is split in two parts with few enough digits for
            TF32, x.T @ x = high.T @ high + high.T @ low + low.T @ high to 1e-7; or any other, and
            then x is widened.
    """
    if precision == "highest":
        return x, x
    if precision == "tf32" and x.device.type != "cpu":
        return split_factors(x)
    x = x.double()
    return x, x


def split_factors(x: Tensor) -> tuple[Tensor, Tensor]:
    """The factors (3 n, d) of x.T @ x, x (n, d), with no more than 12 binary digits an entry."""
    scaled = x * SPLITTER
    high = scaled - (scaled - x)
    low = x - high
    return torch.cat([high, high, low]), torch.cat([high, low, high])
