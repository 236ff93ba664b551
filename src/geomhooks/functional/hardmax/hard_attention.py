r"""What attention of a live head would do at temperature zero, a few rows of its scores at a time.

A head attends to token j with the share :math:`a_{ij}`, the softmax of its logits :math:`l_{ij}`.
The hard target of token i is its largest logit's, and where several are as large all of them,

.. math:: C_i = \{j : l_{ij} \ge \max_k l_{ik} - \tau |\max_k l_{ik}|\}, \quad
          m_i = \frac{1}{|C_i|} \sum_{j \in C_i} z_j.

Hardmax dynamics (:mod:`geomhooks.functional.hardmax.dynamics`) moves a token towards :math:`m_i` by
:math:`\gamma = \alpha / (1 + \alpha)` of the way. How far a layer that takes z to z' does so is

.. math:: \gamma_i = \frac{\langle z'_i - z_i, m_i - z_i \rangle}{|m_i - z_i|^2}, \quad
          1 - \frac{\langle z'_i - z_i, m_i - z_i \rangle^2}{|z'_i - z_i|^2 |m_i - z_i|^2},

the second being the share of the squared move that goes elsewhere. Logits are made of queries and
keys in blocks of rows, and each block is reduced at once: no (T, T) matrix is ever whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from geomhooks.functional.attention.query_key import repeat_heads
from geomhooks.functional.hardmax.dynamics import maximisers
from geomhooks.functional.shapes import as_float
from geomhooks.reductions.plain import wide_of

__all__ = [
    "HardAttention",
    "Leading",
    "LogitRows",
    "hard_attention",
    "leading_tokens",
    "logit_rows",
]

BLOCK = 1 << 22  # logits, or entries of means, at a time
LOWEST = -1e30  # of what a logit is below the largest

Rows = Callable[[slice], Tensor]


class LogitRows(NamedTuple):
    """The logits of some queries."""

    rows: slice
    """which queries, R of them next to each other"""
    logits: Tensor
    """(B, H, R, S), -inf at keys that they do not look at"""


class HardAttention(NamedTuple):
    """Of each query in each head; what has no answer is NaN, and the target the query itself."""

    targets: Tensor
    """(B, H, T) int64 the first of those that it attends to most"""
    ties: Tensor
    """(B, H, T) int64 how many these are; 0 where it looks at nothing"""
    alone: Tensor
    """(B, H, T) bool, all of them are where it is itself"""
    preceded: Tensor
    """(B, H, T) bool, an earlier token where it is has that, too"""
    held: Tensor
    """(B, H, T) bool, a token where it is, perhaps itself, is one of those that are known"""
    largest: Tensor
    """(B, H, T) the largest share of attention"""
    entropy: Tensor
    """(B, H, T) of its shares, in nats"""
    softness: Tensor
    """(B, H, T) what of its attention goes elsewhere, which is the distance of total variation
    between its shares and those of hardmax attention"""
    before: Tensor
    """(B, H, T) distance |z - m|"""
    after: Tensor
    """(B, H, T) distance |z' - m|"""
    step: Tensor
    """(B, H, T) gamma; NaN where z is at m already"""
    unexplained: Tensor
    """(B, H, T) share of the squared move that is not towards m; NaN likewise"""


class Leading(NamedTuple):
    """Who leads, of tokens at one place one of them, (B, H, T) bool each."""

    now: Tensor
    """leads in this layer"""
    so_far: Tensor
    """leads in this layer or did in one before"""
    new: Tensor
    """leads in this layer and in none before, and is not where one is that did"""


