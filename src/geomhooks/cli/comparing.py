"""What ``geomhooks compare`` finds in geometries, as plain numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import combinations
from typing import Any, Literal, NamedTuple

import torch

import geomhooks as gh
from geomhooks.errors import SiteError, UnidentifiedError
from geomhooks.functional import compare
from geomhooks.history import select_scalars
from geomhooks.results import Result

__all__ = ["SCALARS", "Options", "attempt", "compare_geometries", "tests_of"]

SCALARS = (
    "*/pos_ctx/shares/pos",
    "*/pos_ctx/shares/ctx",
    "*/pos_ctx/stable_rank",
    "*/sphere/radius/mean",
    "*/sphere/step_angle/mean",
    "*/sphere/anisotropy",
    "*/covariance/effective_rank",
)
FEWEST_CONTEXTS = 8
JACKKNIFE = 20  # groups of contexts
Numbers = dict[str, Any]


class Options(NamedTuple):
    """What the command was told."""

    scalars: tuple[str, ...] = SCALARS
    """globs over their names"""
    sites: tuple[str, ...] = ("*",)
    """globs over the names of sites, of geometries"""
    conditions: tuple[str, ...] = ()
    """one for each file, or none"""
    dimensions: int = 4
    """of the leading spaces of pos"""
    contexts: int = 256
    """at most so many are compared"""
    permutations: int = 99
    level: float = 0.95
    quality: str = ""
    """a scalar of histories, or what is kept by step in their notes"""


class _Side(NamedTuple):
    """A place as one geometry has it."""

    results: Result
    scalars: dict[str, tuple[float, float | None]]
    """values and standard errors by their name at the site"""


def compare_geometries(
    files: Sequence[str], geometries: Sequence[gh.Geometry], options: Options
) -> Numbers:
    """Scalars, pos and ctx of all pairs of geometries, at the sites that they have in common.

    Raises:
        SiteError: they have no site in common, or the options' globs choose none, or no scalar.
    """
    sides = {
        label: [_side(geometry, site, options.scalars) for geometry, site in named]
        for label, named in _places(files, geometries, options.sites).items()
    }
    if options.scalars != SCALARS and not any(s.scalars for each in sides.values() for s in each):
        raise SiteError(
            f"no scalar matches {', '.join(options.scalars)}; geometry.scalars() has their names"
        )
    order = list(combinations(range(len(files)), 2))
    pairs = [
        {
            "files": [files[i], files[j]],
            "sites": {label: _pair(each[i], each[j], options) for label, each in sides.items()},
        }
        for i, j in order
    ]
    report: Numbers = {
        "kind": "geometry",
        "files": list(files),
        "conditions": list(options.conditions) or None,
        "level": options.level,
        "pairs": pairs,
    }
    if options.conditions:
        report["tests"] = {
            label: {
                measure: tests_of(distances, options.conditions)
                for measure, distances in _distances(pairs, label).items()
            }
            for label in sides
        }
    return report


def _places(
    files: Sequence[str], geometries: Sequence[gh.Geometry], wanted: Sequence[str]
) -> dict[str, list[tuple[gh.Geometry, str]]]:
    """Each place with its name in each geometry: the same, or where none is, by their order."""
    first, *rest = [geometry.sites for geometry in geometries]
    shared = [site for site in first if all(site in sites for sites in rest)]
    if shared:
        places = {site: (site,) * len(geometries) for site in shared}
    elif all(len(sites) == len(first) for sites in rest):
        places = {" | ".join(names): names for names in zip(first, *rest, strict=True)}
    else:
        numbers = ", ".join(
            f"{len(geometry.sites)} ({', '.join(geometry.sites[:1])}, ...) in {file}"
            for file, geometry in zip(files, geometries, strict=True)
        )
        raise SiteError(
            "the files have no site of the same name, and not as many sites, so that they could "
            f"be matched by their order: {numbers}"
        )
    chosen = select_scalars(dict.fromkeys(places, 0.0), wanted)
    if not chosen:
        raise SiteError(f"no site matches {', '.join(wanted)}; there are {', '.join(places)}")
    return {label: list(zip(geometries, places[label], strict=True)) for label in chosen}


def _side(geometry: gh.Geometry, site: str, patterns: Sequence[str]) -> _Side:
    results = geometry[site]
    found = results.scalars(f"{site}/", lambda name: bool(select_scalars({name: 0.0}, patterns)))
    names = [name.removeprefix(f"{site}/") for name in found]
    errors = [_standard_error(results, name.split("/")) for name in names]
    return _Side(results, dict(zip(names, zip(found.values(), errors, strict=True), strict=True)))


def _standard_error(results: Result, path: Sequence[str]) -> float | None:
    """Of a mean whose variance is known, as if tokens were independent."""
    holder: Any = results
    for part in path[:-1]:
        if not isinstance(holder, Result) or part not in holder:
            return None
        holder = holder[part]
    if path[-1] != "mean" or not {"variance", "count"} <= set(holder):
        return None
    count = int(holder.count)
    return math.sqrt(float(holder.variance) / (count - 1)) if count > 1 else None


def _pair(one: _Side, other: _Side, options: Options) -> Numbers:
    scalars = {}
    for name, (value, error) in one.scalars.items():
        if name in other.scalars:
            second, second_error = other.scalars[name]
            known = error is not None and second_error is not None
            both = math.hypot(error or 0, second_error or 0) if known else None
            scalars[name] = {
                "first": value,
                "second": second,
                "difference": second - value,
                "standard_error": both,
            }
    found: Numbers = {"scalars": scalars}
    if "pos_ctx" in one.results and "pos_ctx" in other.results:
        parts = one.results.pos_ctx, other.results.pos_ctx
        found["pos"] = {
            side: attempt(partial(_pos, *parts, side, options))
            for side in ("positions", "directions")
        }
        found["ctx"] = attempt(partial(_ctx, *parts, options))
    return found


def attempt(compute: Callable[[], Numbers]) -> Numbers:
    """What is found, or why it cannot be."""
    try:
        return compute()
    except (UnidentifiedError, ValueError) as error:
        return {"unavailable": str(error)}


def _pos(
    one: Result, other: Result, side: Literal["positions", "directions"], options: Options
) -> Numbers:
    found = compare.pos_subspace_angles(
        one.pos, other.pos, options.dimensions, side=side, permutations=options.permutations
    )
    return {
        "overlap": found.overlap,
        "expected_overlap": found.expected_overlap,
        "p_value": found.p_value,
        "angles": found.angles.tolist(),
        "expected_angles": found.expected_angles.tolist(),
    }


def _ctx(one: Result, other: Result, options: Options) -> Numbers:
    mine, theirs = compare.match_rows(one.context_id, other.context_id)
    shared = len(mine)
    if shared < FEWEST_CONTEXTS:
        raise ValueError(
            f"{shared} contexts in common, {FEWEST_CONTEXTS} are needed: measure both on the same "
            "text (in Python, under the same watch.tokens(contexts=ids))"
        )
    some = torch.randperm(shared, generator=torch.Generator().manual_seed(0))[: options.contexts]
    mine, theirs = mine[some], theirs[some]
    rows = one.ctx[mine], other.ctx[theirs]
    drawn: Numbers = {"permutations": options.permutations, "level": options.level}
    drawn["groups"] = JACKKNIFE
    unlike = one.context_length[mine] != other.context_length[theirs]
    return {
        "shared": shared,
        "compared": len(mine),
        "other_length": int(unlike.sum()),
        "cka": _alikeness(compare.cka(*rows, **drawn)),
        "procrustes": _alikeness(compare.procrustes_distance(*rows, **drawn)),
    }


def _alikeness(found: compare.Alikeness) -> Numbers:
    return {
        "value": found.value,
        "low": found.interval.low,
        "high": found.interval.high,
        "p_value": found.p_value,
        "expected": found.expected,
        "interval": found.interval.method,
    }


def _distances(pairs: Sequence[Numbers], label: str) -> dict[str, list[float]]:
    """How far apart the files of each pair are at a site, in every sense that all pairs have."""
    found: dict[str, list[float]] = {}
    for pair in pairs:
        site = pair["sites"][label]
        for name, scalar in site["scalars"].items():
            found.setdefault(name, []).append(abs(scalar["difference"]))
        for side, angles in site.get("pos", {}).items():
            if "overlap" in angles:
                found.setdefault(f"pos: {side}", []).append(1 - angles["overlap"])
        if "cka" in site.get("ctx", {}):
            found.setdefault("ctx: 1 - CKA", []).append(1 - site["ctx"]["cka"]["value"])
            found.setdefault("ctx: Procrustes", []).append(site["ctx"]["procrustes"]["value"])
    return {name: values for name, values in found.items() if len(values) == len(pairs)}


def tests_of(distances: Sequence[float], conditions: Sequence[str]) -> Numbers:
    """Whether files of one condition are closer, by all the tests there are.

    Args:
        distances: of all pairs of files, in the order of ``itertools.combinations``.
        conditions: of the files.
    """

    def compute() -> Numbers:
        number = len(conditions)
        matrix = torch.zeros(number, number, dtype=torch.float64)
        matrix[tuple(torch.triu_indices(number, number, 1))] = torch.tensor(distances).double()
        found: Numbers = {}
        for permute in ("runs", "pairs"):
            for statistic in ("mean", "mann_whitney"):
                test = compare.condition_test(
                    matrix + matrix.T, conditions, statistic=statistic, permute=permute
                )
                found |= {"same": test.same, "different": test.different}
                found.setdefault(permute, {})[statistic] = {
                    "statistic": test.statistic,
                    "p_value": test.p_value,
                    "arrangements": test.arrangements,
                    "exact": test.exact,
                }
        return found

    return attempt(compute)
