r"""Tests of what a factor stands for: edit a sentence, and mask its words, and see it fall.

A factor's activation at one token is a function of the text. Where edits that break a pattern lower
it and others do not, it is the pattern that the factor stands for; and which words carry it is told
by a linear model of what masking some of them does (LIME; M. T. Ribeiro, S. Singh, C. Guestrin,
"Why should I trust you?", arXiv 1602.04938). Both are used by Z. Yun, Y. Chen, B. Olshausen,
Y. LeCun, "Transformer visualization via dictionary learning", arXiv 2103.15949.

``geomhooks.measuring.FactorActivations`` makes such functions of a model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from geomhooks.errors import MissingExtraError

__all__ = [
    "EditEffect",
    "MarkedTokens",
    "Saliency",
    "edit_effects",
    "masked_saliency",
    "with_replaced",
    "without_tokens",
]

PUBLISHED_SAMPLES = 2001


class MarkedTokens(NamedTuple):
    """A sentence with one token marked."""

    ids: Tensor
    """(T,) int64"""
    position: int
    """of the marked token"""


class EditEffect(NamedTuple):
    """What an edit does to an activation."""

    activation: float
    """of the edited sentence, at its marked token"""
    ratio: float
    """over that of the original; NaN where that is zero"""


class Saliency(NamedTuple):
    """How much each token of a text does for a number, by a linear model of masking."""

    weights: Tensor
    """(T,) float64: what being there adds to the number; 0 of those that the model leaves out"""
    intercept: float
    """what the model has where all are masked"""
    score: float
    """the model's weighted R^2"""
    original: float
    """the number of the text as it is"""


def with_replaced(sentence: MarkedTokens, places: Sequence[int], token: int) -> MarkedTokens:
    """The sentence with the tokens at some places replaced by another, such as [UNK].

    Raises:
        ValueError: there is no such place.

    Example:
        >>> with_replaced(MarkedTokens(torch.tensor([5, 6, 7]), 2), [0, 1], 9)
        MarkedTokens(ids=tensor([9, 9, 7]), position=2)
    """
    _check(sentence, places)
    ids = sentence.ids.clone()
    ids[list(places)] = token
    return MarkedTokens(ids, sentence.position)


def without_tokens(sentence: MarkedTokens, places: Sequence[int]) -> MarkedTokens:
    """The sentence without the tokens at some places; the mark stays with its token.

    Raises:
        ValueError: there is no such place, or it is the marked one.

    Example:
        >>> without_tokens(MarkedTokens(torch.tensor([5, 6, 7]), 2), [0])
        MarkedTokens(ids=tensor([6, 7]), position=1)
    """
    _check(sentence, places)
    if sentence.position in places:
        raise ValueError(f"places={list(places)}: {sentence.position} is the marked token")
    kept = torch.ones_like(sentence.ids, dtype=torch.bool)
    kept[list(places)] = False
    before = int(kept[: sentence.position].sum())
    return MarkedTokens(sentence.ids[kept], before)


def edit_effects(
    activation: Callable[[Tensor, Tensor], Tensor],
    original: MarkedTokens,
    edits: Mapping[str, MarkedTokens],
) -> dict[str, EditEffect]:
    """A factor's activation at the marked token of a sentence and of edited ones.

    The published table has for "consecutive adjectives" the original sentence, other positive
    adjectives, negative ones, all but one as [UNK], the first three removed, neutral ones, a
    sentence that has nothing to do with it, and one freshly written.

    Args:
        activation: of texts (B, T) at the positions (B,), (B,); called with one text at a time.
        original: the sentence.
        edits: by name.

    Returns:
        By name, "original" first.

    Raises:
        ValueError: a mark is outside of its sentence, or an edit is named "original".

    Example:
        >>> def count_of_sevens(ids, positions):
        ...     return (ids == 7).sum(1).float()
        >>> sentence = MarkedTokens(torch.tensor([7, 7, 5]), 2)
        >>> edit_effects(count_of_sevens, sentence, {"one": with_replaced(sentence, [0], 1)})
        {'original': EditEffect(activation=2.0, ratio=1.0),
         'one': EditEffect(activation=1.0, ratio=0.5)}
    """
    if "original" in edits:
        raise ValueError("edits: 'original' is the name of the sentence itself")
    found = {}
    for name, sentence in {"original": original, **edits}.items():
        _check(sentence, [sentence.position])
        at = torch.tensor([sentence.position], device=sentence.ids.device)
        found[name] = float(activation(sentence.ids[None], at).reshape(()))
    whole = found["original"]
    return {
        name: EditEffect(value, value / whole if whole else float("nan"))
        for name, value in found.items()
    }


