"""Which words lead in a trained hardmax classifier, and how many of them a review has."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from geomhooks.functional import attention_scores, first_index_leaders, leaders_over_depth
from geomhooks.models import HardmaxClassifier

__all__ = ["Example", "examples", "leader_numbers", "leader_words"]

BATCH = 64
SURE = 0.95  # of the probability of a review whose words are counted
SURER = 0.999  # of one that is drawn
TELLING = 2.0  # least size of the score of a word that is counted
MOST = 15
NUMBER = 10  # of the review that is drawn, among those that are sure


class Example(NamedTuple):
    """A review through the layers."""

    path: Tensor
    """(K + 1, T, d)"""
    leaders: dict[str, tuple[int, float]]
    """by word: where in the review it first leads, and its score by the decoder in the end"""
    means: Tensor
    """(K + 1, d) what the decoder would see at each layer"""
    logit: float


def paths(model: HardmaxClassifier, ids: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Ids and states (K + 1, B, T, d) by hardmax of each batch."""
    for rows in ids.split(BATCH):
        yield rows, model.path(rows)


def leader_numbers(model: HardmaxClassifier, ids: Tensor) -> dict[str, dict[str, float]]:
    """How many leaders reviews have: mean, deviation, least and most, and share of the first layer.

    As published, a leader is a token that is the first maximiser of its own row, after the last
    layer; and by the definition, a token that at some layer attends to itself alone.
    """
    published, strict = [], []
    for _, path in paths(model, ids):
        ends = first_index_leaders(attention_scores(torch.stack((path[0], path[-1]))))
        published.append(ends.sum(-1))
        strict.append(leaders_over_depth(path).counts[[0, -1]])
    return {
        name: numbers(torch.cat(found, 1).double())
        for name, found in (("as published", published), ("by the definition", strict))
    }


def numbers(counts: Tensor) -> dict[str, float]:
    """Of (2, N) counts at the first and last layer."""
    first, last = counts
    led = last > 0
    return {
        "mean": round(float(last.mean()), 3),
        "deviation": round(float(last.std(correction=0)), 3),
        "least": int(last.min()),
        "most": int(last.max()),
        "fraction_initial": round(float((first[led] / last[led]).mean()), 4),
    }


def leader_words(
    model: HardmaxClassifier, data: tuple[Tensor, Tensor], words: list[str]
) -> dict[str, Any]:
    """Words that lead in reviews that are classified correctly and surely, most frequent first.

    Of leaders after the last layer, as published, those whose own score tells the sentiment.
    """
    ids, positive = data
    counts: Counter[int] = Counter()
    scores: dict[int, list[float]] = defaultdict(list)
    reviews = 0
    for (rows, path), labels in zip(paths(model, ids), positive.split(BATCH), strict=True):
        last = path[-1]
        with torch.no_grad():
            probability, score = model.classify(last).sigmoid(), model.decoder(last)[..., 0]
        sure = torch.where(labels > 0, probability > SURE, probability < 1 - SURE)
        reviews += int(sure.sum())
        led = first_index_leaders(attention_scores(last)) & (score.abs() > TELLING) & sure[:, None]
        for word, value in zip(rows[led].tolist(), score[led].tolist(), strict=True):
            counts[word] += 1
            scores[word].append(value)
    most = [
        {
            "word": words[word],
            "count": count,
            "score": round(sum(scores[word]) / count, 2),
        }
        for word, count in counts.most_common(MOST)
    ]
    positives = sum(count for word, count in counts.items() if sum(scores[word]) > 0)
    return {
        "reviews": reviews,
        "leaders": counts.total(),
        "different": len(counts),
        "positive": positives,
        "most": most,
    }


def examples(
    model: HardmaxClassifier, data: tuple[Tensor, Tensor], words: list[str]
) -> dict[str, Example]:
    """The tenth of the reviews that are surely positive, and of those that are surely negative."""
    ids, positive = data
    with torch.no_grad():
        logits = torch.cat([model.classify(path[-1]) for _, path in paths(model, ids)])
    found = {}
    for name, label in (("positive", 1), ("negative", 0)):
        probability = logits.sigmoid() if label else (-logits).sigmoid()
        sure = ((positive == label) & (probability > SURER)).nonzero()[:, 0]
        if len(sure):
            row = sure[min(NUMBER, len(sure) - 1)]
            found[name] = example(model, ids[row], words, float(logits[row]))
    return found


def example(model: HardmaxClassifier, ids: Tensor, words: list[str], logit: float) -> Example:
    """One review."""
    path = model.path(ids[None])[:, 0]
    with torch.no_grad():
        scores = model.decoder(path[-1])[:, 0].tolist()
    led = first_index_leaders(attention_scores(path[-1])).nonzero()[:, 0].tolist()
    leaders = {words[ids[at]]: (at, round(scores[at], 1)) for at in led}
    return Example(path, leaders, path.mean(1), logit)
