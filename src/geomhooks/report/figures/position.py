"""Figures of pos: its spiral, singular values, Fourier spectrum, and Gram matrix with ctx."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from geomhooks.errors import FigureError, UnidentifiedError
from geomhooks.functional.cosines import cosines
from geomhooks.functional.position.smoothness import dct_spectrum
from geomhooks.functional.position.spiral import principal_components
from geomhooks.report.figures.found import find, numbers, thinned
from geomhooks.report.figures.layers import add_slider, in_space, logarithmic
from geomhooks.report.theme import (
    COLOURS,
    DIVERGING,
    SEQUENTIAL,
    About,
    graph_objects,
    label,
    new_figure,
)

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from geomhooks.snapshot import Geometry

__all__ = [
    "position_context_gram",
    "position_fourier",
    "position_singular_values",
    "position_spiral",
]

SONG = (
    'J. Song, Y. Zhong, "Uncovering hidden geometry in Transformers via disentangling position '
    'and context", arXiv 2310.04861'
)


def position_spiral(geometry: Geometry, dimensions: int = 2, positions: int = 1024) -> go.Figure:
    """The positions as a path in the plane, or the space, in which pos varies most.

    A slider goes through the sites. Each point is pos_t, in units of the hidden states, on the
    leading two or three principal components of pos (T, d), coloured by t (J. Song, Y. Zhong,
    arXiv 2310.04861, figure 1).

    Args:
        geometry: with ``pos_ctx``.
        dimensions: 2 or 3.
        positions: at most so many are drawn, evenly spaced.

    Raises:
        FigureError: the geometry has no ``pos_ctx``, or too few positions or dimensions for it.
        UnidentifiedError: the data do not determine pos.

    Example:
        >>> import torch, geomhooks as gh
        >>> from geomhooks.report.figures import position_spiral
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
        >>> with torch.no_grad(), gh.watch(model, statistics=[gh.PosCtx()]) as watch:
        ...     _ = model(torch.randn(5, 6, 4))
        >>> figure = position_spiral(watch.geometry())
        >>> (
        ...     len(figure.data),
        ...     len(figure.data[0].x),
        ...     [s.value for s in figure.layout.sliders[0].steps],
        ... )
        (3, 6, ['0@in', '0', '1'])
    """
    go = graph_objects()
    if dimensions not in (2, 3):
        raise FigureError(f"dimensions={dimensions!r}: 2 or 3 can be drawn")
    traces: dict[str, list[Any]] = {}
    titles = {}
    note = ""
    for site, found in find(geometry, "pos_ctx").items():
        seen = (found.position_count > 0).nonzero()[:, 0]
        pos = found.pos[seen]
        if min(pos.shape) < dimensions:
            raise FigureError(
                f"pos at {site!r} has shape {tuple(pos.shape)}, too few positions or entries for a "
                f"path in {dimensions} dimensions"
            )
        components = principal_components(pos, dimensions)
        at = thinned(len(pos), positions)
        if len(at) < len(pos):
            note = f"{len(at)} of {len(pos)} positions are drawn, evenly spaced."
        columns = [numbers(column) for column in components.scores[at].T]
        shown = numbers(seen[at])
        marker = {
            "size": 6 if dimensions == 2 else 3,
            "color": shown,
            "colorscale": SEQUENTIAL,
            "showscale": True,
            "colorbar": {"title": {"text": "position"}, "thickness": 14},
        }
        line = {"color": "rgba(128, 136, 148, 0.45)", "width": 1.5}
        hover = "position %{marker.color:.0f}<br>(%{x:.3g}, %{y:.3g}"
        common = {"mode": "lines+markers", "marker": marker, "line": line, "showlegend": False,
                  "name": label(site)}  # fmt: skip
        if dimensions == 2:
            trace = go.Scatter(
                x=columns[0], y=columns[1], hovertemplate=hover + ")<extra></extra>", **common
            )
        else:
            x, y, z = columns
            trace = go.Scatter3d(
                x=x, y=y, z=z, hovertemplate=hover + ", %{z:.3g})<extra></extra>", **common
            )
        traces[site] = [trace]
        titles[site] = (
            f"Path of the positions: {float(components.shares.sum()):.0%} of the variance of pos"
        )
    about = About(
        "Each point is the mean of the hidden states at one position, less the mean of all, seen "
        "in the directions in which positions differ most; neighbours are joined. A smooth curve, "
        "often a spiral, says that the layer keeps position as a slowly turning direction; a cloud "
        "without order says that what is seen is noise.",
        f"{SONG}, figure 1",
        note,
    )
    axes = [f"principal component {number + 1} of pos" for number in range(dimensions)]
    figure = new_figure("", axes[0], axes[1], about)
    if dimensions == 2:
        figure.update_yaxes(scaleanchor="x", scaleratio=1)
    else:
        in_space(figure, [f"component {number + 1}" for number in range(3)])
    figure.update_layout(height=560)
    return add_slider(figure, traces, titles)


def position_singular_values(geometry: Geometry, number: int = 60) -> go.Figure:
    """The singular values of pos by their index, and the floor under which noise alone reaches.

    A slider goes through the sites (scree plot; J. Song, Y. Zhong, arXiv 2310.04861, figure 2). The
    floor is ``singular_value_floor`` of :class:`geomhooks.PosCtx`, and is missing where the data do
    not determine it.

    Args:
        geometry: with ``pos_ctx``.
        number: of the leading singular values.

    Raises:
        FigureError: the geometry has no ``pos_ctx``.
        UnidentifiedError: the data do not determine pos.

    Example:
        >>> import torch, geomhooks as gh
        >>> from geomhooks.report.figures import position_singular_values
        >>> model = torch.nn.Sequential(torch.nn.Identity())
        >>> with gh.watch(model, sites="0", statistics=[gh.PosCtx()]) as watch:
        ...     _ = model(torch.randn(5, 6, 4))
        >>> [trace.name for trace in position_singular_values(watch.geometry()).data]
        ['singular values of pos', 'noise floor']
    """
    go = graph_objects()
    traces, titles = {}, {}
    every: list[float] = []
    for site, found in find(geometry, "pos_ctx").items():
        values = found.singular_values[:number]
        every += values.tolist()
        index = numbers(torch.arange(1, len(values) + 1, device="cpu"))
        traces[site] = [
            go.Scatter(
                x=index,
                y=numbers(values),
                mode="lines+markers",
                line={"color": COLOURS["pos"]},
                name="singular values of pos",
                hovertemplate="number %{x}: %{y:.4g}<extra></extra>",
            )
        ]
        title = f"Singular values of pos: stable rank {float(found.stable_rank):.2f}"
        try:
            floor = float(found.singular_value_floor)
            title += f", {float(found.rank_above_noise):.0f} above the noise"
        except UnidentifiedError:
            pass
        else:
            traces[site].append(
                go.Scatter(
                    x=index[[0, -1]],
                    y=[floor, floor],
                    mode="lines",
                    line={"color": COLOURS["floor"], "dash": "dash"},
                    name="noise floor",
                    hovertemplate="noise floor %{y:.4g}<extra></extra>",
                )
            )
        titles[site] = title
    about = About(
        "Positions differ in as many directions as there are singular values above the dashed "
        "line, which is the largest that sampling noise alone would be expected to give. A steep "
        "fall after few values says that position lives in a small subspace.",
        f"{SONG}, figure 2; noise floor: geomhooks.functional.singular_value_floor",
    )
    figure = new_figure("", "index", "singular value", about)
    figure.update_yaxes(logarithmic(every))
    return add_slider(figure, traces, titles)


def position_fourier(geometry: Geometry, frequencies: int = 10) -> go.Figure:
    """The cosines between positions in the basis of cosines: which frequencies pos is made of.

    A slider goes through the sites; rows and columns 1 to ``frequencies`` - 1 of the
    two-dimensional cosine transform of the Gram matrix (T, T) of pos, without the constant, over
    its trace T (J. Song, Y. Zhong, arXiv 2310.04861, figure 2).

    Args:
        geometry: with ``pos_ctx``.
        frequencies: the lowest so many, with the constant.

    Raises:
        FigureError: the geometry has no ``pos_ctx``, or too few positions.
        UnidentifiedError: the data do not determine pos.

    Example:
        >>> import torch, geomhooks as gh
        >>> from geomhooks.report.figures import position_fourier
        >>> model = torch.nn.Sequential(torch.nn.Identity())
        >>> with gh.watch(model, sites="0", statistics=[gh.PosCtx()]) as watch:
        ...     _ = model(torch.randn(5, 6, 4))
        >>> position_fourier(watch.geometry(), 4).data[0].z.shape
        (3, 3)
    """
    go = graph_objects()
    traces, titles = {}, {}
    for site, found in find(geometry, "pos_ctx").items():
        gram = found.smoothness.gram
        number = min(frequencies, len(gram))
        if number < 2:
            raise FigureError(f"{site!r} has {len(gram)} positions; two or more are needed")
        spectrum = dct_spectrum(gram, number) / len(gram)
        largest = float(spectrum[1:, 1:].abs().max())
        axis = numbers(torch.arange(1, number, device="cpu"))
        traces[site] = [
            go.Heatmap(
                x=axis,
                y=axis,
                z=numbers(spectrum[1:, 1:]),
                colorscale=DIVERGING,
                zmin=-largest,
                zmax=largest,
                colorbar={"title": {"text": "share<br>of trace"}, "thickness": 14},
                hovertemplate="frequencies %{y}, %{x}: %{z:.3f}<extra></extra>",
                name=label(site),
            )
        ]
        low = float(spectrum.diagonal().sum())
        titles[site] = f"Fourier spectrum of pos: {low:.0%} in the lowest {number} frequencies"
    about = About(
        "The matrix of cosines between positions, written in cosine waves over position: weight in "
        "the upper left corner says that pos turns smoothly. Frequency k goes k/2 times up and "
        "down over the whole length; the constant, frequency 0, is left out.",
        f"{SONG}, figure 2 and theorem 1",
    )
    figure = new_figure("", "frequency", "frequency", about, height=520)
    figure.update_yaxes(autorange="reversed", scaleanchor="x", constrain="domain", dtick=1)
    figure.update_xaxes(constrain="domain", dtick=1)
    return add_slider(figure, traces, titles)


def position_context_gram(
    geometry: Geometry,
    labels: Mapping[int, str] | None = None,
    groups: Sequence[str] | None = None,
    positions: int = 96,
    contexts: int = 96,
) -> go.Figure:
    """Cosines between all pos and ctx: the positions' block, the contexts', and that between them.

    A slider goes through the sites. Contexts stand in the order of their group labels, where they
    have some (J. Song, Y. Zhong, arXiv 2310.04861, figure 3).

    Args:
        geometry: with ``pos_ctx``.
        labels: what to call contexts, by their ids.
        groups: names of the group labels 0, 1, ...
        positions: at most so many are drawn, evenly spaced.
        contexts: at most so many are drawn, evenly spaced in that order.

    Raises:
        FigureError: the geometry has no ``pos_ctx``.
        UnidentifiedError: the data do not determine pos and ctx.

    Example:
        >>> import torch, geomhooks as gh
        >>> from geomhooks.report.figures import position_context_gram
        >>> model = torch.nn.Sequential(torch.nn.Identity())
        >>> with gh.watch(model, sites="0", statistics=[gh.PosCtx()]) as watch:
        ...     _ = model(torch.randn(5, 6, 4))
        >>> position_context_gram(watch.geometry()).data[0].z.shape
        (11, 11)
    """
    go = graph_objects()
    traces, titles, shapes = {}, {}, {}
    note = ""
    for site, found in find(geometry, "pos_ctx").items():
        seen = (found.position_count > 0).nonzero()[:, 0]
        at = thinned(len(seen), positions)
        order = found.context_group.argsort(stable=True)
        order = order[thinned(len(order), contexts)]
        if len(at) < len(seen) or len(order) < len(found.ctx):
            note = (
                f"{len(at)} of {len(seen)} positions and {len(order)} of {len(found.ctx)} contexts "
                "are drawn, evenly spaced."
            )
        gram = cosines(torch.cat([found.pos[seen[at]], found.ctx[order]]))
        names = [f"position {position}" for position in seen[at].tolist()]
        names += [
            _context_name(int(found.context_id[row]), int(found.context_group[row]), labels, groups)
            for row in order.tolist()
        ]
        middle = [_middle(0, len(at)), _middle(len(at), len(gram))]
        between = gram[: len(at), len(at) :]
        traces[site] = [
            go.Heatmap(
                z=numbers(gram),
                colorscale=DIVERGING,
                zmin=-1,
                zmax=1,
                colorbar={"title": {"text": "cosine"}, "thickness": 14},
                hovertemplate="%{y}<br>%{x}<br>cosine %{z:.3f}<extra></extra>",
                name=label(site),
                x=names,
                y=names,
            )
        ]
        edge = len(at) - 0.5
        line = {"type": "line", "line": {"color": "#555c66", "width": 1.5}}
        shapes[site] = [
            line | {"x0": edge, "x1": edge, "y0": -0.5, "y1": len(gram) - 0.5},
            line | {"x0": -0.5, "x1": len(gram) - 0.5, "y0": edge, "y1": edge},
        ]
        titles[site] = (
            "Cosines of pos and ctx: mean |cosine| between the two "
            f"{float(between.abs().nanmean()) if between.numel() else 0:.3f}"
        )
        ticks = {
            "tickmode": "array",
            "tickvals": middle[: 2 if len(order) else 1],
            "ticktext": ["positions", "contexts"],
            "type": "category",
        }
    about = About(
        "Red is the same direction, blue the opposite; positions come first, then contexts, and "
        "the line between them is drawn. A smooth upper left block is a smooth pos, blocks in the "
        "lower right are topics, and a pale block between them says that position and context live "
        "in nearly orthogonal spaces.",
        f"{SONG}, figure 3",
        note,
    )
    figure = new_figure("", "", "", about, height=620)
    figure.update_xaxes(**ticks, constrain="domain")
    figure.update_yaxes(**ticks, autorange="reversed", scaleanchor="x", constrain="domain")
    return add_slider(figure, traces, titles, shapes=shapes)


def _context_name(
    identity: int, group: int, labels: Mapping[int, str] | None, groups: Sequence[str] | None
) -> str:
    """What a context is called; no two alike, as the axis goes by names."""
    name = f"context {identity}"
    if labels is not None and identity in labels:
        name = f"{label(labels[identity])} ({name})"
    if group < 0:
        return name
    named = groups is not None and group < len(groups)
    return f"{label(groups[group]) if named and groups else f'group {group}'}: {name}"


def _middle(start: int, stop: int) -> int:
    return (start + stop - 1) // 2
