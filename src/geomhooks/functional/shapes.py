"""Tensors as the functions here need them, and errors that say what is wrong with others."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["as_float", "as_matrix"]


def as_float(tensor: Tensor) -> Tensor:
    """In float32 at least, because LAPACK knows no narrower numbers."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def as_matrix(tensor: Tensor, name: str, shape: str = "(T, d)") -> Tensor:
    """A matrix, one row or more, in float32 at least.

    Args:
        tensor: to be looked at.
        name: what the caller calls it.
        shape: what the caller needs, for the message.

    Raises:
        ValueError: it is not a matrix, or it is empty.
    """
    if not isinstance(tensor, Tensor):
        raise ValueError(
            f"{name}: a tensor {shape} is needed, found {type(tensor).__name__}; torch.as_tensor "
            "makes one of arrays and lists"
        )
    if tensor.ndim != 2 or tensor.numel() == 0:
        raise ValueError(f"{name}: shape {shape} is needed, found {tuple(tensor.shape)}")
    return as_float(tensor)
