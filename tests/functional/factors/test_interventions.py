"""Edited sentences, and the words that masking finds."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from geomhooks.functional import (
    MarkedTokens,
    edit_effects,
    masked_saliency,
    with_replaced,
    without_tokens,
)
from geomhooks.functional.factors.interventions import drawn

UNKNOWN = 0
POSITIVE, NEGATIVE = (5, 6, 7), (15, 16, 17)


def adjectives(ids: Tensor, positions: Tensor) -> Tensor:
    """A planted factor: it counts adjectives before the mark, negative ones less."""
    before = torch.arange(ids.shape[1]) < positions[:, None]
    good = sum((ids == token).float() for token in POSITIVE)
    bad = sum((ids == token).float() for token in NEGATIVE)
    return ((good + 0.8 * bad) * before).sum(1)


def test_edits_of_a_sentence() -> None:
    sentence = MarkedTokens(torch.tensor([3, 5, 6, 7, 9, 4]), 4)
    edits = {
        "negative": MarkedTokens(torch.tensor([3, 15, 16, 17, 9, 4]), 4),
        "unknown": with_replaced(sentence, [1, 2], UNKNOWN),
        "removed": without_tokens(sentence, [0, 1, 5]),
        "unrelated": MarkedTokens(torch.tensor([3, 4, 9]), 2),
    }
    assert edits["removed"].ids.tolist() == [6, 7, 9]
    assert edits["removed"].position == 2
    found = edit_effects(adjectives, sentence, edits)
    expected = {"original": 3, "negative": 2.4, "unknown": 1, "removed": 2, "unrelated": 0}
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert found[name] == pytest.approx((value, value / 3)), name


def test_bad_edits() -> None:
    sentence = MarkedTokens(torch.tensor([3, 5]), 1)
    with pytest.raises(ValueError, match=r"places=\[1\]: 1 is the marked token"):
        without_tokens(sentence, [1])
    with pytest.raises(ValueError, match="there is no token 2 in a sentence of 2"):
        with_replaced(sentence, [2], UNKNOWN)
    with pytest.raises(ValueError, match="there is no token 4 in a sentence of 2"):
        edit_effects(adjectives, sentence, {"x": sentence._replace(position=4)})
    with pytest.raises(ValueError, match="'original' is the name of the sentence itself"):
        edit_effects(adjectives, sentence, {"original": sentence})


def test_masking_finds_the_planted_words() -> None:
    """A number that is linear in who is there: the regression has its coefficients."""
    ids = torch.arange(10, 22)
    effect = torch.zeros(12)
    effect[3], effect[8], effect[10] = 4.0, 1.0, -2.0

    def number(texts: Tensor) -> Tensor:
        return ((texts == ids) * effect).sum(1) + 0.5

    found = masked_saliency(number, ids, UNKNOWN, samples=1500)
    torch.testing.assert_close(found.weights.float(), effect, atol=0.15, rtol=0)
    assert found.weights.argmax() == 3
    assert found.score > 0.98
    assert found.original == pytest.approx(3.5)
    again = masked_saliency(number, ids, UNKNOWN, samples=1500, batch_size=7)
    assert torch.equal(found.weights, again.weights)


def test_only_some_tokens_are_masked_and_explained() -> None:
    ids = torch.arange(1, 11)
    maskable = torch.ones(10, dtype=torch.bool)
    maskable[[0, 9]] = False
    seen = []

    def number(texts: Tensor) -> Tensor:
        seen.append(texts.clone())
        return ((texts == 4) + 0.1 * (texts == 6)).sum(1)

    found = masked_saliency(number, ids, UNKNOWN, samples=300, features=2, maskable=maskable)
    texts = torch.cat(seen)
    assert torch.equal(texts[0], ids)
    assert (texts[:, [0, 9]] == torch.tensor([1, 10])).all()
    assert (texts[1:] == UNKNOWN).any(1).all()
    assert found.weights.nonzero()[:, 0].tolist() == [3, 5]


def test_how_many_are_masked_is_uniform() -> None:
    there = drawn(8001, 5, seed=0)
    assert there[0].all()
    masked = (~there[1:]).sum(1)
    shares = torch.bincount(masked, minlength=6) / 8000
    torch.testing.assert_close(shares, torch.tensor([0, *[0.2] * 5]), atol=0.02, rtol=0)
    places = (~there[1:]).double().mean(0)
    torch.testing.assert_close(places, torch.full((5,), 0.6).double(), atol=0.02, rtol=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ids": torch.zeros(2, 2)}, r"ids: shape \(T,\) is needed, found \(2, 2\)"),
        ({"samples": 1}, "samples=1: at least 2 is needed"),
        ({"features": 0}, "features=0: at least 1 is needed"),
        ({"maskable": torch.zeros(3, dtype=torch.bool)}, r"found \(3,\) with 0"),
    ],
)
def test_bad_saliency(arguments: dict[str, object], message: str) -> None:
    given = {"ids": torch.zeros(3, dtype=torch.int64), **arguments}
    with pytest.raises(ValueError, match=message):
        masked_saliency(lambda ids: ids.sum(1), mask_id=0, **given)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"activation gave shape \(5, 3\) for 5 texts; \(5,\)"):
        masked_saliency(lambda ids: ids, torch.zeros(3), 0, samples=5)
