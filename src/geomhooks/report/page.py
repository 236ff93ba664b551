"""The report: one page with all figures, that needs nothing from elsewhere."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geomhooks.errors import FigureError
from geomhooks.history import History
from geomhooks.report import figures
from geomhooks.report.movement import find_movement
from geomhooks.report.of_model import entries_of_model
from geomhooks.report.rendering import Entry, draw, render, write_page
from geomhooks.report.scalar_names import named
from geomhooks.report.summary import describe_input, explain_parts, find_outstanding
from geomhooks.report.tables import geometry_table
from geomhooks.snapshot import Geometry

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from torch import Tensor, nn

    from geomhooks.report.figures import Words

__all__ = ["model_title", "report_page", "write_report"]

MANY = 16  # sites, from which figures of all pairs are drawn smaller
TRAINING = (
    "pos_ctx/shares/pos",
    "pos_ctx/shares/ctx",
    "pos_ctx/stable_rank",
    "sphere/norm/mean",
    "sphere/step_angle/mean",
    "sphere/anisotropy",
)


def write_report(
    measured: Geometry | History,
    path: str | os.PathLike[str],
    *,
    title: str | None = None,
    words: Words | None = None,
    labels: Mapping[int, str] | None = None,
    groups: Sequence[str] | None = None,
    model: nn.Module | None = None,
    prompt: Tensor | None = None,
) -> None:
    """Write the report of a geometry, or of a training, as one HTML file that opens offline.

    Args:
        measured: of a history, curves over training, and all figures of the last geometry kept.
        path: where to; an existing file is replaced.
        title: of the page; by default the model's class and name.
        words: as in :func:`geomhooks.report.figures.word_paths`.
        labels: of contexts by id, as in :func:`geomhooks.report.figures.position_context_gram`.
        groups: names of group labels, as there.
        model: that was measured, for figures of its heads, where :mod:`geomhooks.anatomy` knows it.
        prompt: (1, T) token ids of a text, for the logits of some heads; its beginning is taken.

    Raises:
        FigureError: there is nothing that has a figure.
        MissingExtraError: plotly or jinja2 is not installed.
    """
    page = report_page(
        measured,
        title=title,
        words=words,
        labels=labels,
        groups=groups,
        model=model,
        prompt=prompt,
    )
    write_page(page, path)


def report_page(
    measured: Geometry | History,
    *,
    title: str | None = None,
    words: Words | None = None,
    labels: Mapping[int, str] | None = None,
    groups: Sequence[str] | None = None,
    model: nn.Module | None = None,
    prompt: Tensor | None = None,
) -> str:
    """The report as a text; see :func:`write_report`.

    Example:
        >>> import torch, geomhooks as gh
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
        >>> with torch.no_grad(), gh.watch(model, statistics=[gh.PosCtx()]) as watch:
        ...     _ = model(torch.randn(5, 6, 4))
        >>> page = report_page(watch.geometry(), title="a & b")
        >>> page.startswith("<!doctype html>"), "<title>a &amp; b" in page
        (True, True)
    """
    geometry: Geometry | None
    moved = find_movement(measured, TRAINING) if isinstance(measured, History) else []
    if isinstance(measured, History):
        geometry = measured[measured.kept[-1]] if measured.kept else None
        sections = {"Over training": _of_training(measured, geometry)}
    elif isinstance(measured, Geometry):
        geometry, sections = measured, {}
    else:
        raise FigureError(
            f"a geometry or a history is needed, found a {type(measured).__name__}; read files "
            "with gh.load(path) or gh.History.load(path)"
        )
    if geometry is not None:
        sections |= _of_geometry(geometry, words, labels, groups)
        if model is not None:
            sections["Parts of the model"] += entries_of_model(geometry, model, prompt, words)
    drawn = draw(sections)
    if not drawn:
        raise FigureError(
            "nothing here has a figure; measure with gh.watch(model, statistics=[gh.PosCtx(), "
            "gh.Sphere()])"
        )
    return render(
        title=title or ("Training" if geometry is None else model_title(geometry)),
        read=_read(measured, geometry),
        findings=[*moved, *([] if geometry is None else find_outstanding(geometry))],
        sections=drawn,
        sites=[] if geometry is None else geometry.sites,
        tables=[] if geometry is None else geometry_table(geometry),
        lead="" if geometry is None else explain_parts(geometry),
    )


def model_title(geometry: Geometry) -> str:
    """The model's class and name; of a path the last part, of a run what it calls the model."""
    kind, _, rest = geometry.measured_on.partition(" ")
    name, _, size = rest.rpartition(" (")
    settings = geometry.notes.get("settings")
    told = settings.get("model") if isinstance(settings, Mapping) else None
    named = Path(str(told or name)).name
    number, _, unit = size.partition(" ")
    if unit != "parameters)" or not number.isdecimal() or len(number) > 20:
        return geometry.measured_on
    return f"{kind} {named} ({int(number):,} {unit}"


