"""Geometry over the steps of a training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from geomhooks.errors import FigureError
from geomhooks.functional.position.spiral import principal_components
from geomhooks.history import History
from geomhooks.report.figures.found import numbers, short_names, thinned
from geomhooks.report.figures.layers import add_slider
from geomhooks.report.scalar_names import named
from geomhooks.report.theme import (
    RUNS,
    SEQUENTIAL,
    About,
    depth_colours,
    graph_objects,
    label,
    new_figure,
)

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["runs_over_training", "scalar_over_training", "spiral_over_training"]

SONG = "J. Song, Y. Zhong, arXiv 2310.04861"


def scalar_over_training(
    history: History, scalar: str = "pos_ctx/shares/pos", points: int = 1000
) -> go.Figure:
    """One scalar over the steps of a training, a line a site, coloured from the first to the last.

    Args:
        history: of a training.
        scalar: its name after that of the site.
        points: at most so many steps are drawn, evenly spaced.

    Raises:
        FigureError: no site of the history has it.

    Returns:
        A figure (curves of this kind: T. Mickus, R. Vazquez, "Why Bother with Geometry?",
        BlackboxNLP 2023).

    Example:
        >>> import torch, geomhooks as gh
        >>> from geomhooks.report.figures import scalar_over_training
        >>> model, history = torch.nn.Sequential(torch.nn.Linear(4, 4)), gh.History()
        >>> with torch.no_grad(), gh.watch(model, sites="0", statistics=[gh.Sphere()]) as watch:
        ...     for step in (0, 10):
        ...         _ = model(torch.ones(2, 3, 4) * (1 + step))
        ...         history.append(step, watch.geometry())
        >>> figure = scalar_over_training(history, "sphere/norm/mean")
        >>> [(trace.name, trace.x.tolist()) for trace in figure.data]
        [('0', [0.0, 10.0])]
    """
    _check(history)
    ending = f"/{scalar}"
    sites = [name[: -len(ending)] for name in history.names if name.endswith(ending)]
    if not sites:
        known = sorted({"/".join(name.split("/")[1:]) for name in history.names})
        raise FigureError(
            f"no site of the history has {scalar!r}; there are {', '.join(known[:12])}"
            f"{', ...' if len(known) > 12 else ''}"
        )
    about = About(
        f"{named(scalar).heading} while the model is trained, a line for each site, from the "
        "first in blue to the last in orange. Bends at one step in all sites are events of the "
        "training; lines that part are layers that take up different work.",
        'curves of this kind: T. Mickus, R. Vazquez, "Why Bother with Geometry?", BlackboxNLP 2023',
        f"at most {points} steps of a line are drawn." if len(history) > points else "",
    )
    what = named(scalar)
    figure = new_figure(f"{what.heading} over training", "training step", what.heading, about)
    figure.update_yaxes(**what.axis)
    for site, short, colour in zip(
        sites, short_names(sites), depth_colours(len(sites)), strict=True
    ):
        steps, values = history.curve(site + ending)
        at = thinned(len(steps), points)
        name = label(short)
        figure.add_trace(
            graph_objects().Scatter(
                x=numbers(steps[at].double()),
                y=numbers(values[at] * what.factor),
                mode="lines",
                name=name,
                line={"color": colour},
                hovertemplate=f"{label(site)}<br>step %{{x}}: %{{y:.4g}}<extra></extra>",
            )
        )
    return figure


def runs_over_training(
    histories: Mapping[str, History], scalar: str = "pos_ctx/shares/pos", points: int = 1000
) -> go.Figure:
    """One scalar over the steps of several trainings, a line for each; a slider goes through sites.

    Args:
        histories: of trainings, by what to call them.
        scalar: its name after that of the site.
        points: at most so many steps of a line are drawn, evenly spaced.

    Raises:
        FigureError: no site of any of them has it.

    Returns:
        A figure (curves of this kind: T. Mickus, R. Vazquez, "Why Bother with Geometry?",
        BlackboxNLP 2023).

    Example:
        >>> import torch, geomhooks as gh
        >>> from geomhooks.report.figures import runs_over_training
        >>> model, history = torch.nn.Sequential(torch.nn.Linear(4, 4)), gh.History()
        >>> with torch.no_grad(), gh.watch(model, sites="0", statistics=[gh.Sphere()]) as watch:
        ...     for step in (0, 10):
        ...         _ = model(torch.ones(2, 3, 4) * (1 + step))
        ...         history.append(step, watch.geometry())
        >>> figure = runs_over_training({"a": history, "b": history}, "sphere/norm/mean")
        >>> [trace.name for trace in figure.data]
        ['a', 'b']
    """
    for history in histories.values():
        _check(history)
    ending = f"/{scalar}"
    names = dict.fromkeys(name for history in histories.values() for name in history.names)
    sites = [name[: -len(ending)] for name in names if name.endswith(ending)]
    if not sites:
        raise FigureError(f"no site of {', '.join(map(repr, histories))} has {scalar!r}")
    traces: dict[str, list[Any]] = {site: [] for site in sites}
    cut = False
    for number, (name, history) in enumerate(histories.items()):
        shown = label(name)
        for site in sites:
            if site + ending not in history.names:
                continue
            steps, values = history.curve(site + ending)
            at = thinned(len(steps), points)
            cut = cut or len(at) < len(steps)
            traces[site].append(
                graph_objects().Scatter(
                    x=numbers(steps[at].double()),
                    y=numbers(values[at] * named(scalar).factor),
                    mode="lines",
                    name=shown,
                    line={"color": RUNS[number % len(RUNS)]},
                    hovertemplate=f"{shown}<br>step %{{x}}: %{{y:.4g}}<extra></extra>",
                )
            )
    about = About(
        f"{named(scalar).heading} ({scalar}), step by step of each training, at one site. Runs "
        "whose curves bend at the same steps learn alike there, whatever their level.",
        'curves of this kind: T. Mickus, R. Vazquez, "Why Bother with Geometry?", BlackboxNLP 2023',
        f"at most {points} steps of a line are drawn." if cut else "",
    )
    what = named(scalar)
    figure = new_figure("", "training step", what.heading, about).update_yaxes(**what.axis)
    titles = {site: f"{what.heading}, at {label(site)}" for site in sites}
    return add_slider(figure, traces, titles)


def spiral_over_training(history: History, site: str, positions: int = 512) -> go.Figure:
    """The path of the positions at one site, step by step, in the plane of the last step's pos.

    A slider goes through the steps whose whole geometry was kept. All are projected on the two
    leading components of pos at the last of them, so that one sees it come to be.

    Args:
        history: with whole geometries, ``gh.History(snapshots=8)``, that have ``pos_ctx``.
        site: its name.
        positions: at most so many are drawn, evenly spaced.

    Raises:
        FigureError: no whole geometry was kept, or it has no ``pos_ctx`` at the site.
        UnidentifiedError: the data do not determine pos.

    Example:
        >>> import torch, geomhooks as gh
        >>> from geomhooks.report.figures import spiral_over_training
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4))
        >>> history = gh.History(snapshots="all")
        >>> with torch.no_grad(), gh.watch(model, sites="0", statistics=[gh.PosCtx()]) as watch:
        ...     for step in (0, 10):
        ...         _ = model(torch.randn(4, 3, 4))
        ...         history.append(step, watch.geometry())
        >>> [step.label for step in spiral_over_training(history, "0").layout.sliders[0].steps]
        ['0', '10']
    """
    _check(history)
    if not history.kept:
        raise FigureError(
            "no whole geometry was kept in the history; keep some with gh.History(snapshots=8)"
        )
    parts = {}
    for step in history.kept:
        geometry = history[step]
        if site not in geometry.sites or "pos_ctx" not in geometry[site]:
            raise FigureError(
                f"step {step} has no pos_ctx at {site!r}; its sites are "
                f"{', '.join(geometry.sites)}. Measure it with gh.watch(model, "
                "statistics=[gh.PosCtx()])"
            )
        parts[step] = geometry[site].pos_ctx
    last = parts[history.kept[-1]]
    seen = last.position_count > 0
    axes = principal_components(last.pos[seen], 2).axes
    go, traces, titles = graph_objects(), {}, {}
    for step, found in parts.items():
        there = (found.position_count > 0).nonzero()[:, 0]
        there = there[thinned(len(there), positions)]
        scores = found.pos[there] @ axes.T
        traces[step] = [_path(go, scores, there)]
        share = float(found.shares.pos)
        titles[step] = (
            f"Path of the positions at {label(site)}: pos has {share:.0%} of the variance"
        )
    about = About(
        "The mean state at each position, less the mean of all, at several steps of the training; "
        "the plane is that in which positions differ most at the last of them. A cloud that opens "
        "to a curve is the model learning where it is in the text.",
        f"{SONG}, figure 1, of checkpoints",
        f"at most {positions} positions are drawn." if int(seen.sum()) > positions else "",
    )
    figure = new_figure("", "component 1 of the last pos", "component 2", about, height=560)
    figure.update_yaxes(scaleanchor="x", scaleratio=1)
    return add_slider(figure, traces, titles, of="step")


def _path(go: Any, scores: Any, at: Any) -> Any:
    return go.Scatter(
        x=numbers(scores[:, 0]),
        y=numbers(scores[:, 1]),
        mode="lines+markers",
        line={"color": "rgba(128, 136, 148, 0.45)", "width": 1.5},
        marker={
            "size": 6,
            "color": numbers(at.double()),
            "colorscale": SEQUENTIAL,
            "showscale": True,
            "colorbar": {"title": {"text": "position"}, "thickness": 14},
        },
        showlegend=False,
        hovertemplate="position %{marker.color:.0f}<extra></extra>",
    )


def _check(history: Any) -> None:
    if not isinstance(history, History):
        raise FigureError(
            f"a history is needed, such as gh.History.load(file), found a {type(history).__name__}"
        )
