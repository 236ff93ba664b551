"""What functions of tokens are given, as they need it, and errors that say what is wrong with it.

No value of a tensor is looked at.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from geomhooks.checks import is_number
from geomhooks.functional.shapes import as_float

__all__ = ["as_bool", "as_states", "as_valid", "check_tolerance", "what_is"]


def what_is(value: Any) -> str:
    """The shape of a tensor, and of something else its type, for messages."""
    return str(tuple(value.shape)) if isinstance(value, Tensor) else type(value).__name__


def check_tolerance(tolerance: float, name: str = "tolerance") -> None:
    """Raise unless it is a number from 0 on.

    Raises:
        ValueError: it is something else.
    """
    # Not isfinite: compilers know comparisons.
    if not is_number(tolerance) or not 0 <= tolerance < math.inf:
        raise ValueError(f"{name}={tolerance!r}: a finite number, 0 or more, is needed")


def as_states(states: Any, name: str = "states", shape: str = "(..., n, d)") -> Tensor:
    """States of one token or more, in float32 at least.

    Args:
        states: to be looked at.
        name: what the caller calls it.
        shape: what the caller needs, with a name for each dimension that must be there.

    Raises:
        ValueError: it is no tensor, has too few dimensions, or no token.
    """
    needed = shape.count(",") + (0 if "..." in shape else 1)
    if not isinstance(states, Tensor) or states.ndim < needed or 0 in states.shape[-2:]:
        raise ValueError(f"{name}: shape {shape} is needed, found {what_is(states)}")
    return as_float(states)


def as_bool(mask: Any, name: str) -> Tensor:
    """A mask of truth values: those given, or integers that are not 0, as attention masks have.

    Raises:
        ValueError: it is neither.
    """
    if not isinstance(mask, Tensor) or mask.is_floating_point() or mask.is_complex():
        found = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise ValueError(
            f"{name}: a tensor of bool, or of integers 0 and 1, is needed, found {found}"
        )
    return mask if mask.dtype == torch.bool else mask != 0


def as_valid(valid: Any, shape: Sequence[int]) -> Tensor | None:
    """Which tokens count, (..., n) bool of the tokens' own shape; None where none is given.

    Args:
        valid: bool or integers, broadcast to the shape but for n.
        shape: (..., n) of the tokens.

    Raises:
        ValueError: it is something else, or of another shape.
    """
    if valid is None:
        return None
    valid, own = as_bool(valid, "valid"), tuple(shape)
    lead = own[len(own) - valid.ndim :]
    if not 1 <= valid.ndim <= len(own) or valid.shape[-1] != own[-1]:
        fits = False
    else:
        fits = all(a in (1, b) for a, b in zip(valid.shape, lead, strict=True))
    if not fits:
        raise ValueError(
            f"valid: a bool for each token of {own} is needed, found {tuple(valid.shape)}"
        )
    expanded: Tensor = valid.expand(own)
    return expanded
