"""What the parts of a model contribute to its hidden states, layer by layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from geomhooks.report.figures.found import find, numbers
from geomhooks.report.figures.layers import layer_axis
from geomhooks.report.theme import COLOURS, NAMES, About, graph_objects, label, new_figure

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from geomhooks.snapshot import Geometry

__all__ = ["component_importance"]


def component_importance(geometry: Geometry) -> go.Figure:
    """The mean importance of each term of the hidden states, stacked, site by site.

    Importance is <e, z> / |e|^2 of a term z in the state e, which sums to one over the terms and
    may be negative (T. Mickus, D. Paperno, M. Constant, arXiv 2206.03529).

    Args:
        geometry: with ``components``.

    Raises:
        FigureError: the geometry has no ``components``.

    Example:
        >>> import torch, geomhooks as gh
        >>> from transformers import GPT2Config, GPT2Model
        >>> from geomhooks.report.figures import component_importance
        >>> model = GPT2Model(GPT2Config(n_layer=2, n_embd=8, n_head=2, vocab_size=10)).eval()
        >>> with torch.no_grad(), gh.watch(model, statistics=[gh.Components()]) as watch:
        ...     _ = model(torch.randint(10, (4, 6)))
        >>> [trace.name for trace in component_importance(watch.geometry()).data]
        ['input', 'attention', 'feed-forward', 'biases and shifts']
    """
    found = find(geometry, "components.importance")
    about = About(
        "Each hidden state is a sum of what came in, what attention and the feed-forward layers "
        "added so far, and biases; the bar is the share of the state that each explains, by its "
        "projection on the state. Shares add up to one, and a term below zero points against what "
        "the others make.",
        'T. Mickus, D. Paperno, M. Constant, "How to Dissect a Muppet", arXiv 2206.03529',
    )
    figure = new_figure(
        "What the hidden states are made of", "", "importance (share of the state)", about,
        barmode="relative", bargap=0.15,
    )  # fmt: skip
    terms = list(dict.fromkeys(term for importance in found.values() for term in importance))
    for term in terms:
        values = [
            float(importance[term].mean) if term in importance else float("nan")
            for importance in found.values()
        ]
        name = NAMES.get(term, term)
        figure.add_trace(
            graph_objects().Bar(
                x=list(range(len(found))),
                y=numbers(values),
                name=name,
                marker={"color": COLOURS[term]},
                hovertext=[label(site) for site in found],
                hovertemplate=f"%{{hovertext}}<br>{name}: %{{y:.1%}}<extra></extra>",
            )
        )
    figure.update_xaxes(layer_axis(list(found)))
    return figure.update_yaxes(tickformat=".0%")
