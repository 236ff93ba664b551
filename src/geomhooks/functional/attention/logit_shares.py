r"""How much of the variance of attention's logits each pair of parts makes, from streamed sums.

Softmax does not see what is added to all logits of a query, so that the variance which acts is that
within a query, over the keys that it may look at. For L the sum of its parts L_ab,

.. math:: \mathrm{Var}(L) = \sum_{ab} \mathrm{Cov}(L_{ab}, L)

is an exact split, where a term may be negative; Var(L_ab) / Var(L) is never that, but does not sum
to one where parts are correlated.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from geomhooks.functional.attention.query_key import repeat_heads
from geomhooks.functional.shapes import as_float

__all__ = ["LogitShares", "LogitSums", "key_only_share", "logit_shares", "logit_sums"]

BLOCK = 1 << 22  # logits of parts at a time


@dataclass(frozen=True)
class LogitSums:
    """What is added up over contexts, of N = P * Q parts of logits; float64.

    Attributes:
        pairs: (...,) how many logits.
        within: (..., N, N) sums of products of the parts about their mean over the query's keys.
        total: (..., N) sums.
        between: (..., N, N) sums over queries of products of these means, times their keys.
        parts: (P, Q).
    """

    pairs: Tensor
    within: Tensor
    total: Tensor
    between: Tensor
    parts: tuple[int, int]

    def __add__(self, other: LogitSums) -> LogitSums:
        """Of both; all of them add up."""
        if self.parts != other.parts:
            raise ValueError(f"sums of {self.parts} and of {other.parts} parts do not add up")
        return LogitSums(
            self.pairs + other.pairs,
            self.within + other.within,
            self.total + other.total,
            self.between + other.between,
            self.parts,
        )

    def over(self, dimension: int) -> LogitSums:
        """Added up along a leading dimension, counted from the first, such as the batch's."""
        return LogitSums(
            self.pairs.sum(dimension),
            self.within.sum(dimension),
            self.total.sum(dimension),
            self.between.sum(dimension),
            self.parts,
        )


class LogitShares(NamedTuple):
    """Of the variance of the logits; NaN where there is none."""

    shares: Tensor
    """(..., P, Q) Cov(L_ab, L) / Var(L); they sum to one"""
    alone: Tensor
    """(..., P, Q) Var(L_ab) / Var(L)"""
    cross: Tensor
    """(...,) what ``alone`` leaves: twice the covariances of different parts, over Var(L)"""
    variance: Tensor
    """(...,) Var(L)"""
    covariance: Tensor
    """(..., P, Q, P, Q) Cov(L_ab, L_cd)"""


