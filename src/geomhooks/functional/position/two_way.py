"""The two-way least-squares fit h[c, t] = a_t + ctx_c over any set of observed cells.

Pure functions of finished sums. Notation: W[c, t] counts the tokens of context c at position t,
n_c and n_t are its sums, S_c and S_t the sums of h over a context and over a position::

    G = sum_c W_c W_c^T / n_c  (T, T),   R = sum_c W_c S_c^T / n_c  (T, d),
    M = diag(n_t) - G,                   Z = S_t - R.

The normal equations of the positions, the contexts eliminated, are M a = Z: no hidden state is
needed. M is the Laplacian of the graph that joins positions which share a context; its null space
has one dimension for each connected component, so the fit is determined (up to one vector, which
goes into the mean) exactly when all positions are connected.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from geomhooks.functional.position.relative_norm import largest_eigenvalue

__all__ = [
    "Components",
    "Design",
    "connected_positions",
    "singular_value_floor",
    "variance_components",
]


class Components(NamedTuple):
    """A trace over d for each of the parts of h = mu + pos + ctx + resid."""

    pos: Tensor
    ctx: Tensor
    resid: Tensor


@dataclass(frozen=True)
class Design:
    """Which cells were observed, over positions that occur; the same for all sites of a stream.

    Attributes:
        count: (T,) tokens at each position, n_t.
        gram: (T, T) G.
        contexts: number of contexts, C.
        inverse: (T, T) pseudo-inverse of M.
    """

    count: Tensor
    gram: Tensor
    contexts: int
    inverse: Tensor

    @classmethod
    def of(cls, count: Tensor, gram: Tensor, contexts: int) -> Design:
        """Invert M, whose null space is the constant vector when the positions are connected.

        Args:
            count: (T,) positive counts.
            gram: (T, T) symmetric.
            contexts: number of contexts.

        Returns:
            With an inverse of NaN where M has none, which no counts of contexts have.
        """
        size = len(count)
        laplacian = torch.diag(count.to(gram.dtype)) - gram
        # Adding a multiple of the projection on the null space makes M positive definite and
        # leaves its pseudo-inverse readable off the inverse.
        scale = laplacian.diagonal().mean().clamp(min=1.0)
        flat = torch.full_like(gram, 1.0 / size)
        inverse, failed = torch.linalg.inv_ex(laplacian + scale * flat)
        inverse = torch.where(failed == 0, inverse - flat / scale, float("nan"))
        return cls(count, gram, contexts, (inverse + inverse.T) / 2)

    def repeated(self, times: int) -> Design:
        """The design of a site that shows every token several times in one forward."""
        if times == 1:
            return self
        return Design(self.count * times, self.gram * times, self.contexts, self.inverse / times)

    @cached_property
    def inverse_norm(self) -> Tensor:
        """Largest eigenvalue of the pseudo-inverse of M."""
        return largest_eigenvalue(self.inverse)

    @property
    def tokens(self) -> Tensor:
        """Number of tokens, N."""
        return self.count.sum()


def connected_positions(gram: Tensor) -> list[list[int]]:
    """Groups of positions that share contexts, directly or through others.

    Args:
        gram: (T, T); an entry off the diagonal is positive where two positions share a context.

    Example:
        >>> gram = torch.tensor([[1.0, 0.5, 0.0], [0.5, 1.0, 0.0], [0.0, 0.0, 1.0]])
        >>> connected_positions(gram)
        [[0, 1], [2]]
    """
    # An entry is a sum of reciprocals of context lengths, at least 1 / T^2: far above rounding.
    joined = (gram > 1e-9).cpu()  # each step of the search is read
    unseen = torch.ones(len(gram), dtype=torch.bool, device="cpu")
    groups = []
    for position in range(len(gram)):
        if not unseen[position]:
            continue
        group = torch.zeros_like(unseen)
        group[position] = True
        size = 0
        while size != int(group.sum()):
            size = int(group.sum())
            group |= joined[group].any(0)
        unseen &= ~group
        groups.append(group.nonzero()[:, 0].tolist())
    return groups


def variance_components(
    design: Design, pos_reduction: Tensor, ctx_reduction: Tensor, resid: Tensor
) -> Components:
    """Random-effects variance components, traces over d (Henderson's method 3).

    Each reduction in sum of squares is set equal to its expectation,
    E[R(pos|ctx)] = s2_pos tr(M) + (T - 1) s2_resid, and the same with contexts and positions
    exchanged. On a complete grid they are the ANOVA estimates (MS_pos - MS_resid) / C and
    (MS_ctx - MS_resid) / T. Components may come out negative when they are zero in truth.

    Args:
        design: observed cells.
        pos_reduction: R(pos|ctx) = <Z, M^+ Z>.
        ctx_reduction: R(ctx|pos).
        resid: residual sum of squares.

    Returns:
        Components; NaN where there are no degrees of freedom.

    Reference: C. R. Henderson, "Estimation of variance and covariance components",
    Biometrics 9 (1953) 226-252.
    """
    tokens, positions, contexts = int(design.tokens), len(design.count), design.contexts
    free = tokens - positions - contexts + 1
    nan = torch.full_like(resid, float("nan"))
    s2_resid = resid / free if free > 0 else nan
    spread = (design.count - design.gram.diagonal()).sum()
    s2_pos = (pos_reduction - (positions - 1) * s2_resid) / spread if positions > 1 else nan
    s2_ctx = (
        (ctx_reduction - (contexts - 1) * s2_resid) / (tokens - positions) if contexts > 1 else nan
    )
    return Components(s2_pos, s2_ctx, s2_resid)


def singular_value_floor(
    noise: Tensor, largest: Tensor, width: int, trace: Tensor, strongest: Tensor | None = None
) -> Tensor:
    """Largest singular value of pos (T, d) that sampling noise alone is expected to give.

    The noise in pos has covariance M^+ between positions and S between directions, of trace
    s2_resid. A Gaussian matrix A X B has E sigma_1 <= |A|_op |B|_F + |A|_F |B|_op, with
    A A^T = M^+ and B^T B = S (Chevet's inequality), so the floor is

    sqrt(|M^+|_op s2_resid) + sqrt(tr(M^+) |S|_op).

    Where |S|_op is not known, noise is taken as equal in all d directions; on a complete grid the
    floor then is sqrt(s2 / (C d)) (sqrt(d) + sqrt(T - 1)). Directions are not alike in a real
    model, whose noise reaches higher in a few of them.

    Args:
        noise: () s2_resid, a trace over d.
        largest: () largest eigenvalue of M^+ (T, T).
        width: d.
        trace: () trace of M^+.
        strongest: () largest eigenvalue of S (d, d), by default s2_resid / d.
    """
    strongest = noise / width if strongest is None else strongest
    parts = largest.clamp(min=0) * noise.clamp(min=0), trace.clamp(min=0) * strongest.clamp(min=0)
    floor: Tensor = parts[0].sqrt() + parts[1].sqrt()
    return floor
