"""Colours, type and texts of all figures: one thing has one colour, on light and on dark ground."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from html import escape
from typing import TYPE_CHECKING, Any, NamedTuple

from geomhooks.errors import MissingExtraError

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = [
    "COLOURS",
    "DIVERGING",
    "NAMES",
    "SEQUENTIAL",
    "About",
    "apply_theme",
    "depth_colours",
    "faded",
    "graph_objects",
    "label",
    "new_figure",
    "template",
    "visible",
]

COLOURS: Mapping[str, str] = {
    # Parts of a hidden state.
    "mean": "#9b6dd6",
    "pos": "#3b82d9",
    "ctx": "#e8772e",
    "resid": "#8b929c",
    "bias": "#b8960c",
    # Parts of a model.
    "input": "#1fa3a3",
    "attention": "#d6457a",
    "cross_attention": "#a855a0",
    "source": "#a855a0",
    "feed_forward": "#43a047",
    "mlp": "#43a047",
    "correction": "#b8960c",
    "tokens": "#1fa3a3",
    # Whole hidden states.
    "state": "#3f7f93",
    "first": "#d64545",
    "floor": "#d64545",
    "next": "#43a047",
    "own": "#1fa3a3",
}
NAMES: Mapping[str, str] = {
    "feed_forward": "feed-forward",
    "mlp": "feed-forward",
    "cross_attention": "attention to the source",
    "correction": "biases and shifts",
}
SEQUENTIAL = (  # to be seen on light ground and on dark
    (0.0, "#5c6bd8"),
    (0.25, "#2f8fc4"),
    (0.5, "#25a98a"),
    (0.75, "#8fbf3f"),
    (1.0, "#f0b400"),
)
DIVERGING = (
    (0.0, "#2166ac"),
    (0.25, "#7fb2d9"),
    (0.5, "#f4f4f2"),
    (0.75, "#e9967a"),
    (1.0, "#b2182b"),
)
RUNS = ("#3b82d9", "#e8772e", "#43a047", "#9b6dd6", "#d6457a", "#1fa3a3", "#b8960c", "#8b929c")

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"
INK = {False: "#1f2933", True: "#e4e7eb"}
GRID = {False: "#e3e7ec", True: "#343c46"}
GROUND = {False: "#ffffff", True: "#171b21"}
CONTROL = {"\n": "\N{RETURN SYMBOL}", "\t": "\N{RIGHTWARDS ARROW TO BAR}"}


class About(NamedTuple):
    """What a figure says of itself; ``figure.layout.meta`` has it by these names."""

    explanation: str
    """two sentences"""
    reference: str
    """whose figure or formula it is"""
    note: str = ""
    """what was left out, where something was"""


def graph_objects() -> Any:
    """The module of plotly's figures.

    Raises:
        MissingExtraError: plotly is not installed.
    """
    try:
        import plotly.graph_objects as go
    except ImportError as error:
        raise MissingExtraError("figures need plotly: pip install 'geomhooks[report]'") from error
    return go


def template(*, dark: bool = False) -> dict[str, Any]:
    """The layout that all figures share, on light or dark ground."""
    axis = {
        "gridcolor": GRID[dark],
        "zerolinecolor": GRID[dark],
        "linecolor": GRID[dark],
        "automargin": True,
        "title": {"standoff": 10},
    }
    scene = {"gridcolor": GRID[dark], "backgroundcolor": GROUND[dark], "color": INK[dark]}
    slider = {
        "bgcolor": GRID[dark],
        "bordercolor": GRID[dark],
        "tickcolor": GRID[dark],
        "activebgcolor": COLOURS["pos"],
        "pad": {"t": 52},
        "currentvalue": {"font": {"size": 14}},
    }
    return {
        "layout": {
            "paper_bgcolor": GROUND[dark],
            "plot_bgcolor": GROUND[dark],
            "font": {"family": FONT, "size": 13, "color": INK[dark]},
            "title": {"x": 0, "xref": "paper", "font": {"size": 16}},
            "hoverlabel": {"align": "left"},
            "margin": {"l": 64, "r": 24, "t": 60, "b": 56},
            "xaxis": axis,
            "yaxis": axis,
            "scene": dict.fromkeys(("xaxis", "yaxis", "zaxis"), scene),
            "legend": {
                "orientation": "h",
                "yanchor": "bottom",
                "y": 1.0,
                "xanchor": "right",
                "x": 1,
            },
            "sliderdefaults": slider,
        }
    }


def apply_theme(figure: go.Figure, *, dark: bool = False) -> go.Figure:
    """Put a figure on light or dark ground; returns it."""
    return figure.update_layout(template=template(dark=dark))


def new_figure(title: str, x: str, y: str, about: About, **layout: Any) -> go.Figure:
    """An empty figure with its texts; x and y are what the axes show, with units."""
    return (
        graph_objects()
        .Figure(
            layout={
                "template": template(),
                "title": {"text": title},
                "xaxis": {"title": {"text": x}},
                "yaxis": {"title": {"text": y}},
                "meta": about._asdict(),
            }
        )
        .update_layout(**layout)
    )


def visible(text: object, longest: int) -> str:
    """A text of others letter by letter, in one line, not long; markup is still markup."""
    shown = "".join(_visible(letter) for letter in str(text))
    if len(shown) > longest:
        shown = shown[: longest - 1] + "\N{HORIZONTAL ELLIPSIS}"
    return shown


def label(text: object, longest: int = 48) -> str:
    """A text of others as plotly shows it letter by letter: without markup, in one line, not long.

    Example:
        >>> label("<b>a & b</b>")
        '&lt;b&gt;a &amp; b&lt;/b&gt;'
    """
    return escape(visible(text, longest), quote=False)


def _visible(letter: str) -> str:
    if letter in CONTROL:
        return CONTROL[letter]
    # Of the categories of control and format, which turn the writing direction or are not seen.
    return "\N{REPLACEMENT CHARACTER}" if unicodedata.category(letter)[0] == "C" else letter


def depth_colours(number: int) -> list[str]:
    """A colour for each of some layers, from the first to the last.

    Example:
        >>> depth_colours(2)
        ['rgb(68, 110, 190)', 'rgb(232, 119, 46)']
    """
    stops = ((68, 110, 190), (120, 90, 190), (200, 70, 140), (232, 119, 46))
    colours = []
    for index in range(number):
        at = index / max(1, number - 1) * (len(stops) - 1)
        low = min(int(at), len(stops) - 2)
        mixed = [
            round(a + (b - a) * (at - low)) for a, b in zip(stops[low], stops[low + 1], strict=True)
        ]
        colours.append(f"rgb({', '.join(map(str, mixed))})")
    return colours


def faded(colour: str, opacity: float) -> str:
    """A colour ``#rrggbb`` that lets the ground through.

    Example:
        >>> faded("#ff0010", 0.5)
        'rgba(255, 0, 16, 0.5)'
    """
    red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return f"rgba({red}, {green}, {blue}, {opacity:g})"
