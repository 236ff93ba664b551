r"""How well one number tells two senses of a word apart, such as "left" the verb and the adjective.

One activation of a factor at each occurrence of a word, and for each whether it has the sense: a
classifier that knows this number alone is fitted to some of the occurrences and tried on the others
(the protocol of Z. Yun, Y. Chen, B. Olshausen, Y. LeCun, "Transformer visualization via dictionary
learning", arXiv 2103.15949, whose senses are parts of speech).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from geomhooks.errors import MissingExtraError, UnidentifiedError

__all__ = ["SenseScores", "SenseSeparation", "best_threshold", "sense_scores", "sense_separation"]


class SenseScores(NamedTuple):
    """What a classifier gets right."""

    precision: float
    """share of those taken for the sense that have it; NaN where none is"""
    recall: float
    """share of those that have the sense that are taken for it; NaN where none has it"""
    f1: float
    """harmonic mean of both, :math:`2 TP / (2 TP + FP + FN)`"""


class SenseSeparation(NamedTuple):
    """How well one number tells a sense, on occurrences that nothing was fitted to."""

    threshold: float
    """from which on an occurrence is taken for the sense, with the best F1 in training"""
    by_threshold: SenseScores
    """of that rule"""
    logistic_threshold: float
    """where the logistic regression gives even odds; NaN where its slope is zero"""
    by_logistic: SenseScores
    """of the logistic regression"""
    train: Tensor
    """(N,) bool, the occurrences that both were fitted to"""


def sense_separation(
    activation: Tensor, has_sense: Tensor, *, train: Tensor | None = None, seed: int = 0
) -> SenseSeparation:
    """Fit a threshold and a logistic regression to one number, and try both on what is left.

    Args:
        activation: (N,) of one factor at each occurrence.
        has_sense: (N,) bool.
        train: (N,) bool, what to fit to; by default half of the occurrences that have the sense and
            half of those that have not, drawn at random. Give one that keeps occurrences of one
            text together where they are alike.
        seed: of that draw.

    The regression is scikit-learn's on the number in units of its standard deviation, with its
    usual penalty on the square of the slope.

    Raises:
        ValueError: shapes do not fit, or numbers are not finite.
        UnidentifiedError: training, or what is left, has not both senses.
        MissingExtraError: scikit-learn is not installed.

    Example:
        >>> activation = torch.tensor([0.0, 0.1, 0.0, 0.2, 2.0, 3.0, 2.5, 4.0])
        >>> found = sense_separation(activation, activation > 1)
        >>> found.by_threshold, found.by_logistic.f1
        (SenseScores(precision=1.0, recall=1.0, f1=1.0), 1.0)
    """
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError as error:
        raise MissingExtraError(
            "sense_separation() needs scikit-learn: pip install 'geomhooks[factors]'"
        ) from error
    activation, has_sense = _checked(activation, has_sense)
    if train is None:
        train = halves(has_sense, seed)
    train = train.cpu().to(torch.bool)
    if train.shape != has_sense.shape:
        raise ValueError(
            f"train: shape {tuple(has_sense.shape)} is needed, found {tuple(train.shape)}"
        )
    for part, name in ((train, "training"), (~train, "what is left")):
        if bool(has_sense[part].all()) or not bool(has_sense[part].any()):
            raise UnidentifiedError(
                f"{name} has {int(part.sum())} occurrences, and needs some that have the sense and "
                "some that have not"
            )
    threshold = best_threshold(activation[train], has_sense[train])
    tried, truth = activation[~train], has_sense[~train]
    centre, spread = activation[train].mean(), activation[train].std(correction=0)
    scale = spread if spread > 0 else torch.ones_like(spread)

    def standardised(values: Tensor) -> Tensor:
        return (values[:, None] - centre) / scale

    model = LogisticRegression().fit(
        standardised(activation[train]).numpy(), has_sense[train].numpy()
    )
    said = torch.from_numpy(model.predict(standardised(tried).numpy()))
    slope, intercept = float(model.coef_[0, 0]), float(model.intercept_[0])
    even = float(centre) - intercept / slope * float(scale) if slope else float("nan")
    return SenseSeparation(
        threshold, sense_scores(tried >= threshold, truth), even, sense_scores(said, truth), train
    )


def best_threshold(activation: Tensor, has_sense: Tensor) -> float:
    """The threshold at or above which occurrences are best taken for the sense, by F1.

    It lies in the middle between two activations; of equally good ones it is the highest.

    Args:
        activation: (N,).
        has_sense: (N,) bool.

    Raises:
        ValueError: shapes do not fit, numbers are not finite, or no occurrence has the sense.

    Example:
        >>> best_threshold(torch.tensor([0.0, 1.0, 2.0, 3.0]), torch.tensor([0, 0, 1, 1]))
        1.5
    """
    activation, has_sense = _checked(activation, has_sense)
    if not bool(has_sense.any()):
        raise ValueError("has_sense: no occurrence has the sense")
    values, order = activation.sort(descending=True)
    right = has_sense[order].cumsum(0)
    taken = torch.arange(1, len(values) + 1, device=values.device)
    f1 = 2 * right / (taken + right[-1])
    # Equal activations are taken together.
    last = torch.ones_like(has_sense)
    last[:-1] = values[:-1] > values[1:]
    best = int(torch.where(last, f1, -1.0).argmax())
    if best + 1 == len(values):
        return float(values[best])
    return float(values[best] + values[best + 1]) / 2


def sense_scores(said: Tensor, has_sense: Tensor) -> SenseScores:
    """Precision, recall and F1 of what was said of occurrences.

    Args:
        said: (N,) bool, taken for the sense.
        has_sense: (N,) bool.

    Example:
        >>> sense_scores(torch.tensor([1, 1, 0, 0]), torch.tensor([1, 0, 1, 1]))
        SenseScores(precision=0.5, recall=0.333..., f1=0.4)
    """
    said, has_sense = said.to(torch.bool), has_sense.to(torch.bool)
    right, taken, there = (int(part.sum()) for part in (said & has_sense, said, has_sense))
    nothing = float("nan")
    return SenseScores(
        right / taken if taken else nothing,
        right / there if there else nothing,
        2 * right / (taken + there) if taken + there else nothing,
    )


def halves(has_sense: Tensor, seed: int) -> Tensor:
    """(N,) bool, half of those that have the sense and half of the others, the lesser half."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.zeros_like(has_sense)
    for part in (has_sense, ~has_sense):
        at = part.nonzero()[:, 0]
        order = torch.randperm(len(at), generator=generator, device="cpu")
        chosen[at[order[: len(at) // 2]]] = True
    return chosen


def _checked(activation: Tensor, has_sense: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers in float64 and truth values, on the CPU.

    Raises:
        ValueError: they do not go together, or a number is not finite.
    """
    if activation.ndim != 1 or activation.shape != has_sense.shape or not len(activation):
        raise ValueError(
            "activation and has_sense: (N,) both are needed, found "
            f"{tuple(activation.shape)} and {tuple(has_sense.shape)}"
        )
    activation = activation.detach().cpu().double()
    if not bool(torch.isfinite(activation).all()):
        raise ValueError("activation: there are numbers that are not finite")
    return activation, has_sense.cpu().to(torch.bool)
