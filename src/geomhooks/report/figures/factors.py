"""Factors of a dictionary over depth, with the text at which they are most active."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from geomhooks.errors import FigureError
from geomhooks.functional import factor_contexts
from geomhooks.report.figures.found import find, numbers
from geomhooks.report.figures.layers import layer_axis
from geomhooks.report.figures.words import Words, word
from geomhooks.report.theme import About, depth_colours, graph_objects, label, new_figure

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from geomhooks.snapshot import Geometry

__all__ = ["factor_importance"]

AROUND = 6  # tokens on each side of one


def factor_importance(
    geometry: Geometry,
    factors: Sequence[int] | None = None,
    words: Words | None = None,
    most: int = 24,
) -> go.Figure:
    """The importance of factors layer by layer, with the text at which each is most active.

    Importance is the mean of a factor's largest activations at a layer. Curves are coloured by the
    depth at which they are highest; the text is that of the factor's first token at each layer (Z.
    Yun, Y. Chen, B. Olshausen, Y. LeCun, arXiv 2103.15949).

    Args:
        geometry: with ``factors``, of one dictionary at all sites.
        factors: which to draw; by default those of the highest peaks, as evenly over the depths of
            their peaks as there are some.
        words: as in :func:`word_paths`.
        most: how many to draw by default.

    Raises:
        FigureError: the geometry has no ``factors``, or there is no such factor.
        SchemaError: sites have dictionaries of different sizes.

    Example:
        >>> import torch, geomhooks as gh
        >>> from transformers import GPT2Config, GPT2Model
        >>> from geomhooks.report.figures import factor_importance
        >>> model = GPT2Model(GPT2Config(n_layer=2, n_embd=8, n_head=2, vocab_size=10)).eval()
        >>> statistic = gh.Factors(torch.eye(8), penalty=0.01, top=5, window=2)
        >>> with torch.no_grad(), gh.watch(model, statistics=[statistic]) as watch:
        ...     _ = model(torch.randint(10, (4, 6)))
        >>> figure = factor_importance(watch.geometry(), factors=[3, 5])
        >>> [(trace.name, len(trace.y)) for trace in figure.data]
        [('factor 3', 3), ('factor 5', 3)]
    """
    found = find(geometry, "factors")
    importance = geometry.stack("factors.importance").T
    number = len(importance)
    strange = [factor for factor in factors or () if not 0 <= factor < number]
    if strange:
        raise FigureError(f"factor {strange[0]}: there are {number}, from 0 to {number - 1}")
    peaks = importance.nan_to_num().argmax(1).tolist()
    chosen = highest(importance.nan_to_num(), most) if factors is None else list(factors)
    about = About(
        "Each curve is a direction of the dictionary: how strongly the tokens that are most for it "
        "show it, at each layer; it is coloured by the depth at which it is highest. Factors of "
        "the first layers mostly stand for words, those of the middle for word senses, and those "
        "that rise late for what the text is about; point at a curve to read where it is most "
        "active.",
        "Z. Yun, Y. Chen, B. Olshausen, Y. LeCun, arXiv 2103.15949",
        f"{len(chosen)} of {number} factors are drawn." if len(chosen) < number else "",
    )
    figure = new_figure("Factors by layer", "", "importance", about, hovermode="closest")
    colours = depth_colours(len(found))
    for factor in chosen:
        texts = [
            f"{label(site)}: {text(result.top, factor, words)}" for site, result in found.items()
        ]
        figure.add_trace(
            graph_objects().Scatter(
                x=list(range(len(found))),
                y=numbers(importance[factor]),
                mode="lines+markers",
                name=f"factor {factor}",
                line={"color": colours[peaks[factor]]},
                hovertext=texts,
                hovertemplate=f"factor {factor}: %{{y:.4g}}<br>%{{hovertext}}<extra></extra>",
            )
        )
    figure.update_xaxes(layer_axis(list(found)))
    return figure.update_layout(showlegend=len(chosen) <= 12)


def highest(importance: torch.Tensor, most: int) -> list[int]:
    """Of factors (F, L), those of the highest peaks, in turns over the layers of their peaks.

    Example:
        >>> highest(torch.tensor([[3.0, 1.0], [2.0, 1.0], [0.0, 1.0]]), 2)
        [0, 2]
    """
    height, layer = importance.max(1)
    order = height.argsort(descending=True, stable=True).tolist()
    seen: dict[int, int] = {}
    turns = {}
    for factor in order:
        at = int(layer[factor])
        turns[factor] = seen.get(at, 0)
        seen[at] = turns[factor] + 1
    return sorted(sorted(order, key=lambda factor: turns[factor])[:most])


def text(top: Any, factor: int, words: Words | None) -> str:
    """The token at which a factor is most active, in bold, and those around it."""
    contexts = factor_contexts(top, factor)
    if not contexts:
        return "nowhere active"
    first = contexts[0]
    before = [word(words, token) for token in first.before[-AROUND:]]
    after = [word(words, token) for token in first.after[:AROUND]]
    return " ".join([*before, f"<b>{word(words, first.token)}</b>", *after])
