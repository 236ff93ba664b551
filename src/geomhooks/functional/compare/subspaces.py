r"""How far the leading directions of two matrices span the same space.

The principal angles between two k-dimensional spaces with orthonormal bases U and V are the arc
cosines of the singular values of :math:`U^T V` (Björck & Golub 1973): all zero for the same space,
and :math:`\pi / 2` for directions of one that the other has nothing of. Their mean squared cosine,
:math:`|U^T V|^2 / k`, is the overlap; for random spaces in n dimensions it is k / n on average.
"""

from __future__ import annotations

from functools import cache
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from geomhooks.functional.compare.resampling import permuted
from geomhooks.functional.shapes import as_matrix

__all__ = ["SubspaceAngles", "pos_subspace_angles", "principal_angles", "subspace_angles"]

RANDOM_SPACES = 200  # draws behind the expected angles


class SubspaceAngles(NamedTuple):
    """Angles between two spaces, beside what chance gives."""

    angles: Tensor
    """(k,) radians, ascending"""
    overlap: float
    """mean squared cosine of the angles: 1 for the same space, 0 for orthogonal ones"""
    expected_angles: Tensor
    """(k,) mean angles of random spaces of this dimension"""
    expected_overlap: float
    """mean overlap of random spaces"""
    p_value: float
    """of an overlap as large when the rows of one matrix are shuffled"""


def principal_angles(first: Tensor, second: Tensor) -> Tensor:
    """Principal angles between the spaces that the columns of two matrices span.

    Small angles come from their sines, so that they are exact to the last digits (Knyazev &
    Argentati 2002).

    Args:
        first: (n, k) of full rank, k at most n.
        second: (n, k').

    Returns:
        (min(k, k'),) radians, ascending.

    Raises:
        ValueError: shapes that do not fit, or columns that do not span so many dimensions.

    Example:
        >>> one, other = torch.eye(3)[:, :2], torch.eye(3)[:, 1:]
        >>> principal_angles(one, other)
        tensor([0.0000, 1.5708])
    """
    one, other = _same_rows(first, second)
    bases = _leading(one, one.shape[1], "first"), _leading(other, other.shape[1], "second")
    # The sines are those of the smaller space's directions to the larger one.
    large, small = sorted(bases, key=lambda basis: -basis.shape[1])
    return _angles(large, small)


def subspace_angles(
    first: Tensor,
    second: Tensor,
    dimensions: int,
    *,
    centre: bool = False,
    permutations: int = 999,
    seed: int = 0,
) -> SubspaceAngles:
    """Angles between the leading column spaces of two matrices with the same rows.

    A leading space is well determined where its last singular value is well above the next one; a
    swap of two directions of nearly equal strength across that border shows as a right angle.

    Args:
        first: (n, m), a row for each thing that both are about.
        second: (n, m').
        dimensions: k, of the leading left singular vectors.
        centre: take the mean row off before, so that random spaces have n - 1 dimensions.
        permutations: random orders of the rows of ``second`` for the p-value; NaN for 0.
        seed: of all draws.

    Raises:
        ValueError: shapes that do not fit, entries that are not finite, or a matrix that does not
            have so many dimensions.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> path = torch.randn(40, 2, generator=generator)
        >>> one, other = (path @ torch.randn(2, 9, generator=generator) for _ in range(2))
        >>> found = subspace_angles(one, other, 2)
        >>> round(found.overlap, 6), found.expected_overlap, found.p_value
        (1.0, 0.05, 0.001)
    """
    sides = [side.double() for side in _same_rows(first, second)]
    if centre:
        sides = [side - side.mean(0) for side in sides]
    bases = _leading(sides[0], dimensions, "first"), _leading(sides[1], dimensions, "second")
    number = len(sides[0])

    def overlap(order: Tensor) -> float:
        return float((bases[0].T @ bases[1][order]).square().sum()) / dimensions

    value = overlap(torch.arange(number, device="cpu"))
    return SubspaceAngles(
        _angles(*bases),
        value,
        _random_angles(number - centre, dimensions, seed).clone(),
        dimensions / (number - centre),
        permuted(overlap, value, number, permutations, seed).p_value,
    )


