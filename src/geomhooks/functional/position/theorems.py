r"""What Song & Zhong (arXiv 2310.04861) prove of smooth and incoherent parts, checked in numbers.

**Smooth means of low frequency.** They bound how far the cosine Gram matrix G of pos is from one
of k low frequencies by finite differences of G. So does this, with constants of its own. Let Q be
the first k columns of the cosine basis D and

.. math:: e = \tfrac{1}{T} \| G - Q Q^\top G Q Q^\top \|, \quad
    \delta_m = T^{2m} \max |\Delta^{(m,m)} \tilde G|,

in the norm of operators, with :math:`\tilde G` of size 2T the even reflection of G in both indices,
which goes around. Over the frequencies of D the m-th differences multiply :math:`\hat G = D^T G D`
from both sides by a diagonal S of entries :math:`(2 \sin(\pi j / 2T))^m \ge (2j/T)^m`, and the
matrix of differences, at most 2T times its largest entry in norm, has twice the norm of
:math:`S \hat G S`. So the block of frequencies from k on has, over T, at most the norm
:math:`c = \delta_m / (2k)^{2m}`; the blocks beside it at most :math:`\sqrt{c}`, because G
is positive and its norm at most T; and

.. math:: e \le \tfrac{c}{2} + \sqrt{\tfrac{c^2}{4} + c}.

**Incoherent means that kernels factorise.** With pos and ctx in spans that are nearly orthogonal,
the kernel exp(x^T W y) is nearly the product of four, one for each pair of parts, each of which
sees W through the spans of its two parts alone.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from geomhooks.functional.cosines import cosines, unit_rows
from geomhooks.functional.position.smoothness import cosine_basis
from geomhooks.functional.shapes import as_matrix

__all__ = ["KernelFactors", "LowFrequency", "kernel_factorisation", "low_frequency_bound"]


class LowFrequency(NamedTuple):
    """How near the Gram matrix of pos is to one of low frequencies."""

    error: Tensor
    """() e, between 0 and 1"""
    bound: Tensor
    """() what the differences guarantee; says nothing above 1"""
    difference: Tensor
    """() the scaled difference"""


class KernelFactors(NamedTuple):
    """The logarithm of the kernel, and of its four factors."""

    total: Tensor
    """(T, S) x^T W y"""
    factors: Tensor
    """(2, 2, T, S) by the part, pos or ctx, of query and key"""
    max_error: Tensor
    """() largest |log of the kernel - log of the product|"""
    relative_error: Tensor
    """() its root mean square over that of the kernel's own logarithm about its mean"""


def low_frequency_bound(pos: Tensor, frequencies: int = 10, order: int = 1) -> LowFrequency:
    """The error of keeping few frequencies of the Gram matrix of pos, and a bound of it.

    Args:
        pos: (T, d) of successive positions.
        frequencies: k.
        order: m, of the differences.

    Returns:
        In float64.

    Raises:
        ValueError: not a matrix, or a number that is not possible.

    Example:
        >>> angle = torch.arange(200) * 0.01
        >>> found = low_frequency_bound(torch.stack([angle.cos(), angle.sin()], dim=1), 20)
        >>> bool(found.error < found.bound < 0.1)
        True
    """
    unit = unit_rows(pos).double()
    length = len(unit)
    if order < 1:
        raise ValueError(f"order={order}: a positive number is needed")
    basis = cosine_basis(length, frequencies, unit)
    gram = cosines(unit)
    left = gram - basis @ (basis.T @ gram @ basis) @ basis.T
    finite = bool(torch.isfinite(left).all())
    error = torch.linalg.matrix_norm(left, 2) / length if finite else left.new_tensor(float("nan"))
    around = torch.cat((unit, unit.flip(0)))
    for _ in range(order):
        around = around - around.roll(1, 0)
    # The matrix of differences is a Gram matrix: its largest entry stands on the diagonal.
    difference = around.square().sum(1).max() * length ** (2 * order)
    c = difference / (2 * frequencies) ** (2 * order)
    return LowFrequency(error, c / 2 + (c.square() / 4 + c).sqrt(), difference)


def kernel_factorisation(
    query: tuple[Tensor, Tensor],
    key: tuple[Tensor, Tensor],
    weight: Tensor,
    spans: tuple[Tensor, Tensor],
) -> KernelFactors:
    r"""The kernel exp(x^T W y) against the product of its four factors.

    .. math:: x^\top W y \approx \sum_{a, b} x_a^\top \Pi_a W \Pi_b y_b, \quad x = x_1 + x_2

    with the projections onto the spans of pos (1) and of ctx (2), in which W is seen. Where each
    part lies in its span the factors are exact; the error is that of parts which reach out of it,
    as they do where a span holds the leading directions only.

    Args:
        query: pos and ctx of the tokens that ask, (T, d) each, after the norm.
        key: of those that are asked, (S, d).
        weight: (d, d), of :func:`query_key_weight`.
        spans: orthonormal columns (d, r1) and (d, r2), such as the leading right singular vectors
            of pos and ctx.

    Raises:
        ValueError: shapes do not fit.
    """
    x = [as_matrix(part, "query") for part in query]
    y = [as_matrix(part, "key") for part in key]
    width = weight.shape[0]
    for tensor in (*x, *y, *(span.T for span in spans), weight):
        if tensor.ndim != 2 or tensor.shape[1] != width:
            raise ValueError(
                "parts (T, d), a weight (d, d) and spans (d, r) of one width are needed; weight is "
                f"{tuple(weight.shape)}, and one of the others is {tuple(tensor.shape)}"
            )
    weight = as_matrix(weight, "weight", "(d, d)")
    total = (x[0] + x[1]) @ weight @ (y[0] + y[1]).T
    inside = [[part @ span @ span.T for part, span in zip(p, spans, strict=True)] for p in (x, y)]
    factors = torch.stack([torch.stack([a @ weight @ b.T for b in inside[1]]) for a in inside[0]])
    error = total - factors.sum((0, 1))
    spread = total - total.mean()
    return KernelFactors(
        total,
        factors,
        error.abs().max(),
        (error.square().mean() / spread.square().mean()).sqrt(),
    )
