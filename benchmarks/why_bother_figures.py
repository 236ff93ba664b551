"""Figures of the study of geometry indicators over training."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from translator_checkpoints import INDICATORS, TERMS
from why_bother_runs import Key, Run
from word_figures import save

__all__ = ["draw_figures"]

COLOURS = ("tab:blue", "tab:orange", "tab:green", "black")
TITLES = {"by_part": "by part", "by_origin": "by origin"}
TERM_COLOURS = dict(
    zip(
        ("input", "attention", "source", "feed_forward", "correction", "tokens"),
        ("tab:gray", "tab:blue", "tab:red", "tab:green", "tab:purple", "tab:cyan"),
        strict=True,
    )
)


def draw_figures(runs: list[Run], result: dict[str, Any], folder: Path) -> None:
    """All figures, as small PNG."""
    save(layers_figure(runs, result), folder / "layers.png")
    for method in TERMS:
        save(curves_figure(runs, method), folder / f"curves-{method.replace('_', '-')}.png")
    save(warping_figure(runs, result), folder / "warping.png")
    save(seeds_figure(runs), folder / "seeds.png")
    save(agreement_figure(runs, result), folder / "agreement.png")
    save(changes_figure(runs, result), folder / "changes.png")


def colours(runs: list[Run]) -> dict[str, str]:
    """Of each run; the last is that of the other condition."""
    return {run.name: COLOURS[at % len(COLOURS)] for at, run in enumerate(runs)}


def layers_figure(runs: list[Run], result: dict[str, Any]) -> Figure:
    """Each indicator by layer at the last checkpoint; bars are deviations over tokens."""
    figure = Figure(figsize=(13, 5.6), layout="constrained")
    panels = figure.subplots(len(TERMS), len(INDICATORS), sharex=True)
    for line, (method, terms) in zip(panels, TERMS.items(), strict=True):
        for panel, (indicator, what) in zip(line, enumerate(INDICATORS), strict=True):
            panel.set_title(f"{what.replace('_', ' ')}, {TITLES[method]}", fontsize=9)
            for place, term in enumerate(terms):
                rows = result["by_layer"][str(Key(method, indicator, term))]
                for at, run in enumerate(runs):
                    row = rows[run.name]
                    values = [np.nan if v is None else v for v in row["last"]]
                    errors = [np.nan if v is None else v for v in row["deviation"]]
                    shift = 0.05 * (place - (len(terms) - 1) / 2)
                    first = at == 0
                    panel.errorbar(
                        np.arange(len(values)) + shift,
                        values,
                        errors if first else None,
                        color=TERM_COLOURS[term],
                        linestyle="-" if run.condition == runs[0].condition else ":",
                        linewidth=1.6 if first else 0.9,
                        elinewidth=0.8,
                        label=term.replace("_", "-") if first else None,
                    )
            panel.axhline(0, color="black", linewidth=0.4)
            panel.set_xticks(range(len(values)))
            panel.grid(alpha=0.3)
        line[2].legend(fontsize=8, ncols=2)
    figure.supxlabel(
        "layer. Solid: the seeds of one condition, bars over tokens of the first; dotted: the other"
    )
    return figure


def curves_figure(runs: list[Run], method: str) -> Figure:
    """Each term over the checkpoints in the last layer, under BLEU."""
    terms, of_run = TERMS[method], colours(runs)
    figure = Figure(figsize=(13, 1.5 * (len(terms) + 1)), layout="constrained")
    panels = figure.subplots(len(terms) + 1, len(INDICATORS), sharex=True)
    for panel, name in zip(panels[0], ("BLEU", "chrF", "loss", ""), strict=True):
        if not name:
            panel.axis("off")
            for run in runs:
                panel.plot([], [], color=of_run[run.name], label=run.name)
            panel.legend(fontsize=9, loc="center")
            continue
        panel.set_title(f"{name} of the references" if name == "loss" else name, fontsize=9)
        for run in runs:
            plot(panel, run, abs(run.quality(name)), of_run)
    for line, term in zip(panels[1:], terms, strict=True):
        for panel, (indicator, what) in zip(line, enumerate(INDICATORS), strict=True):
            panel.set_title(f"{what.replace('_', ' ')} of {term.replace('_', '-')}", fontsize=9)
            for run in runs:
                plot(panel, run, run.series(Key(method, indicator, term)), of_run)
    figure.supxlabel("step")
    return figure


def plot(panel: Axes, run: Run, series: Any, of_run: dict[str, str]) -> None:
    """A line of a run."""
    panel.plot(run.quality("step"), series, color=of_run[run.name], linewidth=1.1)
    panel.grid(alpha=0.3)
    panel.tick_params(labelsize=8)


def warping_figure(runs: list[Run], result: dict[str, Any]) -> Figure:
    """Distances between runs by term: above the diagonal of cosines, below of norm ratios."""
    figure = Figure(figsize=(13, 6.2), layout="constrained")
    most = max(map(len, TERMS.values()))
    panels = figure.subplots(len(TERMS), most)
    names = [run.name for run in runs]
    for line, (method, terms) in zip(panels, TERMS.items(), strict=True):
        for panel in line[len(terms) :]:
            panel.axis("off")
        for panel, term in zip(line, terms, strict=False):
            sides = [
                result["warping"][f"{method}/{what}/{term}"] for what in ("cosine", "norm_ratio")
            ]
            panel.set_title(f"{term.replace('_', '-')}, {TITLES[method]}", fontsize=9)
            if None in sides:
                panel.axis("off")
                continue
            upper, lower = (np.array(side["distances"], float) for side in sides)
            shown = np.triu(upper, 1) + np.tril(lower, -1)
            np.fill_diagonal(shown, np.nan)
            panel.imshow(shown, cmap="viridis")
            middle = (np.nanmax(shown) + np.nanmin(shown)) / 2
            for i, j in np.argwhere(np.isfinite(shown)):
                panel.text(
                    j, i, f"{shown[i, j]:.1f}", ha="center", va="center", fontsize=8,
                    color="white" if shown[i, j] < middle else "black",
                )  # fmt: skip
            panel.set_xticks(range(len(runs)), names, rotation=40, ha="right", fontsize=7)
            panel.set_yticks(range(len(runs)), names, fontsize=7)
    figure.supxlabel("dynamic time warping; above the diagonal: cosine, below: norm ratio")
    return figure


def seeds_figure(runs: list[Run]) -> Figure:
    """Each term's way through training in one run against that in another."""
    others = runs[1:]
    figure = Figure(figsize=(13, 6.4), layout="constrained")
    columns = [(method, term) for method, terms in TERMS.items() for term in terms]
    chosen = [INDICATORS.index(what) for what in ("importance", "cosine", "norm_ratio")]
    panels = figure.subplots(len(chosen), len(columns))
    for line, indicator in zip(panels, chosen, strict=True):
        for panel, (method, term) in zip(line, columns, strict=True):
            key = Key(method, indicator, term)
            x = runs[0].series(key)
            values = [x]
            for other in others:
                y = other.series(key)
                values.append(y)
                panel.plot(x, y, linewidth=0.7, color=colours(runs)[other.name])
                panel.plot(x[-1], y[-1], "o", markersize=4, color=colours(runs)[other.name])
            low, high = (float(f(v for one in values for v in one)) for f in (min, max))
            panel.plot([low, high], [low, high], color="gray", linestyle=":", linewidth=0.8)
            panel.tick_params(labelsize=7)
            panel.set_title(
                f"{INDICATORS[indicator].replace('_', ' ')},\n{term.replace('_', '-')}, "
                f"{TITLES[method]}",
                fontsize=8,
            )
    handles = [
        panels[0][0].plot([], [], color=colours(runs)[other.name], label=other.name)[0]
        for other in others
    ]
    figure.legend(handles=handles, loc="outside lower right", ncols=len(handles), fontsize=9)
    figure.supxlabel(f"across: {runs[0].name}; up: the others; a dot at the end", fontsize=10)
    return figure


