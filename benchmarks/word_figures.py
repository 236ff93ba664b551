"""Figures of "Traveling Words", from the numbers of a result file and from a sentence's states."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from word_lists import shown
from word_paths import Drawing

__all__ = ["coverage_figure", "path_figure", "pull_figure", "save", "updates_figure"]

DOTS = 80  # an inch
COLOURS = 128  # of a picture
BOX = 10  # positions that a curve is smoothed over, as published
CLOUD = 2000  # words that are drawn
LAYERS = colormaps["viridis"]
PARTS = {"attention": "tab:blue", "mlp": "tab:orange"}


def save(figure: Figure, path: Path) -> None:
    """As a small PNG, of few colours."""
    whole = io.BytesIO()
    figure.savefig(whole, dpi=DOTS)
    Image.open(whole).convert("RGB").quantize(COLOURS).save(path, optimize=True)
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


def path_figure(drawing: Drawing) -> Figure:
    """The path of one word through the layers in two and in three dimensions.

    Grey lines are the paths of the other words, crosses the rows of the head for the words.
    """
    figure = Figure(figsize=(11, 5), layout="constrained")
    figure.suptitle(drawing.title, fontsize=10)
    flat = figure.add_subplot(1, 2, 1)
    solid = figure.add_subplot(1, 2, 2, projection="3d")
    for panel, number in ((flat, 2), (solid, 3)):
        draw_paths(panel, drawing, number)
    bar = figure.colorbar(solid.collections[-1], ax=solid, shrink=0.6, pad=0.1)
    bar.set_label("layer")
    return figure


def draw_paths(panel: Any, drawing: Drawing, number: int) -> None:
    """What there is to see in a panel of so many dimensions."""
    at = drawing.followed
    states, words = drawing.states[..., :number].numpy(), drawing.words[:, :number].numpy()
    if drawing.cloud is not None:
        every = max(1, len(drawing.cloud) // CLOUD)
        cloud = drawing.cloud[::every, :number].numpy()
        panel.scatter(*cloud.T, s=1, color="0.8")
    for token in range(states.shape[1]):
        if token != at:
            panel.plot(*states[:, token].T, color="0.6", linewidth=0.6)
    panel.scatter(*words.T, marker="x", s=25, color="black", linewidths=0.8)
    for token, word in enumerate(drawing.tokens):
        colour = {at: "tab:blue", at + 1: "tab:red"}.get(token, "black")
        panel.text(*words[token], f" {shown(word)}", fontsize=8, color=colour)
    panel.plot(*states[:, at].T, color="tab:red", linewidth=1)
    panel.scatter(*states[:, at].T, c=range(len(states)), cmap=LAYERS, s=16)
    panel.set_xlabel(drawing.axes[0], fontsize=8)
    panel.set_ylabel(drawing.axes[1], fontsize=8)
    if number > 2:
        panel.set_zlabel(drawing.axes[2], fontsize=8)
    panel.tick_params(labelsize=7)


def pull_figure(run: dict[str, Any]) -> Figure:
    """How far each layer is for the next word: by layer, and by position at every layer.

    The input of the first block is far below the others, and out of sight where that matters.
    """
    rows = run["text"]["next_word"]
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    pull, cosines, positions = figure.subplots(1, 3)
    with_band(pull, rows, "pull", "black")
    pull.axhline(0, color="0.5", linewidth=0.8)
    low, high = (
        [row["pull"] + side * row["pull_deviation"] for row in rows[1:]] for side in (-1, 1)
    )
    pull.set_ylim(min(low) - 1, max(high) + 1)
    pull.set_title("log p(next word) - log p(own word)", fontsize=9)
    for name, colour in (("next_cosine", "tab:red"), ("own_cosine", "tab:blue")):
        with_band(cosines, rows, name, colour)
    cosines.set_title("cosine with the next word and with the own", fontsize=9)
    cosines.legend(fontsize=8)
    for layer, row in enumerate(rows[1:], 1):
        curve = row["pull_by_position"]
        width = min(BOX, len(curve))
        smooth = np.convolve(curve, np.ones(width) / width, "valid")
        places = np.arange(len(smooth)) + (width - 1) / 2
        positions.plot(places, smooth, color=LAYERS(layer / (len(rows) - 1)), linewidth=0.8)
    positions.set_title("the first by position, a line a layer", fontsize=9)
    for panel, label in ((pull, "layer"), (cosines, "layer"), (positions, "position")):
        panel.set_xlabel(label)
        panel.grid(alpha=0.3)
    return figure


def with_band(panel: Axes, rows: list[dict[str, Any]], name: str, colour: str) -> None:
    """A mean by layer, and a standard deviation over tokens to both sides."""
    mean, deviation = (np.array([row[key] for row in rows]) for key in (name, f"{name}_deviation"))
    panel.plot(mean, color=colour, label=name.replace("_", " "), marker=".", markersize=4)
    layers = range(len(mean))
    panel.fill_between(layers, mean - deviation, mean + deviation, color=colour, alpha=0.15)


def updates_figure(run: dict[str, Any]) -> Figure:
    """What attention and feed-forward layers add, outwards and along the sphere, by block."""
    figure = Figure(figsize=(12, 3.2), layout="constrained")
    panels = figure.subplots(1, 4)
    titles = {
        "radial": "outwards, over the radius",
        "tangential": "along the sphere, over the radius",
        "radial_share": "share of the square that is radial",
        "step_angle": "angle of the step, radians",
    }
    for panel, (name, title) in zip(panels, titles.items(), strict=True):
        for part, colour in PARTS.items():
            values = [row[name] for row in run["text"]["updates"] if row["sublayer"] == part]
            panel.plot(range(1, len(values) + 1), values, color=colour, label=part, marker=".")
        panel.set_title(title, fontsize=9)
        panel.set_xlabel("block")
        panel.grid(alpha=0.3)
    panels[0].legend(fontsize=8)
    panels[1].set_yscale("log")
    return figure
