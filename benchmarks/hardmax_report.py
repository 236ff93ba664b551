"""What ``hardmax_sentiment.py`` found, as Markdown beside what was published."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hardmax_training import History

__all__ = ["milestones", "page"]

NUMBERS = ("train_loss", "train_accuracy", "test_loss", "test_accuracy", "alpha")
HEAD = (
    "d", "", "epochs", "train accuracy", "test accuracy", "best (epoch)",
    "train loss", "test loss", "least (epoch)",
)  # fmt: skip
LOOKS = ("softmax_train", "hardmax_train", "softmax_test", "hardmax_test")


def milestones(history: History) -> dict[str, dict[str, float]]:
    """The last epoch, that of the best accuracy, and that of the smallest loss on the test."""
    accuracy, loss = history["test_accuracy"], history["test_loss"]
    chosen = {
        "last": len(loss) - 1,
        "best_accuracy": accuracy.index(max(accuracy)),
        "smallest_loss": loss.index(min(loss)),
    }
    return {
        when: {"epoch": epoch, **{name: history[name][epoch] for name in NUMBERS}}
        for when, epoch in chosen.items()
    }


def page(result: dict[str, Any], published: dict[str, Any]) -> str:
    """All tables."""
    reviews, runs = result["reviews"], result["runs"]
    machine = result["environment"]["machine"]
    order = "shuffled, as the file is sorted by label" if reviews["shuffled"] else "as in the file"
    rows = [row for run in runs for row in accuracy(run, published["accuracy"])]
    looks = [
        [run["hidden_size"], row["epoch"], *(f"{row[look]['loss']:.4f}" for look in LOOKS),
         *(f"{row[look]['accuracy']:.4f}" for look in LOOKS)]
        for run in runs for row in run["history"]["hardmax"]
    ]  # fmt: skip
    leaders = [
        [run["hidden_size"], way, f"{one['mean']:.2f}", f"{one['deviation']:.2f}", one["least"],
         one["most"], f"{one['fraction_initial']:.3f}"]
        for run in runs for way, one in run["leaders"].items()
    ]  # fmt: skip
    titles = [look.replace("_", ", ") for look in LOOKS]
    lines = [
        "# Sentiment by hardmax attention",
        "",
        f"{reviews['trained']} reviews trained on and {reviews['number'] - reviews['trained']} "
        f"tested, {order}; {reviews['words']} words, {100 * reviews['padding']:.0f} % of "
        f"positions are padding. {result['environment']['date']}, {machine['threads']} thread of "
        f"{machine['processor']}.",
        "",
        *table(HEAD, rows),
        "",
        "## Softmax at T = 0.001 and hardmax with the same weights",
        "",
        *table(
            ("d", "epoch", *(f"loss: {t}" for t in titles), *(f"accuracy: {t}" for t in titles)),
            looks,
        ),
        "",
        "## Leaders of a review of the test, after the last layer",
        "",
        *table(("d", "", "mean", "deviation", "least", "most", "Frac. Ini."), leaders),
        "",
        "## Words that lead most often",
        "",
        "In reviews that are classified correctly with a probability above 0.95, leaders whose own "
        "logit is above 2 or below -2; how often, and the mean logit.",
        *(line for run in runs for line in words(run)),
        "",
    ]
    return "\n".join(lines)


def accuracy(run: dict[str, Any], published: dict[str, dict[str, float]]) -> list[list[Any]]:
    """A row of ours and one of theirs."""
    width, last = run["hidden_size"], run["last"]
    best, least = run["best_accuracy"], run["smallest_loss"]
    rows = [
        [
            width, "here", last["epoch"] + 1,
            f"{last['train_accuracy']:.4f}", f"{last['test_accuracy']:.4f}",
            f"{best['test_accuracy']:.4f} ({best['epoch']})",
            f"{last['train_loss']:.4f}", f"{last['test_loss']:.4f}",
            f"{least['test_loss']:.4f} ({least['epoch']})",
        ]
    ]  # fmt: skip
    known = published.get(str(width))
    if known is not None:
        rows.append(
            [
                "", "published", 101,
                f"{known['train_accuracy']:.4f}", f"{known['test_accuracy']:.4f}",
                f"{known['best_test_accuracy']:.4f} ({known['best_epoch']})",
                f"{known['train_loss']:.4f}", f"{known['test_loss']:.4f}",
                f"{known['smallest_test_loss']:.4f} ({known['smallest_loss_epoch']})",
            ]
        )  # fmt: skip
    return rows


def words(run: dict[str, Any]) -> list[str]:
    """A paragraph of a model."""
    found = run["words"]
    most = ", ".join(f"{w['word']} {w['count']} ({w['score']:+.1f})" for w in found["most"])
    return [
        "",
        f"d = {run['hidden_size']}, {found['reviews']} reviews with {found['leaders']} such "
        f"leaders, {found['different']} different words: {most}.",
    ]


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    """Markdown."""
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    return [*lines, *(f"| {' | '.join(map(str, row))} |" for row in rows)]
