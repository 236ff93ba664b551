"""What histories have in common and what not, as plain numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

import geomhooks as gh
from geomhooks.comparing.geometries import attempt, tests_of
from geomhooks.comparing.options import Options, choose_scalars
from geomhooks.errors import SchemaError, SiteError
from geomhooks.functional import compare
from geomhooks.history import select_scalars

__all__ = ["compare_histories"]

FEWEST_STEPS = 3
Numbers = dict[str, Any]
Curves = dict[str, dict[int, float]]  # by name and step, finite numbers only


def compare_histories(
    files: Sequence[str], histories: Sequence[gh.History], options: Options
) -> Numbers:
    """Scalars as curves over the steps that all histories have.

    Args:
        files: what to call the histories.
        histories: two or more.
        options: what to compare, and how.

    Returns:
        Plain numbers, which JSON can hold but for NaN: by scalar, for each of its ``pairs``, the
        ``warping_distance`` and ``spearman`` with its interval.

    Raises:
        SiteError: no scalar that the options choose is in all of them, or quality is in none.
        SchemaError: they have fewer than three steps in common.
    """
    common = [n for n in histories[0].names if all(n in other.names for other in histories[1:])]
    names = (
        list(select_scalars(dict.fromkeys(common, 0.0), options.scalars))
        if options.scalars
        else choose_scalars(common)
    )
    curves = [_curves(history, names) for history in histories]
    if not names:
        raise SiteError(
            f"no scalar that matches {', '.join(options.scalars) or '*'} is in all files; "
            f"{files[0]} has {', '.join(histories[0].names[:6])}, ..."
        )
    steps = sorted(set.intersection(*(set(history.steps) for history in histories)))
    if len(steps) < FEWEST_STEPS:
        raise SchemaError(
            f"{', '.join(files)} have {len(steps)} steps in common; {FEWEST_STEPS} are needed"
        )
    qualities = [
        _quality(file, history, options.quality) if options.quality else {}
        for file, history in zip(files, histories, strict=True)
    ]
    return {
        "kind": "history",
        "files": list(files),
        "conditions": list(options.conditions) or None,
        "level": options.level,
        "quality": options.quality or None,
        "steps": steps,
        "scalars": {
            name: attempt(
                partial(_scalar, files, [each[name] for each in curves], steps, qualities, options)
            )
            for name in names
        },
    }


def _curves(history: gh.History, names: Sequence[str]) -> Curves:
    """The scalars of these names."""
    found = {}
    for name in names:
        steps, values = history.curve(name)
        pairs = zip(steps.tolist(), values.tolist(), strict=True)
        found[name] = {step: value for step, value in pairs if math.isfinite(value)}
    return found


def _quality(file: str, history: gh.History, name: str) -> dict[int, float]:
    """By step: a scalar, or numbers by step in the notes."""
    if name in history.names:
        return _curves(history, [name])[name]
    noted = history.notes.get(name)
    if not isinstance(noted, Mapping) or not all(str(step).isdecimal() for step in noted):
        raise SiteError(f"--quality {name}: {file} has neither such a scalar nor notes by step")
    return {int(step): float(value) for step, value in noted.items()}


def _scalar(
    files: Sequence[str],
    curves: Sequence[dict[int, float]],
    steps: Sequence[int],
    qualities: Sequence[dict[int, float]],
    options: Options,
) -> Numbers:
    """One scalar: distances and correlations of all pairs, tests, and its quality in each file."""
    shared = [step for step in steps if all(step in curve for curve in curves)]
    if len(shared) < FEWEST_STEPS:
        raise ValueError(f"finite in all files at {len(shared)} steps; {FEWEST_STEPS} are needed")
    series = [_series(curve, shared) for curve in curves]
    distances = compare.warping_distances(series)
    pairs: list[Numbers] = []
    for i, j in combinations(range(len(files)), 2):
        found = compare.curve_agreement(series[i], series[j], level=options.level)
        pairs.append(
            {
                "files": [files[i], files[j]],
                "warping_distance": float(distances[i, j]),
                "spearman": _agreement(found),
            }
        )
    report: Numbers = {"steps": len(shared), "pairs": pairs}
    if options.conditions:
        report["tests"] = tests_of([p["warping_distance"] for p in pairs], options.conditions)
    if options.quality:
        report["quality"] = [
            {"file": file, **attempt(partial(_change, curve, quality, options.level))}
            for file, curve, quality in zip(files, curves, qualities, strict=True)
        ]
    return report


def _change(curve: dict[int, float], quality: dict[int, float], level: float) -> Numbers:
    shared = [step for step in curve if math.isfinite(quality.get(step, math.nan))]
    series = _series(curve, shared), _series(quality, shared)
    return _agreement(compare.change_agreement(*series, level=level))


def _agreement(found: compare.ChangeAgreement) -> Numbers:
    return {
        "value": found.value,
        "low": found.interval.low,
        "high": found.interval.high,
        "interval": found.interval.method,
    }


def _series(curve: dict[int, float], steps: Sequence[int]) -> Tensor:
    return torch.tensor([curve[step] for step in steps], dtype=torch.float64, device="cpu")
