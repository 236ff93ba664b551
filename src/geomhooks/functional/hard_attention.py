r"""What attention of a live head would do at temperature zero, a few rows of its scores at a time.

A head attends to token j with the share :math:`a_{ij}`, the softmax of its logits :math:`l_{ij}`.
The hard target of token i is its largest logit's, and where several are as large all of them,

.. math:: C_i = \{j : l_{ij} \ge \max_k l_{ik} - \tau |\max_k l_{ik}|\}, \quad
          m_i = \frac{1}{|C_i|} \sum_{j \in C_i} z_j.

Hardmax dynamics (:mod:`geomhooks.functional.hardmax`) moves a token towards :math:`m_i` by
:math:`\gamma = \alpha / (1 + \alpha)` of the way. How far a layer that takes z to z' does so is

.. math:: \gamma_i = \frac{\langle z'_i - z_i, m_i - z_i \rangle}{|m_i - z_i|^2}, \quad
          1 - \frac{\langle z'_i - z_i, m_i - z_i \rangle^2}{|z'_i - z_i|^2 |m_i - z_i|^2},

the second being the share of the squared move that goes elsewhere. Logits are made of queries and
keys in blocks of rows, and each block is reduced at once: no (T, T) matrix is ever whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from geomhooks.functional.hardmax import maximisers
from geomhooks.functional.query_key import repeat_heads
from geomhooks.functional.shapes import as_float
from geomhooks.reductions.plain import wide_of

__all__ = ["HardAttention", "Leading", "hard_attention", "leading_tokens"]

BLOCK = 1 << 22  # logits, or entries of means, at a time

Rows = Callable[[slice], Tensor]


class HardAttention(NamedTuple):
    """Of each query in each head; what has no answer is NaN, and the target the query itself."""

    targets: Tensor
    """(B, H, T) int64 the first of those that it attends to most"""
    ties: Tensor
    """(B, H, T) int64 how many these are; 0 where it looks at nothing"""
    alone: Tensor
    """(B, H, T) bool, all of them are where it is itself, itself among them or not"""
    place: Tensor
    """(B, T) int64 the first token that is where it is"""
    largest: Tensor
    """(B, H, T) the largest share of attention"""
    entropy: Tensor
    """(B, H, T) of its shares, in nats"""
    softness: Tensor
    """(B, H, T) what of its attention goes elsewhere: the distance of total variation between its
    shares and uniform ones over the hard targets where it has one target"""
    before: Tensor
    """(B, H, T) distance |z - m|"""
    after: Tensor
    """(B, H, T) distance |z' - m|"""
    step: Tensor
    """(B, H, T) gamma; NaN where z is at m already"""
    unexplained: Tensor
    """(B, H, T) share of the squared move that is not towards m; NaN likewise"""


class Leading(NamedTuple):
    """Who leads, of tokens at one place one of them."""

    now: Tensor
    """(B, H, T) bool, leads in this layer"""
    so_far: Tensor
    """(B, H, T) bool, leads in this layer or did in one before"""
    new: Tensor
    """(B, H, T) bool, leads in this layer, and none did before it or is where one did"""


