r"""What the activations of factors say: at which depth a factor is at home, and what it stands for.

The importance of a factor c in layer l, :math:`I_c^{(l)}`, is the mean of its largest activations
there; over all layers it makes the factor's importance curve (Z. Yun, Y. Chen, B. Olshausen,
Y. LeCun, "Transformer visualization via dictionary learning", arXiv 2103.15949). The results of
:class:`geomhooks.Factors` are what goes in: ``geometry.stack("factors.importance").T`` is (F, L).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from geomhooks.functional.shapes import as_matrix

__all__ = [
    "LEVELS",
    "FactorContext",
    "FactorLevels",
    "factor_contexts",
    "importance_levels",
    "token_counts",
    "token_entropy",
]

LEVELS = ("low", "mid", "high")
By = Literal["centre", "peak"]


class FactorLevels(NamedTuple):
    """At which depth factors are at home."""

    level: Tensor
    """(F,) int64, 0 low, 1 mid, 2 high; -1 of a factor that is never active, or has one layer"""
    depth: Tensor
    """(F,) from 0, the first layer, to 1, the last; NaN where there is no level"""

    def names(self) -> list[str]:
        """The levels in words; "none" where there is none."""
        return [LEVELS[level] if level >= 0 else "none" for level in self.level.tolist()]


class FactorContext(NamedTuple):
    """One of the tokens that a factor is most active at."""

    activation: float
    """of the factor"""
    context: int
    """id of the context"""
    position: int
    """in that context"""
    before: list[int]
    """ids of the tokens before, as far as they are known"""
    token: int
    """id of the token, -1 where it is not known"""
    after: list[int]
    """ids of the tokens behind"""


def importance_levels(
    importance: Tensor,
    *,
    depth: Tensor | None = None,
    bounds: tuple[float, float] = (1 / 3, 2 / 3),
    by: By = "centre",
) -> FactorLevels:
    r"""Sort factors into low, mid and high level by where their importance curve is.

    A factor's depth is the centre of its curve, :math:`\sum_l t_l I_c^{(l)} / \sum_l I_c^{(l)}`
    over relative depths :math:`t_l`, or where the curve is highest. Up to the first bound it is
    low-level, up to the second mid-level.

    This is a rule for many factors at once; the published sorting is by hand, low-level where the
    curve peaks in early layers, high-level where it peaks in the last ones, and "there is no
    automatic rule" between mid and high, the code says. Curves are broad, so that centres are
    drawn to the middle: of four curves in the published demonstration, read off their pictures, two
    low-level ones have centres 0.36 and 0.45, one mid-level one 0.64 and one high-level one 0.78,
    which bounds of (0.5, 0.7) sort as published, and thirds do not. Look at the depths before
    trusting the names. One layer cannot tell a depth: the level is then "none", and the depth NaN.

    Args:
        importance: (F, L) not negative, layers in order.
        depth: (L,) of each layer, from 0 to 1; by default evenly spaced.
        bounds: between low and mid, and between mid and high.
        by: "centre" or "peak", the first layer where it is highest.

    Raises:
        ValueError: an argument is not what it has to be.

    Example: curves of a low-level and a high-level factor of the published demonstration.
        >>> curves = [[11.1, 13.7, 11.7, 7.7, 4.4, 3.3], [0.35, 0.75, 0.7, 0.85, 1.65, 5.1]]
        >>> found = importance_levels(torch.tensor(curves), bounds=(0.5, 0.7))
        >>> found.depth, found.names()
        (tensor([0.3634, 0.7830]), ['low', 'high'])
    """
    importance = as_matrix(importance, "importance", "(F, L)")
    layers = importance.shape[1]
    if by not in get_args(By):
        raise ValueError(f"by={by!r}: 'centre' or 'peak'")
    if not bool((importance >= 0).all()):
        raise ValueError("importance: numbers of at least 0 are needed, found negative ones or NaN")
    if not 0 <= bounds[0] <= bounds[1] <= 1:
        raise ValueError(f"bounds={bounds!r}: two depths from 0 to 1 are needed, the lesser first")
    if depth is None:
        depth = torch.linspace(0, 1, layers, dtype=importance.dtype, device=importance.device)
    if tuple(depth.shape) != (layers,):
        raise ValueError(
            f"depth: one for each of {layers} layers is needed, found {tuple(depth.shape)}"
        )
    depth = depth.to(importance)
    # One layer has all importance there is, at whatever depth it lies.
    total = importance.sum(1) if layers > 1 else torch.zeros_like(importance[:, 0])
    if by == "centre":
        found = importance @ depth / total
    else:
        found = torch.where(total > 0, depth[importance.argmax(1)], torch.nan)
    level = torch.bucketize(found, torch.tensor(bounds, device="cpu").to(found))
    return FactorLevels(torch.where(total > 0, level, -1), found)


def token_entropy(token_ids: Tensor) -> Tensor:
    r"""Entropy in nats of the tokens that factors are most active at, :math:`-\sum_w p_w \ln p_w`.

    Near 0 where a factor stands for one word, and at most :math:`\ln n`, where all n are different.
    Of the words themselves, so that a low one says "one word", and a high one leaves open whether
    there is a pattern. A ranking with few tokens has a small one by that alone.

    Args:
        token_ids: (..., n), -1 for what does not count.

    Returns:
        (...) float64; NaN where nothing counts.

    Raises:
        ValueError: there are no n tokens.

    Example:
        >>> token_entropy(torch.tensor([[7, 7, 7, 7], [7, 8, 7, 8], [7, 8, -1, -1]]))
        tensor([0.0000, 0.6931, 0.6931], dtype=torch.float64)
    """
    if token_ids.ndim < 1:
        raise ValueError("token_ids: shape (..., n) is needed, found a single number")
    ordered = token_ids.sort(-1).values.contiguous()
    before = torch.searchsorted(ordered, ordered)
    times = torch.searchsorted(ordered, ordered, right=True) - before
    known = ordered >= 0
    number = known.sum(-1)
    # The mean over the tokens of how surprising each is.
    surprise = number[..., None].double().log() - times.double().log()
    entropy: Tensor = torch.where(known, surprise, 0.0).sum(-1) / number
    return entropy


def token_counts(token_ids: Tensor) -> list[tuple[int, int]]:
    """Which tokens there are and how often, the most frequent first, of equals the lesser id.

    Args:
        token_ids: of any shape; -1 does not count.

    Example:
        >>> token_counts(torch.tensor([5, 3, 5, -1, 4]))
        [(5, 2), (3, 1), (4, 1)]
    """
    ids, times = torch.unique(token_ids[token_ids >= 0], return_counts=True)
    order = times.argsort(descending=True, stable=True)
    return list(zip(ids[order].tolist(), times[order].tolist(), strict=True))


def factor_contexts(top: Mapping[str, Tensor], factor: int) -> list[FactorContext]:
    """The tokens that one factor is most active at, with those around them, the first one first.

    Args:
        top: ``activation`` (F, n), ``context`` (F, n), ``position`` (F, n) and ``window``
            (F, n, 2 w + 1), as :class:`geomhooks.Factors` has them.
        factor: from 0 to F - 1.

    Raises:
        ValueError: there is no such factor.

    Example:
        >>> one = torch.tensor([[4]])
        >>> window = torch.tensor([[[-1, 5, 6]]])
        >>> top = {"activation": one / 2, "context": one, "position": one - 4, "window": window}
        >>> factor_contexts(top, 0)
        [FactorContext(activation=2.0, context=4, position=0, before=[], token=5, after=[6])]
    """
    number = len(top["activation"])
    if not 0 <= factor < number:
        raise ValueError(f"factor={factor!r}: there are {number} factors, from 0 to {number - 1}")
    names = ("activation", "context", "position", "window")
    columns = [top[name][factor].tolist() for name in names]
    reach = top["window"].shape[-1] // 2
    return [
        FactorContext(
            activation,
            context,
            position,
            [token for token in window[:reach] if token >= 0],
            window[reach],
            [token for token in window[reach + 1 :] if token >= 0],
        )
        for activation, context, position, window in zip(*columns, strict=True)
        if activation > 0
    ]
