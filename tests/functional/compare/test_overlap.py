"""Overlap of sentences' tokens against SciPy's U, sentence by sentence."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from geomhooks.functional.compare import sentence_overlap


def tokens(rng: np.random.Generator, shift: float = 0.0, sentences: int = 30) -> tuple:
    """Numbers of 5 to 12 tokens for each sentence, in no order."""
    owners = np.repeat(np.arange(sentences), rng.integers(5, 13, sentences))
    rng.shuffle(owners)
    return torch.from_numpy(rng.standard_normal(len(owners)) + shift), torch.from_numpy(owners)


@given(st.integers(0, 2**31), st.booleans())
def test_each_sentence(seed: int, ties: bool) -> None:
    rng = np.random.default_rng(seed)
    one, other = (tokens(rng, sentences=4) for _ in range(2))
    if ties:
        one, other = ((values.round(), owners) for values, owners in (one, other))
    found = sentence_overlap(*one, *other, draws=2, permutations=0)
    for sentence, overlap in zip(found.sentences.tolist(), found.overlaps.tolist(), strict=True):
        x, y = (values[owners == sentence].numpy() for values, owners in (one, other))
        f = stats.mannwhitneyu(x, y).statistic / (len(x) * len(y))
        assert overlap == pytest.approx(1 - abs(2 * f - 1), abs=1e-12)
    assert found.value == pytest.approx(float(found.overlaps.mean()))
    swapped = sentence_overlap(*other, *one, draws=2, permutations=0)
    torch.testing.assert_close(swapped.overlaps, found.overlaps)


def test_equal_runs_and_planted_differences() -> None:
    """Equal runs overlap as much as random deals do, less than 1; shifted ones less."""
    rng = np.random.default_rng(0)
    shares, gaps = [], []
    for seed in range(60):
        found = sentence_overlap(*tokens(rng), *tokens(rng), draws=2, permutations=39, seed=seed)
        shares.append(found.p_value)
        gaps.append(found.value - found.expected)
    assert 0.6 < found.expected < 0.85
    assert abs(np.mean(gaps)) < 4 * np.std(gaps) / 60**0.5
    assert (np.array(shares) <= 0.1 + 1e-9).mean() < 0.1 + 3 * (0.09 / 60) ** 0.5
    planted = sentence_overlap(*tokens(rng), *tokens(rng, 1.0))
    assert planted.p_value == 0.005
    assert planted.interval.high < planted.expected
    assert planted.interval.low < planted.value < planted.interval.high
    assert "30 sentences" in planted.interval.method


def test_sentences_of_one_run_and_tokens_without_a_number() -> None:
    one = torch.tensor([1.0, 2.0, math.nan, 9.0]), torch.tensor([0, 0, 0, 4])
    other = torch.tensor([0.0, 3.0, 5.0]), torch.tensor([0, 7, 0])
    found = sentence_overlap(*one, *other, draws=2)
    assert found.sentences.tolist() == [0]
    assert found.overlaps.tolist() == [1.0]
    assert math.isnan(found.interval.low)


def test_what_is_refused() -> None:
    numbers, owners = torch.arange(3.0), torch.tensor([0, 0, 1])
    with pytest.raises(ValueError, match=r"second: .* found \(3,\) and \(2,\)"):
        sentence_overlap(numbers, owners, numbers, owners[:2])
    with pytest.raises(ValueError, match="no sentence has tokens"):
        sentence_overlap(numbers, owners, numbers, owners + 5)
    with pytest.raises(ValueError, match="permutations=-1"):
        sentence_overlap(numbers, owners, numbers, owners, permutations=-1)
