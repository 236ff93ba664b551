r"""How smoothly vectors turn from position to position.

Everything here is of the cosine Gram matrix G of the vectors at T successive positions,
:math:`G_{ts} = \cos(p_t, p_s)`, which a smooth path makes a matrix of few low frequencies (Song &
Zhong, arXiv 2310.04861). Its spectrum is the two-dimensional cosine transform

.. math::
    \hat G = D^T G D, \quad D_{tk} = c_k \cos\frac{\pi (2t + 1) k}{2T}, \quad
    c_0 = \sqrt{1/T}, \; c_k = \sqrt{2/T},

whose trace is T, as that of G.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from geomhooks.functional.cosines import unit_rows
from geomhooks.functional.shapes import as_matrix

__all__ = [
    "cosine_basis",
    "dct_spectrum",
    "finite_differences",
    "low_frequency_share",
]


def cosine_basis(length: int, frequencies: int | None = None, like: Tensor | None = None) -> Tensor:
    """The orthonormal basis of the cosine transform (DCT-II), a column a frequency.

    Args:
        length: T.
        frequencies: how many columns, from the lowest; by default all T.
        like: a tensor whose dtype and device to take; float64 on the CPU by default.

    Returns:
        (T, frequencies) D.

    Raises:
        ValueError: there are not so many frequencies.

    Example:
        >>> basis = cosine_basis(5)
        >>> torch.allclose(basis.T @ basis, torch.eye(5).to(basis))
        True
    """
    frequencies = length if frequencies is None else frequencies
    if not 1 <= frequencies <= length:
        raise ValueError(f"frequencies={frequencies}: 1 to {length}, the positions, are possible")
    # Angles, whole multiples of pi / 2T, are brought into one turn first, so that large ones stay
    # exact.
    places, index = (torch.arange(n, device="cpu") for n in (length, frequencies))
    multiples = (2 * places[:, None] + 1) * index % (4 * length)
    basis: Tensor = (multiples.double() * (math.pi / (2 * length))).cos() * (2 / length) ** 0.5
    basis[:, 0] = length**-0.5
    return basis if like is None else basis.to(like)


def dct_spectrum(gram: Tensor, frequencies: int | None = None) -> Tensor:
    """The two-dimensional cosine transform of a matrix over pairs of positions.

    Args:
        gram: (T, T), such as ``cosines(pos)``.
        frequencies: only the lowest so many of each index, K; by default all T.

    Returns:
        (K, K).

    Raises:
        ValueError: the matrix is not square, or there are not so many frequencies.

    Example:
        >>> dct_spectrum(torch.ones(4, 4))[0, 0]
        tensor(4.)
    """
    gram = as_matrix(gram, "gram", "(T, T)")
    if gram.shape[0] != gram.shape[1]:
        raise ValueError(f"gram: shape (T, T) is needed, found {tuple(gram.shape)}")
    basis = cosine_basis(len(gram), frequencies, gram)
    return basis.T @ gram @ basis


def low_frequency_share(vectors: Tensor, frequencies: int = 10) -> Tensor:
    r"""Share of the lowest K frequencies in the trace of the spectrum.

    .. math:: \sum_{k < K} \hat G_{kk} / T

    It is 1 for a smooth path and about K / T for directions without order. The constant, k = 0, is
    one of the K. Not in the published code, which shows the spectrum as a picture.

    Args:
        vectors: (T, d), a row a position, such as pos.
        frequencies: K; where there are fewer positions the share is 1.

    Returns:
        () NaN where a row is zero.

    Raises:
        ValueError: not a matrix, or no frequency.

    Example:
        >>> angle = torch.linspace(0, 3.14, 100)
        >>> low_frequency_share(torch.stack([angle.cos(), angle.sin()], dim=1), 5) > 0.99
        tensor(True)
    """
    unit = unit_rows(vectors)
    if frequencies < 1:
        raise ValueError(f"frequencies={frequencies}: a positive number is needed")
    basis = cosine_basis(len(unit), min(frequencies, len(unit)), unit)
    # The diagonal of the spectrum without the Gram matrix: |D_k^T U|^2 for the unit rows U.
    share: Tensor = (basis.T @ unit).square().sum() / len(unit)
    return share


def finite_differences(vectors: Tensor, order: int = 1) -> Tensor:
    r"""Squared m-th differences of the directions from one position to the next.

    .. math:: |\Delta^m u_t|^2 = (\Delta^{(m,m)} G)_{tt}, \quad u_t = p_t / |p_t|

    The diagonal of the m-th difference of G in both of its indices. That matrix is a Gram matrix
    itself, so that its largest entry stands on the diagonal: ``.max()`` of the result is the
    largest m-th difference of G anywhere. Order 1 is the squared step on the unit sphere, 2 - 2 cos
    of the angle between neighbours. It is small for a smooth path, and about the binomial
    coefficient of 2m over m for directions without order: 2, 6, 20.

    Args:
        vectors: (T, d), a row a position, such as pos.
        order: m.

    Returns:
        (T - m,), NaN beside a row of zeros.

    Raises:
        ValueError: not a matrix, or no more positions than the order.

    Example:
        >>> finite_differences(torch.tensor([[1.0, 0.0], [0.0, 2.0], [-1.0, 0.0]]))
        tensor([2., 2.])
    """
    unit = unit_rows(vectors)
    if not 1 <= order < len(unit):
        raise ValueError(
            f"order={order}: for {len(unit)} positions 1 to {len(unit) - 1} is needed; differences "
            "of order m need m + 1 positions"
        )
    squares: Tensor = torch.diff(unit, n=order, dim=0).square().sum(1)
    return squares