def agreement_figure(runs: list[Run], result: dict[str, Any]) -> Figure:
    """Rank correlation of the same tokens in two seeds, over the checkpoints."""
    figure = Figure(figsize=(13, 5.2), layout="constrained")
    panels = figure.subplots(len(TERMS), len(INDICATORS), sharex=True, sharey=True)
    steps = runs[0].quality("step")
    pairs = [
        f"{one.name} {other.name}"
        for one, other in combinations(runs, 2)
        if one.condition == other.condition
    ]
    for line, (method, terms) in zip(panels, TERMS.items(), strict=True):
        for panel, (indicator, what) in zip(line, enumerate(INDICATORS), strict=True):
            panel.set_title(f"{what.replace('_', ' ')}, {TITLES[method]}", fontsize=9)
            panel.axhline(0, color="black", linewidth=0.4)
            panel.grid(alpha=0.3)
            for term in terms:
                rows = result["forced_agreement"][str(Key(method, indicator, term))]
                for at, pair in enumerate(pairs):
                    values = [np.nan if v is None else v for v in rows[pair]["curve"]]
                    panel.plot(
                        steps, values, color=TERM_COLOURS[term], linewidth=0.9,
                        label=None if at else term.replace("_", "-"),
                    )  # fmt: skip
        line[0].legend(fontsize=7, ncols=2)
    figure.supxlabel("step; a line for each pair of seeds of one condition")
    figure.supylabel("Spearman over tokens of references", fontsize=9)
    return figure


def changes_figure(runs: list[Run], result: dict[str, Any]) -> Figure:
    """How far terms change as BLEU does: all pairs of checkpoints, and successive ones."""
    figure = Figure(figsize=(13, 7.6), layout="constrained")
    grid = [(m, w) for m in TERMS for w in ("all", "successive")]
    panels = figure.subplots(len(grid), len(INDICATORS), sharey=True)
    width = 0.8 / len(runs)
    for line, (method, which) in zip(panels, grid, strict=True):
        for panel, what in zip(line, INDICATORS, strict=True):
            terms = [*TERMS[method], "L1"]
            for at, run in enumerate(runs):
                rows = result["changes"][f"BLEU, {which}"]
                values = [rows[f"{method}/{what}/{term}"][-1][at] or 0 for term in terms]
                places = np.arange(len(terms)) + width * (at - (len(runs) - 1) / 2)
                panel.bar(
                    places,
                    [100 * abs(value) for value in values],
                    width,
                    color=colours(runs)[run.name],
                    hatch=["///" if value < 0 else "" for value in values],
                    edgecolor="white",
                    linewidth=0,
                    label=run.name,
                )
            panel.set_title(f"{what.replace('_', ' ')}, {TITLES[method]}, {which}", fontsize=9)
            panel.set_xticks(
                range(len(terms)), [t.replace("feed_forward", "feed-f.") for t in terms],
                fontsize=7, rotation=20,
            )  # fmt: skip
            panel.set_ylim(0, 100)
            panel.grid(axis="y", alpha=0.3)
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(runs), fontsize=9)
    figure.supylabel("100 |Spearman| of changes with those of BLEU; hatched: negative")
    return figure
