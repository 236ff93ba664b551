"""The tables of the study of geometry indicators over training, in Markdown."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from translator_checkpoints import INDICATORS, TERMS

__all__ = ["summary", "table"]

HEADS = {"by_part": "e = i + h + s + f + c", "by_origin": "e = tokens + source + correction"}


def table(result: dict[str, Any]) -> str:
    """All tables, of a result file."""
    names = list(result["curves"])
    same = [name for name in names if name.startswith(names[0].rpartition("-")[0])]
    sections = [
        ["# Geometry indicators while translators learn", "", *told(result)],
        quality(result),
        *(importance(result, method) for method in TERMS),
        in_short(result),
        changes(result, names),
        *(agreement(result, method, names, same) for method in TERMS),
        matched(result),
        sentences(result, names),
        causality(result),
    ]
    return "\n\n".join("\n".join(section) for section in sections) + "\n"


def told(result: dict[str, Any]) -> list[str]:
    """What was done."""
    conditions = "; ".join(f'"{name}" is {said}' for name, said in result["conditions"].items())
    return [
        f"Text: {result['text']}; {conditions}. "
        f"{result['checkpoints']} checkpoints, {result['every']} steps of {result['batch']} "
        f"sentences apart; {result['tests']} sentences held out; {result['parameters']:,} "
        f"parameters. Last layer and a run's own translations unless said otherwise."
    ]


def quality(result: dict[str, Any]) -> list[str]:
    """How good the runs became."""
    rows = [
        [name, *(f"{of[what][at]:.1f}" for what in ("BLEU", "chrF") for at in (0, -1)),
         f"{max(of['BLEU']):.1f}", f"{of['loss'][-1]:.2f}", f"{result['seconds'][name] / 60:.0f}"]
        for name, of in result["curves"].items()
    ]  # fmt: skip
    heads = ["run", "BLEU, first", "last", "chrF, first", "last", "best BLEU", "loss",
             "minutes of a core"]  # fmt: skip
    return ["## Quality", "", *markdown(heads, rows)]


def importance(result: dict[str, Any], method: str) -> list[str]:
    """Mean importance and length, from the first checkpoint to the last."""
    names = list(result["curves"])
    rows = []
    for what in ("importance", "norm_ratio"):
        for name in names:
            cells = []
            for term in TERMS[method]:
                row = result["by_layer"][f"{method}/{what}/{term}"][name]
                cells.append(f"{row['first'][-1]:.3f} to {row['last'][-1]:.3f}")
            rows.append([f"{what.replace('_', ' ')}, {name}", *cells])
    heads = [HEADS[method], *(term.replace("_", "-") for term in TERMS[method])]
    return [f"## Terms {method.replace('_', ' ')}, first checkpoint to last", "",
            *markdown(heads, rows)]  # fmt: skip


def in_short(result: dict[str, Any]) -> list[str]:
    """How strongly all terms change with several things."""
    rows = []
    for which in result["changes"]:
        if which == "intervals":
            continue
        cells = []
        for method in TERMS:
            strength, one_sign = summary(result, which, method)
            cells += [f"{strength:.2f}", f"{100 * one_sign:.0f} %"]
        rows.append([which, *cells])
    heads = ["changes with, over pairs", "by part, mean abs.", "one sign in all runs",
             "by origin, mean abs.", "one sign in all runs"]  # fmt: skip
    return [
        "## All terms and indicators in short",
        "",
        "Mean over terms, indicators and runs of the size of Spearman's correlation of changes, "
        "and of how many terms it has one sign in all runs. Less loss is better here.",
        "",
        *markdown(heads, rows),
    ]


def changes(result: dict[str, Any], names: list[str]) -> list[str]:
    """Correlations of changes, by run, for each key."""
    found = result["changes"]
    rows = []
    for key in found["BLEU, all"]:
        cells = [key.replace("_", " ").replace("/", ", ")]
        cells += [
            " / ".join(map(shown, found[which][key][-1]))
            for which in ("BLEU, all", "step, all", "BLEU, successive")
        ]
        rows.append(cells)
    heads = ["term", "with BLEU", "with the step", "with BLEU, successive checkpoints"]
    return [
        "## Spearman's correlation of changes over pairs of checkpoints",
        "",
        f"Runs in this order: {', '.join(names)}.",
        "",
        *markdown(heads, rows),
    ]


def agreement(result: dict[str, Any], method: str, names: list[str], same: list[str]) -> list[str]:
    """What runs agree on: tokens, sentences, curves."""
    pairs = list(result["forced_agreement"][f"{method}/importance/correction"])
    inside = [pair for pair in pairs if set(pair.split()) <= set(same)]
    groups = inside, [pair for pair in pairs if pair not in inside]
    rows = []
    for what in INDICATORS:
        for term in TERMS[method]:
            key = f"{method}/{what}/{term}"
            tokens, overlap = result["forced_agreement"][key], result["overlap"][key]
            cells = [f"{what.replace('_', ' ')}, {term.replace('_', '-')}"]
            cells += [shown(mean(half(tokens[pair]["curve"]) for pair in g)) for g in groups]
            cells += [
                f"{shown(mean(overlap[pair][0] for pair in group))} "
                f"({shown(mean(overlap[pair][4] for pair in group))})"
                for group in groups
            ]
            warped = result["warping"][key]
            cells += (
                ["-"] * 3
                if warped is None
                else [
                    f"{warped['same']:.1f} / {warped['different']:.1f}",
                    f"{warped['p of runs, mean']:.2f}",
                    f"{warped['p of pairs, mean']:.2f}",
                ]
            )
            ways = result["generated_and_forced"][key]
            there = [value for value in ways["spearman"] if value is not None]
            cells.append(shown(min(there, default=None)))
            rows.append(cells)
    heads = ["term", "tokens, seeds", "other", "overlap, seeds (chance)", "other (chance)",
             "warping, seeds / other", "p, runs", "p, pairs",
             "generated with forced, least"]  # fmt: skip
    return [
        f"## What runs agree on, {method.replace('_', ' ')}",
        "",
        "Tokens: Spearman over the tokens of the references, mean over the second half of the "
        "checkpoints and over pairs of runs, of one condition and of both. Overlap of tokens "
        "within sentences, of own translations at the end. Warping: mean distance of normalised "
        "curves within the condition and between; p-values of its being less within, by "
        "exchanging runs and by exchanging pairs. Last: the least Spearman of any run between the "
        "curves of own translations and references.",
        "",
        *markdown(heads, rows),
    ]


def matched(result: dict[str, Any]) -> list[str]:
    """How far apart conditions are when they are equally far or equally good."""
    rows = [
        [key.replace("_", " ").replace("/", ", "), *(f"{value:.3f}" for value in row.values())]
        for key, row in result["matched"].items()
    ]
    return [
        "## The other condition at equal steps, and at equal loss",
        "",
        "Mean absolute difference over the second half of its checkpoints from the seeds, and of "
        "the seeds from each other.",
        "",
        *markdown(["term", "seeds", "equal step", "equal loss"], rows),
    ]


def sentences(result: dict[str, Any], names: list[str]) -> list[str]:
    """Correlations with the chrF of sentences."""
    found = result["sentences"]
    rows = [
        [key.replace("_", " ").replace("/", ", "),
         *(" / ".join(shown(run[0]) for run in found[which][key]) for which in found)]
        for key in found["last"]
    ]  # fmt: skip
    return [
        "## Spearman's correlation with the chrF of single sentences",
        "",
        f"Runs in this order: {', '.join(names)}. Pairs of outputs of all checkpoints, as many of "
        "each quarter of chrF; pairs of sentences at the last checkpoint; one sentence at two "
        "checkpoints.",
        "",
        *markdown(["term", "quarters", "last checkpoint", "two checkpoints"], rows),
    ]


def causality(result: dict[str, Any]) -> list[str]:
    """How many terms pass for causes."""
    found = result["causality"]
    if "tests" not in found:
        return ["## Granger's test", "", f"Not done: {found['reason']}."]
    kinds = [kind for kind, row in found.items() if isinstance(row, dict) and "smallest p" in row]
    rows = [[kind, *(str(value) for value in found[kind].values())] for kind in kinds]
    return [
        "## Granger's test",
        "",
        f"{found['tests']} series of terms (all layers), 1 to {found['most lags']} lags; BLEU "
        f"was differenced {found['differences of BLEU']} times, of the terms "
        f"{found['differences of terms']} not, once and twice, after which both tests call all but "
        f"{found['not stationary even then']} stationary. How many pass at 0.01, and the smallest "
        "p-value corrected for all.",
        "",
        *markdown(["", "published rule", "corrected for lags", "for all tests", "p"], rows),
    ]


def summary(result: dict[str, Any], which: str, method: str) -> tuple[float, float]:
    """Mean |rho| over keys and runs, and of the keys the share with one sign in all runs."""
    rows = [
        [value for value in found[-1] if value is not None]
        for key, found in result["changes"][which].items()
        if key.startswith(f"{method}/") and not key.endswith("/L1")
    ]
    signs = [len({value > 0 for value in row}) == 1 for row in rows]
    return float(np.mean([abs(value) for row in rows for value in row])), float(np.mean(signs))


def markdown(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    """Lines of a table."""
    heads = list(heads)
    lines = [heads, ["---"] * len(heads), *map(list, rows)]
    return ["| " + " | ".join(line) + " |" for line in lines]


def half(curve: list[float | None]) -> float:
    """The mean over the second half."""
    return mean(curve[len(curve) // 2 :])


def mean(values: Iterable[float | None]) -> float:
    """Of those that are there."""
    there = [value for value in values if value is not None]
    return float(np.mean(there)) if there else float("nan")


def shown(value: float | None) -> str:
    """A correlation in a cell."""
    return "-" if value is None or np.isnan(value) else f"{value:.2f}"
