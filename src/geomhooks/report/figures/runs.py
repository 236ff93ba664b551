"""Several runs beside each other."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from geomhooks.comparing.geometries import match_sites, standard_error
from geomhooks.errors import FigureError, UnidentifiedError
from geomhooks.report.figures.found import lookup, numbers
from geomhooks.report.figures.layers import add_slider, layer_axis
from geomhooks.report.scalar_names import named
from geomhooks.report.theme import COLOURS, RUNS, About, graph_objects, label, new_figure, visible

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from geomhooks.snapshot import Geometry

__all__ = ["run_differences", "runs_compared"]

MICKUS = 'after curves of T. Mickus, R. Vazquez, "Why Bother with Geometry?", BlackboxNLP 2023'
SURE = 1.96  # standard errors, of an interval of 95 %
SEEN = 0.005  # of noise, from which it is drawn


class Curve(NamedTuple):
    """One scalar of one run."""

    values: list[float]
    """by site, NaN where the run has none"""
    errors: list[float]
    """standard errors; NaN where none is known"""
    noise: list[float]
    """what chance adds to a share; NaN where it is none"""


def runs_compared(runs: Mapping[str, Geometry], scalar: str = "pos_ctx/shares/pos") -> go.Figure:
    """One scalar by site, a line for each of several runs.

    Sites are matched by name, or, where runs have none in common and as many, by their order; those
    that a run does not have are left out of its line. Bars are intervals of 95 % where standard
    errors are known, as if tokens were independent; a dotted line is what chance adds to a share.

    Args:
        runs: geometries by what to call them.
        scalar: its name after that of the site.

    Raises:
        FigureError: there are no runs, or none has the scalar.

    Returns:
        A figure (after the layer curves of runs of T. Mickus, R. Vazquez, "Why Bother with
        Geometry?", BlackboxNLP 2023).

    Example:
        >>> import torch, geomhooks as gh
        >>> from geomhooks.report.figures import runs_compared
        >>> model, found = torch.nn.Sequential(torch.nn.Linear(4, 4)), {}
        >>> for name in ("a", "b"):
        ...     with torch.no_grad(), gh.watch(model, sites="0", statistics=[gh.Sphere()]) as watch:
        ...         _ = model(torch.randn(2, 3, 4))
        ...     found[name] = watch.geometry()
        >>> [trace.name for trace in runs_compared(found, "sphere/norm/mean").data]
        ['a', 'b']
    """
    if not runs:
        raise FigureError("runs_compared needs geometries by name, found none")
    places = _places(runs)
    curves = {name: _curve(runs[name], sites, scalar) for name, sites in places.items()}
    shown = [at for at in range(len(_labels(places))) if _known(curves, at)]
    if not shown:
        raise FigureError(
            f"no site of {', '.join(map(repr, runs))} has the scalar {scalar!r}; "
            "geometry.scalars() lists them"
        )
    sites = [_labels(places)[at] for at in shown]
    what = named(scalar)
    about = About(
        f"{what.heading}, site by site, a line for each run: where lines lie on each other, runs "
        f"agree.{_what_of_noise(curves.values())}",
        MICKUS,
    )
    figure = new_figure(what.heading, "", "", about)
    for number, (name, curve) in enumerate(curves.items()):
        colour = RUNS[number % len(RUNS)]
        line = _line(sites, [curve.values[at] for at in shown], label(name), colour)
        errors = [SURE * curve.errors[at] for at in shown]
        if not all(map(math.isnan, errors)):
            line.error_y = {"array": numbers(errors), "thickness": 1.2, "width": 3}
        figure.add_trace(line)
        noise = [curve.noise[at] for at in shown]
        if any(value > SEEN for value in noise):
            dotted = _line(sites, noise, f"{label(name)}, by chance", colour)
            dotted.update(mode="lines", line={"color": colour, "dash": "dot", "width": 1.2})
            figure.add_trace(dotted.update(showlegend=False))
    figure.update_xaxes(layer_axis(sites))
    return figure.update_yaxes(**what.axis)


def run_differences(runs: Mapping[str, Geometry], scalars: Sequence[str]) -> go.Figure:
    """How much each run differs from the first, site by site; a slider goes through the scalars.

    Args:
        runs: geometries by what to call them, two or more; sites as in :func:`runs_compared`.
        scalars: their names after that of the site.

    Raises:
        FigureError: there is one run, or no scalar is in two of them at one site.

    Example:
        >>> import torch, geomhooks as gh
        >>> from geomhooks.report.figures import run_differences
        >>> model, found = torch.nn.Sequential(torch.nn.Linear(4, 4)), {}
        >>> for name in ("a", "b"):
        ...     with torch.no_grad(), gh.watch(model, sites="0", statistics=[gh.Sphere()]) as watch:
        ...         _ = model(torch.ones(2, 3, 4))
        ...     found[name] = watch.geometry()
        >>> figure = run_differences(found, ["sphere/norm/mean"])
        >>> figure.data[0].name, figure.data[0].y.tolist()
        ('b', [0.0])
    """
    if len(runs) < 2:
        raise FigureError(f"run_differences needs two runs or more, found {len(runs)}")
    places = _places(runs)
    sites = _labels(places)
    first = next(iter(runs))
    traces: dict[str, list[Any]] = {}
    for scalar in scalars:
        curves = {name: _curve(runs[name], at, scalar) for name, at in places.items()}
        made = []
        for number, name in enumerate(list(runs)[1:], 1):
            bars = _bars(sites, curves[first], curves[name], label(name), RUNS[number % len(RUNS)])
            made += bars
        if made:
            traces[scalar] = made
    if not traces:
        raise FigureError(f"no scalar of {', '.join(scalars)} is in two runs at one site")
    about = About(
        f"What each run has more, or less, than {visible(first, 48)}. Thin bars are intervals of "
        "95 % where standard errors are known, as if tokens were independent; diamonds are the "
        "difference that chance makes in shares, as samples of other sizes have other noise.",
        MICKUS,
    )
    figure = new_figure("", "", f"difference from {label(first)}", about, barmode="group")
    figure.update_xaxes(layer_axis(sites))
    titles = {scalar: f"{named(scalar).heading}: difference" for scalar in traces}
    short = {
        scalar: scalar.removesuffix("/mean").partition("/")[2].replace("/", " ").replace("_", " ")
        for scalar in traces
    }
    return add_slider(figure, traces, titles, of="number", start=0, labels=short)


def _what_of_noise(curves: Iterable[Curve]) -> str:
    """What is drawn of it, in a sentence each."""
    curves = list(curves)
    said = ""
    if any(not math.isnan(error) for curve in curves for error in curve.errors):
        said += " Bars are intervals of 95 %, as if tokens were independent."
    if any(noise > SEEN for curve in curves for noise in curve.noise):
        said += " A dotted line is what chance adds to a share."
    return said


def _bars(sites: list[str], one: Curve, other: Curve, name: str, colour: str) -> list[Any]:
    """The difference of two curves, and what chance makes of it; nothing where there is none."""
    values = [b - a for a, b in zip(one.values, other.values, strict=True)]
    if all(map(math.isnan, values)):
        return []
    go = graph_objects()
    texts = [label(site) for site in sites]
    errors = [SURE * math.hypot(a, b) for a, b in zip(one.errors, other.errors, strict=True)]
    bar = go.Bar(
        x=list(range(len(sites))),
        y=numbers(values),
        name=name,
        marker={"color": colour},
        hovertext=texts,
        hovertemplate=f"{name}<br>%{{hovertext}}: %{{y:.4g}}<extra></extra>",
    )
    if not all(map(math.isnan, errors)):
        bar.error_y = {"array": numbers(errors), "thickness": 1.2, "width": 3}
    noise = [b - a for a, b in zip(one.noise, other.noise, strict=True)]
    if all(map(math.isnan, noise)):
        return [bar]
    by_chance = go.Scatter(
        x=list(range(len(sites))),
        y=numbers(noise),
        name=f"{name}, by chance",
        mode="markers",
        marker={"symbol": "diamond", "size": 8, "color": COLOURS["floor"]},
        hovertext=texts,
        hovertemplate=f"{name}, by chance<br>%{{hovertext}}: %{{y:.4g}}<extra></extra>",
    )
    return [bar, by_chance]


def _line(sites: list[str], values: list[float], name: str, colour: str) -> Any:
    return graph_objects().Scatter(
        x=list(range(len(sites))),
        y=numbers(values),
        mode="lines+markers",
        name=name,
        line={"color": colour},
        hovertext=[label(site) for site in sites],
        hovertemplate=f"{name}<br>%{{hovertext}}: %{{y:.4g}}<extra></extra>",
    )


def _places(runs: Mapping[str, Geometry]) -> dict[str, list[str | None]]:
    """The sites of each run, those of one place at one index."""
    every = [geometry.sites for geometry in runs.values()]
    alike = all(len(sites) == len(every[0]) for sites in every)
    if alike and not set(every[0]).intersection(*every[1:]):
        matched = match_sites(list(runs), list(runs.values()))
        columns = list(zip(*matched.values(), strict=True))
        return {name: list(column) for name, column in zip(runs, columns, strict=True)}
    union = dict.fromkeys(site for sites in every for site in sites)
    return {
        name: [site if site in sites else None for site in union]
        for name, sites in zip(runs, every, strict=True)
    }


def _labels(places: Mapping[str, Sequence[str | None]]) -> list[str]:
    """What to call each place: the names that it has."""
    return [
        " | ".join(dict.fromkeys(name for name in names if name is not None))
        for names in zip(*places.values(), strict=True)
    ]


def _known(curves: Mapping[str, Curve], at: int) -> bool:
    return not all(math.isnan(curve.values[at]) for curve in curves.values())


def _curve(geometry: Geometry, sites: Sequence[str | None], scalar: str) -> Curve:
    """A scalar with what is known of its noise."""
    found = geometry.scalars(only=f"*/{scalar}")
    path = scalar.split("/")
    holder, _, part = scalar.rpartition("/shares/")
    curve, factor = Curve([], [], []), named(scalar).factor
    for site in sites:
        value = found.get(f"{site}/{scalar}", math.nan)
        curve.values.append(math.nan if site is None else factor * value)
        known = site is not None and f"{site}/{scalar}" in found
        error = standard_error(geometry[site], path) if known and site is not None else None
        curve.errors.append(math.nan if error is None else factor * error)
        noise = math.nan
        if known and site is not None and holder == "pos_ctx":
            try:
                chance = lookup(geometry[site], f"pos_ctx.noise_shares.{part}")
                noise = math.nan if chance is None else float(chance)
            except UnidentifiedError:
                pass
        curve.noise.append(noise)
    return curve
