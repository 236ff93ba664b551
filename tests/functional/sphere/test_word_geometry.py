"""Embeddings against their sphere, against dense computations."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from geomhooks.functional import (
    sphere_distances,
    standardise,
    word_scores,
)

V, D = 37, 8


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("block", [5, 1000])
@pytest.mark.parametrize("centred", [True, False])
def test_distances(centred: bool, block: int) -> None:
    """As the published code computes them, whole."""
    words = 0.1 * draw(V, D, seed=1) + 0.05 * draw(D, seed=2)
    gaps = torch.cat((words[:3], torch.zeros(6, D).double(), words[3:]))  # a whole block of them
    found = sphere_distances(gaps, centred=centred, block=block)
    target = standardise(words, 1e-5, centred=centred)
    scale = math.sqrt(D) / torch.linalg.vector_norm(words, dim=1).mean()
    about = words - words.mean(0)
    variants = (words, about, words * scale, about * scale)
    for summary, variant in zip(found[:4], variants, strict=True):
        l2 = torch.linalg.vector_norm(variant - target, dim=1)
        cosine = 1 - F.cosine_similarity(variant, target)
        own = (l2.mean(), l2.std(), cosine.mean(), cosine.std())
        for ours, theirs in zip(summary, own, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found.scale, scale)
    assert found.words == V


def test_words_on_the_sphere_are_at_distance_zero() -> None:
    words = standardise(draw(V, D, seed=3))
    found = sphere_distances(words, eps=0.0)
    for summary in (found.original, found.scaled):
        assert max(float(value) for value in summary) < 1e-14
    assert float(found.centred.l2_mean) > 0.01


@given(st.integers(0, 10**6), st.floats(0.01, 100))
@settings(deadline=None, max_examples=20)
def test_scaled_distances_do_not_depend_on_the_scale(seed: int, factor: float) -> None:
    words = draw(6, 4, seed=seed)
    one, two = sphere_distances(words, eps=0.0), sphere_distances(factor * words, eps=0.0)
    torch.testing.assert_close(torch.stack(one.scaled), torch.stack(two.scaled))
    torch.testing.assert_close(one.original.cosine_mean, two.original.cosine_mean)


@pytest.mark.parametrize("centred", [True, False])
def test_scores(centred: bool) -> None:
    words, gain, shift = draw(V, D, seed=1), draw(D, seed=2), draw(D, seed=3)
    found = word_scores(words, gain, shift, centred=centred, block=10)
    torch.testing.assert_close(found.norm, words.norm(dim=1))
    torch.testing.assert_close(found.scaled_norm, (words * gain).norm(dim=1))
    torch.testing.assert_close(found.bias, words @ shift)
    torch.testing.assert_close(found.norm_and_bias, found.norm + found.bias)
    torch.testing.assert_close(found.scaled_norm_and_bias, found.scaled_norm + found.bias)
    # The largest logit is reached by the state that points where the word's scaled row does.
    reach = words * gain
    states = standardise(reach, centred=centred)
    logits = (states * gain + shift) @ words.T
    torch.testing.assert_close(logits.diagonal(), found.largest_logit)
    others = standardise(draw(400, D, seed=4), centred=centred)
    assert bool(((others * gain + shift) @ words.T <= found.largest_logit + 1e-12).all())
    plain = word_scores(words, centred=centred)
    torch.testing.assert_close(plain.scaled_norm_and_bias, words.norm(dim=1))


def test_errors() -> None:
    words = torch.ones(3, 2)
    with pytest.raises(ValueError, match="two rows that are not zero are needed, found 1"):
        sphere_distances(torch.tensor([[1.0], [0.0]]))
    with pytest.raises(ValueError, match=r"embeddings: shape \(V, d\) is needed"):
        word_scores(torch.ones(3))
    with pytest.raises(ValueError, match=r"gain: shape \(2,\) is needed, found \(3,\)"):
        word_scores(words, torch.ones(3))
