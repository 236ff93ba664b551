"""Lengths, steps and directions of hidden states, by position and by layer."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from geomhooks.errors import FigureError
from geomhooks.report.figures.found import find, lookup, numbers, thinned
from geomhooks.report.figures.layers import layer_axis, layer_line, logarithmic
from geomhooks.report.figures.sublayers import update_of
from geomhooks.report.theme import (
    COLOURS,
    NAMES,
    SEQUENTIAL,
    About,
    faded,
    graph_objects,
    label,
    new_figure,
)

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from geomhooks.results import Result
    from geomhooks.snapshot import Geometry

__all__ = ["directions_by_layer", "length_by_layer", "length_by_position", "step_angles"]

Length = Literal["norm", "radius"]
MOLINA = (
    'R. Molina, "Traveling Words: A Geometric Interpretation of Transformers", arXiv 2309.07315'
)
SAID = {
    "norm": "norm |h|",
    "radius": "radius, the norm after the mean entry is taken off",
}


def length_by_position(geometry: Geometry, of: Length = "norm", positions: int = 512) -> go.Figure:
    """Mean norm, or radius, of the hidden states at each position of each site, in colour.

    Colours go by the logarithm, as single positions can be a hundred times as long as others.

    Args:
        geometry: with ``sphere``.
        of: "norm", or "radius", without the component along the ones direction.
        positions: at most so many are drawn, evenly spaced, the first among them.

    Raises:
        FigureError: the geometry has no ``sphere``, or there is no such length.

    Example:
        >>> import torch, geomhooks as gh
        >>> from geomhooks.report.figures import length_by_position
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
        >>> with torch.no_grad(), gh.watch(model, statistics=[gh.Sphere()]) as watch:
        ...     _ = model(torch.randn(5, 6, 4))
        >>> length_by_position(watch.geometry()).data[0].customdata.shape  # sites, positions
        (3, 6)
    """
    found = _lengths(geometry, of)
    longest = max(len(moments.at_position.mean) for moments in found.values())
    at = thinned(longest, positions)
    table = np.full((len(found), len(at)), np.nan)
    for row, moments in enumerate(found.values()):
        means = moments.at_position.mean.double().cpu().numpy()
        inside = [place for place in at if place < len(means)]
        table[row, : len(inside)] = means[inside]
    with np.errstate(divide="ignore"):
        logarithms = np.where(table > 0, np.log10(table), np.nan)
    low, high = np.nanmin(logarithms), np.nanmax(logarithms)
    ticks = np.linspace(low, high, 5) if high > low else np.array([low])
    note = f"{len(at)} of {longest} positions are drawn, evenly spaced." if at[-1:] != [
        len(at) - 1
    ] else ""  # fmt: skip
    about = About(
        f"The mean {SAID[of]}, of the states at each position; the scale of colours is "
        "logarithmic. A first column that differs from the rest is a first token that is an "
        "outlier; in many decoders it is a hundred times as long as others, and attention rests "
        "on it.",
        MOLINA,
        note,
    )
    title = "Norm" if of == "norm" else "Radius"
    figure = new_figure(f"{title} by position and site", "position", "", about, height=480)
    figure.add_trace(
        graph_objects().Heatmap(
            x=at,
            z=logarithms.astype(np.float32),
            customdata=table.astype(np.float32),
            y=[label(site) for site in found],
            colorscale=SEQUENTIAL,
            colorbar={
                "title": {"text": title.lower()},
                "tickvals": ticks.tolist(),
                "ticktext": [f"{10**tick:.3g}" for tick in ticks],
                "thickness": 14,
            },
            hovertemplate=f"position %{{x}}, %{{y}}<br>{title.lower()} "
            "%{customdata:.4g}<extra></extra>",
        )
    )
    figure.update_yaxes(layer_axis(list(found), "site, in forward order"), type="category")
    return figure


def length_by_layer(geometry: Geometry, of: Length = "norm") -> go.Figure:
    """Mean norm, or radius, of the hidden states at each site, with and without position 0.

    The band is one standard deviation (population) of the states without position 0.

    Args:
        geometry: with ``sphere``.
        of: "norm", or "radius".

    Raises:
        FigureError: the geometry has no ``sphere``, or there is no such length.

    Example:
        >>> import torch, geomhooks as gh
        >>> from geomhooks.report.figures import length_by_layer
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
        >>> with torch.no_grad(), gh.watch(model, statistics=[gh.Sphere()]) as watch:
        ...     _ = model(torch.randn(5, 6, 4))
        >>> [trace.name for trace in length_by_layer(watch.geometry()).data]
        ['± standard deviation', 'without position 0', 'position 0']
    """
    found = _lengths(geometry, of)
    title = "Norm" if of == "norm" else "Radius"
    about = About(
        f"The mean {SAID[of]}, of all states but those at position 0, with one standard deviation "
        "around it, and of those at position 0. Where the two curves part, the first token is an "
        "outlier, and averages over all tokens are ruled by it.",
        MOLINA,
    )
    figure = new_figure(f"{title} by site", "", title.lower(), about)
    rest = {site: geometry[site].sphere.without_first[of] for site in found}
    _add_band(figure, list(rest.values()), list(rest), "without position 0", COLOURS["state"])
    first = [float(moments.at_position.mean[0]) for moments in found.values()]
    figure.add_trace(layer_line(list(found), first, "position 0", COLOURS["first"]))
    figure.update_xaxes(layer_axis(list(found)))
    values = [v for v in (*first, *(float(m.mean) for m in rest.values())) if v > 0]
    if values and max(values) > 30 * min(values):
        figure.update_yaxes(logarithmic(values))
    return figure


def step_angles(geometry: Geometry) -> go.Figure:
    """How far each block turns the states, in degrees, and its sublayers where they are measured.

    The mean angle between the centred input and output of each block, with one standard deviation
    (population), without position 0; and those of the updates of attention and feed-forward layer
    alone (derived from the picture of R. Molina, arXiv 2309.07315, which measures no angle).

    Args:
        geometry: with ``sphere`` at blocks, or ``updates``, or both; what it has is drawn.

    Raises:
        FigureError: the geometry has no ``sphere.step_angle`` and no ``updates``.

    Example:
        >>> import torch, geomhooks as gh
        >>> from geomhooks.report.figures import step_angles
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
        >>> with torch.no_grad(), gh.watch(model, statistics=[gh.Sphere()]) as watch:
        ...     _ = model(torch.randn(5, 6, 4))
        >>> [trace.name for trace in step_angles(watch.geometry()).data]
        ['± standard deviation', 'block']
    """
    names = _turning(geometry)
    about = About(
        "The angle, seen from the centre of the sphere on which norms put the states, between "
        "what comes into a block and what comes out; 0° is no change of direction, 90° an "
        "unrelated one. Of attention and the feed-forward layer it is the turn that each makes "
        "alone.",
        MOLINA,
    )
    figure = new_figure("How far each block turns the states", "", "angle (degrees)", about)
    moments = [lookup(geometry[site], "sphere.without_first.step_angle") for site in names]
    if None not in moments:
        _add_band(figure, moments, names, "block", COLOURS["state"], math.degrees(1))
    for sublayer in ("attention", "cross_attention", "mlp"):
        angles = [update_of(geometry, site, sublayer, "step_angle") for site in names]
        if not all(map(math.isnan, angles)):
            name = NAMES.get(sublayer, sublayer)
            figure.add_trace(layer_line(names, angles, name, COLOURS[sublayer]))
    figure.update_xaxes(layer_axis(names))
    figure.update_yaxes(rangemode="tozero", ticksuffix="°")
    return figure


def directions_by_layer(geometry: Geometry) -> go.Figure:
    r"""How alike the directions of the states are at each site.

    Mean cosine between two different states as they are (anisotropy) and centred, without position
    0, exact for all pairs: :math:`(|\sum u|^2 - n) / (n (n - 1))` for n unit vectors u.

    Args:
        geometry: with ``sphere``.

    Raises:
        FigureError: the geometry has no ``sphere``.

    Example:
        >>> import torch, geomhooks as gh
        >>> from geomhooks.report.figures import directions_by_layer
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
        >>> with torch.no_grad(), gh.watch(model, statistics=[gh.Sphere()]) as watch:
        ...     _ = model(torch.randn(5, 6, 4))
        >>> [trace.name for trace in directions_by_layer(watch.geometry()).data]
        ['states as they are', 'mean entry taken off']
    """
    found = list(find(geometry, "sphere"))
    about = About(
        "The mean cosine between the states of two different tokens: 0 where they point anywhere, "
        "1 where all point the same way. A high value says that states share a direction which "
        "tells nothing of the token.",
        f"{MOLINA}; K. Ethayarajh, arXiv 1909.00512",
    )
    figure = new_figure("How alike directions are", "", "mean cosine of two states", about)
    kinds = {"states as they are": "anisotropy", "mean entry taken off": "mean_cosine"}
    for (name, path), dash in zip(kinds.items(), ("solid", "dash"), strict=True):
        values = [float(geometry[site].sphere.without_first[path]) for site in found]
        figure.add_trace(layer_line(found, values, name, COLOURS["state"], dash))
    figure.update_xaxes(layer_axis(found))
    return figure


def _turning(geometry: Geometry) -> list[str]:
    """Sites with angles of blocks, or where there are none of their sublayers."""
    try:
        return list(find(geometry, "sphere.step_angle"))
    except FigureError as error:
        try:
            return list(find(geometry, "updates"))
        except FigureError:
            raise error from None


def _lengths(geometry: Geometry, of: str) -> dict[str, Result]:
    if of not in get_args(Length):
        raise FigureError(f"of={of!r}: 'norm' or 'radius' is needed")
    return find(geometry, f"sphere.{of}")


def _add_band(
    figure: go.Figure,
    moments: list[Result],
    sites: list[str],
    name: str,
    colour: str,
    factor: float = 1.0,
) -> None:
    """A line of means, and one standard deviation around it."""
    mean = [factor * float(m.mean) for m in moments]
    deviation = [factor * float(m.variance) ** 0.5 for m in moments]
    index = list(range(len(sites)))
    above = [m + s for m, s in zip(mean, deviation, strict=True)]
    below = [max(0.0, m - s) for m, s in zip(mean, deviation, strict=True)]
    figure.add_trace(
        graph_objects().Scatter(
            x=index + index[::-1],
            y=numbers(above + below[::-1]),
            fill="toself",
            fillcolor=faded(colour, 0.18),
            line={"width": 0},
            mode="lines",
            name="± standard deviation",
            hoverinfo="skip",
        )
    )
    figure.add_trace(layer_line(sites, mean, name, colour))
