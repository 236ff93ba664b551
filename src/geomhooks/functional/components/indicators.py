"""How much each term of a sum has to do with the sum."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

__all__ = ["Indicators", "indicators"]


class Indicators(NamedTuple):
    """What is said of each of K terms z of a state e; of shape (K, ...)."""

    importance: Tensor
    """<e, z> / |e|^2, which over all terms sums to one"""
    cosine: Tensor
    """of z and e; NaN where z is zero"""
    l2: Tensor
    """|z - e|"""
    norm_ratio: Tensor
    """|z| / |e|"""


def indicators(terms: Tensor, state: Tensor | None = None) -> Indicators:
    """Importance, cosine, distance and length of each term of states.

    Importance is that of T. Mickus, D. Paperno, M. Constant, "How to Dissect a Muppet", TACL 2022;
    the others are of T. Mickus, R. Vazquez, "Why Bother with Geometry?", BlackboxNLP 2023.

    Args:
        terms: (K, ..., d).
        state: (..., d) what they add up to; by default their sum.

    Raises:
        ValueError: the shapes do not fit.

    Example:
        >>> import torch
        >>> found = indicators(torch.tensor([[3.0, 0.0], [0.0, 4.0]]))
        >>> found.importance, found.cosine
        (tensor([0.3600, 0.6400]), tensor([0.6000, 0.8000]))
        >>> found.l2, found.norm_ratio
        (tensor([4., 3.]), tensor([0.6000, 0.8000]))
    """
    if terms.ndim < 2 or (state is not None and state.shape != terms.shape[1:]):
        found = None if state is None else tuple(state.shape)
        raise ValueError(
            f"terms (K, ..., d) and a state (..., d) are needed, found {tuple(terms.shape)} and "
            f"{found}"
        )
    if state is None:
        state = terms.sum(0)
    products = (terms * state).sum(-1)
    squares, square = terms.square().sum(-1), state.square().sum(-1)
    lengths, length = squares.sqrt(), square.sqrt()
    # |z - e|^2 by the products would lose all digits of a term that is nearly everything.
    l2 = (terms - state).square().sum(-1).sqrt()
    return Indicators(products / square, products / (lengths * length), l2, lengths / length)
