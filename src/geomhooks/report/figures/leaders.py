"""Leaders and basins of attention over depth, a line a head."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

import torch

from geomhooks.errors import FigureError
from geomhooks.report.figures.found import find, numbers
from geomhooks.report.figures.layers import layer_axis
from geomhooks.report.theme import COLOURS, About, faded, graph_objects, label, new_figure

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from geomhooks.snapshot import Geometry

__all__ = ["leaders_by_layer"]

Of = Literal["leader_share", "leaders", "basins", "basin", "sink", "entropy"]
SAID = {
    "leader_share": ("share of leaders", "The share of the tokens that attend most to themselves"),
    "leaders": ("leaders of a context", "How many tokens of a context attend most to themselves"),
    "basins": (
        "basins of a context",
        "At how many tokens, or cycles of them, one ends who goes from each token to the one that "
        "it attends to most",
    ),
    "basin": ("share of the largest basin", "The share of the tokens that end at the same place"),
    "sink": ("share at position 0", "The share of the tokens that attend most to position 0"),
    "entropy": ("entropy of attention (nats)", "How widely attention is spread"),
}


def leaders_by_layer(geometry: Geometry, of: Of = "leader_share") -> go.Figure:
    """What each head makes of leaders or basins, layer by layer, and their mean over the heads.

    Without position 0, which leads itself under a causal mask (quantities after A. Alcalde, G.
    Fantuzzi, E. Zuazua, arXiv 2407.01602; see :class:`geomhooks.Leaders` for what they are of a
    live model).

    Args:
        geometry: with ``leaders``.
        of: "leader_share", "leaders", "basins", "basin", "sink" or "entropy".

    Raises:
        FigureError: the geometry has no ``leaders``, or there is no such quantity.

    Example:
        >>> import torch, geomhooks as gh
        >>> from transformers import GPT2Config, GPT2Model
        >>> from geomhooks.report.figures import leaders_by_layer
        >>> model = GPT2Model(GPT2Config(n_layer=2, n_embd=8, n_head=2, vocab_size=10)).eval()
        >>> with torch.no_grad(), gh.watch(model, statistics=[gh.Leaders()]) as watch:
        ...     _ = model(torch.randint(10, (4, 6)))
        >>> [trace.name for trace in leaders_by_layer(watch.geometry(), "basins").data]
        ['single heads', 'mean over heads']
    """
    if of not in get_args(Of):
        raise FigureError(f"of={of!r}: {', '.join(map(repr, get_args(Of)))} are possible")
    found = find(geometry, f"leaders.without_first.{of}.mean")
    title, said = SAID[of]
    about = About(
        f"{said}, in each head (points) and on average over the heads (line), without position 0. "
        "In the dynamics of hardmax attention tokens end at leaders, few of them in the end; of a "
        "trained model this is a diagnostic and confirms no theorem.",
        "A. Alcalde, G. Fantuzzi, E. Zuazua, arXiv 2407.01602; geomhooks.Leaders",
    )
    figure = new_figure(f"{title[:1].upper()}{title[1:]}, by block", "", title, about)
    scatter = graph_objects().Scatter
    names = [label(site) for site in found]
    heads = [
        (place, head) for place, value in enumerate(found.values()) for head in range(len(value))
    ]
    figure.add_trace(
        scatter(
            x=[place for place, _ in heads],
            y=numbers(torch.cat(list(found.values()))),
            mode="markers",
            name="single heads",
            marker={"color": faded(COLOURS["attention"], 0.4), "size": 6},
            hovertext=[f"{names[place]}, head {head}" for place, head in heads],
            hovertemplate="%{hovertext}: %{y:.4g}<extra></extra>",
        )
    )
    figure.add_trace(
        scatter(
            x=list(range(len(found))),
            y=numbers(torch.stack([value.nanmean() for value in found.values()])),
            mode="lines+markers",
            name="mean over heads",
            line={"color": COLOURS["attention"]},
            hovertext=names,
            hovertemplate="%{hovertext}: %{y:.4g}<extra></extra>",
        )
    )
    figure.update_xaxes(layer_axis(list(found)))
    return figure.update_yaxes(rangemode="tozero")