def logit_rows(
    query: Tensor,
    key: Tensor,
    visible: Rows,
    *,
    scale: float | None = None,
    bias: Rows | None = None,
    softcap: float | None = None,
    block: int | None = None,
) -> Iterator[LogitRows]:
    """The logits of some queries at a time.

    Args:
        query: (B, H, T, k).
        key: (B, G, S, k), where G divides H.
        visible: gives for a slice of R queries which keys they look at, bool, broadcast to
            (B, H, R, S).
        scale: what products are multiplied by, 1 / sqrt(k) by default.
        bias: gives for a slice of queries what is added to logits, broadcast to (B, H, R, S).
        softcap: c where logits become c tanh(l / c).
        block: queries at a time; by default as many as make 4 million logits.

    Example:
        >>> query, key = torch.randn(1, 4, 5, 3), torch.randn(1, 2, 5, 3)
        >>> causal = torch.ones(5, 5).tril().bool()
        >>> [
        ...     tuple(some.logits.shape)
        ...     for some in logit_rows(query, key, causal.__getitem__, block=3)
        ... ]
        [(1, 4, 3, 5), (1, 4, 2, 5)]
    """
    query, key = as_float(query), as_float(key)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    batch, heads, length, _ = query.shape
    keys = repeat_heads(key, heads).mT
    block = block or max(1, BLOCK // (batch * heads * keys.shape[-1]))
    for start in range(0, length, block):
        rows = slice(start, min(start + block, length))
        logits = (query[:, :, rows] * scale) @ keys
        if bias is not None:
            logits = logits + bias(rows).to(logits)
        if softcap is not None:
            logits = softcap * (logits / softcap).tanh()
        yield LogitRows(rows, logits.masked_fill_(~visible(rows), -math.inf))


def hard_attention(
    blocks: Iterable[LogitRows],
    states: Tensor,
    moved: Tensor,
    reach: Tensor,
    *,
    there: Tensor | None = None,
    home: Tensor | None = None,
    known: Tensor | None = None,
    tolerance: float = 0.0,
) -> HardAttention:
    """Reduce the attention of some contexts to what it is at temperature zero.

    Args:
        blocks: of :func:`logit_rows`, all queries in order.
        states: (B, T, d) z, finite everywhere.
        moved: (B, T, d) z', finite everywhere.
        reach: (B, T) how far apart two tokens may be to be at one place, in the query's context; at
            least 1e-7 of their lengths.
        there: (B, T) bool, which tokens are at a place; by default all.
        home: (B, T) which tokens of a row are one context: those with the same number. By default
            all.
        known: (B, H, T) bool, those that led in a layer before; by default none.
        tolerance: tau, of a tie.

    Returns:
        all in the type of the states, float32 or wider.

    Example: two tokens on a line; the first attends to the second, which leads.
        >>> states, everything = torch.tensor([[[1.0], [3.0]]]), torch.ones(2, 2).bool()
        >>> blocks = logit_rows(states[:, None], states[:, None], everything.__getitem__)
        >>> moved, reach = torch.tensor([[[2.0], [3.0]]]), torch.full((1, 2), 1e-3)
        >>> found = hard_attention(blocks, states, moved, reach)
        >>> found.targets.tolist(), found.alone.tolist(), found.step.tolist()
        ([[[1, 1]]], [[[False, True]]], [[[0.5, nan]]])
    """
    states = as_float(states)
    moved = moved.to(states)
    wide = states.to(wide_of(states))  # products in float32 cannot tell places that are near
    squares = wide.square().sum(-1)
    parts: list[tuple[Tensor, ...]] = []
    before: list[Tensor] = []  # of the queries so far, which are alone
    for rows, logits in blocks:
        # Squared distances by products, in float64, whose rounding is far below what is asked for.
        apart = squares[:, rows, None] + squares[:, None] - 2 * wide[:, rows] @ wide.mT
        same = apart <= reach[:, rows, None].to(apart).square()
        if there is not None:
            same = same & there[:, rows, None] & there[:, None]
        if home is not None:
            same = same & (home[:, rows, None] == home[:, None])
        chosen = maximisers(logits, tolerance=tolerance)
        targets, ties, alone = targets_of(chosen, same, rows)
        before.append(alone)
        parts.append(
            (
                targets,
                ties,
                alone,
                at_place(same[..., : rows.stop].tril(rows.start - 1), torch.cat(before, -1)),
                torch.zeros_like(alone) if known is None else at_place(same, known),
                *shares_of(logits, chosen),
                *moves_of(means_of(chosen, targets, ties, states), states, moved, reach, rows),
            )
        )
    return HardAttention(*(torch.cat(pieces, -1) for pieces in zip(*parts, strict=True)))


def at_place(same: Tensor, which: Tensor) -> Tensor:
    """(B, H, R) bool, one of some tokens (B, H, S) is at the same place (B, R, S)."""
    return (which.to(torch.float32) @ same.to(torch.float32).mT) > 0


def targets_of(chosen: Tensor, same: Tensor, rows: slice) -> tuple[Tensor, Tensor, Tensor]:
    """First target, number of targets, and whether all are where the query is, (B, H, R) each."""
    ties = chosen.sum(-1)
    own = torch.arange(rows.start, rows.stop, device=chosen.device)
    first = torch.where(ties > 0, chosen.to(torch.uint8).argmax(-1), own)
    alone = (ties > 0) & ~(chosen & ~same[:, None]).any(-1)
    return first, ties, alone


def shares_of(logits: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Largest share, entropy, and what is not on the targets, (B, H, R) each; NaN of nothing."""
    top = logits.amax(-1, keepdim=True)
    below = logits - top
    weights = below.exp()
    total = weights.sum(-1)  # NaN of nothing
    # A weight of zero times minus infinity is to be zero.
    entropy = total.log() - below.clamp_(min=LOWEST).mul_(weights).sum(-1) / total
    softness = 1 - weights.mul_(chosen).sum(-1) / total
    return 1 / total, entropy.clamp(min=0), softness.clamp(min=0)


def means_of(chosen: Tensor, targets: Tensor, ties: Tensor, states: Tensor) -> Tensor:
    """(B, R, H, d) means of the states of the targets; NaN of nothing."""
    if states.device.type == "cpu":
        return means_by_look_up(chosen, targets, ties, states)
    return means_by_product(chosen, ties, states)


def means_by_product(chosen: Tensor, ties: Tensor, states: Tensor) -> Tensor:
    """The same, by one product, whose size does not depend on what is chosen."""
    batch, heads, number = ties.shape
    share = (chosen.to(states) / ties[..., None]).transpose(1, 2)
    return (share.flatten(1, 2) @ states).view(batch, number, heads, -1)


def means_by_look_up(chosen: Tensor, targets: Tensor, ties: Tensor, states: Tensor) -> Tensor:
    """The same: single targets, which most are, are looked up, and only others added up.

    It looks at how many there are, which on a processor costs nothing.
    """
    batch, heads, number = ties.shape
    means = states.new_empty(batch, number, heads, states.shape[-1])
    for row, mean in enumerate(means):
        mean.copy_(states[row, targets[row].T])
        several = ties[row].T != 1
        some = chosen[row].transpose(0, 1)[several].to(states)
        mean[several] = some @ states[row] / ties[row].T[several][:, None]
    return means


def moves_of(
    means: Tensor, states: Tensor, moved: Tensor, reach: Tensor, rows: slice
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Distance to the means (B, R, H, d) before and after, step, and share elsewhere, (B, H, R)."""
    move = moved[:, rows] - states[:, rows]
    way = means.sub_(states[:, rows, None])
    before = torch.linalg.vector_norm(way, dim=-1)
    along = (way @ move[..., None])[..., 0]
    after = torch.linalg.vector_norm(way.sub_(move[:, :, None]), dim=-1)
    there = before <= reach[:, rows, None].to(before)
    square = before.square()
    step = (along / square).masked_fill(there, math.nan)
    elsewhere = 1 - along.square() / (square * move.square().sum(-1, keepdim=True))
    elsewhere = elsewhere.clamp(min=0).masked_fill(there, math.nan)
    found = (before, after, step, elsewhere)
    first, second, third, fourth = (one.transpose(1, 2) for one in found)
    return first, second, third, fourth


def leading_tokens(found: HardAttention, known: Tensor | None = None) -> Leading:
    """Who leads: attends to nothing but its own place, and is the one that stands for it.

    Of tokens at one place the first that attends to it alone leads; but where one is that led in a
    layer before, a follower that has come to it, and by rounding attends to itself, is none. So
    :func:`geomhooks.functional.leaders_over_depth` has it.

    Args:
        found: of :func:`hard_attention`.
        known: (B, H, T) bool, the same as that was given: who led in the layers before.

    Example: two tokens at one place.
        >>> states, everything = torch.ones(1, 2, 1), torch.ones(2, 2).bool()
        >>> def look(known):
        ...     blocks = logit_rows(states[:, None], states[:, None], everything.__getitem__)
        ...     reach = torch.full((1, 2), 1e-4)
        ...     return hard_attention(blocks, states, states, reach, known=known)
        >>> leading_tokens(look(None)).now.tolist()
        [[[True, False]]]
        >>> known = torch.tensor([[[False, True]]])
        >>> leading_tokens(look(known), known).now.tolist()
        [[[False, True]]]
    """
    new = found.alone & ~found.preceded & ~found.held
    if known is None:
        return Leading(new, new, new)
    return Leading(new | (known & found.alone), known | new, new)
