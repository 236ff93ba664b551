"""What sparse coding is given, as it needs it, and errors that say what is wrong with it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from geomhooks.checks import is_number
from geomhooks.functional.shapes import as_float, as_matrix


def fitting(
    hidden: Tensor, dictionary: Tensor, penalty: float | Tensor, codes: Tensor
) -> tuple[Tensor, Tensor, float | Tensor, Tensor]:
    """In one type, float32 at least, with a penalty that goes with codes.

    Raises:
        ValueError: shapes do not fit.
    """
    check_hidden(hidden, dictionary)
    if codes.shape[-1:] != dictionary.shape[:1]:
        raise ValueError(
            f"codes of {len(dictionary)} factors are needed, found shape {tuple(codes.shape)}"
        )
    check_penalty(penalty, hidden)
    kind = as_float(hidden).dtype
    for other in (dictionary, codes):
        kind = torch.promote_types(kind, as_float(other).dtype)
    if isinstance(penalty, Tensor):
        penalty = penalty.to(kind)
        penalty = penalty[..., None] if penalty.ndim else penalty
    return hidden.to(kind), dictionary.to(kind), penalty, codes.to(kind)


def check_hidden(hidden: Tensor, dictionary: Tensor) -> None:
    """Raise unless hidden states and a dictionary go together.

    Raises:
        ValueError: they do not.
    """
    as_matrix(dictionary, "dictionary", "(F, d)")
    if hidden.ndim == 0 or hidden.shape[-1] != dictionary.shape[1]:
        raise ValueError(
            f"hidden states (..., {dictionary.shape[1]}) are needed for a dictionary "
            f"{tuple(dictionary.shape)}, found shape {tuple(hidden.shape)}"
        )
    if hidden.device != dictionary.device:
        raise ValueError(
            f"hidden states on {hidden.device} and a dictionary on {dictionary.device}: bring it "
            "there with .to(device)"
        )


def check_penalty(penalty: float | Tensor, hidden: Tensor | None = None) -> None:
    """Raise unless it is a penalty; the numbers of a tensor are not looked at.

    Raises:
        ValueError: it is below 0 or not finite, or of a shape that does not fit.
    """
    if isinstance(penalty, Tensor):
        if hidden is not None and penalty.ndim and penalty.shape != hidden.shape[:-1]:
            raise ValueError(
                f"penalty: one number or shape {tuple(hidden.shape[:-1])} is needed, found "
                f"{tuple(penalty.shape)}"
            )
    elif not is_number(penalty) or not 0 <= penalty < math.inf:
        raise ValueError(f"penalty={penalty!r:.80}: a number of at least 0 is needed")


def check_values(penalty: float | Tensor) -> None:
    """Raise unless the numbers of a tensor are penalties; the host waits for the device.

    Raises:
        ValueError: one of them is below 0 or not finite.
    """
    if not isinstance(penalty, Tensor) or penalty.is_meta:
        return
    wrong = penalty[~((penalty >= 0) & torch.isfinite(penalty))]
    if len(wrong):
        raise ValueError(
            f"penalty: numbers of at least 0 are needed, found {float(wrong[0]):.6g} among "
            f"{penalty.numel()}"
        )


def check_finite(dictionary: Tensor) -> None:
    """Raise unless the numbers of a dictionary are finite; the host waits for the device.

    Raises:
        ValueError: one of them is not.
    """
    if dictionary.is_meta:
        return
    wrong = (~torch.isfinite(dictionary)).nonzero()
    if len(wrong):
        row, column = wrong[0].tolist()
        raise ValueError(
            f"dictionary: finite numbers are needed, found {float(dictionary[row, column])} in row "
            f"{row}, and {len(wrong)} such in all"
        )
