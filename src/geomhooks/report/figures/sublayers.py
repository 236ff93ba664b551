"""What attention and feed-forward layers add by themselves, and how linear the latter are."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, get_args

from geomhooks.errors import FigureError, UnidentifiedError
from geomhooks.report.figures.found import find, lookup
from geomhooks.report.figures.layers import layer_axis, layer_line, logarithmic
from geomhooks.report.theme import COLOURS, NAMES, About, new_figure

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from geomhooks.snapshot import Geometry

__all__ = ["linearity_by_layer", "update_of", "updates_by_layer"]

Of = Literal["norm", "radial", "tangential", "radial_share", "step_angle"]
SUBLAYERS = ("attention", "cross_attention", "mlp")
MOLINA = 'R. Molina, "Traveling Words", arXiv 2309.07315; geomhooks.Updates'
MICKUS = 'T. Mickus, D. Paperno, M. Constant, "How to Dissect a Muppet", TACL 2022'
SAID = {
    "norm": (
        "Size of what is added",
        "norm of the update",
        "How long what each sublayer adds is. A sublayer whose updates are long rules what the "
        "states become.",
    ),
    "radial": (
        "How far states are moved outwards",
        "radial part, in radii",
        "How far what each sublayer adds points outwards, relative to the length of the state. "
        "Below zero it makes states shorter.",
    ),
    "tangential": (
        "How far states are moved along the sphere",
        "tangential part, in radii",
        "How far what each sublayer adds moves a state sideways, relative to its length. Only this "
        "part changes where the state points.",
    ),
    "radial_share": (
        "How much of what is added is along the state",
        "radial share of the update",
        "How much of what each sublayer adds, by its square, is along the state itself, outwards "
        "or inwards. What is left turns the state: at 0 % all of it does.",
    ),
    "step_angle": (
        "How far sublayers turn the states",
        "angle (degrees)",
        "The angle by which what each sublayer adds turns the state, seen from the centre. 0° is "
        "no change of direction.",
    ),
}


def updates_by_layer(geometry: Geometry, of: Of = "norm") -> go.Figure:
    """What attention and the feed-forward layer of each block add, on average, without position 0.

    Args:
        geometry: with ``updates``.
        of: "norm", "radial" or "tangential" relative to the state, "radial_share", or
            "step_angle" in degrees.

    Raises:
        FigureError: the geometry has no ``updates``, or there is no such quantity.

    Returns:
        A figure (parts after R. Molina, arXiv 2309.07315).

    Example:
        >>> import torch, geomhooks as gh
        >>> from transformers import GPT2Config, GPT2Model
        >>> from geomhooks.report.figures import updates_by_layer
        >>> model = GPT2Model(GPT2Config(n_layer=2, n_embd=8, n_head=2, vocab_size=10)).eval()
        >>> with torch.no_grad(), gh.watch(model, statistics=[gh.Updates()]) as watch:
        ...     _ = model(torch.randint(10, (4, 6)))
        >>> [trace.name for trace in updates_by_layer(watch.geometry(), "radial_share").data]
        ['attention', 'feed-forward']
    """
    if of not in get_args(Of):
        raise FigureError(f"of={of!r}: {', '.join(map(repr, get_args(Of)))} are possible")
    sites = list(find(geometry, "updates"))
    title, axis, said = SAID[of]
    figure = new_figure(title, "", axis, About(f"{said} Without position 0.", MOLINA))
    every: list[float] = []
    for sublayer in SUBLAYERS:
        values = [update_of(geometry, site, sublayer, of) for site in sites]
        if not all(map(math.isnan, values)):
            name = NAMES.get(sublayer, sublayer)
            figure.add_trace(layer_line(sites, values, name, COLOURS[sublayer]))
            every += values
    figure.update_xaxes(layer_axis(sites))
    known = [value for value in every if value > 0]
    if of == "norm" and known and max(known) > 30 * min(known):
        return figure.update_yaxes(logarithmic(known))
    if of == "step_angle":
        return figure.update_yaxes(rangemode="tozero", ticksuffix="°")
    if of == "radial_share":
        figure.update_yaxes(tickformat=".3~p")
    return figure.update_yaxes(rangemode="tozero")


def linearity_by_layer(geometry: Geometry) -> go.Figure:
    """How much of what each feed-forward layer makes the best linear map would make: R^2, by site.

    Args:
        geometry: with ``feed_forward_fit``.

    Raises:
        FigureError: the geometry has no ``feed_forward_fit``.
        UnidentifiedError: too few tokens were counted.

    Returns:
        A figure (T. Mickus, D. Paperno, M. Constant, "How to Dissect a Muppet", TACL 2022).

    Example:
        >>> import torch, geomhooks as gh
        >>> from transformers import GPT2Config, GPT2Model
        >>> from geomhooks.report.figures import linearity_by_layer
        >>> model = GPT2Model(GPT2Config(n_layer=2, n_embd=8, n_head=2, vocab_size=10)).eval()
        >>> with torch.no_grad(), gh.watch(model, statistics=[gh.FeedForwardFit()]) as watch:
        ...     _ = model(torch.randint(10, (40, 6)))
        >>> [trace.name for trace in linearity_by_layer(watch.geometry()).data]
        ['mean over entries', 'of the whole variance']
    """
    found = find(geometry, "feed_forward_fit")
    about = About(
        "R² of the best linear map from what a feed-forward layer reads to what it adds: at 1 the "
        "layer is linear on the states that it sees. With few more tokens than the states have "
        "entries every fit is good, and says nothing.",
        MICKUS,
    )
    figure = new_figure("How linear feed-forward layers are", "", "R² of a linear map", about)
    for name, path, dash in (
        ("mean over entries", "r_squared", "solid"),
        ("of the whole variance", "of_variance", "dash"),
    ):
        values = [float(result[path]) for result in found.values()]
        figure.add_trace(layer_line(list(found), values, name, COLOURS["mlp"], dash))
    figure.update_xaxes(layer_axis(list(found)))
    return figure.update_yaxes(range=[0, 1.02])


def update_of(geometry: Geometry, site: str, sublayer: str, of: Of) -> float:
    """The mean of one quantity of a sublayer, angles in degrees; NaN where no token went there."""
    try:
        value = lookup(geometry[site], f"updates.without_first.{sublayer}.{of}.mean")
    except UnidentifiedError:
        value = None
    number = math.nan if value is None else float(value)
    return math.degrees(number) if of == "step_angle" else number
