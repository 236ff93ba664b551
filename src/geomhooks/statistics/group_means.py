"""Means of groups of hidden states, and how well they are known."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Literal, get_args

from torch import Tensor

from geomhooks.accumulators import Accumulator
from geomhooks.accumulators.group_sums import GroupSums
from geomhooks.checks import check_needed, check_positive
from geomhooks.errors import SiteError
from geomhooks.functional.position.group_means import (
    BetweenGroups,
    MeanDistances,
    between_groups,
    mean_distances,
    standard_errors,
)
from geomhooks.results import Lazy, Result, Unavailable
from geomhooks.statistics.base import Reading, Site, Statistic

__all__ = ["GroupMeans"]

By = Literal["context", "token"]


class GroupMeans(Statistic):
    r"""Mean and variance of the hidden states of each group of contexts, or of tokens.

    Groups are languages, conditions, answers against prompts: whatever integer labels are given
    with the forwards, ``watch.tokens(groups=...)``, (B,) or (B, T). Labels from 0 to G - 1 are
    groups. Negative ones say that a token is in none, as does a forward without labels; a label of
    G or more is no group either, and is warned of, as is a geometry without any label. Both are
    counted.

    Args:
        groups: G; by default as many as there are names, or 8.
        by: whose label a token has: "context", that of its context, which is the largest where its
            tokens have several; or "token", its own, which is that of its row where labels are
            (B,).
        names: G names, by which results are found under ``named``.
        max_bytes: refuse a configuration whose state at one site would take more; it takes
            8 (G + 2) (2 d + 1).
        positions: capacity T; by default the smaller of the model's maximum and 2048. All
            statistics of a watch share one capacity.

    Results, float64, over the finite tokens of each group; NaN for groups without any:

    - ``mean`` (G, d) and ``count`` (G,).
    - ``scatter`` (G, d): sums of squared deviations from the mean, by entry; ``variance`` (G, d),
      the same by token; ``trace`` (G,), the sum of the variances of all entries.
    - ``standard_error`` (G, d) of the means, for independent tokens. Tokens of one context are not,
      and means are less well known than this says. Where contexts are what was drawn, take theirs:
      ``gh.functional.group_moments(found.ctx, found.context_group, G)``, with ``found`` the results
      of :class:`geomhooks.PosCtx`.
    - ``squared_distance`` (G, G) between means, without the noise in it: unbiased, and negative at
      times where groups do not differ; ``distance_noise`` (G, G), what was taken off.
    - ``between_share``: the part of the variance of all groups' tokens that is between their means;
      ``between_noise_share``: what noise is expected to add to it.
    - ``unlabelled`` and ``outside``: tokens without a group, and with a label of G or more.
    - ``named``, where names were given: ``count``, ``mean`` (d,) and ``trace`` of each group.

    ``gh.functional.mean_difference(found.count, found.mean, found.scatter, a, b)`` has the
    difference of two means with its standard errors.

    Example:
        >>> import torch, geomhooks as gh
        >>> model = torch.nn.Sequential(torch.nn.Identity())
        >>> statistic = gh.GroupMeans(names=("plain", "shouted"))
        >>> with gh.watch(model, sites="0", statistics=[statistic]) as watch:
        ...     with watch.tokens(groups=torch.tensor([0, 1, 1])):
        ...         _ = model(torch.tensor([[[1.0]], [[4.0]], [[6.0]]]))
        >>> found = watch.geometry()["0"].group_means
        >>> found.count, found.named.shouted.mean
        (tensor([1, 2]), tensor([5.], dtype=torch.float64))
    """

    def __init__(
        self,
        groups: int | None = None,
        by: By = "context",
        names: Sequence[str] | None = None,
        max_bytes: int = 1 << 31,
        positions: int | None = None,
    ) -> None:
        if isinstance(names, str):
            raise ValueError(f"GroupMeans(names={names!r}): a sequence of names is needed")
        self.names = None if names is None else tuple(names)
        if groups is None:
            groups = 8 if self.names is None else len(self.names)
        check_positive("GroupMeans", groups=groups, positions=positions)
        check_needed("GroupMeans", max_bytes=max_bytes)
        if by not in get_args(By):
            raise ValueError(f"GroupMeans(by={by!r}): {' or '.join(map(repr, get_args(By)))}")
        if self.names is not None:
            _check_names(self.names, groups)
        self.groups = groups
        self.by = by
        self.max_bytes = max_bytes
        self.positions = positions

    def accumulators(self, site: Site) -> dict[str, Accumulator]:
        """Sums by group."""
        sums = GroupSums(self.groups, site.width)
        if sums.nbytes > self.max_bytes:
            raise SiteError(
                f"the state of GroupMeans for site {site.name!r} ({self.groups} groups, d = "
                f"{site.width}) would take {sums.nbytes:,} bytes, more than "
                f"max_bytes={self.max_bytes:,}. Give fewer groups, or raise max_bytes."
            )
        return {"sums": sums}

    def update(self, state: Mapping[str, Any], reading: Reading) -> None:
        """Add one forward."""
        sums: GroupSums = state["sums"]
        tokens, labels = reading.tokens, reading.tokens.token_groups
        if labels is None:
            labels = tokens.positions.new_full((1, 1), -1).expand_as(tokens.real)
        elif self.by == "context":
            labels = tokens.context_labels()
        sums.add(reading.taps["out"], labels, reading.reductions.keep, reading.shift)

    def compute(self, state: Mapping[str, Any]) -> Mapping[str, Any]:
        """Means, variances and distances."""
        sums: GroupSums = state["sums"]
        unlabelled, outside = sums["count"][self.groups :].unbind()
        count = sums["count"][: self.groups]
        known = {"count": count, "unlabelled": unlabelled, "outside": outside}
        if int(outside):
            warnings.warn(
                f"{int(outside)} tokens had a group label of {self.groups} or more, and are in no "
                f"group; raise groups={self.groups} of GroupMeans, or give them a negative label",
                stacklevel=2,
            )
        if not int(count.sum()):
            nothing = (
                f"no finite token had a label from 0 to {self.groups - 1}: {int(unlabelled)} had "
                f"none, or a negative one, {int(outside)} a larger one; give labels by "
                "watch.tokens(groups=...)"
            )
            return {name: Unavailable(nothing) for name in DERIVED} | known
        number = count[:, None]
        shifted = sums["total"][: self.groups] / number
        # A sum of squares about the mean is not negative, whatever rounding makes of it.
        scatter = (sums["squares"][: self.groups] - number * shifted.square()).clamp(min=0)
        mean, variance = shifted + state["shift"], scatter / number
        found = known | {
            "mean": mean,
            "scatter": scatter,
            "variance": variance,
            "trace": variance.sum(1),
        }
        found |= self._between(count, shifted, scatter)
        if self.names is not None:
            found["named"] = Result(
                **{
                    name: Result(count=count[g], mean=mean[g], trace=found["trace"][g])
                    for g, name in enumerate(self.names)
                }
            )
        return found

    @staticmethod
    def _between(count: Tensor, mean: Tensor, scatter: Tensor) -> dict[str, Any]:
        """What compares groups; means about any point, best one near them."""

        @cache
        def distances() -> MeanDistances:
            return mean_distances(count, mean, scatter)

        @cache
        def between() -> BetweenGroups:
            return between_groups(count, mean, scatter)

        return {
            "standard_error": Lazy(lambda: standard_errors(count, scatter), scalar=False),
            "squared_distance": Lazy(lambda: distances().squared_length, scalar=False),
            "distance_noise": Lazy(lambda: distances().noise, scalar=False),
            "between_share": Lazy(lambda: between().share),
            "between_noise_share": Lazy(lambda: between().noise_share),
        }


def _check_names(names: tuple[str, ...], groups: int) -> None:
    if len(names) != groups:
        raise ValueError(
            f"GroupMeans(groups={groups}, names={names!r}): {len(names)} names for {groups} "
            "groups; one for each is needed"
        )
    wrong = [n for n in names if not isinstance(n, str) or not n or "/" in n or names.count(n) > 1]
    if wrong:
        raise ValueError(
            f"GroupMeans(names=...): {wrong[0]!r}; names are texts, not empty, without a slash, "
            "and all different"
        )


DERIVED = (
    "mean",
    "scatter",
    "variance",
    "trace",
    "standard_error",
    "squared_distance",
    "distance_noise",
    "between_share",
    "between_noise_share",
)