def hard_attention(
    query: Tensor,
    key: Tensor,
    states: Tensor,
    moved: Tensor,
    visible: Rows,
    reach: Tensor,
    *,
    scale: float | None = None,
    bias: Rows | None = None,
    softcap: float | None = None,
    tolerance: float = 0.0,
    block: int | None = None,
) -> HardAttention:
    """Reduce the attention of some contexts to what it is at temperature zero.

    Args:
        query: (B, H, T, k).
        key: (B, G, T, k), where G divides H.
        states: (B, T, d) z, finite everywhere.
        moved: (B, T, d) z', finite everywhere.
        visible: gives for a slice of R queries which keys they look at, bool, broadcast to
            (B, H, R, T).
        reach: (B, T) how far apart two tokens may be to be at one place, in the query's context; at
            least 1e-7 of their lengths.
        scale: what products are multiplied by, 1 / sqrt(k) by default.
        bias: gives for a slice of queries what is added to logits, broadcast to (B, H, R, T).
        softcap: c where logits become c tanh(l / c).
        tolerance: tau, of a tie.
        block: queries at a time; by default as many as make 4 million logits.

    Returns:
        all in the type of the queries, float32 or wider.

    Example: two tokens on a line; the first attends to the second, which leads.
        >>> states = torch.tensor([[[1.0], [3.0]]])
        >>> everything = lambda rows: torch.ones(1, 1, 2, 2, dtype=torch.bool)[:, :, rows]
        >>> found = hard_attention(
        ...     states[:, None], states[:, None], states, states + torch.tensor([[1.0], [0.0]]),
        ...     everything, torch.full((1, 2), 1e-3),
        ... )
        >>> found.targets.tolist(), found.alone.tolist(), found.step.tolist()
        ([[[1, 1]]], [[[False, True]]], [[[0.5, nan]]])
    """
    query, key = as_float(query), as_float(key)
    states, moved = states.to(query), moved.to(query)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    batch, heads, length, _ = query.shape
    key = repeat_heads(key, heads)
    per_row = batch * heads * max(length, states.shape[-1])
    block = block or max(1, BLOCK // per_row)
    wide = states.to(wide_of(states))  # products in float32 cannot tell places that are near
    squares = wide.square().sum(-1)
    parts: list[tuple[Tensor, ...]] = []
    for start in range(0, length, block):
        rows = slice(start, min(start + block, length))
        logits = (query[:, :, rows] * scale) @ key.mT
        if bias is not None:
            logits = logits + bias(rows).to(logits)
        if softcap is not None:
            logits = softcap * (logits / softcap).tanh()
        seen = visible(rows).expand_as(logits)
        # Squared distances by products, in float64, whose rounding is far below what is asked for.
        apart = squares[:, rows, None] + squares[:, None] - 2 * wide[:, rows] @ wide.mT
        same = apart <= reach[:, rows, None].to(apart).square()
        chosen = maximisers(logits, seen, tolerance=tolerance)
        parts.append(
            (
                *targets_of(chosen, same, rows),
                *shares_of(logits, seen, chosen),
                *moves_of(chosen, states, moved, reach, rows),
                same.to(torch.uint8).argmax(-1)[:, None],
            )
        )
    columns = [torch.cat(pieces, -1) for pieces in zip(*parts, strict=True)]
    targets, ties, alone, *others, place = columns
    return HardAttention(targets, ties, alone, place[:, 0], *others)


def targets_of(chosen: Tensor, same: Tensor, rows: slice) -> tuple[Tensor, Tensor, Tensor]:
    """First target, number of targets, and whether all are where the query is, (B, H, R) each."""
    ties = chosen.sum(-1)
    own = torch.arange(rows.start, rows.stop, device=chosen.device)
    first = torch.where(ties > 0, chosen.to(torch.uint8).argmax(-1), own)
    alone = (ties > 0) & ~(chosen & ~same[:, None]).any(-1)
    return first, ties, alone


def shares_of(logits: Tensor, seen: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Largest share, entropy, and what is not on the targets, (B, H, R) each; NaN of nothing."""
    logits = logits.masked_fill(~seen, -math.inf)
    top = logits.amax(-1, keepdim=True)
    below = (logits - top).masked_fill(~seen, 0)
    weights = below.exp().masked_fill(~seen, 0)
    total = weights.sum(-1)
    nothing = ~seen.any(-1)
    on_targets = (weights * chosen).sum(-1) / total
    entropy = total.log() - (weights * below).sum(-1) / total
    found = (1 / total, entropy, 1 - on_targets)
    largest, entropy, softness = (one.masked_fill(nothing, math.nan) for one in found)
    return largest, entropy.clamp(min=0), softness.clamp(min=0)


def moves_of(
    chosen: Tensor, states: Tensor, moved: Tensor, reach: Tensor, rows: slice
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Distance to the mean of the targets before and after, step, and share elsewhere."""
    batch, heads, number, length = chosen.shape
    share = chosen.to(states) / chosen.sum(-1, keepdim=True)  # NaN of nothing
    means = (share.flatten(1, 2) @ states).view(batch, heads, number, -1)
    way = means - states[:, None, rows]
    move = (moved[:, rows] - states[:, rows])[:, None]
    square, along = way.square().sum(-1), (way * move).sum(-1)
    before = square.sqrt()
    after = torch.linalg.vector_norm(moved[:, None, rows] - means, dim=-1)
    there = before <= reach[:, None, rows].to(before)
    step = (along / square).masked_fill(there, math.nan)
    elsewhere = 1 - along.square() / (square * move.square().sum(-1))
    return before, after, step, elsewhere.clamp(min=0).masked_fill(there, math.nan)


def leading_tokens(
    alone: Tensor, place: Tensor, there: Tensor, known: Tensor | None = None
) -> Leading:
    """Who leads: attends to nothing but its own place, and is the one that stands for it.

    Of tokens at one place the first that attends to it alone leads; but where a token leads already
    that did in a layer before, it stays the one, and a follower that has come to it, and by
    rounding attends to itself, is none. So
    :func:`geomhooks.functional.leaders_over_depth` has it.

    Args:
        alone: (B, H, T) of :func:`hard_attention`.
        place: (B, T) of the same.
        there: (B, T) bool, which tokens count.
        known: (B, H, T) bool, who led in the layers before; None in the first.

    Example: the first two are at one place, where the second led before.
        >>> alone, place = torch.tensor([[[True, True, True]]]), torch.tensor([[0, 0, 2]])
        >>> there = torch.ones(1, 3, dtype=torch.bool)
        >>> leading_tokens(alone, place, there).now.tolist()
        [[[True, False, True]]]
        >>> known = torch.tensor([[[False, True, False]]])
        >>> found = leading_tokens(alone, place, there, known)
        >>> found.now.tolist(), found.new.tolist()
        ([[[False, True, True]]], [[[False, False, True]]])
    """
    alone = alone & there[:, None]
    length = alone.shape[-1]
    index = torch.arange(length, device=alone.device).expand_as(alone)
    at = place[:, None].expand_as(alone)
    first = torch.full_like(index, length).scatter_reduce(
        -1, at, torch.where(alone, index, length), "amin"
    )
    led = alone & (first.gather(-1, at) == index)
    if known is None:
        return Leading(led, led, led)
    none = torch.zeros_like(index)
    held = none.scatter_reduce(-1, at, known.to(none), "amax").gather(-1, at) > 0
    still = none.scatter_reduce(-1, at, alone.to(none), "amax").gather(-1, at) > 0
    new = led & ~held
    return Leading(new | (known & still), known | new, new)
