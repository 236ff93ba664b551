"""The job that all peers do, its dense answer in float64, and how far an answer is from it.

At the input of the first block and the output of every block, S sites, of C contexts of T tokens
each: the mean at each position and of each context; the shares of variance of position, context and
the rest; mean and variance of the norm and of the radius after centring; the mean angle of each
block's step; and the resultant length of the centred directions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

__all__ = ["Numbers", "Sums", "dense", "errors", "mean_and_variance", "shares_of"]

LEAST_SHARE = 0.03


@dataclass
class Numbers:
    """What the job asks for, float64.

    Attributes:
        position_mean: (S, T, d).
        context_mean: (S, C, d).
        shares: (S, 3) of position, context, and the rest.
        norm: (S, 2) mean and population variance.
        radius: (S, 2) the same of |h - m 1|, m the mean of the entries of h.
        step_angle: (S - 1,) mean angle between a block's centred input and output.
        resultant_length: (S,) length of the mean of the centred directions.
    """

    position_mean: Tensor
    context_mean: Tensor
    shares: Tensor
    norm: Tensor
    radius: Tensor
    step_angle: Tensor
    resultant_length: Tensor


def dense(states: Callable[[int], Tensor], sites: int) -> Numbers:
    """The definitions, on whole hidden states.

    Args:
        states: gives those of a site, (C, T, d).
        sites: S.
    """
    parts: list[list[Tensor]] = []
    before = None
    for site in range(sites):
        h = states(site).double()
        by_position, by_context, mean = h.mean(0), h.mean(1), h.mean((0, 1))
        pos, ctx = by_position - mean, by_context - mean
        resid = h - mean - pos - ctx[:, None]
        squares = (pos.square().sum() * len(h), ctx.square().sum() * h.shape[1])
        scatter = torch.stack([*squares, resid.square().sum()])
        centred = h - h.mean(-1, keepdim=True)
        norm, radius = h.norm(dim=-1), centred.norm(dim=-1)
        direction = centred / radius[..., None]
        angle = torch.zeros(())
        if before is not None:
            # Twice the arc tangent of half a chord keeps its digits where an angle is small.
            apart, along = (direction - before).norm(dim=-1), (direction + before).norm(dim=-1)
            angle = 2 * torch.atan2(apart, along).mean()
        before = direction
        moments = [torch.stack([v.mean(), v.var(correction=0)]) for v in (norm, radius)]
        resultant = direction.mean((0, 1)).norm()
        parts.append([by_position, by_context, scatter / scatter.sum(), *moments, angle, resultant])
    columns = [torch.stack(column) for column in zip(*parts, strict=True)]
    columns[5] = columns[5][1:]
    return Numbers(*columns)


def errors(found: Numbers, expected: Numbers) -> dict[str, float]:
    """The largest error of each quantity at any site, relative to its own size.

    Of vectors it is that of any entry, relative to the root mean square of this entry over all
    vectors of the site; so a few large entries do not hide what is wrong with the rest. Of a share
    that is less than 3 % it is relative to 3 %: a share is what is left of the whole.
    """
    worst = {}
    for field in fields(Numbers):
        ours, right = getattr(found, field.name).double(), getattr(expected, field.name)
        if ours.shape != right.shape:
            raise ValueError(f"{field.name} has shape {tuple(ours.shape)}, not {right.shape}")
        size = right.abs()
        if field.name in ("position_mean", "context_mean"):
            size = right.square().mean(1, keepdim=True).sqrt()
        elif field.name == "shares":
            size = size.clamp(min=LEAST_SHARE)
        # What is not finite is infinitely wrong, and not left out of the largest.
        error = ((ours - right).abs() / size).nan_to_num(float("inf"))
        worst[field.name] = float(error.max())
    return worst


def shares_of(position_sum: Tensor, context_sum: Tensor, square: Tensor) -> Tensor:
    """Shares of variance from sums about any one vector, in float64.

    Args:
        position_sum: (T, d).
        context_sum: (C, d).
        square: sum of |h|^2.
    """
    positions, contexts = len(position_sum), len(context_sum)
    total, tokens = position_sum.sum(0), positions * contexts
    grand = total.square().sum() / tokens
    pos = position_sum.square().sum() / contexts - grand
    ctx = context_sum.square().sum() / positions - grand
    return torch.stack([pos, ctx, square - grand - pos - ctx]) / (square - grand)


class Sums:
    """The job as one would write it down in torch, a batch of contexts at a time.

    Args:
        sites: S.
        dtype: that hidden states are cast to, and added up in.
    """

    def __init__(self, sites: int, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.tokens = [0] * sites
        self.position_sum: list[Tensor | float] = [0.0] * sites
        self.context_sum: list[list[Tensor]] = [[] for _ in range(sites)]
        self.square: list[Tensor | float] = [0.0] * sites
        self.moments: list[Tensor | float] = [0.0] * sites
        self.direction: list[Tensor | float] = [0.0] * sites
        self.angle: list[Tensor | float] = [0.0] * sites

    def add(self, site: int, h: Tensor, y: Tensor | None) -> None:
        """Add hidden states (B, T, d), and what came into their block."""
        h = h.detach().to(self.dtype)
        self.tokens[site] += h.shape[0] * h.shape[1]
        self.position_sum[site] += h.sum(0)
        self.context_sum[site].append(h.sum(1))
        self.square[site] += h.square().sum()
        centred = h - h.mean(-1, keepdim=True)
        norm, radius = h.norm(dim=-1), centred.norm(dim=-1)
        self.moments[site] += torch.stack(
            [norm.sum(), norm.square().sum(), radius.sum(), radius.square().sum()]
        )
        self.direction[site] += (centred / radius[..., None]).sum((0, 1))
        if y is not None:
            y = y.detach().to(self.dtype)
            before = y - y.mean(-1, keepdim=True)
            cosine = (centred * before).sum(-1) / (radius * before.norm(dim=-1))
            self.angle[site] += cosine.clamp(-1, 1).acos().sum()

    def add_all(self, states: list[Tensor]) -> None:
        """Add one forward's hidden states of all sites, in their order."""
        for site, h in enumerate(states):
            self.add(site, h, states[site - 1] if site else None)

    def numbers(self) -> Numbers:
        """What has been added."""
        sites = range(len(self.tokens))
        position_sum = [self.position_sum[s].double() for s in sites]
        context_sum = [torch.cat(self.context_sum[s]).double() for s in sites]
        length, contexts = len(position_sum[0]), len(context_sum[0])
        tokens = self.tokens[0]
        moments = torch.stack([self.moments[s].double() for s in sites]) / tokens
        direction = torch.stack([self.direction[s].double() for s in sites])
        return Numbers(
            torch.stack(position_sum) / contexts,
            torch.stack(context_sum) / length,
            torch.stack(
                [shares_of(position_sum[s], context_sum[s], self.square[s].double()) for s in sites]
            ),
            mean_and_variance(moments[:, 0], moments[:, 1]),
            mean_and_variance(moments[:, 2], moments[:, 3]),
            torch.stack([self.angle[s].double() for s in sites[1:]]) / tokens,
            direction.norm(dim=-1) / tokens,
        )


def mean_and_variance(mean: Tensor, mean_square: Tensor) -> Tensor:
    """(S, 2) of the means of a number and of its square."""
    return torch.stack([mean, mean_square - mean.square()], -1)
