"""Heads of attention: which parts of the states meet in their logits, and how many they use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from geomhooks.errors import FigureError
from geomhooks.functional.attention.query_key import QUERY_KEY_PARTS
from geomhooks.report.figures.found import find, numbers, thinned
from geomhooks.report.figures.layers import add_slider
from geomhooks.report.theme import (
    DIVERGING,
    About,
    depth_colours,
    graph_objects,
    label,
    new_figure,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    import plotly.graph_objects as go

    from geomhooks.anatomy.logits import SplitLogits
    from geomhooks.anatomy.virtual_matrices import HeadSpectra
    from geomhooks.snapshot import Geometry

__all__ = ["query_key_logits", "query_key_shares", "singular_value_coverage"]

SONG = "J. Song, Y. Zhong, arXiv 2310.04861"
MOLINA = "R. Molina, arXiv 2309.07315"
COVERED = 0.99


def query_key_shares(geometry: Geometry, head: int | None = None) -> go.Figure:
    """Of the variance of attention's logits, what each pair of parts of query and key makes.

    A slider goes through the blocks. Rows are parts of the query, columns of the key; the 25 shares
    add up to one, and terms may be negative (split after J. Song, Y. Zhong, arXiv 2310.04861,
    section 4; shares by covariance, see :class:`geomhooks.Attention`).

    Args:
        geometry: with ``attention``.
        head: from 0; by default the mean over the heads.

    Raises:
        FigureError: the geometry has no ``attention``, or there is no such head.
        UnidentifiedError: no logit was counted at a block.

    Example:
        >>> import torch, geomhooks as gh
        >>> from transformers import GPT2Config, GPT2Model
        >>> from geomhooks.report.figures import query_key_shares
        >>> config = GPT2Config(n_layer=2, n_embd=8, n_head=2, n_positions=8, vocab_size=10)
        >>> model, texts = GPT2Model(config).eval(), torch.randint(10, (6, 8))
        >>> with torch.no_grad(), gh.watch(model, statistics=[gh.PosCtx()]) as watch:
        ...     _ = model(texts)
        >>> with torch.no_grad(), gh.watch(model, statistics=[gh.Attention(watch.geometry())]) as a:
        ...     _ = model(texts)
        >>> figure = query_key_shares(a.geometry(), head=1)
        >>> figure.data[0].z.shape, round(float(figure.data[0].z.sum()), 5)
        ((5, 5), 1.0)
    """
    go = graph_objects()
    traces, titles = {}, {}
    for site, shares in find(geometry, "attention.shares").items():
        if head is not None and not 0 <= head < len(shares):
            raise FigureError(f"head={head}: {site!r} has {len(shares)} heads, from 0")
        shown = shares.mean(0) if head is None else shares[head]
        largest = float(shown.abs().max())
        traces[site] = [
            go.Heatmap(
                x=list(QUERY_KEY_PARTS),
                y=list(QUERY_KEY_PARTS),
                z=numbers(shown),
                zmin=-largest,
                zmax=largest,
                colorscale=DIVERGING,
                texttemplate="%{z:.0%}",
                colorbar={"title": {"text": "share"}, "tickformat": ".0%", "thickness": 14},
                hovertemplate="%{y} of the query, %{x} of the key: %{z:.1%}<extra></extra>",
                name=label(site),
            )
        ]
        who = "mean over heads" if head is None else f"head {head}"
        titles[site] = f"What the logits of attention are made of: {who}"
    about = About(
        "Of the variance of the logits over the keys that a query sees, what each pair of a part "
        "of the query and a part of the key makes; all add up to 100 %. Heads that look at places "
        "have it at pos with pos, heads that look for words at resid with resid.",
        f"{SONG}, section 4; geomhooks.Attention",
    )
    figure = new_figure("", "part of the key", "part of the query", about, height=520)
    figure.update_yaxes(autorange="reversed", scaleanchor="x", constrain="domain")
    figure.update_xaxes(constrain="domain")
    return add_slider(figure, traces, titles)


def query_key_logits(
    split: SplitLogits,
    head: int,
    row: int = 0,
    words: Sequence[str] | None = None,
    tokens: int = 64,
    block: str = "",
) -> go.Figure:
    """The logits of one head for one text, and the parts of pos, ctx and resid in them.

    A slider goes through the sums: all parts, and each pair of ``pos`` and what the text makes,
    which is ``ctx`` and ``resid`` together (J. Song, Y. Zhong, arXiv 2310.04861, figure 4, whose
    parts do not add up to the whole as these do).

    Args:
        split: of a prompt, by :func:`geomhooks.anatomy.attention_parts`.
        head: from 0.
        row: of the batch, from 0.
        words: the tokens' texts, for the axes.
        tokens: at most so many are drawn, the first ones.
        block: whose head it is, for the title.

    Raises:
        FigureError: there is no such head or row.

    Example:
        >>> import torch, geomhooks as gh
        >>> from transformers import GPT2Config, GPT2Model
        >>> from geomhooks.anatomy import attention_parts
        >>> from geomhooks.report.figures import query_key_logits
        >>> config = GPT2Config(n_layer=2, n_embd=8, n_head=2, n_positions=8, vocab_size=10)
        >>> model, texts = GPT2Model(config).eval(), torch.randint(10, (6, 8))
        >>> with torch.no_grad(), gh.watch(model, statistics=[gh.PosCtx()]) as watch:
        ...     _ = model(texts)
        >>> split = attention_parts(model, watch.geometry(), {"input_ids": texts[:1]}, layer=1)
        >>> figure = query_key_logits(split, head=0)
        >>> [step.label for step in figure.layout.sliders[0].steps]
        ['all parts', 'pos with pos', 'pos with text', 'text with pos', 'text with text']
    """
    go = graph_objects()
    _, _, rows, heads, _, length = split.logits.shape
    if not 0 <= head < heads or not 0 <= row < rows:
        raise FigureError(
            f"head={head}, row={row}: there are {heads} heads and {rows} rows, from 0"
        )
    number = min(length, tokens)
    logits = split.logits[:, :, row, head, :number, :number]
    seen = split.allowed[row, 0, :number, :number]
    part = {name: [index] for index, name in enumerate(QUERY_KEY_PARTS)}
    groups = {"pos": part["pos"], "text": part["ctx"] + part["resid"]}
    sums = {"all parts": logits.sum((0, 1))}
    for query, at in groups.items():
        for key, of in groups.items():
            sums[f"{query} with {key}"] = logits[at][:, of].sum((0, 1))
    names = list(range(number))
    texts = [f"{n}: {label(words[n], 16)}" if words and n < len(words) else str(n) for n in names]
    traces = {}
    largest = max(float(value[seen].abs().nan_to_num().max()) for value in sums.values())
    for name, value in sums.items():
        traces[name] = [
            go.Heatmap(
                x=texts,
                y=texts,
                z=numbers(value.masked_fill(~seen, float("nan"))),
                zmin=-largest,
                zmax=largest,
                colorscale=DIVERGING,
                colorbar={"title": {"text": "logit"}, "thickness": 14},
                hovertemplate="query %{y}<br>key %{x}<br>%{z:.3f}<extra></extra>",
                name=name,
            )
        ]
    about = About(
        "The logits of a head for one text, all of them and what pos and the text (ctx and resid) "
        "of query and key make; all have one colour scale, and what belongs to mean and biases is "
        "in the first alone. Stripes along the diagonal at pos with pos are a head that looks at "
        "places; spots elsewhere at text with text, one that looks for words.",
        f"{SONG}, figure 4; parts that add up: geomhooks.anatomy.attention_parts",
        f"the first {number} of {length} tokens are drawn." if number < length else "",
    )
    figure = new_figure("", "key", "query", about, height=660)
    figure.update_yaxes(autorange="reversed", scaleanchor="x", constrain="domain", type="category")
    figure.update_xaxes(constrain="domain", type="category", tickangle=-90)
    who = f"head {head} of {label(block)}" if block else f"head {head}"
    titles = {name: f"Logits of {who}: {name}" for name in sums}
    add_slider(figure, traces, titles, of="parts of query with key", start=0)
    # The words below the axis need room above the slider.
    return figure.update_layout(sliders=[{"pad": {"t": 120}}])


def singular_value_coverage(spectra: HeadSpectra, heads: int = 32) -> go.Figure:
    """How much of the sum of a head's singular values its leading ones cover, a line a head.

    Args:
        spectra: of an attention, by :func:`geomhooks.anatomy.head_spectra`.
        heads: at most so many are drawn, evenly spaced.

    Returns:
        A figure (after R. Molina, arXiv 2309.07315, and the repository's coverage curves).

    Example:
        >>> from transformers import GPT2Config, GPT2Model
        >>> from geomhooks.anatomy import find_anatomy, head_spectra
        >>> from geomhooks.report.figures import singular_value_coverage
        >>> model = GPT2Model(GPT2Config(n_layer=2, n_embd=8, n_head=2, vocab_size=10))
        >>> figure = singular_value_coverage(head_spectra(find_anatomy(model).at(0)))
        >>> [round(float(trace.y[-1]), 5) for trace in figure.data]
        [1.0, 1.0]
    """
    values = spectra.values
    covered = values.cumsum(-1) / values.sum(-1, keepdim=True)
    at = thinned(len(values), heads)
    kind = spectra.of.replace("_", "-")
    about = About(
        f"How much of the sum of the singular values of a head's {kind} matrix the leading ones "
        "cover; the dotted line is at 99 %. A head whose curve rises early uses few of the "
        "directions that it has room for.",
        MOLINA,
        f"{len(at)} of {len(values)} heads are drawn, evenly spaced." if len(at) < len(values)
        else "",
    )  # fmt: skip
    figure = new_figure(
        f"Coverage of the {kind} singular values, {label(spectra.attention)}",
        "number of singular values",
        "share of their sum",
        about,
    )
    index = list(range(1, values.shape[1] + 1))
    traces: list[Any] = [
        graph_objects().Scatter(
            x=index,
            y=numbers(covered[head]),
            mode="lines",
            name=f"head {head}",
            line={"color": colour},
            hovertemplate=f"head {head}: %{{x}} cover %{{y:.1%}}<extra></extra>",
        )
        for head, colour in zip(at, depth_colours(len(at)), strict=True)
    ]
    figure.add_traces(traces)
    figure.add_hline(y=COVERED, line={"dash": "dot", "color": "#8b929c"})
    return figure.update_yaxes(tickformat=".0%", range=[0, 1.02])
