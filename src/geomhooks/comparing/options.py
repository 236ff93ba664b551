"""What to compare, and how."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from geomhooks.history import select_scalars

__all__ = ["SCALARS", "Options", "choose_scalars"]

SCALARS = (
    "*/pos_ctx/shares/pos",
    "*/pos_ctx/shares/ctx",
    "*/pos_ctx/stable_rank",
    "*/sphere/radius/mean",
    "*/sphere/step_angle/mean",
    "*/sphere/anisotropy",
    "*/covariance/effective_rank",
    "*/group_means/between_share",
    "*/updates/attention/step_angle/mean",
    "*/updates/cross_attention/step_angle/mean",
    "*/updates/mlp/step_angle/mean",
    "*/next_word/pull/mean",
    "*/components/importance/*/mean",
    "*/feed_forward_fit/r_squared",
    "*/attention/mean_shares/pos_pos",
    "*/attention/mean_shares/resid_resid",
    "*/leaders/cluster_count/mean",
    "*/leaders/mean_heads/leaders",
    "*/leaders/mean_heads/softness",
    "*/factors/l0",
    "*/factors/snr",
)
MOST = 12  # of those of other statistics
LEFT_OUT = ("*/without_first/*", "*/variance", "*/min", "*/max", "*count", "*/left_out")


class Options(NamedTuple):
    """What is to be compared."""

    scalars: tuple[str, ...] = ()
    """globs over their names; by default the main ones of each statistic"""
    sites: tuple[str, ...] = ("*",)
    """globs over the names of sites, of geometries"""
    conditions: tuple[str, ...] = ()
    """one for each file, or none"""
    dimensions: int = 4
    """of the leading spaces of pos"""
    contexts: int = 256
    """at most so many are compared"""
    permutations: int = 99
    level: float = 0.95
    quality: str = ""
    """a scalar of histories, or what is kept by step in their notes"""


def choose_scalars(names: Iterable[str]) -> list[str]:
    """Of names of scalars that runs have in common those to compare, where nobody says which.

    Where none is of a statistic of geomhooks, such as a user's own, the first few are taken.

    Example:
        >>> choose_scalars(["0/sphere/anisotropy", "0/sphere/norm/mean"])
        ['0/sphere/anisotropy']
        >>> choose_scalars(["0/mine/largest", "0/mine/count"])
        ['0/mine/largest']
    """
    numbers = dict.fromkeys(names, 0.0)
    chosen = list(select_scalars(numbers, SCALARS))
    if chosen:
        return chosen
    left_out = select_scalars(numbers, LEFT_OUT)
    others = [name for name in numbers if name not in left_out]
    kinds = list(dict.fromkeys(name.partition("/")[2] for name in others))[:MOST]
    return [name for name in others if name.partition("/")[2] in kinds]
