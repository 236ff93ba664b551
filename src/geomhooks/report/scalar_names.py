"""What scalars are called on a page, and how their numbers are written."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from geomhooks.report.columns import degrees, length, plain, share
from geomhooks.report.theme import NAMES

__all__ = ["Named", "named"]


class Named(NamedTuple):
    """A scalar in words."""

    heading: str
    show: Callable[[float], str]

    @property
    def factor(self) -> float:
        """What numbers are multiplied by to be drawn."""
        return math.degrees(1) if self.show is degrees else 1.0

    @property
    def axis(self) -> dict[str, str]:
        """How an axis shows them; shares from 0."""
        if self.show is share:
            return {"tickformat": ".3~p", "rangemode": "tozero"}
        return {"ticksuffix": "°"} if self.show is degrees else {}

    def error(self, value: float) -> str:
        """A standard error, to two digits."""
        if self.show is share:
            return f"{100 * value:.2g} %"
        return f"{math.degrees(value):.2g}°" if self.show is degrees else f"{value:.2g}"

    def difference(self, value: float) -> str:
        """A difference of two such numbers, with its sign."""
        return f"{'-' if value < 0 else '+'}{self.show(abs(value))}"


KNOWN = {
    "pos_ctx/shares/pos": Named("The share of position", share),
    "pos_ctx/shares/ctx": Named("The share of context", share),
    "pos_ctx/shares/resid": Named("The share of neither", share),
    "pos_ctx/stable_rank": Named("In how many directions positions differ", plain),
    "sphere/norm/mean": Named("How long states are", length),
    "sphere/radius/mean": Named("How long states are without the mean entry", length),
    "sphere/step_angle/mean": Named("How far blocks turn states", degrees),
    "sphere/anisotropy": Named("How alike directions are", plain),
    "covariance/effective_rank": Named("In how many directions states differ", length),
    "group_means/between_share": Named("The share of variance between groups", share),
    "next_word/pull/mean": Named("The pull of the next word, in nats", plain),
    "feed_forward_fit/r_squared": Named("How linear feed-forward layers are", plain),
    "attention/mean_shares/pos_pos": Named("Attention by place", share),
    "attention/mean_shares/resid_resid": Named("Attention by word", share),
    "leaders/cluster_count/mean": Named("Clusters of states", plain),
    "leaders/mean_heads/leaders": Named("Leaders of a head", plain),
    "leaders/mean_heads/softness": Named("How soft attention is", plain),
    "factors/l0": Named("Active factors of a state", length),
    "factors/snr": Named("Signal to noise of the factors", length),
}


def named(scalar: str) -> Named:
    """A scalar by its name after that of the site.

    Example:
        >>> found = named("components/importance/mlp/mean")
        >>> found.heading, found.show(0.25), named("pos_ctx/shares/pos").difference(-0.1)
        ('Importance of feed-forward', '25.0 %', '-10.0 %')
    """
    if scalar in KNOWN:
        return KNOWN[scalar]
    parts = scalar.split("/")
    if parts[:2] == ["components", "importance"] and len(parts) == 4:
        return Named(f"Importance of {NAMES.get(parts[2], parts[2])}", share)
    if parts[0] == "updates" and parts[2:] == ["step_angle", "mean"]:
        return Named(f"How far {NAMES.get(parts[1], parts[1])} turns states", degrees)
    return Named(scalar, general)


def general(value: float) -> str:
    """A number of which nothing is known."""
    return f"{value:.4g}" if math.isfinite(value) else "-"
