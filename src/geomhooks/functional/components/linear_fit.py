"""How well a linear map of one set of vectors gives another, from their moments alone."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["LinearFit", "linear_fit"]


SMALLEST = 1e-12  # variance of a direction that is one, relative to the largest


class LinearFit(NamedTuple):
    """A least-squares fit y = A x + b."""

    r_squared: Tensor
    """() the mean over the entries of y that vary of the share of their variance that is fitted"""
    of_entries: Tensor
    """(m,) of each entry; NaN where it does not vary"""
    of_variance: Tensor
    """() the share of the variance of all entries together"""
    weight: Tensor
    """(m, n) A"""
    rank: Tensor
    """() of the covariance of x; less than n where x has no freedom, as after a norm"""


def linear_fit(covariance: Tensor, inputs: int) -> LinearFit:
    r"""The linear least-squares fit of y to x with a constant, from their joint covariance.

    .. math:: A = C_{yx} C_{xx}^{+}, \quad R^2_i = (A C_{xy})_{ii} / (C_{yy})_{ii}

    over the same samples that it was fitted to, as in T. Mickus, D. Paperno, M. Constant, "How to
    Dissect a Muppet" (TACL 2022), where x and y are what goes into a feed-forward layer and what
    comes out, both standardised, which changes no R^2. With fewer samples than n + 1 every fit is
    perfect and says nothing. Directions in which x varies less than float32 tells, with less than
    1e-12 of the largest variance of its standardised entries, count as constant.

    Args:
        covariance: (n + m, n + m) of x and y side by side.
        inputs: n.

    Returns:
        NaN, and a rank of 0, where an entry is not finite.

    Raises:
        ValueError: it is no such matrix.

    Example:
        >>> x = torch.tensor([[1.0], [2.0], [3.0], [4.0]])
        >>> y = torch.tensor([[1.0], [3.0], [2.0], [4.0]])
        >>> fit = linear_fit(torch.cov(torch.cat([x, y], 1).T), 1)
        >>> fit.weight, fit.r_squared
        (tensor([[0.8000]], dtype=torch.float64), tensor(0.6400, dtype=torch.float64))
    """
    size = len(covariance) if covariance.ndim == 2 else 0
    if covariance.shape != (size, size) or not 0 < inputs < size:
        raise ValueError(
            f"a covariance (n + m, n + m) and inputs=n below n + m are needed, found "
            f"{tuple(covariance.shape)} and {inputs}"
        )
    covariance = covariance.double()
    if not bool(torch.isfinite(covariance).all()):
        nan = covariance.new_full((size - inputs, inputs), float("nan"))
        nothing = torch.zeros((), dtype=torch.int64, device=covariance.device)
        return LinearFit(nan.mean(), nan[:, 0], nan.mean(), nan, nothing)
    xx, xy = covariance[:inputs, :inputs], covariance[:inputs, inputs:]
    variance = covariance.diagonal()[inputs:]
    # In units in which all entries of x have a variance of one: which of its directions are none
    # must not depend on how entries are scaled.
    scale = xx.diagonal().clamp(min=0).sqrt()
    inverse = torch.where(scale > 0, 1 / scale, 0.0)
    values, vectors = torch.linalg.eigh(inverse[:, None] * xx * inverse)
    there = values > SMALLEST * values.amax().clamp(min=0)
    along = vectors.T @ (inverse[:, None] * xy)
    weighted = torch.where(there, 1 / values.masked_fill(~there, 1.0), 0.0)[:, None] * along
    fitted = (along * weighted).sum(0)
    weight = (inverse[:, None] * (vectors @ weighted)).T
    varies = variance > 0
    of_entries = (fitted / variance).masked_fill(~varies, float("nan"))
    return LinearFit(
        of_entries[varies].mean(), of_entries, fitted.sum() / variance.sum(), weight, there.sum()
    )
