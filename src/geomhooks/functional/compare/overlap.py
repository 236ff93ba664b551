r"""Whether the tokens of a sentence have the same distribution in two runs.

Where two models write their own translation of a sentence, their tokens differ, and no token can be
set beside another. What can be compared are the two sets of numbers that a sentence has. With Mann
and Whitney's U of its :math:`n_1` and :math:`n_2` tokens,

.. math:: f = \frac{U}{n_1 n_2}, \quad \text{overlap} = 1 - |2 f - 1|,

f is how often a token of the first run has the larger number, ties counting half. The overlap,
averaged over sentences, is 1 where neither run has larger numbers and 0 where one always has
(Mickus & Vazquez). Few tokens differ by chance, so that it is below 1 for equal runs as well: how
far, says ``expected``.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from geomhooks.functional.compare.ranks import places
from geomhooks.functional.compare.resampling import Interval, bootstrap_interval, tolerance

__all__ = ["SentenceOverlap", "sentence_overlap"]


class SentenceOverlap(NamedTuple):
    """Mean overlap of the tokens' numbers within sentences."""

    value: float
    interval: Interval
    p_value: float
    """of so small an overlap when the tokens of each sentence are dealt to the runs at random"""
    expected: float
    """mean over such deals"""
    overlaps: Tensor
    """(G,) float64, of each sentence that counts"""
    sentences: Tensor
    """(G,) int64, which they are, ascending"""


def sentence_overlap(
    first: Tensor,
    first_sentences: Tensor,
    second: Tensor,
    second_sentences: Tensor,
    *,
    level: float = 0.95,
    draws: int = 2000,
    permutations: int = 199,
    seed: int = 0,
) -> SentenceOverlap:
    """Mean overlap of two runs' numbers within each sentence.

    Args:
        first: (n,) a number for each token of one run; the finite ones count.
        first_sentences: (n,) integers, the sentence of each.
        second: (m,) of the other run; and
        second_sentences: (m,). Sentences without tokens in both runs are left out.
        level: of the interval, which draws sentences.
        draws: of the bootstrap.
        permutations: random deals of each sentence's tokens, which takes tokens for independent;
            the p-value is NaN for 0.
        seed: of all draws.

    Raises:
        ValueError: shapes that do not fit, or no sentence that both runs have.
        MissingExtraError: SciPy is not installed.

    Example:
        >>> numbers, sentences = torch.tensor([1.0, 2, 3, 4]), torch.tensor([0, 0, 1, 1])
        >>> sentence_overlap(numbers, sentences, numbers, sentences).value
        1.0
        >>> sentence_overlap(numbers, sentences, numbers + 9, sentences).overlaps
        tensor([0., 0.], dtype=torch.float64)
    """
    values, sentences = [], []
    for side, of, name in (
        (first, first_sentences, "first"),
        (second, second_sentences, "second"),
    ):
        if side.ndim != 1 or side.shape != of.shape:
            raise ValueError(
                f"{name}: a number and a sentence for each token are needed, found "
                f"{tuple(side.shape)} and {tuple(of.shape)}"
            )
        finite = torch.isfinite(side).cpu()
        values.append(side.detach().to("cpu", torch.float64)[finite].numpy())
        sentences.append(of.detach().cpu()[finite].numpy())
    if permutations < 0:
        raise ValueError(f"permutations={permutations}: a number from 0 is needed")
    shared = np.intersect1d(sentences[0], sentences[1])
    if not len(shared):
        raise ValueError("no sentence has tokens with finite numbers in both runs")
    keep = [np.isin(of, shared) for of in sentences]
    pooled = np.concatenate([side[kept] for side, kept in zip(values, keep, strict=True)])
    owners = np.concatenate([of[kept] for of, kept in zip(sentences, keep, strict=True)])
    group = np.searchsorted(shared, owners)
    mine = np.arange(len(pooled)) < keep[0].sum()
    ranks = _ranks_within(pooled, group)
    numbers = np.bincount(group, mine), np.bincount(group, ~mine)

    def overlaps(chosen: np.ndarray) -> np.ndarray:
        u = np.bincount(group, ranks * chosen) - numbers[0] * (numbers[0] + 1) / 2
        found: np.ndarray = 1 - np.abs(2 * u / (numbers[0] * numbers[1]) - 1)
        return found

    each = overlaps(mine)
    value = float(each.mean())
    interval = bootstrap_interval(
        lambda times: float(times @ each / len(each)), len(each), level, draws, seed, "sentences"
    )
    random = np.random.default_rng(seed)
    by_sentence = np.lexsort((np.arange(len(group)), group))
    dealt = []
    for _ in range(permutations):
        shuffled = np.lexsort((random.random(len(group)), group))
        chosen = np.empty_like(mine)
        chosen[shuffled] = mine[by_sentence]
        dealt.append(float(overlaps(chosen).mean()))
    as_small = sum(one <= value + tolerance(value) for one in dealt)
    return SentenceOverlap(
        value,
        interval,
        (1 + as_small) / (1 + permutations) if permutations else math.nan,
        float(np.mean(dealt)) if permutations else math.nan,
        torch.from_numpy(each),
        torch.from_numpy(shared),
    )


def _ranks_within(values: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Ranks from 1 within each group, equal values sharing the mean of theirs."""
    cell = group * (len(values) + 1) + places(values)
    _, place, counts = np.unique(cell, return_inverse=True, return_counts=True)
    overall = (counts.cumsum() - (counts - 1) / 2)[place]
    before = np.concatenate([[0], np.bincount(group).cumsum()[:-1]])
    ranks: np.ndarray = overall - before[group]
    return ranks
