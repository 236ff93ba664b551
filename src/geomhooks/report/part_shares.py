"""How much of the variance position and context have beyond chance, and how well that is known."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor

from geomhooks.report.finding import read, scalars
from geomhooks.results import Result

if TYPE_CHECKING:
    from geomhooks.snapshot import Geometry

__all__ = ["SURE", "Share", "apart", "effective_width", "part_shares", "sample_size"]

SURE = 3  # standard errors that two numbers must be apart; sites are many, so no fewer
ROWS = 256  # of pos and of ctx that say in how many directions noise is spread


class Share(NamedTuple):
    """A share of the variance at a site."""

    value: float
    """corrected: what chance adds is taken off"""
    raw: float
    """as it is, with it"""
    chance: float
    """what is expected to be added by a sample of this size; NaN where it is not known"""
    error: float
    """standard error"""
    beyond: bool
    """more than chance"""


def sample_size(geometry: Geometry) -> tuple[int, int] | None:
    """The fewest contexts and positions that the fit of a site has; None without a fit."""
    found = [
        (int(result.contexts), int((result.position_count > 0).sum()))
        for site in geometry.sites
        if (result := read(geometry[site], "pos_ctx")) is not None
    ]
    return (min(c for c, _ in found), min(t for _, t in found)) if found else None


def part_shares(geometry: Geometry, part: Literal["pos", "ctx"]) -> dict[str, Share]:
    r"""The shares of a part by site; none where one context or position leaves nothing to tell.

    For states of independent noise the sum of squares of a part with k degrees of freedom varies
    by :math:`\sqrt{2 / (k m)}` of its size, m being in how many directions noise is spread, and
    what the noise makes together with the part itself by 2 sqrt(noise * part / (k m)). A share is
    more than chance where it is :data:`SURE` such errors above the share that noise alone has.
    Tokens count as independent, which those of one context are not quite.
    """
    found = {}
    noise = scalars(geometry, f"pos_ctx.noise_shares.{part}")
    corrected = scalars(geometry, f"pos_ctx.corrected_shares.{part}")
    for site, raw in scalars(geometry, f"pos_ctx.shares.{part}").items():
        result = geometry[site].pos_ctx
        contexts, positions = int(result.contexts), int((result.position_count > 0).sum())
        if contexts < 2 or positions < 2:
            continue
        if site not in noise or site not in corrected:
            found[site] = Share(raw, raw, math.nan, 0.0, True)
            continue
        freedom = (positions if part == "pos" else contexts) - 1
        left = max(1, int(result.count) - positions - contexts + 1)
        width, chance = noise_width(result), noise[site]
        alone = 2 * chance**2 * (1 / freedom + 1 / left) / width
        together = 4 * chance * max(0.0, raw - chance) / (freedom * width)
        beyond = raw - chance > SURE * math.sqrt(alone)
        found[site] = Share(corrected[site], raw, chance, math.sqrt(alone + together), beyond)
    return found


def apart(one: Share, other: Share) -> bool:
    """Whether two shares differ by more than noise."""
    return abs(one.value - other.value) > SURE * math.hypot(one.error, other.error)


def noise_width(result: Result) -> float:
    """In how many directions the noise of a site is spread, taken rather too low than too high."""
    return min(effective_width(result.pos), effective_width(result.ctx))


def effective_width(rows: Tensor) -> float:
    r"""Of what rows were drawn of, the participation ratio :math:`(\sum \lambda)^2/\sum \lambda^2`.

    That of n drawn rows themselves is smaller: its inverse is larger by about 1 / (n - 1).

    Example:
        >>> _ = torch.manual_seed(0)
        >>> 12 < effective_width(torch.randn(100, 16)) <= 16
        True
    """
    rows = rows[torch.isfinite(rows).all(1)][:ROWS].to(torch.float64)
    number, width = rows.shape
    if number < 2:
        return 1.0
    rows = rows - rows.mean(0)
    gram = rows @ rows.T if number < width else rows.T @ rows
    whole = float(gram.trace())
    if not whole > 0:
        return 1.0
    inverse = float(gram.square().sum()) / whole**2 - 1 / (number - 1)
    return 1 / min(1.0, max(1 / width, inverse))
