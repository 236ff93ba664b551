"""What the distance between two tokens adds to logits, by the bucket that it falls into."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["bucket_of", "relative_bias"]


def bucket_of(distance: Tensor, buckets: int, furthest: int, both_ways: bool) -> Tensor:
    """The bucket of each distance: one for each near one, and for far ones wider and wider ones.

    C. Raffel et al., "Exploring the limits of transfer learning with a unified text-to-text
    Transformer", arXiv 1910.10683, section 2.1.

    Args:
        distance: position of the key less that of the query, integers of any shape.
        buckets: how many there are.
        furthest: from this distance on all are in one.
        both_ways: half of the buckets are for keys after the query; else these are as near as the
            query itself.

    Example:
        >>> bucket_of(torch.tensor([-200, -20, -3, 0, 3]), 32, 128, both_ways=True)
        tensor([15, 10,  3,  0, 19])
    """
    after = torch.zeros_like(distance)
    if both_ways:
        buckets //= 2
        after = (distance > 0).long() * buckets
        distance = distance.abs()
    else:
        distance = (-distance).clamp(min=0)
    near = buckets // 2
    # In float32 as the models do: at the edges of buckets the rounding decides.
    steps = torch.log(distance.float() / near) / math.log(furthest / near) * (buckets - near)
    far = (near + steps.clamp(min=0).long()).clamp(max=buckets - 1)
    return after + torch.where(distance < near, distance, far)


def relative_bias(
    table: Tensor, buckets: int, furthest: int, both_ways: bool
) -> Callable[[Tensor, Tensor], Tensor]:
    """Gives (H, T, S) for positions (T,) and (S,).

    Args:
        table: (buckets, H) what each bucket adds in each head.
        buckets: of :func:`bucket_of`.
        furthest: of :func:`bucket_of`.
        both_ways: of :func:`bucket_of`.
    """

    def distance(queries: Tensor, keys: Tensor) -> Tensor:
        apart = (keys[None, :] - queries[:, None]).to(table.device)
        return table[bucket_of(apart, buckets, furthest, both_ways)].permute(2, 0, 1)

    return distance
