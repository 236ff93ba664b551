"""The covariance of a site's hidden states."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor

from geomhooks.accumulators import Accumulator
from geomhooks.accumulators.second_moment import SecondMoment
from geomhooks.accumulators.turns import check_fraction
from geomhooks.checks import check_needed, check_positive
from geomhooks.errors import SiteError
from geomhooks.functional.rank import effective_rank
from geomhooks.functional.spectrum import (
    condition_number,
    leading_share,
    participation_ratio,
    spectrum,
)
from geomhooks.results import Lazy, Unavailable
from geomhooks.statistics.base import LAWS, Reading, Site
from geomhooks.statistics.some_forwards import OF_A_SAMPLE, SomeForwards

__all__ = ["Covariance"]


class Covariance(SomeForwards):
    r"""Mean and covariance of hidden states over all tokens, and how their variance is spread.

    .. math:: \mu = \frac{1}{n} \sum h, \quad C = \frac{1}{n} \sum (h - \mu)(h - \mu)^\top

    It costs a matrix product: 2 d^2 operations a token, of which a little more than half are done.
    Products are in float32, never in TF32, over some 1000 tokens at a time, and add up in float64.

    Args:
        fraction: of the forwards that are looked at, above 0 and at most 1. Every result is then
            over their tokens. The first forward is one of them, and the others are spread evenly
            (``accumulators.turns.is_chosen``), by their number alone, whatever they hold, so that
            the choice biases no estimate. Batches cut or ordered otherwise, or shared out among
            ranks, are other forwards, and the sample is another one; ``laws`` says so.
        max_bytes: refuse a configuration whose state at one site would take more; it takes 8 d^2.
        positions: capacity T; by default the smaller of the model's maximum and 2048. All
            statistics of a watch share one capacity.

    Results, float64:

    - ``mean`` (d,) and ``covariance`` (d, d), symmetric to the last bit. For the covariance that
      divides by n - 1 multiply by ``count / (count - 1)``. ``second_moment`` (d, d), the mean of
      h h^T about zero.
    - ``count`` n, the finite tokens in all this; ``forwards``, of how many forwards.
    - ``eigenvalues`` (d,) of the covariance, the largest first; no more than n - 1 are not zero.
      ``trace``, their sum: the total variance.
    - ``effective_rank``, ``participation_ratio``, ``leading_share`` and ``condition_number`` of the
      eigenvalues, as the functions of these names in :mod:`geomhooks.functional` have them.

    Matrices and eigenvalues are computed when they are first read.

    Example:
        To whiten, one needs the mean and the inverse square root of the covariance.

        >>> import torch, geomhooks as gh
        >>> model = torch.nn.Sequential(torch.nn.Identity())
        >>> with gh.watch(model, sites="0", statistics=[gh.Covariance()]) as watch:
        ...     states = model(torch.randn(50, 8, 4) * torch.tensor([1.0, 2.0, 3.0, 4.0]) + 5)
        >>> found = watch.geometry()["0"].covariance
        >>> values, directions = torch.linalg.eigh(found.covariance)
        >>> white = ((states.double() - found.mean) @ directions / values.sqrt()).flatten(0, 1)
        >>> torch.allclose(white.T @ white / found.count, torch.eye(4).double(), atol=1e-4)
        True
    """

    def __init__(
        self, fraction: float = 1.0, max_bytes: int = 1 << 31, positions: int | None = None
    ) -> None:
        self.fraction = check_fraction(fraction, "Covariance(fraction")
        check_positive("Covariance", positions=positions)
        check_needed("Covariance", max_bytes=max_bytes)
        self.max_bytes = max_bytes
        self.positions = positions
        self.laws = LAWS if fraction == 1 else OF_A_SAMPLE

    def accumulators(self, site: Site) -> dict[str, Accumulator]:
        """Sums of the states and of their products."""
        moment = SecondMoment(site.width)
        if moment.nbytes > self.max_bytes:
            raise SiteError(
                f"the state of Covariance for site {site.name!r} (d = {site.width}) would take "
                f"{moment.nbytes:,} bytes, more than max_bytes={self.max_bytes:,}. Watch narrower "
                "sites, or raise max_bytes."
            )
        return {"moment": moment}

    def second_moment_target(
        self, state: Mapping[str, Any], plans: Mapping[str, Any]
    ) -> SecondMoment:
        """Have the site add its products to the state."""
        moment: SecondMoment = state["moment"]
        return moment

    def update(self, state: Mapping[str, Any], reading: Reading) -> None:
        """Nothing is left to do."""

    def compute(self, state: Mapping[str, Any]) -> Mapping[str, Any]:
        """Covariance and spectrum."""
        moment: SecondMoment = state["moment"]
        count = moment["count"]
        known = {"count": count, "forwards": moment["forwards"]}
        if not int(count):
            nothing = "no finite token has been counted at this site"
            if self.fraction < 1:
                nothing += f", in the fraction={self.fraction} of forwards that is looked at"
            return {name: Unavailable(nothing) for name in DERIVED} | known
        mean: Tensor = moment.mean + state["shift"]

        @cache
        def eigenvalues() -> Tensor:
            return spectrum(moment.covariance, rank=int(count) - 1)

        return known | {
            "mean": mean,
            "covariance": Lazy(lambda: moment.covariance, scalar=False),
            "second_moment": Lazy(
                lambda: moment.covariance + torch.outer(mean, mean), scalar=False
            ),
            "eigenvalues": Lazy(eigenvalues, scalar=False),
            "trace": moment["outer"].diagonal().sum() / count - moment.mean.square().sum(),
            "effective_rank": Lazy(lambda: effective_rank(eigenvalues())),
            "participation_ratio": Lazy(lambda: participation_ratio(eigenvalues())),
            "leading_share": Lazy(lambda: leading_share(eigenvalues())),
            "condition_number": Lazy(lambda: condition_number(eigenvalues())),
        }


DERIVED = (
    "mean",
    "covariance",
    "second_moment",
    "eigenvalues",
    "trace",
    "effective_rank",
    "participation_ratio",
    "leading_share",
    "condition_number",
)
