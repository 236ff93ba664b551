"""Groups of contexts or tokens: how much of the variance is between them, and how far apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from geomhooks.errors import FigureError
from geomhooks.report.figures.found import find, numbers
from geomhooks.report.figures.layers import add_slider, layer_axis
from geomhooks.report.theme import (
    COLOURS,
    SEQUENTIAL,
    About,
    graph_objects,
    label,
    new_figure,
)

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from geomhooks.snapshot import Geometry

__all__ = ["group_distances", "group_shares"]

REFERENCE = "geomhooks.GroupMeans: analysis of variance, one way"


def group_shares(geometry: Geometry) -> go.Figure:
    """How much of the variance of the hidden states is between groups, site by site.

    The dotted line is what noise is expected to make of it (one-way analysis of variance).

    Args:
        geometry: with ``group_means``.

    Raises:
        FigureError: the geometry has no ``group_means``.
        UnidentifiedError: no token was in a group.

    Example:
        >>> import torch, geomhooks as gh
        >>> from geomhooks.report.figures import group_shares
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4))
        >>> with torch.no_grad(), gh.watch(model, "0", statistics=[gh.GroupMeans(2)]) as watch:
        ...     with watch.tokens(groups=torch.tensor([0, 1, 1])):
        ...         _ = model(torch.randn(3, 6, 4))
        >>> [trace.name for trace in group_shares(watch.geometry()).data]
        ['between groups', 'by chance']
    """
    found = find(geometry, "group_means")
    about = About(
        "The share of the variance of the states that is between the means of groups; the dotted "
        "line is what chance makes of it, as if tokens were independent. A site whose share is far "
        "above the line tells groups apart by where their states are.",
        REFERENCE,
    )
    figure = new_figure("Variance between groups", "", "share of variance", about)
    for name, path, style in (
        ("between groups", "between_share", {"color": COLOURS["ctx"]}),
        ("by chance", "between_noise_share", {"color": COLOURS["resid"], "dash": "dot"}),
    ):
        figure.add_trace(
            graph_objects().Scatter(
                x=list(range(len(found))),
                y=numbers([float(result[path]) for result in found.values()]),
                mode="lines+markers",
                name=name,
                line=style,
                hovertext=[label(site) for site in found],
                hovertemplate=f"%{{hovertext}}<br>{name}: %{{y:.3~p}}<extra></extra>",
            )
        )
    figure.update_xaxes(layer_axis(list(found)))
    return figure.update_yaxes(tickformat=".3~p", rangemode="tozero")


def group_distances(geometry: Geometry, groups: Sequence[str] | None = None) -> go.Figure:
    """How far the means of groups are apart, without the noise in it, as a table in colour.

    A slider goes through the sites. Distances are the roots of ``squared_distance`` of
    :class:`geomhooks.GroupMeans`, 0 where that is negative; groups without a token are left out.

    Args:
        geometry: with ``group_means``.
        groups: names of groups; by default those that the statistic was given.

    Raises:
        FigureError: the geometry has no ``group_means``, or fewer than two groups have tokens.
        UnidentifiedError: no token was in a group.

    Example:
        >>> import torch, geomhooks as gh
        >>> from geomhooks.report.figures import group_distances
        >>> model = torch.nn.Sequential(torch.nn.Identity())
        >>> with gh.watch(model, sites="0", statistics=[gh.GroupMeans(2)]) as watch:
        ...     with watch.tokens(groups=torch.tensor([0, 0, 1, 1])):
        ...         _ = model(torch.tensor([[[1.0]], [[1.0]], [[4.0]], [[4.0]]]))
        >>> group_distances(watch.geometry()).data[0].z.tolist()
        [[0.0, 3.0], [3.0, 0.0]]
    """
    traces: dict[str, list[Any]] = {}
    titles = {}
    for site, found in find(geometry, "group_means").items():
        there = (found.count > 0).nonzero()[:, 0].tolist()
        if len(there) < 2:
            raise FigureError(
                f"distances need two groups with tokens, found {len(there)} at {site!r}"
            )
        given = list(found.named) if "named" in found else list(groups or ())
        names = [label(given[g] if g < len(given) else f"group {g}", 24) for g in there]
        distance = found.squared_distance[there][:, there].clamp(min=0).sqrt()
        distance.fill_diagonal_(0)
        traces[site] = [
            graph_objects().Heatmap(
                x=names,
                y=names,
                z=numbers(distance),
                zmin=0,
                zmax=float(distance.nan_to_num().max()) or 1.0,
                colorscale=SEQUENTIAL,
                texttemplate="%{z:.3g}" if len(names) <= 12 else None,
                colorbar={"title": {"text": "distance"}, "thickness": 14},
                hovertemplate="%{y} to %{x}: %{z:.4g}<extra></extra>",
                name=label(site),
            )
        ]
        spread = float((found.trace[there] * found.count[there]).sum() / found.count[there].sum())
        titles[site] = f"Distance between groups; states spread by {spread**0.5:.3g} within"
    about = About(
        "How far the means of two groups are apart, in units of the states, with what noise adds "
        "taken off. Beside the spread of the states within groups, which the title tells, it says "
        "how well groups are told apart.",
        REFERENCE,
    )
    figure = new_figure("", "", "", about, height=480)
    figure.update_yaxes(autorange="reversed", type="category", scaleanchor="x", constrain="domain")
    figure.update_xaxes(type="category", constrain="domain")
    return add_slider(figure, traces, titles)
