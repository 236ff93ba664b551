"""Levels and entropies of factors, on curves and rankings made by hand."""

from __future__ import annotations

import math

import pytest
import torch

from geomhooks.functional import (
    factor_contexts,
    importance_levels,
    token_counts,
    token_entropy,
)

# Importance at layers 0, 2, .. 10 of four factors, read off the pictures of the published
# demonstration, which lists them as low, low, mid and high.
PUBLISHED = torch.tensor(
    [
        [11.1, 13.7, 11.7, 7.7, 4.4, 3.3],
        [4.5, 6.1, 5.6, 4.8, 3.4, 3.3],
        [1.7, 2.8, 4.7, 5.3, 7.5, 7.0],
        [0.35, 0.75, 0.7, 0.85, 1.65, 5.1],
    ]
)


def test_levels_by_the_centre() -> None:
    curves = torch.tensor([[1.0, 0, 0, 0], [0, 1, 1, 0], [0, 0, 0, 2], [0, 0, 0, 0], [3, 0, 0, 1]])
    found = importance_levels(curves)
    torch.testing.assert_close(
        found.depth, torch.tensor([0.0, 0.5, 1.0, math.nan, 0.25]), equal_nan=True
    )
    assert found.names() == ["low", "mid", "high", "none", "low"]
    assert found.level.tolist() == [0, 1, 2, -1, 0]
    deep = importance_levels(curves, depth=torch.tensor([0.5, 0.6, 0.7, 0.8]))
    assert deep.names() == ["mid", "mid", "high", "none", "mid"]
    for by in ("centre", "peak"):
        alone = importance_levels(curves[:, :1], by=by)
        assert alone.names() == ["none"] * 5, "one layer cannot tell"
        assert alone.depth.isnan().all()


def test_levels_of_published_curves() -> None:
    """Thirds of the centre miss two of four; bounds chosen for them, and peaks, do not."""
    assert importance_levels(PUBLISHED).names() == ["mid", "mid", "mid", "high"]
    published = ["low", "low", "mid", "high"]
    assert importance_levels(PUBLISHED, bounds=(0.5, 0.7)).names() == published
    peaks = importance_levels(PUBLISHED, by="peak", bounds=(1 / 3, 0.9))
    assert peaks.names() == published
    torch.testing.assert_close(peaks.depth, torch.tensor([0.2, 0.2, 0.8, 1.0]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"importance": torch.ones(3)}, r"importance: shape \(F, L\) is needed, found \(3,\)"),
        ({"importance": -torch.ones(1, 2)}, "at least 0 are needed, found negative ones or NaN"),
        ({"bounds": (0.7, 0.5)}, r"bounds=\(0.7, 0.5\): two depths from 0 to 1 are needed"),
        ({"by": "mode"}, "by='mode': 'centre' or 'peak'"),
        ({"depth": torch.ones(3)}, r"depth: one for each of 2 layers is needed, found \(3,\)"),
    ],
)
def test_bad_levels(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        importance_levels(**{"importance": torch.ones(1, 2), **arguments})  # type: ignore[arg-type]


def test_entropy_is_that_of_the_counts() -> None:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(-1, 6, (2, 3, 40), generator=generator)
    found = token_entropy(ids)
    for row, entropy in zip(ids.flatten(0, 1), found.flatten(), strict=True):
        shares = torch.bincount(row[row >= 0]) / (row >= 0).sum()
        expected = -(shares * shares.log()).nansum()
        assert float(entropy) == pytest.approx(float(expected), rel=1e-5)
    assert math.isnan(float(token_entropy(torch.tensor([-1, -1]))))
    # "left" 198 of 200 and one each of two other words.
    one = torch.tensor([5] * 198 + [6, 7])
    assert float(token_entropy(one)) == pytest.approx(0.99 * -math.log(0.99) + 0.01 * math.log(200))
    assert token_counts(one)[0] == (5, 198)


def test_contexts_of_a_factor() -> None:
    top = {
        "activation": torch.tensor([[3.0, 2.0, math.nan], [1.0, math.nan, math.nan]]),
        "context": torch.tensor([[4, 9, -1], [4, -1, -1]]),
        "position": torch.tensor([[0, 5, -1], [1, -1, -1]]),
        "window": torch.tensor(
            [
                [[-1, -1, 7, 8, 9], [5, -1, 6, 7, -1], [-1] * 5],
                [[-1, 1, 2, 3, 4], [-1] * 5, [-1] * 5],
            ]
        ),
    }
    assert factor_contexts(top, 0) == [(3.0, 4, 0, [], 7, [8, 9]), (2.0, 9, 5, [5], 6, [7])]
    assert factor_contexts(top, 1) == [(1.0, 4, 1, [1], 2, [3, 4])]
    with pytest.raises(ValueError, match="factor=2: there are 2 factors, from 0 to 1"):
        factor_contexts(top, 2)
