"""What a block does to all tokens of a context: clusters, hull and lengths."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from geomhooks.accumulators import Moments
from geomhooks.functional.attention.query_key import QueryKey, repeat_heads
from geomhooks.functional.hardmax.follower_graphs import sum_by_home
from geomhooks.functional.hardmax.token_covers import cover_tokens, tokens_outside
from geomhooks.statistics.leader_context import Context
from geomhooks.statistics.leader_features import add_both

__all__ = ["OF_LAYERS", "add_clusters", "add_layer"]

OF_LAYERS = ("cluster_count", "outside", "norm_decreased")
ROUNDING = 1e-5  # of lengths and projections, for a difference to count


def add_clusters(layer: Moments, there: Context, cosine: float) -> None:
    """Add the clusters of what comes into the first block."""
    with_first, without = clusters_of(there, cosine)
    nothing = torch.full_like(with_first, math.nan)
    add_both(layer, *(torch.stack([n, nothing, nothing]) for n in (with_first, without)))


def clusters_of(there: Context, cosine: float) -> tuple[Tensor, Tensor]:
    """(B, T) how many clusters a context has, at its home column, with and without first."""
    chosen = torch.stack([there.counted, there.later])
    begins = cover_tokens(there.after, chosen, there.home, cosine)
    found = []
    for which, counted in zip(begins, chosen, strict=True):
        total = sum_by_home(counted.to(there.after), there.home)
        number = sum_by_home((which & counted).to(there.after), there.home)
        found.append(number.masked_fill(total == 0, math.nan))
    return found[0], found[1]


def add_layer(
    layer: Moments,
    through_norm: Moments,
    weights: QueryKey,
    there: Context,
    own_form: Tensor,
    directions: Tensor,
    cosine: float,
) -> None:
    """Add clusters, and what leaves the hull or is shortened; also through the norm.

    Args:
        layer: of what :data:`OF_LAYERS` names.
        through_norm: of ``outside``, and what is shorter in each head.
        weights: of the block's attention.
        there: the states.
        own_form: (H,) bool on the host, a head's form is a norm.
        directions: (n, d) in which the hull is looked at.
        cosine: above which tokens are of one cluster.
    """
    clusters = clusters_of(there, cosine)
    length = torch.linalg.vector_norm(there.before, dim=-1)
    shorter = is_below(torch.linalg.vector_norm(there.after, dim=-1), length)
    seen_before, seen_after = there.before, there.after
    if weights.freeze is not None:
        seen_before, seen_after = (through(weights, s) for s in (seen_before, seen_after))
    lengths = [lengths_of(weights, s, own_form) for s in (seen_before, seen_after)]
    shorter_seen = is_below(lengths[1], lengths[0]).movedim(1, 0)
    of_layer, of_seen = [], []
    for counted, number in zip((there.counted, there.later), clusters, strict=True):

        def outside(before: Tensor, after: Tensor, some: Tensor = counted) -> Tensor:
            return tokens_outside(before, after, directions, some, there.home, ROUNDING)

        def where(which: Tensor, some: Tensor = counted) -> Tensor:
            return which.to(there.before).masked_fill(~some, math.nan)

        gone = outside(there.before, there.after)
        of_layer.append(torch.stack([number, where(gone), where(shorter)]))
        if weights.freeze is not None:
            gone = outside(seen_before, seen_after)
        of_seen.append(where(torch.cat([gone[None], shorter_seen])))
    add_both(layer, of_layer[0], of_layer[1])
    add_both(through_norm, of_seen[0], of_seen[1])


def through(weights: QueryKey, states: Tensor) -> Tensor:
    """States as attention reads them, after the norm before it."""
    norm = None if weights.freeze is None else weights.freeze(states)
    return states if norm is None else norm(states)


def lengths_of(weights: QueryKey, states: Tensor, own_form: Tensor) -> Tensor:
    """(B, H, T) lengths: in the head's own form where that is a norm, else plain."""
    heads = len(own_form)
    plain: Tensor = torch.linalg.vector_norm(states, dim=-1)[:, None].expand(-1, heads, -1)
    if not own_form.any():
        return plain
    query, key = (
        torch.einsum("btd,hdk->bhtk", states, weight.to(states))
        for weight in (weights.query[0], weights.key[0])
    )
    square = (query * repeat_heads(key, heads)).sum(-1) * weights.scale
    square = square.clamp(min=0)
    return torch.where(own_form[:, None].to(plain.device), square.sqrt(), plain)


def is_below(new: Tensor, old: Tensor) -> Tensor:
    """Less, by more than rounding."""
    below: Tensor = new < old * (1 - ROUNDING)
    return below