def _read(measured: Geometry | History, geometry: Geometry | None) -> str:
    """What the numbers are of."""
    parts = [] if geometry is None else [describe_input(geometry)]
    if isinstance(measured, History):
        steps = measured.steps
        span = f"steps {steps[0]:,} to {steps[-1]:,}" if steps else "no steps"
        parts.insert(0, f"A training, {span}.")
        if geometry is not None:
            parts.insert(1, f"What is not over training is of step {measured.kept[-1]:,}:")
    return " ".join(parts)


def _of_geometry(
    geometry: Geometry,
    words: Words | None,
    labels: Mapping[int, str] | None,
    groups: Sequence[str] | None,
) -> dict[str, list[Entry]]:
    """All figures that a geometry may have, by the part of the page that they are in."""
    many = len(geometry.sites) > MANY
    positions, pairs = (256, 56) if many else (1024, 96)

    def entry(make: Callable[..., go.Figure], heading: str, name: str = "", **given: Any) -> Entry:
        return Entry(name or make.__name__, heading, partial(make, geometry, **given))

    return {
        "Position and context": [
            entry(figures.variance_shares, "Where position and context live"),
            entry(figures.position_spiral, "The path of the positions", positions=positions),
            entry(figures.position_singular_values, "In how many directions positions differ"),
            entry(
                figures.position_context_gram,
                "Position beside context",
                labels=labels,
                groups=groups,
                positions=pairs,
                contexts=pairs,
            ),
            entry(figures.position_fourier, "How smoothly positions turn"),
            entry(
                figures.position_spiral,
                "The path of the positions, in space",
                "position_spiral_in_space",
                dimensions=3,
                positions=positions,
            ),
        ],
        "Lengths and directions": [
            entry(figures.length_by_layer, "How long states are"),
            entry(figures.length_by_position, "How long states are at each position"),
            entry(
                figures.length_by_position,
                "The same without the mean entry",
                "radius_by_position",
                of="radius",
            ),
            entry(figures.step_angles, "How far blocks turn states"),
            entry(figures.directions_by_layer, "How alike directions are"),
            entry(figures.covariance_spectrum, "In how many directions states differ"),
        ],
        "Groups": [
            entry(figures.group_shares, "How much groups differ"),
            entry(figures.group_distances, "How far groups are apart", groups=groups),
        ],
        "Words": [
            entry(figures.next_word_pull, "From the own word to the next"),
            entry(figures.word_paths, "Words on their way", words=words),
        ],
        "Parts of the model": [
            entry(figures.component_importance, "What states are made of"),
            entry(figures.updates_by_layer, "How much parts add"),
            entry(
                figures.updates_by_layer,
                "How much of it is along the state",
                "radial_share_by_layer",
                of="radial_share",
            ),
            entry(figures.linearity_by_layer, "How linear feed-forward layers are"),
            entry(figures.query_key_shares, "What attention looks at"),
            entry(figures.leaders_by_layer, "Tokens that lead"),
            entry(figures.leaders_by_layer, "Where tokens end", "basins_by_layer", of="basins"),
            entry(figures.leading_words, "Words that lead", words=words),
            entry(figures.factor_importance, "Factors of a dictionary", words=words),
            entry(figures.learned_factors, "Factors that are learned"),
        ],
    }


def _of_training(history: History, geometry: Geometry | None) -> list[Entry]:
    """Curves over the steps, and the path of the positions at the last site."""
    entries = [
        Entry(
            f"training_{scalar.replace('/', '_')}",
            named(scalar).heading,
            partial(figures.scalar_over_training, history, scalar),
        )
        for scalar in TRAINING
    ]
    if geometry is not None:
        for site in geometry.sites[-1:]:
            path = partial(figures.spiral_over_training, history, site)
            entries.append(Entry("spiral_over_training", "The path of the positions", path))
    return entries
