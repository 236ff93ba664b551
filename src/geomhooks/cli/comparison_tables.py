"""The tables of ``geomhooks compare``."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from rich import box
from rich.table import Table

from geomhooks.cli.table import printable

__all__ = ["tables", "without_nan"]

Numbers = dict[str, Any]


def tables(report: Numbers) -> Iterator[Table | str]:
    """Tables and lines of text for what was found, in the order to be read."""
    yield from _of_geometries(report) if report["kind"] == "geometry" else _of_histories(report)


def without_nan(report: Any) -> Any:
    """The same with None for what is no number, which JSON does not have.

    Example:
        >>> without_nan({"low": float("nan"), "angles": [0.5]})
        {'low': None, 'angles': [0.5]}
    """
    if isinstance(report, dict):
        return {key: without_nan(value) for key, value in report.items()}
    if isinstance(report, list | tuple):
        return [without_nan(value) for value in report]
    return None if isinstance(report, float) and not math.isfinite(report) else report


def _of_geometries(report: Numbers) -> Iterator[Table | str]:
    level = f"{100 * report['level']:g} %"
    for pair in report["pairs"]:
        yield f"{pair['files'][1]} less {pair['files'][0]}"
        sites = pair["sites"]
        names = list(dict.fromkeys(name for site in sites.values() for name in site["scalars"]))
        if names:
            shown = _table("site", *(_header(name) for name in names))
            for label, site in sites.items():
                shown.add_row(
                    printable(label), *(_difference(site["scalars"].get(name)) for name in names)
                )
            yield shown
        if any("pos" in site for site in sites.values()):
            yield _ctx(sites, level)
            yield _pos(sites)
            yield from _reasons(sites)
        elif not names:
            yield (
                "the files have no number in common; geometries are compared by what the same "
                "statistics measured"
            )
    if "tests" in report:
        rows = [
            (label, measure, tests)
            for label, site in report["tests"].items()
            for measure, tests in site.items()
        ]
        yield from _tests(rows, report["conditions"], "site", "distance")


def _ctx(sites: Numbers, level: str) -> Table:
    """A row a site: how alike the contexts lie."""
    shown = _table(
        "site",
        "contexts",
        f"CKA of ctx\n({level})",
        "p",
        f"Procrustes of ctx\n({level})",
        "by\nchance",
        "p",
    )
    for label, site in sites.items():
        ctx = site.get("ctx", {})
        cka, distance = ctx.get("cka", {}), ctx.get("procrustes", {})
        cells = [str(ctx.get("compared", "-")), _interval(cka), _p(cka), _interval(distance)]
        shown.add_row(printable(label), *cells, _number(distance.get("expected")), _p(distance))
    return shown


def _pos(sites: Numbers) -> Table:
    """A row a site: how far the leading spaces of pos are the same."""
    shown = _table(
        "site",
        *("overlap of pos,\npositions", "by\nchance", "p"),
        *("overlap of pos,\ndirections", "by\nchance", "p"),
    )
    for label, site in sites.items():
        cells = []
        for side in ("positions", "directions"):
            angles = site.get("pos", {}).get(side, {})
            cells += [_number(angles.get("overlap")), _number(angles.get("expected_overlap"))]
            cells.append(_p(angles))
        shown.add_row(printable(label), *cells)
    return shown


def _reasons(sites: Numbers) -> Iterator[str]:
    """Why something is missing, and what to mind, each once."""
    said: dict[str, list[str]] = {}
    for label, site in sites.items():
        parts = {"ctx": site.get("ctx", {})}
        parts |= {f"pos, {side}": found for side, found in site.get("pos", {}).items()}
        for name, found in parts.items():
            if "unavailable" in found:
                said.setdefault(f"{name}: {found['unavailable']}", []).append(label)
            if found.get("other_length"):
                unlike = f"{found['other_length']} of {found['compared']} contexts have another"
                said.setdefault(f"{name}: {unlike} number of tokens in the other file", []).append(
                    label
                )
    for reason, labels in said.items():
        yield f"{reason} ({labels[0]}{f' and {len(labels) - 1} more' if len(labels) > 1 else ''})"


def _of_histories(report: Numbers) -> Iterator[Table | str]:
    level = f"{100 * report['level']:g} %"
    shown = _table("scalar", "files", "steps", "warping\ndistance", f"Spearman\n({level})")
    quality = _table("scalar", "file", f"change with {report['quality']}\n({level})")
    rows, reasons = [], []
    for name, scalar in report["scalars"].items():
        if "unavailable" in scalar:
            reasons.append(f"{name}: {scalar['unavailable']}")
            continue
        for pair in scalar["pairs"]:
            distance, spearman = pair["warping_distance"], _interval(pair["spearman"])
            files = " | ".join(pair["files"])
            shown.add_row(
                printable(name), printable(files), str(scalar["steps"]), _number(distance), spearman
            )
        for each in scalar.get("quality", []):
            quality.add_row(printable(name), printable(each["file"]), _interval(each))
            if "unavailable" in each:
                reasons.append(f"{name}, {each['file']}: {each['unavailable']}")
        if "tests" in scalar:
            rows.append((name, "warping distance", scalar["tests"]))
    if shown.row_count:
        yield shown
    if quality.row_count:
        yield quality
    yield from _tests(rows, report["conditions"], "scalar", "distance")
    yield from reasons


def _tests(
    rows: Sequence[tuple[str, str, Numbers]], conditions: Sequence[str], *headers: str
) -> Iterator[Table | str]:
    """Whether files of one condition are closer."""
    done = [(place, measure, tests) for place, measure, tests in rows if "runs" in tests]
    reasons = {tests["unavailable"] for _, _, tests in rows if "unavailable" in tests}
    if done:
        shown = _table(
            *headers,
            "same\ncondition",
            "different\nconditions",
            "p, runs\nshuffled",
            "p, its\nranks",
            "p, pairs\nshuffled",
            "p, Mann-\nWhitney",
        )
        for place, measure, tests in done:
            ps = [_p(tests[who][how]) for who in ("runs", "pairs") for how in tests[who]]
            shown.add_row(
                printable(place),
                printable(measure),
                _number(tests["same"]),
                _number(tests["different"]),
                *ps,
            )
        yield shown
        runs = done[0][2]["runs"]["mean"]
        ways = f"{'all ' if runs['exact'] else ''}{runs['arrangements']:,}"
        yield (
            f"Conditions {','.join(conditions)}: {ways} ways to give them to the runs were looked "
            f"at, so that no p with runs shuffled is below {1 / runs['arrangements']:.2g}.\n"
            "Shuffling pairs, and Mann and Whitney's test, take distances for independent, though "
            "each run is in several."
        )
    yield from sorted(reasons)


def _table(*headers: str) -> Table:
    shown = Table(box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    for number, header in enumerate(headers):
        shown.add_column(header, justify="right" if number else "left", no_wrap=True)
    return shown


def _header(name: str) -> str:
    """A scalar's name in a few lines."""
    return "\n".join(map(printable, name.removeprefix("pos_ctx/").split("/")))


def _difference(found: Numbers | None) -> str:
    if found is None or math.isnan(found["difference"]):
        return "-"
    error = found["standard_error"]
    return f"{found['difference']:+.3g}" + ("" if error is None else f" ± {error:.1g}")


def _interval(found: Numbers) -> str:
    if "value" not in found or math.isnan(found["value"]):
        return "-"
    return f"{found['value']:.3f} ({found['low']:.3f} to {found['high']:.3f})"


def _number(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.3g}"


def _p(found: Numbers) -> str:
    return _number(found.get("p_value"))
