"""Several runs beside each other."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from geomhooks.errors import FigureError
from geomhooks.report.figures.found import numbers
from geomhooks.report.figures.layers import layer_axis
from geomhooks.report.theme import RUNS, About, graph_objects, label, new_figure

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from geomhooks.snapshot import Geometry

__all__ = ["runs_compared"]


def runs_compared(runs: Mapping[str, Geometry], scalar: str = "pos_ctx/shares/pos") -> go.Figure:
    """One scalar by site, a line for each of several runs.

    Sites are matched by name; those that a run does not have are left out of its line.

    Args:
        runs: geometries by what to call them.
        scalar: its name after that of the site.

    Raises:
        FigureError: there are no runs, or none has the scalar.

    Returns:
        A figure (after the layer curves of runs of T. Mickus, R. Vazquez, "Why Bother with
        Geometry?", BlackboxNLP 2023).

    Example:
        >>> import torch, geomhooks as gh
        >>> from geomhooks.report.figures import runs_compared
        >>> model, found = torch.nn.Sequential(torch.nn.Linear(4, 4)), {}
        >>> for name in ("a", "b"):
        ...     with torch.no_grad(), gh.watch(model, sites="0", statistics=[gh.Sphere()]) as watch:
        ...         _ = model(torch.randn(2, 3, 4))
        ...     found[name] = watch.geometry()
        >>> [trace.name for trace in runs_compared(found, "sphere/norm/mean").data]
        ['a', 'b']
    """
    if not runs:
        raise FigureError("runs_compared needs geometries by name, found none")
    found = {name: geometry.scalars(only=f"*/{scalar}") for name, geometry in runs.items()}
    sites = [
        site
        for site in dict.fromkeys(site for geometry in runs.values() for site in geometry.sites)
        if any(f"{site}/{scalar}" in scalars for scalars in found.values())
    ]
    if not sites:
        raise FigureError(
            f"no site of {', '.join(map(repr, runs))} has the scalar {scalar!r}; "
            "geometry.scalars() lists them"
        )
    about = About(
        f"{scalar} at each site, a line for each run. Runs that lie on each other agree in it; "
        "geomhooks compare says by tests whether they differ by more than chance.",
        'after curves of T. Mickus, R. Vazquez, "Why Bother with Geometry?", BlackboxNLP 2023',
    )
    figure = new_figure(f"{scalar}: runs compared", "", scalar, about)
    for number, (name, scalars) in enumerate(found.items()):
        shown = label(name)
        figure.add_trace(
            graph_objects().Scatter(
                x=list(range(len(sites))),
                y=numbers([scalars.get(f"{site}/{scalar}", math.nan) for site in sites]),
                mode="lines+markers",
                name=shown,
                line={"color": RUNS[number % len(RUNS)]},
                hovertext=[label(site) for site in sites],
                hovertemplate=f"{shown}<br>%{{hovertext}}: %{{y:.4g}}<extra></extra>",
            )
        )
    figure.update_xaxes(layer_axis(sites))
    return figure
