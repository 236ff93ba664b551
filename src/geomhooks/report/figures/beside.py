"""One figure of several runs, panel beside panel, moved by one slider."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from geomhooks.errors import FigureError
from geomhooks.report.figures.layers import add_slider
from geomhooks.report.theme import About, graph_objects, label, template

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["side_by_side"]

GAP = 0.09  # of the width, between panels
AXES = ("xaxis", "yaxis")


def side_by_side(panels: Mapping[str, go.Figure]) -> go.Figure:
    """Figures of one kind beside each other, with one slider; each keeps its axes and its title.

    Steps are matched by their order; where a panel has fewer, its last one stays. On a narrow page
    the panels stand below each other, which ``figure.layout.meta`` says how.

    Args:
        panels: figures in the plane with a slider, such as :func:`position_spiral` of several
            geometries, by what to call them.

    Raises:
        FigureError: there are no panels, or one has no slider.

    Example:
        >>> import torch, geomhooks as gh
        >>> from geomhooks.report.figures import position_spiral, side_by_side
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4))
        >>> with torch.no_grad(), gh.watch(model, sites="0", statistics=[gh.PosCtx()]) as watch:
        ...     _ = model(torch.randn(5, 6, 4))
        >>> one = position_spiral(watch.geometry())
        >>> figure = side_by_side({"a": one, "b": one})
        >>> [trace.xaxis for trace in figure.data]
        ['x', 'x2']
    """
    if not panels:
        raise FigureError("side_by_side needs figures by name, found none")
    bare = [name for name, figure in panels.items() if not figure.layout.sliders]
    if bare:
        raise FigureError(f"the figure of {bare[0]!r} has no slider")
    first = next(iter(panels.values()))
    number = len(panels)
    width = (1 - GAP * (number - 1)) / number
    height = int(first.layout.height or 450)
    layout: dict[str, Any] = {"template": template(), "height": height}
    if number > 2:  # names of panels need the room
        layout["showlegend"] = False
    narrow: dict[str, Any] = {"height": 120 + round(0.75 * (height - 80)) * number}
    keys = [step.value for step in first.layout.sliders[0].steps]
    traces: dict[str, list[Any]] = {key: [] for key in keys}
    shapes: dict[str, list[Any]] = {key: [] for key in keys}
    said: dict[str, list[str]] = {key: [] for key in keys}
    annotations = []
    for place, (name, figure) in enumerate(panels.items()):
        suffix = str(place + 1) if place else ""
        left, top = place * (width + GAP), 1 - place * (width + GAP)
        domains = {"xaxis": [left, min(1.0, left + width)], "yaxis": [0, 1]}
        below = {"xaxis": [0, 1], "yaxis": [max(0.0, top - width), top]}
        for axis in AXES:
            given = figure.layout[axis].to_plotly_json()
            if given.get("scaleanchor"):
                given["scaleanchor"] = f"x{suffix}"
                given["constrain"] = "domain"
            given["anchor"] = f"{'y' if axis == 'xaxis' else 'x'}{suffix}"
            if axis == "yaxis" and place:
                given["title"] = {"text": ""}
            layout[f"{axis}{suffix}"] = given | {"domain": domains[axis]}
            narrow[f"{axis}{suffix}.domain"] = below[axis]
        annotations.append(
            {
                "text": f"<b>{label(name)}</b>",
                "showarrow": False,
                "xref": f"x{suffix} domain",
                "yref": f"y{suffix} domain",
                "x": 0,
                "y": 1,
                "yanchor": "bottom",
                "xanchor": "left",
            }
        )
        steps = figure.layout.sliders[0].steps
        for at, key in enumerate(keys):
            step = steps[min(at, len(steps) - 1)]
            shown = step.args[0]["visible"]
            for trace, on in zip(figure.data, shown, strict=True):
                if on:
                    made = trace.to_plotly_json()
                    made.pop("visible", None)
                    made["meta"] = [label(name)]
                    marker = made.get("marker", {})
                    if place < number - 1:  # one bar of colours is enough
                        made |= {"showscale": False} if made["type"] == "heatmap" else {}
                        marker |= {"showscale": False} if "showscale" in marker else {}
                    made |= {"xaxis": f"x{suffix}", "yaxis": f"y{suffix}"}
                    if place:
                        made["showlegend"] = False
                    traces[key].append(graph_objects().Figure(data=[made]).data[0])
            shapes[key] += [
                shape | {"xref": f"x{suffix}", "yref": f"y{suffix}"}
                for shape in step.args[1].get("shapes", [])
            ]
            said[key].append(step.args[1]["title.text"])
    about = About(**{k: v for k, v in first.layout.meta.items() if k in About._fields})
    layout |= {"annotations": annotations, "meta": about._asdict() | {"narrow": narrow}}
    titles = {key: _title(texts) for key, texts in said.items()}
    figure = graph_objects().Figure(layout=layout)
    return add_slider(figure, traces, titles, shapes=shapes if any(shapes.values()) else None)


def _title(texts: list[str]) -> str:
    """What the titles of the panels have in common once, then what each says.

    Example:
        >>> _title(["Path: 10 %", "Path: 20 %"])
        'Path: 10 % | 20 %'
    """
    heads = {text.partition(": ")[0] for text in texts}
    if len(heads) > 1:
        return " | ".join(texts)
    rests = [text.partition(": ")[2] for text in texts]
    said = rests[0] if len(set(rests)) == 1 else " | ".join(rests)
    return f"{heads.pop()}: {said}"
