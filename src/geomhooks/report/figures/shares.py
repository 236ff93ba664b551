"""Shares of variance by layer, with the part of them that is sampling noise."""

from __future__ import annotations

from typing import TYPE_CHECKING

from geomhooks.errors import UnidentifiedError
from geomhooks.report.figures.found import find, numbers
from geomhooks.report.figures.layers import layer_axis
from geomhooks.report.theme import COLOURS, About, faded, graph_objects, label, new_figure

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from geomhooks.results import Result
    from geomhooks.snapshot import Geometry

__all__ = ["variance_shares"]

PARTS = ("pos", "ctx", "resid")
CHANCE = "as by chance"


def variance_shares(geometry: Geometry) -> go.Figure:
    """How the variance of the hidden states falls to pos, ctx and resid, site by site.

    The part of a share that noise alone is expected to make, ``noise_shares``, is hatched (shares
    of sums of squares after J. Song, Y. Zhong, arXiv 2310.04861; noise by random-effects variance
    components).

    Args:
        geometry: with ``pos_ctx``.

    Raises:
        FigureError: the geometry has no ``pos_ctx``.
        UnidentifiedError: the data do not determine pos and ctx.

    Example:
        >>> import torch, geomhooks as gh
        >>> from geomhooks.report.figures import variance_shares
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
        >>> with torch.no_grad(), gh.watch(model, statistics=[gh.PosCtx()]) as watch:
        ...     _ = model(torch.randn(5, 6, 4))
        >>> figure = variance_shares(watch.geometry())
        >>> [trace.name for trace in figure.data]
        ['pos', 'pos, as by chance', 'ctx', 'ctx, as by chance', 'resid', 'as by chance']
        >>> round(sum(float(trace.y[0]) for trace in figure.data[:-1]), 6)
        1.0
    """
    go = graph_objects()
    found = find(geometry, "pos_ctx")
    sites = [label(site) for site in found]
    about = About(
        "Of the variance of the hidden states around their mean, pos is what the position alone "
        "tells, ctx what the text it stands in tells, and resid the rest, mostly the word itself. "
        "The hatched part of a bar is what a sample of this size would show by chance.",
        "J. Song, Y. Zhong, arXiv 2310.04861; noise: analysis of variance with random effects",
    )
    figure = new_figure(
        "Shares of variance: position, context, rest", "", "share of variance", about,
        barmode="stack", bargap=0.15, legend={"traceorder": "normal"},
    )  # fmt: skip
    for part in PARTS:
        shares = [float(result.shares[part]) for result in found.values()]
        noise = [0.0] * len(shares)
        if part != "resid":
            noise = [_noise(result, part) for result in found.values()]
        chance = [max(0.0, min(share, n)) for share, n in zip(shares, noise, strict=True)]
        beyond = [share - n for share, n in zip(shares, chance, strict=True)]
        bars = {part: beyond} | ({f"{part}, as by chance": chance} if part != "resid" else {})
        for name, values in bars.items():
            hatched = name != part
            figure.add_trace(
                go.Bar(
                    y=numbers(values),
                    name=name,
                    customdata=numbers(shares),
                    hovertext=sites,
                    marker={
                        "color": faded(COLOURS[part], 0.25) if hatched else COLOURS[part],
                        "pattern": {"shape": "/" if hatched else "", "fgcolor": COLOURS[part]},
                    },
                    legendgroup=CHANCE if hatched else part,
                    showlegend=not hatched,
                    hovertemplate=f"%{{hovertext}}<br>{name}: %{{y:.1%}} of %{{customdata:.1%}}"
                    "<extra></extra>",
                )
            )
    # One entry of the legend for both hatchings, which has no bar of its own.
    pattern = {"shape": "/", "fgcolor": COLOURS["resid"]}
    figure.add_trace(
        go.Bar(
            y=[None],
            name=CHANCE,
            legendgroup=CHANCE,
            marker={"color": faded(COLOURS["resid"], 0.25), "pattern": pattern},
            hoverinfo="skip",
        )
    )
    figure.update_xaxes(layer_axis(list(found)))
    figure.update_yaxes(tickformat=".0%", range=[0, 1])
    return figure


def _noise(result: Result, part: str) -> float:
    """Of a share; zero where the exact fit is not to be had."""
    try:
        return float(result.noise_shares[part])
    except UnidentifiedError:
        return 0.0
