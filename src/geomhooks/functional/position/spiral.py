"""The path that vectors take in the plane of their leading components."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from geomhooks.functional.shapes import as_matrix

__all__ = ["PrincipalComponents", "principal_components", "winding_number"]


class PrincipalComponents(NamedTuple):
    """The leading terms of a singular value decomposition, U S V^T."""

    scores: Tensor
    """(T, k) the vectors' coordinates along the axes, U S"""
    axes: Tensor
    """(k, d) orthonormal rows, V^T; the largest entry of each is positive"""
    shares: Tensor
    """(k,) share of each axis in the sum of squares"""


def principal_components(vectors: Tensor, number: int = 2) -> PrincipalComponents:
    """Leading principal components about the origin; pos has zero mean by its definition.

    They come from the smaller Gram matrix, in float64: several times as fast as a singular value
    decomposition, and only components below 1e-8 of the largest are lost in rounding.

    Args:
        vectors: (T, d), a row each; not centred here.
        number: k.

    Returns:
        NaN where an entry is not finite; shares are NaN where all vectors are zero.

    Raises:
        ValueError: not a matrix, or not so many components.

    Example:
        >>> found = principal_components(torch.tensor([[3.0, 0.0], [-3.0, 0.0], [0.0, 1.0]]), 1)
        >>> found.axes, found.shares
        (tensor([[1., 0.]]), tensor([0.9474]))
    """
    vectors = as_matrix(vectors, "vectors")
    rows, columns = vectors.shape
    if not 1 <= number <= min(rows, columns):
        raise ValueError(
            f"number={number}: {rows} vectors of width {columns} have 1 to {min(rows, columns)} "
            "principal components"
        )
    if not bool(torch.isfinite(vectors).all()):
        nan = float("nan")
        return PrincipalComponents(
            vectors.new_full((rows, number), nan),
            vectors.new_full((number, columns), nan),
            vectors.new_full((number,), nan),
        )
    largest = vectors.abs().max()
    scaled = vectors.double() / largest.clamp(min=torch.finfo(vectors.dtype).tiny)
    if rows <= columns:
        left = torch.linalg.eigh(scaled @ scaled.T).eigenvectors.flip(1)[:, :number]
        axes = torch.linalg.qr(scaled.T @ left).Q.T
    else:
        axes = torch.linalg.eigh(scaled.T @ scaled).eigenvectors.flip(1)[:, :number].T
    # A decomposition is free to turn an axis around; settle it.
    axes = axes * axes.gather(1, axes.abs().argmax(1, keepdim=True)).sign()
    scores = scaled @ axes.T
    shares = scores.square().sum(0) / scaled.square().sum()
    return PrincipalComponents(
        scores.to(vectors.dtype) * largest, axes.to(vectors.dtype), shares.to(vectors.dtype)
    )


def winding_number(path: Tensor) -> Tensor:
    """How often a path in the plane goes around the origin, counter-clockwise.

    The sum of the angles between successive points as seen from the origin, each in (-pi, pi],
    over 2 pi. It is no whole number unless the path is closed. Where steps are larger than half a
    turn, as in noise, the path in between is unknown and the number says nothing.

    Args:
        path: (T, 2), such as the scores of two principal components, whose sign, and so the sense
            of the turn, is arbitrary.

    Returns:
        () NaN for fewer than two points.

    Raises:
        ValueError: the points do not lie in a plane.

    Example:
        >>> angle = torch.linspace(0, 3 * torch.pi, 50)
        >>> winding_number(torch.stack([angle.cos(), angle.sin()], dim=1))
        tensor(1.5000)
    """
    path = as_matrix(path, "path", "(T, 2)")
    if path.shape[1] != 2:
        raise ValueError(f"path: shape (T, 2) is needed, found {tuple(path.shape)}")
    if len(path) < 2:
        return path.new_full((), float("nan"))
    angles = torch.atan2(path[:, 1], path[:, 0])
    steps = angles.diff()
    steps = steps - 2 * math.pi * torch.ceil(steps / (2 * math.pi) - 0.5)
    return steps.sum() / (2 * math.pi)