def logit_sums(
    query: Tensor,
    key: Tensor,
    allowed: Tensor,
    scale: float | None = None,
    block: int | None = None,
    constant: Tensor | None = None,
) -> LogitSums:
    """Sums over the logits of some contexts, of which a few rows at a time are ever held.

    Args:
        query: (P, ..., H, T, k) of :func:`project_parts`.
        key: (Q, ..., G, S, k), where G divides H.
        allowed: bool, broadcast to (..., H, T, S): True where a query looks at a key and both are
            real. What stands elsewhere may be NaN.
        scale: 1 / sqrt(k) by default.
        block: queries at a time; by default as many as make 4 million logits of parts.
        constant: what is added to the logits besides, such as a bias of their distance, broadcast
            to (..., H, T, S); it counts with the last part of query and key.

    Returns:
        Sums with the leading dimensions (..., H), on the same device. Logits and the products of
        one block are in the dtype of the arguments, float32 or wider.

    Example:
        >>> query, key = torch.randn(2, 3, 5, 4), torch.randn(2, 3, 5, 4)
        >>> causal = torch.ones(5, 5, dtype=torch.bool).tril()
        >>> sums = logit_sums(query, key, causal)
        >>> torch.allclose(logit_shares(sums).shares.sum((-2, -1)), torch.ones(3).double())
        True
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    query, key = as_float(query), as_float(key)
    key = repeat_heads(key, query.shape[-3])
    lead, length, keys = query.shape[1:-2], query.shape[-2], key.shape[-2]
    number = query.shape[0] * key.shape[0]
    allowed = allowed.expand(*lead, length, keys)
    pairs, total, within, between = (
        torch.zeros((*lead, *shape), dtype=torch.float64, device=query.device)
        for shape in ((), (number,), (number, number), (number, number))
    )
    block = block or max(1, BLOCK // (number * keys * math.prod(lead)))
    # One product for all pairs of parts: queries of all parts below each other, and so the keys.
    columns = key.movedim(0, -3).flatten(-3, -2).mT
    for start in range(0, length, block):
        rows = query[..., start : start + block, :] * scale
        logits = rows.movedim(0, -3).flatten(-3, -2) @ columns
        logits = logits.reshape(*lead, query.shape[0], -1, key.shape[0], keys).transpose(-3, -2)
        logits = logits.reshape(*lead, number, -1, keys)
        if constant is not None:
            logits[..., -1, :, :] += constant[..., start : start + block, :].to(logits)
        where = allowed[..., None, start : start + block, :]
        logits.masked_fill_(~where, 0)
        count = where.sum(-1, dtype=logits.dtype)  # (..., 1, R)
        mean = logits.sum(-1) / count.clamp(min=1)  # (..., N, R)
        logits.sub_(mean[..., None]).masked_fill_(~where, 0)
        flat = logits.flatten(-2)
        mean, count = mean.double(), count.double()
        pairs += count.sum((-2, -1))
        within += flat @ flat.mT
        total += (mean * count).sum(-1)
        between += (mean * count) @ mean.mT
    return LogitSums(pairs, within, total, between, (query.shape[0], key.shape[0]))


def logit_shares(sums: LogitSums, within: bool = True) -> LogitShares:
    """Shares of each pair of parts in the variance of the logits.

    Args:
        sums: of :func:`logit_sums`.
        within: the variance over the keys of each query, the average of all; else that of all
            logits about one mean.
    """
    pairs = sums.pairs[..., None, None]
    covariance = sums.within / pairs
    if not within:
        mean = sums.total / sums.pairs[..., None]
        covariance = covariance + sums.between / pairs - mean[..., :, None] * mean[..., None, :]
    variance = covariance.sum((-2, -1))
    over = variance[..., None]
    alone = covariance.diagonal(dim1=-2, dim2=-1) / over
    lead = variance.shape
    return LogitShares(
        (covariance.sum(-1) / over).reshape(*lead, *sums.parts),
        alone.reshape(*lead, *sums.parts),
        1 - alone.sum(-1),
        variance,
        covariance.reshape(*lead, *sums.parts, *sums.parts),
    )


def key_only_share(shares: LogitShares) -> Tensor:
    r"""Share of the variance that a term makes which asks the key alone, whatever the query is.

    With b the part of the biases, the last of query and key, and the others those of states,

    .. math:: \mathrm{Var}\Bigl(\sum_{a \ne b} L_{ba}\Bigr) / \mathrm{Var}(L)

    is that of the query's biases, the norm's shift among them, with what a key has of its state:
    (beta W_Q + b_Q) (x Gamma W_K)^T in the terms of R. Molina (arXiv 2309.07315), where the term
    is split off but not measured.

    Args:
        shares: of :func:`logit_shares`.

    Returns:
        (...,) at least 0, and above 1 where other terms undo it; NaN where there is no variance.

    Example:
        >>> query, key = torch.zeros(2, 1, 5, 4), torch.randn(2, 1, 5, 4)
        >>> query[1] = 1.0  # nothing but a bias, so that the logits are the same for all queries
        >>> key[1] = 0.0
        >>> everywhere = torch.ones(5, 5, dtype=torch.bool)
        >>> key_only_share(logit_shares(logit_sums(query, key, everywhere)))
        tensor([1.], dtype=torch.float64)
    """
    of_state = shares.covariance[..., -1, :-1, -1, :-1]
    return of_state.sum((-2, -1)) / shares.variance
