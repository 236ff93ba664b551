"""How far runs agree in what they make of contexts and of positions, site by site."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from geomhooks.errors import FigureError
from geomhooks.report.figures.found import numbers
from geomhooks.report.figures.layers import layer_axis
from geomhooks.report.theme import RUNS, About, graph_objects, label, new_figure

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["Measure", "agreement_by_layer"]

Measure = Literal["cka", "procrustes", "positions", "directions"]
SONG = "J. Song, Y. Zhong, arXiv 2310.04861"
SAID: Mapping[str, tuple[str, str, str]] = {
    "cka": (
        "CKA of ctx",
        "How alike the contexts lie that both runs have read: 1 where the one is the other, turned "
        "and stretched as a whole, near 0 where they have nothing in common. Bars are intervals, "
        "and the dotted line is chance.",
        "S. Kornblith et al., arXiv 1905.00414; geomhooks.functional.compare.cka",
    ),
    "procrustes": (
        "Procrustes distance of ctx",
        "What is left between the contexts of two runs once one is turned and stretched on the "
        "other as well as can be: 0 is the same, and the dotted line is what chance would leave.",
        "F. Ding et al., arXiv 2108.01661; geomhooks.functional.compare.procrustes_distance",
    ),
    "positions": (
        "overlap of pos over positions",
        "Whether positions move along the same curves in both runs, whatever the directions are "
        "that show them: 1 where the leading curves of pos span one space, the dotted line where "
        "they would by chance.",
        f"{SONG}; geomhooks.functional.compare.pos_subspace_angles",
    ),
    "directions": (
        "overlap of pos over directions",
        "Whether the directions that carry position are the same in both runs: it says something "
        "only where both have one basis, as two checkpoints of a run have. The dotted line is "
        "chance.",
        f"{SONG}; geomhooks.functional.compare.pos_subspace_angles",
    ),
}


def agreement_by_layer(
    pairs: Sequence[Mapping[str, Any]], measure: Measure, names: Mapping[str, str]
) -> go.Figure:
    """How alike each pair of runs is, site by site.

    Args:
        pairs: as :func:`geomhooks.comparing.compare_geometries` finds them.
        measure: "cka" or "procrustes" of ctx, or overlap of pos over "positions" or "directions".
        names: what to call the files.

    Raises:
        FigureError: no pair has the measure.
    """
    title, explanation, reference = SAID[measure]
    figure = new_figure(title, "", title, About(explanation, reference))
    scatter = graph_objects().Scatter
    sites = list(pairs[0]["sites"]) if pairs else []
    for number, pair in enumerate(pairs):
        found = [_found(site, measure) for site in pair["sites"].values()]
        key = "overlap" if measure in ("positions", "directions") else "value"
        values = [each.get(key, math.nan) for each in found]
        if all(map(math.isnan, values)):
            continue
        name = " and ".join(label(names[file]) for file in pair["files"])
        colour = RUNS[number % len(RUNS)]
        trace = scatter(
            x=list(range(len(sites))),
            y=numbers(values),
            mode="lines+markers",
            name=name,
            line={"color": colour},
            hovertext=[label(site) for site in sites],
            hovertemplate=f"{name}<br>%{{hovertext}}: %{{y:.4g}}<extra></extra>",
        )
        if "low" in found[0]:
            high = [each.get("high", math.nan) - v for each, v in zip(found, values, strict=True)]
            low = [v - each.get("low", math.nan) for each, v in zip(found, values, strict=True)]
            trace.error_y = {
                "symmetric": False,
                "array": numbers(high),
                "arrayminus": numbers(low),
                "thickness": 1.2,
                "width": 3,
            }
        figure.add_trace(trace)
        chance = [each.get("expected_overlap", each.get("expected", math.nan)) for each in found]
        if not all(value is None or math.isnan(value) for value in chance):
            figure.add_trace(
                scatter(
                    x=list(range(len(sites))),
                    y=numbers([math.nan if value is None else value for value in chance]),
                    mode="lines",
                    name=f"{name}, by chance",
                    line={"color": colour, "dash": "dot", "width": 1.2},
                    hovertext=[label(site) for site in sites],
                    hovertemplate="by chance<br>%{hovertext}: %{y:.4g}<extra></extra>",
                    showlegend=len(pairs) == 1,
                )
            )
    if not figure.data:
        raise FigureError(f"no pair of runs has {title}")
    figure.update_xaxes(layer_axis(sites))
    return figure.update_yaxes(rangemode="tozero")


def _found(site: Mapping[str, Any], measure: str) -> Mapping[str, Any]:
    part = "pos" if measure in ("positions", "directions") else "ctx"
    found: Mapping[str, Any] = site.get(part, {}).get(measure, {})
    return found
