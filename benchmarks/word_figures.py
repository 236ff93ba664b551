"""Figures of "Traveling Words", from the numbers of a result file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

__all__ = ["coverage_figure", "save"]

DOTS = 90  # an inch


def save(figure: Figure, path: Path) -> None:
    """As a small PNG."""
    figure.savefig(path, dpi=DOTS)
    print(f"written to {path}")


def coverage_figure(run: dict[str, Any]) -> Figure:
    """How much of their sum the leading singular values cover, a panel a block, a line a head.

    The red line is where 99 % are covered, on average over heads.
    """
    kinds = [of for of in ("query_key", "value_output") if any(of in row for row in run["probes"])]
    figure = Figure(figsize=(3 * len(run["probes"]), 2.6 * len(kinds)), layout="constrained")
    panels = figure.subplots(
        len(kinds), len(run["probes"]), sharex=True, sharey=True, squeeze=False
    )
    for line, of in zip(panels, kinds, strict=True):
        for panel, row in zip(line, run["probes"], strict=True):
            panel.set_title(f"{row['block']}\n{of.replace('_', '-')}", fontsize=9)
            if of not in row:
                continue
            curves = row[of]["coverage"]
            reached = []
            for curve in curves:
                shares = [100 * (at + 1) / len(curve) for at in range(len(curve))]
                panel.plot(shares, [100 * value for value in curve], linewidth=0.8)
                reached.append(next(s for s, v in zip(shares, curve, strict=True) if v > 0.99))
            panel.axvline(sum(reached) / len(reached), color="red", linewidth=0.8)
            panel.grid(alpha=0.3)
    figure.supxlabel("% of a head's singular values")
    figure.supylabel("% of their sum")
    return figure
