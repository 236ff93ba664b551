r"""Hardmax attention: every token moves towards those tokens that it attends to most.

With tokens :math:`z_1, \ldots, z_n \in \mathbb{R}^d`, a symmetric positive definite A and a step
:math:`\alpha > 0`, a layer takes each token to

.. math::
    C_i = \{j : \langle A z_i, z_j \rangle = \max_l \langle A z_i, z_l \rangle\}, \quad
    z_i \leftarrow \frac{1}{1 + \alpha} \Bigl( z_i + \frac{\alpha}{|C_i|} \sum_{j \in C_i} z_j
    \Bigr) = z_i + \frac{\alpha}{1 + \alpha} (m_i - z_i)

where :math:`m_i` is the mean over :math:`C_i`. It is softmax attention at temperature zero, with
one head, key and query product A, value :math:`\alpha I`, and a division in place of a norm. With
a matrix V instead of :math:`\alpha` it is :math:`z_i \leftarrow (I + V)^{-1} (z_i + V m_i)`.

After A. Alcalde, G. Fantuzzi and E. Zuazua, "Clustering in pure-attention hardmax transformers and
its role in sentiment analysis" (arXiv 2407.01602). Which tokens the others follow says
:mod:`geomhooks.functional.hardmax.leaders`, where they all end
:mod:`geomhooks.functional.hardmax.polytopes`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from geomhooks.checks import is_number, is_whole
from geomhooks.functional.hardmax.token_arguments import (
    as_bool,
    as_states,
    as_valid,
    check_tolerance,
    what_is,
)
from geomhooks.functional.shapes import as_float

__all__ = [
    "HardTargets",
    "attended_means",
    "attention_scores",
    "form_norm",
    "hard_targets",
    "hardmax_path",
    "hardmax_step",
    "maximisers",
    "softmax_step",
    "step_gain",
]


class HardTargets(NamedTuple):
    """What each token attends to most."""

    targets: Tensor
    """(..., n) int64 index of the first maximiser; 0 where there is none"""
    ties: Tensor
    """(..., n) int64 number of maximisers, 0 of a token that sees none or whose scores are NaN"""


def attention_scores(states: Tensor, form: Tensor | None = None) -> Tensor:
    """The products that tokens choose by, <A z_i, z_j>.

    Args:
        states: (..., n, d).
        form: (d, d) A, by default the identity. It is taken as it is, symmetric or not.

    Returns:
        (..., n, n) a row for each i, in float32 at least.

    Example:
        >>> attention_scores(torch.tensor([[1.0, 0.0], [2.0, 1.0]]))
        tensor([[1., 2.],
                [2., 5.]])
    """
    states = as_float(states)
    return (states if form is None else states @ form.to(states).mT) @ states.mT


def maximisers(scores: Tensor, visible: Tensor | None = None, *, tolerance: float = 0.0) -> Tensor:
    """Which tokens each token attends to: all that have the largest score of its row.

    Args:
        scores: (..., n, m), a row for each token that looks; what it cannot see may be -inf.
        visible: bool, broadcast against the scores: (..., 1, m) of keys, or (..., n, m) of pairs.
            What is not visible may have any score, NaN too. Integers count as bool.
        tolerance: scores count as the largest from ``largest - tolerance |largest|`` on; 0 is exact
            equality.

    Returns:
        (..., n, m) bool. Nothing in a row that sees nothing, or that has a NaN.

    Raises:
        ValueError: the tolerance is no number from 0 on, or what is visible is no mask.

    Example:
        >>> maximisers(torch.tensor([[1.0, 3.0, 3.0], [2.0, 1.0, 0.0]]))
        tensor([[False,  True,  True],
                [ True, False, False]])
    """
    check_tolerance(tolerance)
    if visible is not None:
        scores = scores.masked_fill(~as_bool(visible, "visible"), -math.inf)
    top = scores.amax(-1, keepdim=True)
    least = top
    if tolerance:
        least = torch.where(top.isinf(), top, top - tolerance * top.abs())
    return (scores >= least) & (top > -math.inf)


def hard_targets(
    scores: Tensor, visible: Tensor | None = None, *, tolerance: float = 0.0
) -> HardTargets:
    """The first of the tokens that each token attends to most, and how many these are.

    No value is looked at on the host and no shape depends on one, as in all functions that take
    scores or targets here.

    Args:
        scores: (..., n, m), as :func:`maximisers` takes them, like the other arguments.
        visible: bool, broadcast against the scores.
        tolerance: relative to the largest score.

    Example:
        >>> hard_targets(torch.tensor([[1.0, 3.0, 3.0], [2.0, 1.0, 0.0]]))
        HardTargets(targets=tensor([1, 0]), ties=tensor([2, 1]))
    """
    chosen = maximisers(scores, visible, tolerance=tolerance)
    return HardTargets(chosen.to(torch.uint8).argmax(-1), chosen.sum(-1))


def hardmax_step(
    states: Tensor,
    step: float | Tensor,
    *,
    form: Tensor | None = None,
    valid: Tensor | None = None,
    tolerance: float = 0.0,
) -> Tensor:
    """Tokens after one layer of hardmax attention; see the head of this module.

    All that tie for the largest score are averaged over. With ``tolerance=0`` a tie is exact
    equality in floating point.

    Args:
        states: (..., n, d).
        step: alpha > 0, a number or a tensor () that may have a gradient; or (d, d) the matrix V.
        form: (d, d) A, symmetric and positive definite; by default the identity.
        valid: (..., n) bool, or integers, 0 for False. Other tokens are seen by none, and stay
            where they are.
        tolerance: relative to the largest score of a row.

    Returns:
        (..., n, d) in float32 at least.

    Raises:
        ValueError: shapes do not fit, the step is no positive number, I + V is singular, A is not
            symmetric and positive definite, the mask is of floats, or the tolerance is negative. A
            step that is a tensor () is waited for, to be looked at.

    Example: the first token attends to the second, which attends to itself.
        >>> hardmax_step(torch.tensor([[1.0, 0.0], [3.0, 0.0]]), 1.0)
        tensor([[2., 0.],
                [3., 0.]])
    """
    return hardmax_path(states, step, 1, form=form, valid=valid, tolerance=tolerance)[1]


def softmax_step(
    states: Tensor,
    step: float | Tensor,
    *,
    temperature: float,
    form: Tensor | None = None,
    valid: Tensor | None = None,
) -> Tensor:
    r"""The same layer with softmax of :math:`\langle A z_i, z_j \rangle / T` in place of hardmax.

    As the temperature T goes to zero it becomes :func:`hardmax_step`.

    Args:
        states: (..., n, d).
        step: as :func:`hardmax_step` has it, like the others.
        temperature: T > 0.
        form: (d, d) A.
        valid: (..., n) bool.

    Raises:
        ValueError: as :func:`hardmax_step`, or the temperature is not positive.

    Example:
        >>> states = torch.tensor([[1.0, 0.0], [3.0, 0.0]])
        >>> softmax_step(states, 1.0, temperature=1.0)
        tensor([[1.8808, 0.0000],
                [2.9975, 0.0000]])
    """
    return hardmax_path(states, step, 1, form=form, valid=valid, temperature=temperature)[1]


def hardmax_path(
    states: Tensor,
    step: float | Tensor,
    layers: int,
    *,
    form: Tensor | None = None,
    valid: Tensor | None = None,
    tolerance: float = 0.0,
    temperature: float | None = None,
) -> Tensor:
    """Tokens before the first layer and after each of several with the same weights.

    Args:
        states: (..., n, d).
        step: as :func:`hardmax_step` has it, like the others.
        layers: K.
        form: (d, d) A.
        valid: (..., n) bool.
        tolerance: of ties.
        temperature: of softmax in place of hardmax; None for hardmax.

    Returns:
        (K + 1, ..., n, d)

    Raises:
        ValueError: as :func:`hardmax_step` and :func:`softmax_step`, or ``layers`` is no
            integer from 0 on.

    Example:
        >>> hardmax_path(torch.tensor([[1.0, 0.0], [3.0, 0.0]]), 1.0, 2)[:, 0, 0]
        tensor([1.0000, 2.0000, 2.5000])
    """
    if not is_whole(layers) or layers < 0:
        raise ValueError(f"layers={layers!r}: an integer, 0 or more, is needed")
    if temperature is not None and not (is_number(temperature) and temperature > 0):
        raise ValueError(
            f"temperature={temperature!r}: a number above 0 is needed, and None for hardmax"
        )
    check_tolerance(tolerance)
    states = as_states(states)
    gain = step_gain(step, states)
    form = None if form is None else positive_definite(form, states)
    valid = as_valid(valid, states.shape[:-1])
    path = [states]
    for _ in range(layers):
        means = attended_means(
            path[-1], form=form, valid=valid, tolerance=tolerance, temperature=temperature
        )
        path.append(move(path[-1], means, gain, valid))
    return torch.stack(path)


def attended_means(
    states: Tensor,
    *,
    form: Tensor | None = None,
    valid: Tensor | None = None,
    tolerance: float = 0.0,
    temperature: float | None = None,
) -> Tensor:
    """The means m_i of what tokens attend to; the token itself where that is nothing.

    Args:
        states: (..., n, d).
        form: (d, d) A, which is not checked; by default the identity.
        valid: (..., n) bool. Other tokens are seen by none and attend to nobody.
        tolerance: of ties, relative to the largest score of a row.
        temperature: of softmax in place of hardmax; None for hardmax.

    Returns:
        (..., n, d)

    Example:
        >>> attended_means(torch.tensor([[1.0, 0.0], [3.0, 0.0]]))
        tensor([[3., 0.],
                [3., 0.]])
    """
    valid = as_valid(valid, states.shape[:-1])
    # What is not valid may be NaN, which is not to reach a sum with weight zero.
    seen = states if valid is None else states.masked_fill(~valid[..., None], 0)
    visible = None if valid is None else valid[..., None, :]
    scores = attention_scores(seen, form)
    if temperature is None:
        chosen = maximisers(scores, visible, tolerance=tolerance)
        means = (chosen.to(seen) @ seen) / chosen.sum(-1, keepdim=True).clamp(min=1)
        means = torch.where(chosen.any(-1, keepdim=True), means, seen)
    else:
        if visible is not None:
            scores = scores.masked_fill(~visible, torch.finfo(scores.dtype).min)
        means = (scores / temperature).softmax(-1) @ seen
    return means if valid is None else torch.where(valid[..., None], means, states)


def move(
    states: Tensor, means: Tensor, gain: Tensor | float, valid: Tensor | None = None
) -> Tensor:
    """Tokens after they went some of the way to their means; the gain is of :func:`step_gain`."""
    way = means - states
    # Exactly nothing where a token attends to itself alone, however long it does.
    moved = states + (way @ gain.mT if isinstance(gain, Tensor) and gain.ndim else gain * way)
    return moved if valid is None else torch.where(valid[..., None], moved, states)


def step_gain(step: float | Tensor, like: Tensor) -> Tensor | float:
    r"""How much of the way to its target a token goes: alpha / (1 + alpha), or (I + V)^{-1} V.

    Args:
        step: alpha, a number or a tensor (); or (d, d) the matrix V.
        like: states (..., n, d).

    Returns:
        a number, () or (d, d)

    Raises:
        ValueError: alpha is not positive and finite, V is not (d, d), or I + V is singular. To be
            looked at, a tensor is waited for.

    Example:
        >>> step_gain(1.0, torch.ones(1, 3))
        0.5
    """
    if not isinstance(step, Tensor) or step.ndim == 0:
        value = step.to(like).item() if isinstance(step, Tensor) else step
        if not (is_number(value) and 0 < value < math.inf):
            raise ValueError(f"step={value!r}: a positive number, or a matrix (d, d), is needed")
        if not isinstance(step, Tensor):
            return float(step / (1 + step))
        step = step.to(like)
        gain: Tensor = step / (1 + step)
        return gain
    step = step.to(like)
    width = like.shape[-1]
    if step.shape != (width, width):
        raise ValueError(
            f"step: a positive number or a matrix ({width}, {width}) is needed, found "
            f"{tuple(step.shape)}"
        )
    eye = torch.eye(width, dtype=step.dtype, device=step.device)
    solved, failed = torch.linalg.solve_ex(eye + step, step)
    if bool(failed) or not bool(solved.isfinite().all()):
        raise ValueError("step: I + V has no inverse; no eigenvalue of V may be -1")
    found: Tensor = solved
    return found


def form_norm(states: Tensor, form: Tensor | None = None) -> Tensor:
    """The A-norm of each token, sqrt(<A z, z>), which under hardmax attention never decreases.

    Args:
        states: (..., d).
        form: (d, d) A, symmetric and positive definite, which is not checked; by default the
            identity.

    Returns:
        (...)

    Example:
        >>> form_norm(torch.tensor([3.0, 4.0]), torch.diag(torch.tensor([1.0, 4.0])))
        tensor(8.5440)
    """
    states = as_float(states)
    taken = states if form is None else states @ form.to(states).mT
    return (taken * states).sum(-1).sqrt()


def positive_definite(form: Tensor, like: Tensor) -> Tensor:
    """A form as the states need it: of their type, and symmetric to the last digit.

    Raises:
        ValueError: it is not (d, d), not symmetric, or not positive definite, up to rounding.
    """
    width, needed = like.shape[-1], "form: a symmetric positive definite matrix"
    if not isinstance(form, Tensor) or form.shape != (width, width):
        raise ValueError(f"{needed} ({width}, {width}) is needed, found {what_is(form)}")
    form = form.detach().to(like)
    odd, largest = float((form - form.T).abs().max()), float(form.abs().max())
    rounding = 16 * width * torch.finfo(form.dtype).eps
    if not odd <= rounding * largest:
        raise ValueError(f"{needed} is needed, found entries that differ by {odd:.3g} across it")
    form = (form + form.T) / 2
    values = torch.linalg.eigvalsh(form)
    if not float(values[0]) > rounding / 16 * float(values[-1]):
        raise ValueError(
            f"{needed} is needed, found eigenvalues from {float(values[0]):.3g} to "
            f"{float(values[-1]):.3g}"
        )
    return form
