r"""Where tokens end under hardmax attention: on a polytope, at its vertices but for a few.

Let A be symmetric positive definite, the step positive, and the tokens not zero and distinct. Then
each token converges to one of finitely many points on the boundary of a convex polytope K. The
vertices of K are the leaders, each of which stands still from some layer on. A limit s that is no
vertex is the projection of the origin, in the norm of A, on a face F of K:

.. math:: F = \{y \in K : \langle A s, y \rangle \text{ is largest}\}, \quad
    \langle A s, y - s \rangle = 0 \text{ for all } y \in F

After arXiv 2407.01602; see :mod:`geomhooks.functional.hardmax.dynamics` and
:mod:`geomhooks.functional.hardmax.leaders`.
"""

from __future__ import annotations

from itertools import combinations
from math import comb
from typing import NamedTuple

import torch
from torch import Tensor

from geomhooks.functional.hardmax.dynamics import form_norm, positive_definite
from geomhooks.functional.shapes import as_matrix

__all__ = ["LimitingPolytope", "NearestLimit", "limiting_polytope", "nearest_limit"]

MOST = 1 << 18  # sets of vertices that are tried


class LimitingPolytope(NamedTuple):
    """What tokens converge to, given their leaders."""

    vertices: Tensor
    """(L, d) the leaders"""
    points: Tensor
    """(P, d) where else a token can end: projections of the origin on faces"""
    faces: Tensor
    """(P, L) bool, the vertices of the face that each of these is on"""

    @property
    def limits(self) -> Tensor:
        """(L + P, d) vertices and points."""
        return torch.cat((self.vertices, self.points))


class NearestLimit(NamedTuple):
    """Which limit each token is nearest to."""

    nearest: Tensor
    """(..., n) int64, below L a vertex, from L on a point on a face"""
    distance: Tensor
    """(..., n) to it, in the norm of A"""


def limiting_polytope(
    vertices: Tensor, form: Tensor | None = None, *, tolerance: float = 1e-6
) -> LimitingPolytope:
    """The polytope of some leaders, and the points on its faces where tokens can end.

    Every set of up to d vertices is tried, which suffices by Caratheodory's theorem: meant for the
    few leaders of one text, in few dimensions.

    Args:
        vertices: (L, d), such as the last states of :func:`geomhooks.functional.hardmax_path` at
            the leaders.
        form: (d, d) A, symmetric and positive definite; by default the identity.
        tolerance: relative to the largest norm, within which a vertex is on a face, or a point is
            the origin.

    Raises:
        ValueError: A is not as it has to be, some vertex is no leader among the others, or there
            are more than 2^18 sets to try.

    Example: a square, with the middle of each side.
        >>> corners = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
        >>> limiting_polytope(corners).points
        tensor([[-1.,  0.],
                [ 0., -1.],
                [ 0.,  1.],
                [ 1.,  0.]])
    """
    vertices = as_matrix(vertices, "vertices", "(L, d)")
    number, width = vertices.shape
    form = (
        torch.eye(width, dtype=vertices.dtype, device=vertices.device)
        if form is None
        else positive_definite(form, vertices)
    )
    # Tokens y with <y, y'> = <A z, z'>.
    rows = vertices @ torch.linalg.cholesky(form)
    products = rows @ rows.T
    rounding = tolerance * products.diagonal().amax()
    led = (products > products.diagonal()[:, None] - rounding).sum(1) != 1
    if bool(led.any()):
        raise ValueError(
            f"vertices: {int(led.sum())} of {number}, the first of them number "
            f"{int(led.to(torch.uint8).argmax())}, do not lead among the others: another one is as "
            "far or farther in their direction. Give leaders alone, each once"
        )
    largest = min(number, width)
    sets = sum(comb(number, size) for size in range(2, largest + 1))
    if sets > MOST:
        raise ValueError(f"{number} vertices in {width} dimensions have {sets} sets, beyond {MOST}")
    points, faces = (
        [vertices[:0]],
        [torch.zeros((0, number), dtype=torch.bool, device=rows.device)],
    )
    for size in range(2, largest + 1):
        chosen = torch.tensor(list(combinations(range(number), size)), device=rows.device)
        grams = products[chosen[:, :, None], chosen[:, None, :]]
        weights, failed = torch.linalg.solve_ex(grams, torch.ones_like(grams[..., :1]))
        weights = weights[..., 0] / weights.sum(-2)
        projected = (weights[..., None] * rows[chosen]).sum(1)
        square = projected.square().sum(-1)
        reach = projected @ rows.T
        inside = (weights > tolerance).all(-1) & (square > rounding)
        inside &= (reach <= square[:, None] + rounding).all(-1)
        inside &= (reach.gather(1, chosen) - square[:, None]).abs().amax(-1) <= rounding
        inside &= failed == 0
        points.append((weights[..., None] * vertices[chosen]).sum(1)[inside])
        faces.append((reach >= square[:, None] - rounding)[inside])
    # A face that is no simplex is found by each of its simplices around the point.
    every, of = torch.unique(torch.cat(faces), dim=0, return_inverse=True)
    place = vertices.new_zeros((len(every), width)).index_copy_(0, of, torch.cat(points))
    order = torch.tensor(
        sorted(range(len(place)), key=lambda row: place[row].tolist()), device=place.device
    ).long()
    return LimitingPolytope(vertices, place[order], every[order])


def nearest_limit(
    states: Tensor, polytope: LimitingPolytope, form: Tensor | None = None
) -> NearestLimit:
    """Where tokens are about to end.

    Args:
        states: (..., n, d), such as the last of a path.
        polytope: of their leaders.
        form: (d, d) A, by default the identity.

    Example:
        >>> square = limiting_polytope(torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]]))
        >>> nearest_limit(torch.tensor([[1.0, 1.0], [0.9, 0.0]]), square)
        NearestLimit(nearest=tensor([0, 7]), distance=tensor([0.0000, 0.1000]))
    """
    apart = form_norm(states[..., None, :] - polytope.limits.to(states), form)
    found = apart.min(-1)
    return NearestLimit(found.indices, found.values)
