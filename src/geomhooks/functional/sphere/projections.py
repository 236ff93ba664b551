r"""Directions in two or three dimensions, to be looked at.

Principal geodesic analysis is principal component analysis on the sphere: about the Frechet mean,
the point from which the squared angles to all are least, directions are taken to the tangent plane,
:math:`v_i = \mathrm{Log}_\mu(x_i)`, whose principal axes are the geodesics through the mean along
which they vary most (P. T. Fletcher, C. Lu, S. M. Pizer, S. Joshi, "Principal geodesic analysis for
the study of nonlinear statistics of shape", IEEE Transactions on Medical Imaging 23 (2004), whose
algorithm, in the tangent plane, this is). It keeps angles to the mean as they are; its axes and the
share of variance on each say what is lost.

UMAP keeps who is near whom, and neither angles nor lengths (L. McInnes, J. Healy, J. Melville,
"UMAP: uniform manifold approximation and projection for dimension reduction", arXiv 1802.03426). It
is what R. Molina ("Traveling Words", arXiv 2309.07315) draws paths of words with, among the rows of
the embedding. Whether a word comes near another one is to be asked of angles, not of a picture.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from geomhooks.errors import MissingExtraError, UnidentifiedError
from geomhooks.functional.position.spiral import principal_components
from geomhooks.functional.shapes import as_float, as_matrix
from geomhooks.functional.sphere.directions import resultant_length
from geomhooks.functional.sphere.geodesics import exp_map, log_map

__all__ = [
    "PrincipalGeodesics",
    "UmapProjection",
    "frechet_mean",
    "principal_geodesics",
    "umap_projection",
]

STEPS = 1000  # the mean is found in some tens unless points are spread over the whole sphere
CLOSE = 1e-11  # radians
CANCELS = 1e-8  # no mean direction is to be told from rounding


@dataclass(frozen=True)
class PrincipalGeodesics:
    """The geodesics through the mean of some directions along which these vary most.

    Attributes:
        mean: (d,) of length 1, the Frechet mean.
        axes: (k, d) orthonormal, and orthogonal to the mean; the largest entry is positive.
        shares: (k,) share of each in the sum of squared angles to the mean.
        scores: (n, k) of the directions that they were found for, in radians.
        centred: the mean of the entries is taken off points first.
    """

    mean: Tensor
    axes: Tensor
    shares: Tensor
    scores: Tensor
    centred: bool

    def transform(self, points: Tensor) -> Tensor:
        """Scores of further directions.

        Args:
            points: (..., d).

        Returns:
            (..., k) in radians; NaN where a point is zero, not finite, or opposite to the mean.

        Raises:
            ValueError: the points are of another width.
        """
        tangents = log_map(self.mean, points, centred=self.centred)
        return tangents @ self.axes.T.to(tangents)

    def rebuild(self, scores: Tensor) -> Tensor:
        """Directions that have these scores, and nothing beside.

        Args:
            scores: (..., k).

        Returns:
            (..., d) of length 1.
        """
        return exp_map(self.mean, scores.to(self.axes) @ self.axes)


@dataclass(frozen=True)
class UmapProjection:
    """An embedding of some points, among which others can be placed.

    Attributes:
        embedding: (n, k) of the points that it was made of.
        directions: points are divided by their lengths first.
        model: the fitted ``umap.UMAP``.
    """

    embedding: Tensor
    directions: bool
    model: Any

    def transform(self, points: Tensor) -> Tensor:
        """Where further points come to lie, among those that the embedding was made of.

        Points that are placed in one call can differ in digits from those placed one by one.

        Args:
            points: (..., d).

        Returns:
            (..., k) NaN where a point is not finite, or, of directions, zero.

        Raises:
            ValueError: the points are of another width.
        """
        width = self.model._raw_data.shape[1]
        if not points.ndim or points.shape[-1] != width:
            raise ValueError(f"points: shape (..., {width}) is needed, found {tuple(points.shape)}")
        flat = prepared(points.reshape(-1, width), self.directions)
        usable = torch.isfinite(flat).all(1)
        placed = self.embedding.new_full((len(flat), self.embedding.shape[1]), float("nan"))
        if usable.any():
            with threads_as_they_are():
                found = self.model.transform(flat[usable].cpu().numpy())
            placed[usable] = torch.from_numpy(found).to(placed)
        return placed.view(*points.shape[:-1], -1)


def frechet_mean(points: Tensor, *, centred: bool = False) -> Tensor:
    r"""The direction from which the squared angles to all points are least.

    It is found by going where the mean of :math:`\mathrm{Log}_\mu(x_i)` points, from the direction
    of the arithmetic mean on. Where all points lie within a right angle of one direction there is
    one such mean; else it is the one next to where the search begins.

    Args:
        points: (n, d) directions.
        centred: take the mean of the entries off first.

    Returns:
        (d,) of length 1.

    Raises:
        ValueError: no matrix, or points that are zero or not finite.
        UnidentifiedError: the points cancel, or are so spread that the search finds no end.

    Example:
        >>> frechet_mean(torch.tensor([[1.0, 0.0], [0.0, 3.0]]))
        tensor([0.7071, 0.7071])
    """
    points = as_matrix(points, "points", "(n, d)")
    return mean_of(unit_points(points, centred)).to(points.dtype)


def principal_geodesics(
    points: Tensor, number: int = 2, *, centred: bool = False
) -> PrincipalGeodesics:
    """The leading principal geodesics of some directions, on which others can be projected.

    Args:
        points: (n, d) directions, such as the rows of an embedding, or states at all layers.
        number: k.
        centred: take the mean of the entries off first, here and of what is projected later.

    Raises:
        ValueError: no matrix, points that are zero or not finite, or not so many components.
        UnidentifiedError: the points have no Frechet mean that can be found.

    Example: points along a great circle in three dimensions.
        >>> angle = torch.tensor([-0.2, 0.0, 0.2])
        >>> points = torch.stack([angle.cos(), angle.sin(), torch.zeros(3)], dim=1)
        >>> found = principal_geodesics(points, 1)
        >>> found.scores.flatten(), found.shares
        (tensor([-0.2000,  0.0000,  0.2000]), tensor([1.]))
        >>> found.transform(torch.tensor([2.0, 2.0, 0.0]))
        tensor([0.7854])
    """
    points = as_matrix(points, "points", "(n, d)")
    unit = unit_points(points, centred)
    mean = mean_of(unit)
    found = principal_components(log_map(mean, unit), number)
    # The axes are those of the tangent plane but for rounding.
    axes = found.axes - (found.axes @ mean)[:, None] * mean
    parts = (mean, axes, found.shares, found.scores)
    mean, axes, shares, scores = (part.to(points.dtype) for part in parts)
    return PrincipalGeodesics(mean, axes, shares, scores, centred)


def umap_projection(
    points: Tensor,
    number: int = 2,
    *,
    neighbours: int = 15,
    least_distance: float = 0.1,
    directions: bool = True,
    seed: int = 0,
) -> UmapProjection:
    """Embed points by UMAP, so that others can be placed among them.

    Molina's pictures are made of the first 10 000 rows of GPT-2's embedding, in 3 dimensions, with
    ``directions=False``: rows as long as they are, among which states, several times as long, are
    placed. Angles say more of points on a sphere, and do not depend on lengths.

    Args:
        points: (n, d) such as the rows of an embedding.
        number: k.
        neighbours: how many nearest points of each the embedding is to keep together.
        least_distance: how near to each other points may come in it.
        directions: divide points by their lengths, here and of what is placed later.
        seed: of all random choices; the same seed on the same machine gives the same numbers.

    Raises:
        MissingExtraError: umap-learn is not installed.
        ValueError: no matrix, points that are not finite or, of directions, zero, or too few.

    Example:
        >>> rows = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
        >>> found = umap_projection(rows, neighbours=5)
        >>> found.embedding.shape, found.transform(rows[:3] * 2).shape
        (torch.Size([40, 2]), torch.Size([3, 2]))
    """
    with warnings.catch_warnings():
        # It tells of parts that need TensorFlow.
        warnings.simplefilter("ignore", ImportWarning)
        try:
            from umap import UMAP
        except ImportError as error:
            raise MissingExtraError(
                "umap_projection() needs umap-learn: pip install 'geomhooks[projections]'"
            ) from error
    points = as_matrix(points, "points", "(n, d)")
    rows = prepared(points, directions)
    refuse_odd(rows)
    if not 1 <= number < len(rows) - 1 or not 2 <= neighbours < len(rows):
        raise ValueError(
            f"{len(rows)} points: neighbours={neighbours} has to be from 2 to {len(rows) - 1}, and "
            f"number={number} from 1 to {len(rows) - 2}"
        )
    model = UMAP(
        n_neighbors=neighbours,
        n_components=number,
        min_dist=least_distance,
        random_state=seed,
        transform_seed=seed,
        n_jobs=1,
    )
    with threads_as_they_are():
        embedding = torch.from_numpy(model.fit_transform(rows.cpu().numpy()))
    return UmapProjection(embedding.to(points), directions, model)


@contextmanager
def threads_as_they_are() -> Iterator[None]:
    """Where numba starts its threads it tells OpenMP how many, which tells torch as well."""
    number = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(number)


def prepared(points: Tensor, directions: bool) -> Tensor:
    """Rows (n, d) in float32 as UMAP takes them."""
    points = as_float(points.detach())
    if directions:
        points = points / torch.linalg.vector_norm(points, dim=1, keepdim=True)
    return points.float()


def unit_points(points: Tensor, centred: bool) -> Tensor:
    """Directions (n, d) in float64.

    Raises:
        ValueError: some have none.
    """
    points = points.double()
    if centred:
        points = points - points.mean(1, keepdim=True)
    unit: Tensor = points / torch.linalg.vector_norm(points, dim=1, keepdim=True)
    refuse_odd(unit)
    return unit


def refuse_odd(rows: Tensor) -> None:
    """Raise where rows are not finite.

    Raises:
        ValueError: some are.
    """
    bad = int((~torch.isfinite(rows)).any(1).sum())
    if bad:
        raise ValueError(
            f"{bad} of {len(rows)} points are not finite, or zero and so without direction; leave "
            "them out"
        )


def mean_of(unit: Tensor) -> Tensor:
    """The Frechet mean of unit vectors (n, d) in float64.

    A step needs two products with the matrix: with c = x mu and w = arccos(c) / sqrt(1 - c^2), the
    mean of the logarithms is the mean of w x less that of w c, times mu.

    Raises:
        UnidentifiedError: there is none, or it is not found.
    """
    number, total = len(unit), unit.sum(0)
    if float(resultant_length(total, unit.new_tensor(number))) < CANCELS:
        raise UnidentifiedError(
            f"{number} directions cancel: they have no mean direction to look at them from"
        )
    mean = total / torch.linalg.vector_norm(total)
    for _ in range(STEPS):
        cosine = (unit @ mean).clamp(-1, 1)
        sine = (1 - cosine.square()).sqrt()
        weight = torch.where(sine > 1e-7, torch.acos(cosine) / sine, 1.0)
        step = (weight @ unit - (weight @ cosine) * mean) / number
        length = float(torch.linalg.vector_norm(step))
        mean = exp_map(mean, step)
        if length < CLOSE:
            return mean
    raise UnidentifiedError(
        f"no Frechet mean of {number} directions was found in {STEPS} steps: they are spread over "
        "the whole sphere; project fewer, or look at them by umap_projection"
    )
