"""What geometries have in common and what not, as plain numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import combinations
from typing import Any, Literal, NamedTuple

import torch

import geomhooks as gh
from geomhooks.comparing.options import SCALARS, Options, choose_scalars
from geomhooks.errors import SiteError, UnidentifiedError
from geomhooks.functional import compare
from geomhooks.history import select_scalars
from geomhooks.results import Result

__all__ = ["attempt", "compare_geometries", "match_sites", "standard_error", "tests_of"]

FEWEST_CONTEXTS = 8
JACKKNIFE = 20  # groups of contexts
Numbers = dict[str, Any]


class _Side(NamedTuple):
    """A place as one geometry has it."""

    results: Result
    scalars: dict[str, tuple[float, float | None]]
    """values and standard errors by their name at the site"""


def compare_geometries(
    files: Sequence[str], geometries: Sequence[gh.Geometry], options: Options
) -> Numbers:
    """Scalars, pos and ctx of all pairs of geometries, at the sites that they have in common.

    Args:
        files: what to call the geometries.
        geometries: two or more.
        options: what to compare, and how.

    Returns:
        Plain numbers, which JSON can hold but for NaN: ``level`` and ``permutations`` of the
        options; ``pairs``, each with its ``files`` and, by
        site, ``scalars`` (``first``, ``second``, ``difference``, ``standard_error`` or None),
        ``pos`` (over "positions" and "directions") and ``ctx`` ("cka" and "procrustes"); and where
        there are conditions ``tests``. What cannot be compared has a reason, ``unavailable``.

    Raises:
        SiteError: they have no site in common, or the options' globs choose none, or no scalar.
    """
    places = match_sites(files, geometries, options.sites)
    wanted = options.scalars or SCALARS
    sides = _sides(geometries, places, wanted)
    if not options.scalars and not _shared(sides):
        # No statistic of which it is known what to compare.
        sides = _sides(geometries, places, _others(geometries, places))
    if options.scalars and not any(s.scalars for each in sides.values() for s in each):
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
        "permutations": options.permutations,
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


def match_sites(
    files: Sequence[str], geometries: Sequence[gh.Geometry], wanted: Sequence[str] = ("*",)
) -> dict[str, tuple[str, ...]]:
    """Each place with its name in each geometry: the same, or where none is, by their order.

    Args:
        files: what to call the geometries in messages.
        geometries: two or more.
        wanted: globs over the names of places.

    Raises:
        SiteError: none is of the same name, and they have not as many; or globs choose none.
    """
    first, *rest = [geometry.sites for geometry in geometries]
    shared = [site for site in first if all(site in sites for sites in rest)]
    if shared:
        places: dict[str, tuple[str, ...]] = {site: (site,) * len(geometries) for site in shared}
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
    return {label: places[label] for label in chosen}


def _sides(
    geometries: Sequence[gh.Geometry], places: dict[str, tuple[str, ...]], wanted: Sequence[str]
) -> dict[str, list[_Side]]:
    return {
        label: [_side(g, site, wanted) for g, site in zip(geometries, names, strict=True)]
        for label, names in places.items()
    }


def _shared(sides: dict[str, list[_Side]]) -> bool:
    """Whether all have a scalar in common at a place."""
    return any(set.intersection(*(set(s.scalars) for s in each)) for each in sides.values())


def _others(geometries: Sequence[gh.Geometry], places: dict[str, tuple[str, ...]]) -> list[str]:
    """Globs of scalars that all have, whatever they are."""
    found: dict[str, None] = {}
    for names in places.values():
        first, *rest = (g[site].scalars("*/") for g, site in zip(geometries, names, strict=True))
        found |= dict.fromkeys(name for name in first if all(name in other for other in rest))
    return choose_scalars(found)


def _side(geometry: gh.Geometry, site: str, patterns: Sequence[str]) -> _Side:
    results = geometry[site]
    found = results.scalars(f"{site}/", lambda name: bool(select_scalars({name: 0.0}, patterns)))
    names = [name.removeprefix(f"{site}/") for name in found]
    errors = [standard_error(results, name.split("/")) for name in names]
    return _Side(results, dict(zip(names, zip(found.values(), errors, strict=True), strict=True)))


def standard_error(results: Result, path: Sequence[str]) -> float | None:
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
            "text, cut in the same way (contexts are known by their file's content and their place "
            "in it; in Python, use the same watch.tokens(contexts=ids))"
        )
    generator = torch.Generator().manual_seed(0)
    some = torch.randperm(shared, generator=generator, device="cpu")[: options.contexts]
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
        matrix = torch.zeros(number, number, dtype=torch.float64, device="cpu")
        pairs = tuple(torch.triu_indices(number, number, 1, device="cpu"))
        matrix[pairs] = torch.tensor(distances, dtype=torch.float64, device="cpu")
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
