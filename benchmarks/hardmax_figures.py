"""Figures of the hardmax classifier: training, leaders, reviews in the plane, and the dynamics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from hardmax_leaders import Example, examples
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from torch import Tensor
from word_figures import save

from geomhooks.functional import attention_scores, hard_targets, hardmax_path, leaders_over_depth
from geomhooks.models import HardmaxClassifier

__all__ = ["draw_examples", "draw_runs", "dynamics_figure", "example_figure", "training_figure"]

GOOD, BAD = "tab:green", "tab:red"
SHOWN = (0, 1, 2, 5, 30)
LAYERS = 30
CORNERS = [[1, 1], [1, -1], [-1, 1], [-1, -1]]


def draw_runs(result: dict[str, Any], published: dict[str, Any], folder: Path) -> None:
    """Pictures of all runs, and of the dynamics."""
    save(training_figure(result, published), folder / "training.png")
    save(leaders_figure(result), folder / "leaders.png")
    save(dynamics_figure(), folder / "dynamics.png")


def draw_examples(
    model: HardmaxClassifier, data: tuple[Tensor, Tensor], words: list[str], folder: Path
) -> None:
    """A positive and a negative review of a model in the plane; of no other model."""
    if model.config.hidden_size != 2:
        return
    line = torch.cat((model.decoder.weight[0], model.decoder.bias)).detach()
    for name, found in examples(model, data, words).items():
        save(example_figure(found, line, f"A {name} review"), folder / f"review-{name}.png")


def training_figure(result: dict[str, Any], published: dict[str, Any]) -> Figure:
    """Loss and accuracy by epoch, a column a width.

    Lines are of the softmax that is trained, circles of hardmax with the same weights; the dotted
    line is the best published accuracy.
    """
    runs = result["runs"]
    figure = Figure(figsize=(3.2 * len(runs) + 0.6, 5.6), layout="constrained")
    panels = figure.subplots(2, len(runs), squeeze=False, sharex=True, sharey="row")
    for (losses, shares), run in zip(panels.T, runs, strict=True):
        history = run["history"]
        for part, colour in (("train", "tab:blue"), ("test", "tab:orange")):
            epochs = range(len(history["alpha"]))
            losses.plot(epochs, history[f"{part}_loss"], color=colour, label=part)
            shares.plot(epochs, history[f"{part}_accuracy"], color=colour, label=part)
            looked = [row["epoch"] for row in history["hardmax"]]
            for panel, what in ((losses, "loss"), (shares, "accuracy")):
                values = [row[f"hardmax_{part}"][what] for row in history["hardmax"]]
                panel.plot(
                    looked, values, "o", mfc="none", color=colour, ms=5, label=f"{part}, hardmax"
                )
        known = published["accuracy"].get(str(run["hidden_size"]))
        if known is not None:
            shares.axhline(
                known["best_test_accuracy"], color="0.3", linestyle=":", label="published"
            )
        losses.set_yscale("log")
        losses.set_title(f"d = {run['hidden_size']}")
        shares.set_ylim(0.45, 1.02)
        shares.set_xlabel("epoch")
        for panel in (losses, shares):
            panel.grid(alpha=0.3)
    panels[0, 0].set_ylabel("loss")
    panels[1, 0].set_ylabel("accuracy")
    panels[0, 0].legend(fontsize=8)
    panels[1, -1].legend(fontsize=8, loc="lower right")
    return figure


def leaders_figure(result: dict[str, Any]) -> Figure:
    """The words that lead most often, of each model; by colour what they tell."""
    runs = result["runs"]
    figure = Figure(figsize=(3.4 * len(runs) + 0.4, 4.2), layout="constrained")
    for panel, run in zip(figure.subplots(1, len(runs), squeeze=False)[0], runs, strict=True):
        most = run["words"]["most"][::-1]
        colours = [GOOD if row["score"] > 0 else BAD for row in most]
        panel.barh([row["word"] for row in most], [row["count"] for row in most], color=colours)
        panel.set_title(f"d = {run['hidden_size']}")
        panel.set_xlabel("reviews in which it leads")
        panel.grid(axis="x", alpha=0.3)
    return figure


def example_figure(found: Example, line: Tensor, title: str) -> Figure:
    """Tokens of a review before the first and after the last layer, on the sides of the decoder.

    A star leads, at its word; a triangle is the mean that is classified; grey lines are the ways of
    the tokens through the layers.
    """
    figure = Figure(figsize=(11.5, 5.4), layout="constrained")
    figure.suptitle(f"{title}: the mean has a logit of {found.logit:.1f}")
    path, means = found.path.numpy(), found.means.numpy()
    low, high = path.min((0, 1)), path.max((0, 1))
    centre, reach = (low + high) / 2, 0.62 * float((high - low).max())
    for panel, layer in zip(figure.subplots(1, 2), (0, len(path) - 1), strict=True):
        panel.set_xlim(centre[0] - reach, centre[0] + reach)
        panel.set_ylim(centre[1] - reach, centre[1] + reach)
        panel.set_aspect("equal")
        draw_sides(panel, line.numpy())
        if layer:
            for token in range(path.shape[1]):
                panel.plot(*path[: layer + 1, token].T, color="0.6", linewidth=0.5, zorder=1)
            panel.plot(*means[: layer + 1].T, color="black", linewidth=1, zorder=3)
        panel.scatter(*path[layer].T, s=14, color="tab:blue", zorder=2)
        panel.scatter(*means[layer], marker="^", s=90, color="black", zorder=4)
        for word, (at, score) in found.leaders.items():
            place = path[layer, at]
            panel.scatter(*place, marker="*", s=170, color="gold", edgecolor="black", zorder=5)
            panel.annotate(
                f"{word} {score:+.0f}" if layer else word,
                place,
                xytext=(7, 7),
                textcoords="offset points",
                fontsize=9,
                zorder=6,
            )
        panel.set_title(f"layer {layer}", fontsize=10)
    return figure


def draw_sides(panel: Axes, line: np.ndarray) -> None:
    """Where the decoder says positive, and where negative, and the line between."""
    x, y = np.meshgrid(np.linspace(*panel.get_xlim(), 60), np.linspace(*panel.get_ylim(), 60))
    side = line[0] * x + line[1] * y + line[2]
    fills = [to_rgba(BAD, 0.12), to_rgba(GOOD, 0.12)]
    panel.contourf(x, y, side, levels=[-np.inf, 0, np.inf], colors=fills)
    panel.contour(x, y, side, levels=[0], colors="0.3", linestyles="--", linewidths=1)


def systems(seed: int) -> dict[str, Tensor]:
    """The four of the published figure; what is random there is drawn with a seed here."""
    draw = np.random.default_rng(seed)

    def inside(number: int) -> np.ndarray:
        return draw.uniform(-0.5, 0.5, (number, 2))

    rows = {
        "leaders are the corners": np.concatenate(
            [[[1, 1], [0.5, -0.5], [-1, -1]], draw.uniform(0, 1, (2, 2)),
             draw.uniform(-1, 0, (2, 2)), [[0.3, -0.2], [0.1, -0.2]]]
        ),
        "a leader emerges": np.array(
            [[1, 1 / 3], [-1 / 12, 1 / 12], [-1, -1], [0, 1 / 4], [-0.3, -0.7], [-0.6, -0.9],
             [0.8, 0.1], [0.6, 0.15]]
        ),
        "four leaders": np.concatenate([CORNERS, inside(6)]),
        "clusters on edges": np.concatenate([CORNERS, [[-0.5, 0], [0.5, 0]], inside(4)]),
    }  # fmt: skip
    return {name: torch.from_numpy(row) for name, row in rows.items()}


def dynamics_figure(seed: int = 1, step: float = 0.5) -> Figure:
    """Tokens at some layers: stars lead, colours tell what a token is attracted by.

    The shaded polytope is that of the last layer.
    """
    rows = systems(seed)
    figure = Figure(figsize=(2.4 * len(SHOWN), 2.5 * len(rows)), layout="constrained")
    panels = figure.subplots(len(rows), len(SHOWN), sharex=True, sharey=True)
    for line, (name, states) in zip(panels, rows.items(), strict=True):
        path = hardmax_path(states, step, LAYERS)
        leaders = leaders_over_depth(path).leaders
        targets = hard_targets(attention_scores(path)).targets
        corners = path[-1][leaders[-1]].numpy()
        around = corners - corners.mean(0)
        hull = corners[np.arctan2(around[:, 1], around[:, 0]).argsort()]
        line[0].set_ylabel(name, fontsize=9)
        for panel, layer in zip(line, SHOWN, strict=True):
            panel.fill(*hull.T, color="0.92", zorder=0)
            for token in range(len(states)):
                colour = f"C{int(targets[layer, token])}"
                panel.plot(*path[: layer + 1, token].T, color=colour, linewidth=0.7, zorder=1)
                leads = bool(leaders[layer, token])
                panel.scatter(
                    *path[layer, token],
                    marker="*" if leads else "o",
                    s=130 if leads else 22,
                    color=colour,
                    edgecolor="black" if leads else "none",
                    zorder=3 if leads else 2,
                )
            panel.set_xlim(-1.2, 1.2)
            panel.set_ylim(-1.2, 1.2)
            panel.set_aspect("equal")
    for panel, layer in zip(panels[0], SHOWN, strict=True):
        panel.set_title(f"layer {layer}", fontsize=10)
    return figure
