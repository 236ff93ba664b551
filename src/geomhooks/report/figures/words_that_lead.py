"""The words that lead in attention, by how often they do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from geomhooks.report.figures.found import find, numbers
from geomhooks.report.figures.layers import add_slider
from geomhooks.report.figures.words import Words, word
from geomhooks.report.theme import COLOURS, About, graph_objects, label, new_figure

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from geomhooks.snapshot import Geometry

__all__ = ["leading_words"]


def leading_words(geometry: Geometry, words: Words | None = None, most: int = 20) -> go.Figure:
    """The words that lead most often, once for each head in which they do, without position 0.

    A slider goes through the blocks.

    Args:
        geometry: with the words of ``leaders``.
        words: as in :func:`word_paths`.
        most: how many to draw.

    Raises:
        FigureError: the geometry has no words of ``leaders``.

    Returns:
        A figure (leaders after A. Alcalde, G. Fantuzzi, E. Zuazua, arXiv 2407.01602).

    Example:
        >>> import torch, geomhooks as gh
        >>> from transformers import GPT2Config, GPT2Model
        >>> from geomhooks.report.figures import leading_words
        >>> model = GPT2Model(GPT2Config(n_layer=2, n_embd=8, n_head=2, vocab_size=10)).eval()
        >>> with torch.no_grad(), gh.watch(model, statistics=[gh.Leaders()]) as watch:
        ...     _ = model(torch.zeros(4, 6, dtype=torch.long))
        >>> leading_words(watch.geometry(), {0: "to"}, most=1).data[0].y
        ('to',)
    """
    traces: dict[str, list[Any]] = {}
    titles = {}
    for site, found in find(geometry, "leaders.without_first.words").items():
        ids, counts = found.ids[:most].tolist(), found.counts[:most]
        names: list[str] = []
        for token in ids:
            name = word(words, token)
            names.append(f"{name} ({token})" if name in names else name)
        traces[site] = [
            graph_objects().Bar(
                x=numbers(counts),
                y=names,
                orientation="h",
                name=label(site),
                marker={"color": COLOURS["attention"]},
                hovertemplate="%{y}: %{x}<extra></extra>",
            )
        ]
        covered = float(counts.sum()) / max(1, int(found.total))
        titles[site] = f"Words that lead: these make {covered:.0%} of leaders, without position 0"
    about = About(
        "How often each word attends most to itself, once for each head in which it does. In the "
        "dynamics of hardmax attention it is to such words that the others move. Position 0, which "
        "leads itself under a causal mask, is left out.",
        "A. Alcalde, G. Fantuzzi, E. Zuazua, arXiv 2407.01602; geomhooks.Leaders",
    )
    figure = new_figure("", "how often, in any head", "", about, height=560, showlegend=False)
    figure.update_yaxes(autorange="reversed", type="category", dtick=1)
    return add_slider(figure, traces, titles)