def masked_saliency(
    activation: Callable[[Tensor], Tensor],
    ids: Tensor,
    mask_id: int,
    *,
    samples: int = PUBLISHED_SAMPLES,
    features: int = 30,
    kernel_width: float = 25.0,
    maskable: Tensor | None = None,
    batch_size: int = 64,
    seed: int = 0,
) -> Saliency:
    r"""Which tokens of a text carry a number, by masking some of them (LIME).

    Of the n tokens that may be masked, a number of them, uniform from 1 to n, is drawn and as many
    are masked. To what the number is then a ridge regression on who is there is fitted, weighted by
    :math:`\exp(-D^2 / 2 w^2)` with D a hundred times the cosine distance to the whole text, as the
    published code does it by the ``lime`` package, whose regression this is.

    Args:
        activation: from texts (B, T) to numbers (B,), such as of one factor at one position.
        ids: (T,) the text.
        mask_id: what masked tokens are replaced by, [UNK] in the published code.
        samples: how many texts, the original one among them.
        features: how many tokens the linear model has at most.
        kernel_width: w.
        maskable: (T,) bool, tokens that may be masked; by default all.
        batch_size: texts at a time.
        seed: of the draws.

    Raises:
        ValueError: an argument is not what it has to be.
        MissingExtraError: lime is not installed.

    Example:
        >>> def sevens(ids):
        ...     return (ids == 7).sum(1).float()
        >>> found = masked_saliency(sevens, torch.tensor([5, 7, 3]), 0, samples=200)
        >>> found.weights.argmax(), found.original
        (tensor(1), 1.0)
    """
    try:
        from lime.lime_base import LimeBase
    except ImportError as error:
        raise MissingExtraError(
            "masked_saliency() needs lime: pip install 'geomhooks[factors]'"
        ) from error
    for name, value, least in (("samples", samples, 2), ("features", features, 1)):
        if value < least:
            raise ValueError(f"{name}={value!r}: at least {least} is needed")
    if ids.ndim != 1 or not len(ids):
        raise ValueError(f"ids: shape (T,) is needed, found {tuple(ids.shape)}")
    if maskable is None:
        maskable = torch.ones_like(ids, dtype=torch.bool)
    if maskable.shape != ids.shape or not bool(maskable.any()):
        raise ValueError(
            f"maskable: shape {tuple(ids.shape)} with some that are True is needed, found "
            f"{tuple(maskable.shape)} with {int(maskable.sum())}"
        )
    places = maskable.nonzero()[:, 0].cpu()
    there = drawn(samples, len(places), seed)
    values = []
    for first in range(0, samples, batch_size):
        part = there[first : first + batch_size].to(ids.device)
        texts = ids.repeat(len(part), 1)
        texts[:, places] = torch.where(part, texts[:, places], mask_id)
        found = activation(texts).detach()
        if found.shape != (len(part),):
            raise ValueError(
                f"activation gave shape {tuple(found.shape)} for {len(part)} texts; "
                f"({len(part)},) is needed"
            )
        values.append(found.double().cpu())
    numbers = torch.cat(values).numpy()
    design = there.numpy().astype(np.float64)
    distances = 100 * (1 - np.sqrt(design.mean(1)))  # the cosine with ones is sqrt(k / n)

    def kernel(distance: np.ndarray) -> np.ndarray:
        return np.exp(-(distance**2) / (2 * kernel_width**2))

    base = LimeBase(kernel, random_state=seed)
    intercept, explained, score, _ = base.explain_instance_with_data(
        design, numbers[:, None], distances, 0, min(features, len(places))
    )
    weights = torch.zeros(len(ids), dtype=torch.float64, device="cpu")
    for place, weight in explained:
        weights[places[int(place)]] = float(weight)
    return Saliency(weights, float(intercept), float(score), float(numbers[0]))


def drawn(samples: int, number: int, seed: int) -> Tensor:
    """Who is there, (samples, number) bool: in the first row all, in no other one."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(1, number + 1, (samples, 1), generator=generator, device="cpu")
    sizes[0] = 0
    rank = torch.rand(samples, number, generator=generator, device="cpu").argsort(1).argsort(1)
    return rank >= sizes


def _check(sentence: MarkedTokens, places: Sequence[int]) -> None:
    length = len(sentence.ids)
    if sentence.ids.ndim != 1:
        raise ValueError(f"ids: shape (T,) is needed, found {tuple(sentence.ids.shape)}")
    outside = [place for place in (*places, sentence.position) if not 0 <= place < length]
    if outside:
        raise ValueError(f"there is no token {outside[0]} in a sentence of {length}")
