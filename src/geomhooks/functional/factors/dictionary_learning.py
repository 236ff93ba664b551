r"""Learning a dictionary from sparse codes, and saying how alike and how good dictionaries are.

The update is that of Z. Yun, Y. Chen, B. Olshausen, Y. LeCun, "Transformer visualization via
dictionary learning" (arXiv 2103.15949): a gradient step whose length for each factor is by a
running mean of its squared activation, the diagonal of the Hessian. A row is a factor.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from geomhooks.errors import MissingExtraError
from geomhooks.functional.cosines import cosines, unit_rows
from geomhooks.functional.shapes import as_float, as_matrix

__all__ = [
    "DictionaryMatch",
    "DictionaryStep",
    "dictionary_step",
    "initial_dictionary",
    "largest_projections",
    "match_dictionaries",
    "word_weights",
]

STEP, DAMPING, LENGTH = 0.005, 0.001, 300
UNIT = 1e-3  # by how much the length of a row may differ from 1


class DictionaryStep(NamedTuple):
    """What one mini-batch makes of a dictionary."""

    dictionary: Tensor
    """(F, d) rows of length 1"""
    hessian: Tensor
    """(F,) running mean of the squared activations"""


class DictionaryMatch(NamedTuple):
    """Which factor of another dictionary each factor is most like."""

    cosines: Tensor
    """(F,) with that factor; NaN where none is left for it"""
    indices: Tensor
    """(F,) int64 its row, -1 where none is left"""


def initial_dictionary(factors: int, width: int, *, seed: int = 0) -> Tensor:
    """Directions (F, d) that are uniform on the sphere: Gaussian rows over their lengths.

    Drawn on the CPU by a generator of its own, so that a seed gives the same rows on every device.

    Args:
        factors: F.
        width: d.
        seed: of the generator.

    Raises:
        ValueError: there is no such dictionary.

    Example:
        >>> initial_dictionary(5, 3).square().sum(1).round()
        tensor([1., 1., 1., 1., 1.])
    """
    if factors < 1 or width < 1:
        raise ValueError(f"a dictionary of {factors} factors of width {width}: both at least 1")
    generator = torch.Generator().manual_seed(seed)
    return unit_rows(torch.randn(factors, width, generator=generator, device="cpu"))


def word_weights(counts: Tensor) -> Tensor:
    r"""How much the tokens of a word count, :math:`1 / \sqrt{n}` for one seen n times; 1 if unseen.

    So that the few most frequent words do not make the dictionary between them.

    Args:
        counts: (...) occurrences of each token's word.

    Example:
        >>> word_weights(torch.tensor([100, 1, 0]))
        tensor([0.1000, 1.0000, 1.0000])
    """
    return counts.clamp(min=1).to(torch.get_default_dtype()).rsqrt()


def dictionary_step(
    dictionary: Tensor,
    hessian: Tensor,
    codes: Tensor,
    residual: Tensor,
    weights: Tensor | None = None,
    *,
    step: float = STEP,
    damping: float = DAMPING,
    length: float = LENGTH,
    weight: Tensor | float = 1.0,
) -> DictionaryStep:
    r"""Move each factor towards what mini-batches leave of the states that use it.

    With n states, codes a, residuals r and weights w, and :math:`\tau` the length of the mean,

    .. math::
        h_c &\leftarrow (1 - 1/\tau)\, h_c + \tfrac{1}{\tau n} \sum_j a_{jc}^2 \\
        D_c &\leftarrow D_c + \frac{\eta}{h_c / v + \delta}\, \tfrac{1}{n} \sum_j w_j a_{jc} r_j,

    and then each row over its length. The weights count for the factors only, not for h.

    A factor that was not in use for long moves by some :math:`\eta \tau` of the way to where a
    mini-batch alone would have it, 1.5 as published: greater steps go with shorter means.

    Args:
        dictionary: (F, d).
        hessian: (F,) h so far; zeros at first.
        codes: (n, F).
        residual: (n, d) the states less what the codes stand for.
        weights: (n,), by default 1, such as :func:`word_weights`.
        step: :math:`\eta`.
        damping: :math:`\delta`, in units of squared activations.
        length: :math:`\tau`, in mini-batches.
        weight: v, what h is divided by: 1 as published, and then the first steps are long; or
            :math:`1 - (1 - 1/\tau)^k` at the k-th mini-batch, by which a mean from zero is off.

    Raises:
        ValueError: shapes do not fit.

    Example:
        >>> codes, states = torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0, 1.0], [2.0, 2.0]])
        >>> made = torch.tensor([[1.0, 0.0]]), torch.zeros(1)
        >>> found = dictionary_step(*made, codes, states - codes @ made[0], step=0.01, length=100)
        >>> found.hessian, found.dictionary  # towards (1, 1)
        (tensor([0.0250]), tensor([[0.7208, 0.6931]]))
    """
    factors, width = dictionary.shape
    shapes = {
        "hessian": (hessian, (factors,)),
        "codes": (codes, (len(codes), factors)),
        "residual": (residual, (len(codes), width)),
        "weights": (weights, (len(codes),)),
    }
    for name, (tensor, shape) in shapes.items():
        if tensor is not None and tensor.shape != shape:
            raise ValueError(
                f"{name}: shape {shape} is needed for a dictionary {tuple(dictionary.shape)}, "
                f"found {tuple(tensor.shape)}"
            )
    hessian = torch.lerp(hessian, codes.square().mean(0), 1 / length)
    weighted = residual if weights is None else residual * weights[:, None]
    gradient = codes.T @ weighted / len(codes)
    moved = dictionary + step * gradient / (hessian / weight + damping)[:, None]
    return DictionaryStep(unit_rows(moved), hessian)


def match_dictionaries(
    dictionary: Tensor, other: Tensor, *, one_to_one: bool = True
) -> DictionaryMatch:
    """Which factors of two dictionaries are the same, by cosine.

    Args:
        dictionary: (F, d).
        other: (G, d).
        one_to_one: no factor of the other is matched twice, and the sum of all cosines is largest
            (the Hungarian algorithm, which needs scipy); else each factor has its nearest.

    Raises:
        ValueError: shapes do not fit.
        MissingExtraError: scipy is not installed.

    Example:
        >>> match_dictionaries(torch.eye(3)[[2, 0]], torch.eye(3))
        DictionaryMatch(cosines=tensor([1., 1.]), indices=tensor([2, 0]))
    """
    every = cosines(dictionary, other)
    if not one_to_one:
        return DictionaryMatch(*every.max(1))
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError as error:
        raise MissingExtraError(
            "match_dictionaries needs scipy: pip install 'geomhooks[compare]'; or give "
            "one_to_one=False"
        ) from error
    rows, columns = map(torch.from_numpy, linear_sum_assignment(every.cpu().numpy(), maximize=True))
    indices = torch.full((len(every),), -1, device=every.device)
    found = torch.full_like(every[:, 0], torch.nan)
    indices[rows] = columns.to(every.device)
    found[rows] = every[rows, columns]
    return DictionaryMatch(found, indices)


def largest_projections(hidden: Tensor, basis: Tensor, number: Tensor | int) -> Tensor:
    r"""States by few coefficients in an orthonormal basis: the best there is of as many.

    What sparse codes with as many activations are to be compared with. The coefficients may have
    either sign and are not shrunk, which is an advantage over sparse codes.

    Args:
        hidden: (N, d), less their mean where the basis is of what is left without it.
        basis: (K, d) orthonormal rows, such as principal directions.
        number: of coefficients that each state may have, one number or (N,) of them.

    Returns:
        (N, d) what these coefficients stand for.

    Raises:
        ValueError: shapes do not fit.

    Example:
        >>> largest_projections(torch.tensor([[3.0, -4.0, 1.0]]), torch.eye(3), 2)
        tensor([[ 3., -4.,  0.]])
    """
    hidden, basis = as_matrix(hidden, "hidden", "(N, d)"), as_matrix(basis, "basis", "(K, d)")
    if hidden.shape[1] != basis.shape[1]:
        raise ValueError(
            f"hidden {tuple(hidden.shape)} and basis {tuple(basis.shape)} differ in width"
        )
    if isinstance(number, Tensor) and number.shape != hidden.shape[:1]:
        raise ValueError(
            f"number: one or shape ({len(hidden)},) is needed, found {tuple(number.shape)}"
        )
    coefficients = as_float(hidden @ basis.to(hidden).T)
    order = coefficients.abs().argsort(1, descending=True).argsort(1)
    kept = order < (number[:, None] if isinstance(number, Tensor) else number)
    found: Tensor = torch.where(kept, coefficients, 0.0) @ basis.to(hidden)
    return found


def problem_of_rows(dictionary: Tensor) -> str | None:
    """What is wrong with the rows of a dictionary."""
    lengths = torch.linalg.vector_norm(dictionary, dim=1)
    wrong = (~((lengths - 1).abs() <= UNIT)).nonzero()[:, 0]
    if not len(wrong):
        return None
    row = int(wrong[0])
    return (
        f"dictionary: rows of length 1 are needed, and {len(wrong)} of {len(lengths)} are not, the "
        f"first of them row {row} with length {float(lengths[row]):.6g}; "
        "geomhooks.functional.unit_rows makes them so"
    )
