"""Words on their way through depth: their paths on the sphere, and the pull of the next word."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from geomhooks.errors import FigureError
from geomhooks.functional.sphere.projections import principal_geodesics
from geomhooks.functional.sphere.trajectories import sphere_path
from geomhooks.report.figures.found import find, numbers, short_names, thinned
from geomhooks.report.figures.layers import EYE, in_space, layer_axis
from geomhooks.report.theme import COLOURS, RUNS, About, graph_objects, label, new_figure

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from geomhooks.snapshot import Geometry

__all__ = ["Words", "next_word_pull", "word", "word_paths"]

NAME = (0.45, 0.1)  # what a name takes of the width and height of the picture
Words = Mapping[int, str] | Callable[[int], str]
MOLINA = (
    'R. Molina, "Traveling Words: A Geometric Interpretation of Transformers", arXiv 2309.07315'
)


def word_paths(
    geometry: Geometry,
    words: Words | None = None,
    context: int = 0,
    dimensions: int = 3,
    most: int = 8,
) -> go.Figure:
    """The paths of the words of one context through the layers, in the space they vary most in.

    Each word is a line from the first site to the last, where it is written. The states, through
    the final norm, are directions on the sphere; what is drawn are their scores on the principal
    geodesics through their mean, in radians (R. Molina, arXiv 2309.07315, figure 4, who draws a
    UMAP instead: :func:`geomhooks.functional.umap_projection`).

    Args:
        geometry: with ``trajectories``.
        words: the words by token id, or a function that gives them, as ``lambda i:
            tokenizer.decode([i])``; ids stand for them otherwise.
        context: which of those kept, from 0.
        dimensions: 2 or 3.
        most: words that are drawn, evenly spaced.

    Raises:
        FigureError: the geometry has no ``trajectories``, or not at two sites, or no such context,
            or ``dimensions`` is another number.

    Example:
        >>> import torch, geomhooks as gh
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> from geomhooks.report.figures import word_paths
        >>> config = GPT2Config(n_layer=2, n_embd=8, n_head=2, n_positions=16, vocab_size=10)
        >>> model = GPT2LMHeadModel(config).eval()
        >>> with torch.no_grad(), gh.watch(model, statistics=[gh.Trajectories()]) as watch:
        ...     _ = model(torch.tensor([[3, 1, 4]]))
        >>> figure = word_paths(watch.geometry(), {3: "to", 1: "kill", 4: "two"})
        >>> [(trace.name, len(trace.x)) for trace in figure.data]
        [('0: to', 3), ('1: kill', 3), ('2: two', 3)]
    """
    go = graph_objects()
    if dimensions not in (2, 3):
        raise FigureError(f"dimensions={dimensions!r}: 2 or 3 can be drawn")
    found = find(geometry, "trajectories.states")
    if len(found) < 2:
        raise FigureError(f"paths need two sites with trajectories or more, found {list(found)}")
    states = geometry.stack("trajectories.states")
    if not 0 <= context < states.shape[1]:
        raise FigureError(f"context={context}: {states.shape[1]} were kept, from 0")
    first = geometry[next(iter(found))].trajectories
    ids = first.token_ids[context]
    known = states[:, context].isfinite().all(-1).all(0).nonzero()[:, 0]
    if not len(known):
        raise FigureError(f"context={context}: no word has a state at every site")
    rows = states[:, context, known].double()
    plane = principal_geodesics(rows.flatten(0, 1), dimensions, centred=False)
    scores: Tensor = plane.transform(rows)
    turned = sphere_path(rows, centred=False)
    at = thinned(len(known), most)
    about = About(
        "Each line is a word on its way from the first layer to the last, where its name stands "
        "if there is room for it; the states are seen through the final norm, on whose sphere all "
        "layers can be compared. The axes are angles along the directions in which they vary most; "
        "how near two words come is to be asked of angles, not of the picture.",
        f"{MOLINA}, figure 4; axes: P. T. Fletcher et al., principal geodesic analysis (2004)",
        f"{len(at)} of {len(known)} words are drawn, evenly spaced."
        if len(at) < len(known)
        else "",
    )
    share = float(plane.shares.sum())
    figure = new_figure(
        f"Words on their way through the layers ({share:.0%} of their spread)",
        "radians along geodesic 1",
        "radians along geodesic 2",
        about,
        height=620,
    )
    layers = [label(name) for name in short_names(list(found))]
    # Names at ends that lie on each other could not be read; the legend has all.
    seen = _as_seen(scores[:, at].flatten(0, 1))
    named = {at[index] for index in apart(seen[-len(at) :], seen.amax(0) - seen.amin(0))}
    for number, row in enumerate(at):
        place = int(known[row])
        name = f"{place}: {word(words, int(ids[place]))}"
        colour = RUNS[number % len(RUNS)]
        columns = [numbers(column) for column in scores[:, row].T]
        common: dict[str, Any] = {
            "mode": "lines+markers+text",
            "name": name,
            "text": [""] * (len(layers) - 1) + [name if row in named else ""],
            "hovertext": layers,
            "textfont": {"color": colour},
            "line": {"color": colour, "width": 2 if dimensions == 2 else 4},
            "marker": {"size": 4, "color": colour},
            "hovertemplate": f"{name}<br>%{{hovertext}}<br>path {float(turned.length[row]):.2f}, "
            f"chord {float(turned.chord[row]):.2f} rad<extra></extra>",
        }
        if dimensions == 2:
            figure.add_trace(
                go.Scatter(x=columns[0], y=columns[1], textposition="top center", **common)
            )
        else:
            x, y, z = columns
            figure.add_trace(go.Scatter3d(x=x, y=y, z=z, **common))
    if dimensions == 2:
        figure.update_yaxes(scaleanchor="x", scaleratio=1)
    else:
        in_space(figure, [f"geodesic {number} (rad)" for number in (1, 2, 3)])
    beside = {"orientation": "v", "x": 1.02, "xanchor": "left", "y": 1, "yanchor": "top"}
    return figure.update_layout(showlegend=True, legend=beside)


def apart(ends: Tensor, size: Tensor) -> list[int]:
    """Of ends (n, 2) as they are seen, those whose names do not lie on one chosen before.

    Args:
        ends: where names stand.
        size: (2,) of the picture, in the same units.

    Example:
        >>> ends = torch.tensor([[0.0, 0.0], [0.1, 0.0], [0.0, 1.0], [1.0, 0.0]])
        >>> apart(ends, torch.tensor([1.0, 1.0]))
        [0, 2, 3]
    """
    wide, high = size.tolist()
    chosen: list[int] = []
    for index, (x, y) in enumerate(ends.tolist()):
        if all(
            abs(x - float(ends[other, 0])) > NAME[0] * wide
            or abs(y - float(ends[other, 1])) > NAME[1] * high
            for other in chosen
        ):
            chosen.append(index)
    return chosen


def _as_seen(points: Tensor) -> Tensor:
    """Points (n, 2 or 3) on the plane of the picture, those in space from where the camera is."""
    if points.shape[1] == 2:
        return points
    eye = torch.tensor([EYE[letter] for letter in "xyz"], dtype=points.dtype, device=points.device)
    right = torch.stack([-eye[1], eye[0], torch.zeros_like(eye[2])])
    above = torch.linalg.cross(eye, right)
    return points @ torch.stack([right / right.norm(), above / above.norm()], 1)


def word(words: Words | None, token: int) -> str:
    """Of a token id, ready to be shown."""
    if words is None or token < 0:
        return f"token {token}"
    found = words(token) if callable(words) else words.get(token, f"token {token}")
    return label(found.strip() or found, 24)


def next_word_pull(geometry: Geometry) -> go.Figure:
    """How much more likely the next word is than the own one, site by site, under the logit lens.

    The mean of log p(w of t + 1) - log p(w of t) in nats, without position 0 (R. Molina, arXiv
    2309.07315, experiment in the repository).

    Args:
        geometry: with ``next_word``.

    Raises:
        FigureError: the geometry has no ``next_word``.

    Example:
        >>> import torch, geomhooks as gh
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> from geomhooks.report.figures import next_word_pull
        >>> config = GPT2Config(n_layer=2, n_embd=8, n_head=2, n_positions=16, vocab_size=10)
        >>> model = GPT2LMHeadModel(config).eval()
        >>> with torch.no_grad(), gh.watch(model, statistics=[gh.NextWord()]) as watch:
        ...     _ = model(torch.randint(10, (3, 6)))
        >>> next_word_pull(watch.geometry()).data[0].y.shape
        (3,)
    """
    found = find(geometry, "next_word")
    pulls = torch.stack([result.without_first.pull.mean for result in found.values()])
    about = About(
        "Below zero a state is still nearer to the word that it stands for, above zero it is "
        "nearer to the word that comes next. The layer at which the curve crosses zero is where "
        "the model, on average, has turned to predicting.",
        f"{MOLINA}; experiment in its repository",
    )
    figure = new_figure(
        "From the own word to the next one", "", "log-probability ratio (nats)", about
    )
    figure.add_trace(
        graph_objects().Scatter(
            x=list(range(len(found))),
            y=numbers(pulls),
            mode="lines+markers",
            line={"color": COLOURS["next"]},
            name="next word against own word",
            hovertext=[label(site) for site in found],
            hovertemplate="%{hovertext}<br>%{y:.3f} nats<extra></extra>",
        )
    )
    figure.add_hline(y=0, line={"color": COLOURS["resid"], "dash": "dot"})
    figure.update_xaxes(layer_axis(list(found)))
    return figure