def pos_subspace_angles(
    first: Tensor,
    second: Tensor,
    dimensions: int,
    *,
    side: Literal["positions", "directions"] = "positions",
    permutations: int = 999,
    seed: int = 0,
) -> SubspaceAngles:
    r"""Angles between the leading singular vectors of the pos of two runs.

    Of :math:`pos = U S V^T`, the left vectors are patterns over positions, (T, k), and the right
    ones directions of the hidden states, (d, k). Two models that were trained apart have hidden
    states in bases of their own: a rotation of all hidden states, undone by the weights around
    them, changes V and means nothing. Between models, only ``"positions"`` can be compared. Of two
    checkpoints of one model, or two layers of a residual stream, ``"directions"`` says whether pos
    has stayed where it was.

    The p-value asks whether positions (or entries) mean anything at all: any two smooth paths are
    alike in being smooth, and have small ones.

    Args:
        first: (T, d) pos of one run; rows with NaN, of positions that were not seen, are left out,
            and so are those beyond the shorter of both.
        second: (T', d'), with d' = d where directions are compared.
        dimensions: k.
        side: which singular vectors.
        permutations: as :func:`subspace_angles`.
        seed: of all draws.

    Raises:
        ValueError: as :func:`subspace_angles`.
    """
    if side not in ("positions", "directions"):
        raise ValueError(f'side={side!r}: "positions" or "directions" is needed')
    one, other = as_matrix(first, "first"), as_matrix(second, "second")
    if side == "directions":
        one, other = (rows[torch.isfinite(rows).all(1)].T for rows in (one, other))
    else:
        length = min(len(one), len(other))
        one, other = one[:length], other[:length]
        seen = torch.isfinite(one).all(1) & torch.isfinite(other).all(1).to(one.device)
        one, other = one[seen], other[seen]
    return subspace_angles(
        one, other, dimensions, centre=side == "positions", permutations=permutations, seed=seed
    )


def _same_rows(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    one, other = as_matrix(first, "first", "(n, m)"), as_matrix(second, "second", "(n, m)")
    if len(one) != len(other):
        raise ValueError(
            f"both need as many rows, found {tuple(first.shape)} and {tuple(second.shape)}"
        )
    return one, other.to(one.device)


def _leading(matrix: Tensor, dimensions: int, name: str) -> Tensor:
    """(n, k) leading left singular vectors."""
    if not bool(torch.isfinite(matrix).all()):
        raise ValueError(f"{name}: some entries are not finite")
    left, values, _ = torch.linalg.svd(matrix, full_matrices=False)
    rank = int((values > values[0] * max(matrix.shape) * torch.finfo(matrix.dtype).eps).sum())
    if not 1 <= dimensions <= rank:
        raise ValueError(f"{name} spans {rank} dimensions, and {dimensions} are asked for")
    leading: Tensor = left[:, :dimensions].contiguous()
    return leading


def _angles(large: Tensor, small: Tensor) -> Tensor:
    small = small.to(large)
    product = large.T @ small
    cosines: Tensor = torch.linalg.svdvals(product).clamp(max=1)
    sines: Tensor = torch.linalg.svdvals(small - large @ product).flip(0).clamp(max=1)
    return torch.where(cosines.square() < 0.5, cosines.acos(), sines.asin())


@cache
def _random_angles(n: int, dimensions: int, seed: int) -> Tensor:
    """Mean principal angles of two random spaces, of which one may as well be a fixed one."""
    generator = torch.Generator().manual_seed(seed)
    found = torch.zeros(dimensions, dtype=torch.float64, device="cpu")
    fixed = torch.eye(n, dimensions, dtype=torch.float64, device="cpu")
    for _ in range(RANDOM_SPACES):
        entries = torch.randn(n, dimensions, generator=generator, dtype=torch.float64, device="cpu")
        found += _angles(fixed, torch.linalg.qr(entries).Q) / RANDOM_SPACES
    return found
