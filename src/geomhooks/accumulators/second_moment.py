"""The sums behind a covariance: how many, their sum, and the sum of their outer products."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from geomhooks.accumulators import Accumulator, Field, counts

__all__ = ["SecondMoment"]


class SecondMoment(Accumulator):
    """Sums of x and of x x^T, x the hidden states about their site's fixed shift.

    A statistic that hands one out as :meth:`geomhooks.Statistic.second_moment_target` has it fed by
    its site: one matrix product serves all of them. Of ``outer`` only the upper triangle is kept.

    Args:
        width: d.

    Example:
        >>> import geomhooks as gh
        >>> class Correlation(gh.Statistic):
        ...     '''Correlations of the entries, shape (d, d).'''
        ...
        ...     def accumulators(self, site):
        ...         return {"moment": gh.SecondMoment(site.width)}
        ...
        ...     def second_moment_target(self, state, plans):
        ...         return state["moment"]
        ...
        ...     def update(self, state, reading):
        ...         pass
        ...
        ...     def compute(self, state):
        ...         covariance = state["moment"].covariance
        ...         deviations = covariance.diagonal().sqrt()
        ...         return {"matrix": covariance / deviations[:, None] / deviations}
        >>> model = torch.nn.Sequential(torch.nn.Identity())
        >>> with gh.watch(model, sites="0", statistics=[Correlation()]) as watch:
        ...     _ = model(torch.tensor([[[1.0, 2.0], [3.0, 1.0], [2.0, 3.0]]]))
        >>> watch.geometry()["0"].correlation.matrix
        tensor([[ 1.0000, -0.5000],
                [-0.5000,  1.0000]], dtype=torch.float64)
    """

    def __init__(self, width: int) -> None:
        super().__init__(
            {
                "count": counts(()),
                "forwards": counts(()),
                "total": Field((width,), torch.float64),
                "outer": Field((width, width), torch.float64),
            }
        )

    @property
    def mean(self) -> Tensor:
        """Mean of x (d,); NaN where nothing was added."""
        return self["total"] / self["count"]

    @property
    def outer(self) -> Tensor:
        """Sum of x x^T (d, d), symmetric to the last bit."""
        upper = self["outer"].triu()
        return upper + upper.triu(1).T

    @property
    def covariance(self) -> Tensor:
        """Covariance (d, d), divided by the count; symmetric to the last bit."""
        return self.outer / self["count"] - torch.outer(self.mean, self.mean)

    def rebase(self, delta: Tensor, followed: Any) -> None:
        """Express the sums about a shift that is smaller by ``delta`` (d,)."""
        cross = torch.outer(self["total"], delta)
        self["outer"].add_(cross + cross.T + self["count"] * torch.outer(delta, delta))
        self["total"].add_(self["count"] * delta)

    def merge(self, other: SecondMoment, plan: Any = None) -> None:
        """Add the other's sums, about the same shift."""
        for name, mine in self.tensors.items():
            mine.add_(other[name].to(mine.device))
