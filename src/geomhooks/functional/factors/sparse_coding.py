r"""Hidden states as sparse, non-negative sums of the factors of a dictionary.

A hidden state x is written as :math:`x \approx \sum_c a_c D_c` with few activations
:math:`a_c \ge 0` that are not zero (Z. Yun, Y. Chen, B. Olshausen, Y. LeCun, "Transformer
visualization via dictionary learning", arXiv 2103.15949). Dictionaries are (F, d), a row a factor,
usually of length 1; the published code has a column a factor.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from geomhooks.checks import is_number, is_whole
from geomhooks.functional.factors.coding_checks import (
    check_finite,
    check_hidden,
    check_penalty,
    check_values,
)
from geomhooks.functional.factors.coding_quality import gap_of
from geomhooks.functional.precision import precision_on, without_autocast
from geomhooks.functional.shapes import as_float, as_matrix

__all__ = [
    "SparseCoder",
    "sparse_codes",
]

CHECK = 10  # steps between two looks at the duality gap
SQUARINGS = 8  # the largest eigenvalue is bounded to rank^(1 / 512), 1.6 % for 4096 dimensions
ROUNDING = 1e-5


@dataclass(frozen=True, eq=False)
class SparseCoder:
    r"""Codes of hidden states in one dictionary; what depends on the dictionary alone is kept.

    The minimum of :math:`\frac12 |x - a D|^2 + \lambda |a|_1` over :math:`a \ge 0` is approached by
    accelerated proximal gradients (FISTA; A. Beck, M. Teboulle, 2009) from a = 0:
    :math:`a \leftarrow \max(0, y + (y' D^\top - \lambda) / L)` with y' the residual of the
    extrapolated codes y, and L the largest eigenvalue of :math:`D D^\top`. L is taken from above,
    to within two percent, without waiting for the device. Where the dictionary has fewer than 2 d
    factors, steps multiply by :math:`D D^\top`, else twice by D, whichever is less work.

    Codes of a token do not depend on the tokens beside it, but for rounding. With a fixed number of
    iterations nothing waits for the device, so that it can be called in a hook. Where torch is set
    to multiply float32 with fewer digits (TF32), products are in float64.

    Args:
        dictionary: (F, d), a row a factor.
        penalty: :math:`\lambda`, at least 0; or a tensor () of it.
        relative: the penalty is in units of the length of each hidden state, so that one setting
            serves layers and models whose states are of different length; the codes of s x are then
            s times those of x. Else, as published, in units of the states.
        iterations: how many steps; 500 is what the published training takes.
        tolerance: stop, for each token apart, when its duality gap is below this share of
            :math:`\frac12 |x|^2`, looked at after every ten steps. The host waits for the device.

    Attributes:
        step: () 1 / L.

    Raises:
        ValueError: the dictionary is no matrix of finite numbers, or an argument is not what it has
            to be.

    Example:
        >>> coder = SparseCoder(torch.eye(3), penalty=0.5)
        >>> codes = coder(torch.tensor([[2.0, 0.4, -1.0]]))
        >>> codes, coder.decode(codes)
        (tensor([[1.5000, 0.0000, 0.0000]]), tensor([[1.5000, 0.0000, 0.0000]]))
    """

    dictionary: Tensor
    penalty: float | Tensor
    relative: bool = False
    iterations: int = 500
    tolerance: float | None = None
    step: Tensor = field(init=False, repr=False)
    _transition: Tensor | None = field(init=False, repr=False)
    _scaled: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        as_matrix(self.dictionary, "dictionary", "(F, d)")
        check_finite(self.dictionary)
        check_penalty(self.penalty)
        check_values(self.penalty)
        if isinstance(self.penalty, Tensor) and self.penalty.ndim:
            raise ValueError(
                f"penalty: one number is needed, found shape {tuple(self.penalty.shape)}; one for "
                "each token is for sparse_codes"
            )
        if not isinstance(self.relative, bool):
            raise ValueError(f"relative={self.relative!r:.80}: True or False is needed")
        if not is_whole(self.iterations) or self.iterations < 1:
            raise ValueError(f"iterations={self.iterations!r}: a positive integer is needed")
        if self.tolerance is not None and not (is_number(self.tolerance) and self.tolerance > 0):
            raise ValueError(f"tolerance={self.tolerance!r}: None or a positive number is needed")
        self._prepare()

    @classmethod
    def trusted(
        cls,
        dictionary: Tensor,
        penalty: float | Tensor,
        relative: bool = False,
        iterations: int = 500,
        tolerance: float | None = None,
    ) -> SparseCoder:
        """Of arguments that are known to be good, without a look for which the host would wait."""
        made = object.__new__(cls)
        given = dictionary, penalty, relative, iterations, tolerance
        names = "dictionary", "penalty", "relative", "iterations", "tolerance"
        for name, value in zip(names, given, strict=True):
            object.__setattr__(made, name, value)
        made._prepare()
        return made

    @torch.no_grad()
    def _prepare(self) -> None:
        """Keep what depends on the dictionary alone."""
        dictionary = as_float(self.dictionary.detach())
        # With all digits, whatever torch is set to: it decides whether steps go downhill.
        exact = exactly(dictionary)
        factors, width = dictionary.shape
        gram = exact @ exact.T if factors < 2 * width else None
        smaller = exact.T @ exact if factors >= width or gram is None else gram
        step = 1 / largest_eigenvalue(smaller).clamp(min=torch.finfo(exact.dtype).tiny)
        transition = None
        if gram is not None:
            transition = torch.eye(factors, dtype=gram.dtype, device=gram.device) - step * gram
            transition = transition.to(dictionary.dtype)
        made = {
            "dictionary": dictionary,
            "step": step.to(dictionary.dtype),
            "_transition": transition,
            "_scaled": (exact.T * step).to(dictionary.dtype),
        }
        for name, value in made.items():
            object.__setattr__(self, name, value)

    @property
    def factors(self) -> int:
        """How many there are, F."""
        return self.dictionary.shape[0]

    @property
    def width(self) -> int:
        """Of the hidden states, d."""
        return self.dictionary.shape[1]

    @torch.no_grad()
    def __call__(self, hidden: Tensor) -> Tensor:
        """Codes (..., F) of hidden states (..., d), in float32 at least; no gradient flows.

        Raises:
            ValueError: the states are of another width, or on another device.
        """
        check_hidden(hidden, self.dictionary)
        return self._codes(hidden, self.penalty_of(hidden))

    @torch.no_grad()
    def penalty_of(self, hidden: Tensor) -> float | Tensor:
        """The penalty in units of the states: one number, or of (..., d) states (...) of them."""
        if not self.relative:
            return self.penalty
        length: Tensor = torch.linalg.vector_norm(hidden.to(self.dictionary.dtype), dim=-1)
        return length * self.penalty

    def decode(self, codes: Tensor) -> Tensor:
        """The states (..., d) that codes (..., F) stand for."""
        return codes.to(self.dictionary.dtype) @ self.dictionary

    def to(self, device: torch.device | str) -> SparseCoder:
        """The same coder on another device."""
        penalty = self.penalty
        if isinstance(penalty, Tensor):
            penalty = penalty.to(device)
        dictionary = self.dictionary.to(device)
        how = self.relative, self.iterations, self.tolerance
        return SparseCoder.trusted(dictionary, penalty, *how)

    def _codes(self, hidden: Tensor, penalty: float | Tensor) -> Tensor:
        """Codes for a penalty in units of the states, one or (...) of them."""
        kind = self.dictionary.dtype
        rows = exactly(hidden.reshape(-1, self.width).to(kind))
        if isinstance(penalty, Tensor):
            penalty = penalty.to(rows)
            if penalty.ndim:
                penalty = penalty.expand(hidden.shape[:-1]).reshape(-1, 1)
        find = self._fixed if self.tolerance is None else self._until
        with without_autocast(rows.device):
            codes = find(rows, penalty)
        return codes.to(kind).view(*hidden.shape[:-1], self.factors)

    def _fixed(self, rows: Tensor, penalty: float | Tensor) -> Tensor:
        """After the given number of steps."""
        advance = self._advance(rows, penalty)
        codes = ahead = rows.new_zeros(len(rows), self.factors)
        time = 1.0
        for _ in range(self.iterations):
            codes, ahead, time = extrapolate(advance(ahead), codes, time)
        return codes

    def _until(self, rows: Tensor, penalty: float | Tensor) -> Tensor:
        """Until the gap of each is small; those that are done leave the others."""
        assert self.tolerance is not None
        dictionary = self.dictionary.to(rows)
        found = rows.new_zeros(len(rows), self.factors)
        going = torch.arange(len(rows), device=rows.device)
        advance = self._advance(rows, penalty)
        codes = ahead = found
        time = 1.0
        for number in range(1, self.iterations + 1):
            if not len(going):
                break
            codes, ahead, time = extrapolate(advance(ahead), codes, time)
            if number % CHECK and number < self.iterations:
                continue
            gap = gap_of(rows, dictionary, penalty, codes)
            # False for what is not finite: no number of steps helps it.
            far = gap > self.tolerance / 2 * rows.square().sum(-1)
            found[going] = codes
            if not bool(far.all()):
                going, rows, codes, ahead = going[far], rows[far], codes[far], ahead[far]
                if isinstance(penalty, Tensor) and penalty.ndim:
                    penalty = penalty[far]
                advance = self._advance(rows, penalty)
        return found

    def _advance(self, rows: Tensor, penalty: float | Tensor) -> Callable[[Tensor], Tensor]:
        """One step from codes y: max(0, y + step ((x - y D) D.T - penalty))."""
        scaled, offset = self._scaled.to(rows), self.step.to(rows) * penalty
        if self._transition is not None:
            transition, base = self._transition.to(rows), rows @ scaled - offset
            return lambda ahead: torch.addmm(base, ahead, transition).clamp_(min=0)
        dictionary = self.dictionary.to(rows)

        def advance(ahead: Tensor) -> Tensor:
            residual = torch.addmm(rows, ahead, dictionary, alpha=-1)
            return torch.addmm(ahead - offset, residual, scaled).clamp_(min=0)

        return advance


def sparse_codes(
    hidden: Tensor,
    dictionary: Tensor,
    penalty: float | Tensor,
    *,
    iterations: int = 500,
    tolerance: float | None = None,
) -> Tensor:
    r"""Non-negative sparse codes, :math:`\min_{a \ge 0} \frac12 |x - a D|^2 + \lambda |a|_1`.

    By :class:`SparseCoder`, which is to be kept where one dictionary is used several times.

    Args:
        hidden: (..., d).
        dictionary: (F, d), a row a factor.
        penalty: :math:`\lambda`, or one for each hidden state, (...).
        iterations: how many steps, at most if there is a tolerance.
        tolerance: stop where the duality gap is below this share of :math:`\frac12 |x|^2`.

    Returns:
        (..., F), in float32 at least.

    Raises:
        ValueError: shapes do not fit, or an argument is not what it has to be.

    Example:
        >>> hidden = torch.tensor([[2.0, 0.4, -1.0], [0.2, 3.0, 1.0]])
        >>> sparse_codes(hidden, torch.eye(3), 0.5)
        tensor([[1.5000, 0.0000, 0.0000],
                [0.0000, 2.5000, 0.5000]])
        >>> sparse_codes(hidden, torch.eye(3), torch.tensor([0.0, 1.0]))
        tensor([[2.0000, 0.4000, 0.0000],
                [0.0000, 2.0000, 0.0000]])
    """
    kind = torch.promote_types(as_float(hidden).dtype, as_float(dictionary).dtype)
    check_hidden(hidden, dictionary)
    check_penalty(penalty, hidden)
    if isinstance(penalty, Tensor) and penalty.ndim:  # that of a state which is not finite may be
        check_values(penalty[torch.isfinite(hidden).all(-1)])
    else:
        check_values(penalty)
    coder = SparseCoder(dictionary.to(kind), 0.0, iterations=iterations, tolerance=tolerance)
    with torch.no_grad():
        return coder._codes(hidden, penalty)


def extrapolate(new: Tensor, codes: Tensor, time: float) -> tuple[Tensor, Tensor, float]:
    """The new codes, those that the next step starts from, and the next step's time."""
    later = (1 + math.sqrt(1 + 4 * time * time)) / 2
    return new, torch.lerp(codes, new, 1 + (time - 1) / later), later


def largest_eigenvalue(matrix: Tensor) -> Tensor:
    """A bound on the largest eigenvalue of a positive semidefinite matrix, from above and close.

    The Frobenius norm of G^k to the power of 1 / k, with k a power of two.
    """
    tiny = torch.finfo(matrix.dtype).tiny
    size = torch.linalg.matrix_norm(matrix).clamp(min=tiny)
    power, logarithm = matrix / size, size.log()
    for _ in range(SQUARINGS):
        power = power @ power
        size = torch.linalg.matrix_norm(power).clamp(min=tiny)
        power, logarithm = power / size, 2 * logarithm + size.log()
    return torch.exp(logarithm / 2**SQUARINGS) * (1 + ROUNDING)


def exactly(tensor: Tensor) -> Tensor:
    """In a type in which matrix products keep float32's digits, whatever torch is set to."""
    if tensor.dtype == torch.float64 or precision_on(tensor.device) == "highest":
        return tensor
    return tensor.double()
