"""The slider that shows one layer after the other, and the axis that has all of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from geomhooks.report.figures.found import numbers, short_names
from geomhooks.report.theme import graph_objects, label

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["add_slider", "in_space", "layer_axis", "layer_line", "logarithmic"]

MOST_TICKS = 26
EYE = {"x": 1.75, "y": 1.75, "z": 1.1}  # of whoever looks at a figure in space
FARTHER = 1.5  # on a narrow page
FEW_DECADES, MOST_DECADES = 3, 8


def add_slider(
    figure: go.Figure,
    traces: Mapping[Any, Sequence[Any]],
    titles: Mapping[Any, str],
    *,
    of: str = "site",
    shapes: Mapping[Any, Sequence[Any]] | None = None,
    start: int | None = None,
    labels: Mapping[Any, str] | None = None,
) -> go.Figure:
    """Add traces of which those of one key show at a time, chosen by a slider.

    Args:
        figure: to be added to; traces that it has already stay.
        traces: of each key, such as the name of a site.
        titles: of the figure, by key; finished texts.
        of: what the keys are.
        shapes: lines and areas by key, where each has its own.
        start: which key shows first; by default the one in the middle.
        labels: of the keys, below the slider; by default what tells them apart.
    """
    keys = list(traces)
    start = len(keys) // 2 if start is None else start
    fixed = len(figure.data)
    owner = [key for key in keys for _ in traces[key]]
    for key in keys:
        for trace in traces[key]:
            # What a trace is of, which its name need not say, for the numbers as CSV.
            of_whom = [*(trace.meta or ()), label(key)]
            figure.add_trace(trace.update(visible=key == keys[start], meta=of_whom))
    steps = []
    short = dict(zip(keys, short_names(list(map(str, keys))), strict=True))
    common = str(keys[0])[: len(str(keys[0])) - len(short[keys[0]])]
    if labels is not None:
        short, common = dict(labels), ""
    for key in keys:
        layout: dict[str, Any] = {"title.text": titles[key]}
        if shapes is not None:
            layout["shapes"] = list(shapes[key])
        shown = [True] * fixed + [key == other for other in owner]
        steps.append(
            {
                "label": label(short[key], 24),
                "value": label(key),
                "method": "update",
                "args": [{"visible": shown}, layout],
            }
        )
    figure.update_layout(
        title_text=titles[keys[start]],
        sliders=[
            {"active": start, "steps": steps, "currentvalue": {"prefix": f"{of}: {label(common)}"}}
        ],
    )
    if shapes is not None:
        figure.update_layout(shapes=list(shapes[keys[start]]))
    return figure


def layer_axis(
    sites: Sequence[str], axis_title: str = "site, in forward order (@in: what comes into a block)"
) -> dict[str, Any]:
    """An axis with a tick for each site, at 0, 1, ..., or for some where there are many."""
    stride = -(-len(sites) // MOST_TICKS)
    return {
        "title": {"text": axis_title},
        "tickmode": "array",
        "tickvals": list(range(0, len(sites), stride)),
        "ticktext": [label(name, 24) for name in short_names(sites)][::stride],
        "range": [-0.6, len(sites) - 0.4],
    }


def layer_line(
    sites: Sequence[str], values: Sequence[float], name: str, colour: str, dash: str = "solid"
) -> Any:
    """A number by site, along :func:`layer_axis`."""
    return graph_objects().Scatter(
        x=list(range(len(sites))),
        y=numbers(values),
        mode="lines+markers",
        name=name,
        line={"color": colour, "dash": dash},
        hovertext=[label(site) for site in sites],
        hovertemplate=f"%{{hovertext}}<br>{name}: %{{y:.4g}}<extra></extra>",
    )


def in_space(figure: go.Figure, axes: Sequence[str]) -> go.Figure:
    """Three axes with these titles, seen from aside; from farther off on a narrow page."""
    scene: dict[str, Any] = {
        f"{letter}axis": {"title": {"text": text}} for letter, text in zip("xyz", axes, strict=True)
    }
    narrow: dict[str, Any] = {
        "scene.camera.eye": {letter: FARTHER * at for letter, at in EYE.items()}
    }
    for letter in "xyz":
        narrow |= {f"scene.{letter}axis.{part}.size": 9 for part in ("tickfont", "title.font")}
        narrow[f"scene.{letter}axis.nticks"] = 4
    return figure.update_layout(
        scene=scene | {"camera": {"eye": EYE}}, meta=figure.layout.meta | {"narrow": narrow}
    )


def logarithmic(values: Iterable[float]) -> dict[str, Any]:
    """A logarithmic axis for some values, whose ticks are whole numbers, or powers of ten.

    Example:
        >>> logarithmic([0.3, 20.0])["ticktext"]
        ['0.2', '0.5', '1', '2', '5', '10', '20', '50']
        >>> logarithmic([1e-5, 3.0])["ticktext"]
        ['1e-5', '1e-4', '0.001', '0.01', '0.1', '1']
    """
    known = [math.log10(value) for value in values if 0 < value < math.inf]
    if not known:
        return {"type": "log"}
    low, high = math.floor(min(known)), math.ceil(max(known))
    if high - low <= FEW_DECADES:
        steps = [(digit, power) for power in range(low, high + 1) for digit in (1, 2, 5)]
    else:
        steps = [(1, power) for power in range(low, high + 1, -(-(high - low) // MOST_DECADES))]
    margin = math.log10(2.6)
    ticks = {
        (f"{digit}e{power}" if power < -3 or power > 5 else f"{digit * 10.0**power:g}"): (
            digit * 10.0**power
        )
        for digit, power in steps
        if min(known) - margin < math.log10(digit) + power < max(known) + margin
    }
    return {
        "type": "log",
        "tickmode": "array",
        "tickvals": list(ticks.values()),
        "ticktext": list(ticks),
    }
