"""The numbers of a geometry as columns, a row a site: one source for pages and terminals."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from glob import escape
from typing import TYPE_CHECKING, NamedTuple

from geomhooks.comparing.options import choose_scalars

if TYPE_CHECKING:
    from geomhooks.snapshot import Geometry

__all__ = ["COLUMNS", "Column", "columns_of", "degrees", "length", "plain", "share"]

MOST = 8  # columns of a statistic that has none of its own


class Column(NamedTuple):
    """One number of each site."""

    header: str
    scalar: str
    show: Callable[[float], str]
    about: str
    brief: str = ""
    """what a terminal has for a header, in short lines; nothing where it has no such column"""
    style: str = ""
    """of the terminal"""


def share(value: float) -> str:
    """As "12.3 %"."""
    return f"{100 * value:.1f} %"


def length(value: float) -> str:
    """With four digits."""
    return f"{value:.4g}" if value < 1e5 else f"{value:.2e}"


def degrees(value: float) -> str:
    """Of radians."""
    return f"{math.degrees(value):.1f}°"


def plain(value: float) -> str:
    """With three decimals."""
    return f"{value:.3f}"


def _two(value: float) -> str:
    return f"{value:.2f}"


def _without_first(header: str, scalar: str, show: Callable[[float], str]) -> Column:
    """The same number over all positions but 0, where a page has room for both."""
    statistic, _, rest = scalar.partition("/")
    name = f"{statistic}/without_first/{rest}"
    return Column(f"{header} without position 0", name, show, "over all positions but 0")


COLUMNS = (
    Column("pos", "pos_ctx/shares/pos", share, "share of variance of the position", "pos", "bold"),
    Column("pos by chance", "pos_ctx/noise_shares/pos", share, "what noise adds to that share",
           "noise", "dim"),
    Column("ctx", "pos_ctx/shares/ctx", share, "share of variance of the context", "ctx", "bold"),
    Column("ctx by chance", "pos_ctx/noise_shares/ctx", share, "what noise adds to that share",
           "noise", "dim"),
    Column("resid", "pos_ctx/shares/resid", share, "share of variance of neither", "resid", "bold"),
    Column("stable rank", "pos_ctx/stable_rank", length, "directions that pos uses"),
    Column("above noise", "pos_ctx/rank_above_noise", length,
           "singular values of pos above the noise"),
    Column("pos · ctx", "pos_ctx/incoherence/mean", plain, "mean |cosine| between pos and ctx"),
    Column("between groups", "group_means/between_share", share,
           "share of variance between groups", "between\ngroups", "bold"),
    Column("between by chance", "group_means/between_noise_share", share,
           "what noise adds to that share", "noise", "dim"),
    Column("norm", "sphere/norm/mean", length, "over all positions", "norm"),
    _without_first("norm", "sphere/norm/mean", length),
    Column("radius", "sphere/radius/mean", length,
           "norm after the mean entry is taken off, over all positions", "radius"),
    _without_first("radius", "sphere/radius/mean", length),
    Column("step angle", "sphere/step_angle/mean", degrees,
           "by which the block turns a state, over all positions", "step\nangle"),
    _without_first("step angle", "sphere/step_angle/mean", degrees),
    Column("attention's step", "updates/attention/step_angle/mean", degrees,
           "by which attention turns a state", "attention\nstep"),
    Column("feed-forward's step", "updates/mlp/step_angle/mean", degrees,
           "by which the feed-forward layer turns a state", "mlp\nstep"),
    Column("attention's size", "updates/attention/norm/mean", length, "norm of what it adds"),
    Column("feed-forward's size", "updates/mlp/norm/mean", length, "norm of what it adds"),
    Column("attention's radial share", "updates/attention/radial_share/mean", share,
           "how much of what it adds is along the state"),
    Column("feed-forward's radial share", "updates/mlp/radial_share/mean", share,
           "how much of what it adds is along the state"),
    Column("anisotropy", "sphere/anisotropy", plain,
           "mean cosine between two states, over all positions", "aniso-\ntropy"),
    _without_first("anisotropy", "sphere/anisotropy", plain),
    Column("pull", "next_word/pull/mean", _two, "of the next word, nats, over all positions",
           "next-word\npull"),
    _without_first("pull", "next_word/pull/mean", _two),
    Column("cosine to next", "next_word/next_cosine/mean", plain,
           "of a state with the row of the next word", "cosine\nto next"),
    Column("cosine to own", "next_word/own_cosine/mean", plain,
           "of a state with the row of its own word", "and to\nown"),
    Column("effective rank", "covariance/effective_rank", length,
           "in how many directions states differ", "effective\nrank"),
    Column("participation ratio", "covariance/participation_ratio", length,
           "the same, weighed by squared variance"),
    Column("leading share", "covariance/leading_share", share,
           "of the variance, in its largest direction", "leading\nshare"),
    Column("condition number", "covariance/condition_number", length,
           "largest over smallest eigenvalue of the covariance"),
    Column("R² of feed-forward", "feed_forward_fit/r_squared", plain,
           "of the best linear map, mean over the entries", "feed-for-\nward R²"),
    Column("R² of its variance", "feed_forward_fit/of_variance", plain,
           "of the best linear map, of the variance of all entries together", "of va-\nriance"),
    Column("clusters", "leaders/cluster_count/mean", "{:.1f}".format, "of states of a context",
           "clus-\nters", "bold"),
    Column("leaders a head", "leaders/mean_heads/leaders", _two,
           "tokens of a context that attend most to themselves", "leaders\na head", "bold"),
    Column("leaders without position 0", "leaders/without_first/mean_heads/leaders", _two,
           "over all positions but 0", "without\nposition 0"),
    Column("new leaders", "leaders/mean_heads/new_leaders", _two,
           "that were none in the block before", "new"),
    Column("overlap with first", "leaders/mean_heads/overlap", plain,
           "leaders of the first block that are left", "overlap\nwith first"),
    Column("basins", "leaders/mean_heads/basins", _two,
           "ends of who goes to what it attends to most", "basins"),
    Column("to position 0", "leaders/mean_heads/sink", plain,
           "share of tokens that attend most to it", "to po-\nsition 0"),
    Column("softness", "leaders/mean_heads/softness", plain, "of attention", "soft-\nness"),
    Column("active factors", "factors/l0", length, "of a state", "active\nfactors"),
    Column("signal to noise", "factors/snr", length, "of states by their factors",
           "signal\nto noise"),
)  # fmt: skip


def columns_of(geometry: Geometry) -> list[Column]:
    """The columns that at least one site has.

    Of statistics of which no column of ``COLUMNS`` tells, such as a user's own, the first few.
    """
    scalars = geometry.scalars(only=[f"*/{column.scalar}" for column in COLUMNS])
    terms = geometry.scalars(only="*/components/importance/*/mean")
    known = scalars | terms
    columns = [
        column
        for column in (*COLUMNS, *_terms(terms))
        if any(f"{site}/{column.scalar}" in known for site in geometry.sites)
    ]
    return columns + _others(geometry, columns)


def _terms(scalars: Iterable[str]) -> list[Column]:
    """How important each term of the hidden states is."""
    found = dict.fromkeys(name.rpartition("/components/")[2] for name in scalars)
    made = []
    for name in found:
        term = name.split("/")[1].replace("_", " ")
        about = "share of the state that the term explains"
        brief = f"importance\nof {term}"
        made.append(
            Column(f"importance of {term}", f"components/{name}", share, about, brief, "bold")
        )
    return made


def _others(geometry: Geometry, columns: Sequence[Column]) -> list[Column]:
    """Some numbers of statistics of which no column tells; counts where there is nothing else."""
    told = {column.scalar.partition("/")[0] for column in columns}
    made: dict[str, Column] = {}
    for site in geometry.sites:
        for statistic in sorted(set(geometry[site]) - told):
            names = geometry.scalars(only=f"{escape(site)}/{statistic}/*")
            chosen = choose_scalars(names)
            for name in (chosen or list(names))[:MOST]:
                scalar = name.removeprefix(f"{site}/")
                lines = [part.replace("_", " ") for part in scalar.split("/")[1:]]
                brief = "\n".join(lines) if chosen else ""
                column = Column(" ".join(lines), scalar, "{:.4g}".format, scalar, brief)
                made.setdefault(scalar, column)
    return list(made.values())
