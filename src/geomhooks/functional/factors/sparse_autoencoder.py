r"""Sparse autoencoders: codes of hidden states by one linear map, where a dictionary takes steps.

Codes are :math:`a = \sigma((x - b_d) W_e + b_e)` and stand for :math:`a W_d + b_d`. The
:math:`\sigma` of the first ones is ReLU (T. Bricken et al., "Towards monosemanticity", 2023);
others keep what is above a threshold of its own (S. Rajamanoharan et al., "Jumping ahead", arXiv
2407.14435), or the k largest of each token (L. Gao et al., "Scaling and evaluating sparse
autoencoders", arXiv 2406.04093).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from geomhooks.functional.shapes import as_float

__all__ = ["SparseAutoencoder"]


@dataclass(frozen=True, eq=False)
class SparseAutoencoder:
    """A sparse autoencoder of plain tensors, as files of weights have them.

    It is a callable from hidden states (..., d) to codes (..., F), none of them below zero. Objects
    with ``encode`` and ``decode`` of their own, as those of SAELens are, need it not.

    Args:
        encoder: (d, F) the weight that codes are made with.
        dictionary: (F, d) the decoder's weight, a row a factor.
        encoder_bias: (F,), or None for zero.
        bias: (d,) the decoder's bias, or None for zero.
        centred: the decoder's bias is taken off hidden states before they are encoded.
        threshold: (F,) above which an activation is kept; None keeps what is positive.
        largest: keep so many of each hidden state's activations; None keeps all.

    Raises:
        ValueError: shapes do not fit together.

    Example:
        >>> coder = SparseAutoencoder(torch.eye(2), torch.eye(2), bias=torch.tensor([1.0, 0.0]))
        >>> codes = coder(torch.tensor([[3.0, -1.0]]))
        >>> codes, coder.decode(codes)
        (tensor([[2., 0.]]), tensor([[3., 0.]]))
    """

    encoder: Tensor
    dictionary: Tensor
    encoder_bias: Tensor | None = None
    bias: Tensor | None = None
    centred: bool = True
    threshold: Tensor | None = None
    largest: int | None = None

    def __post_init__(self) -> None:
        if self.dictionary.ndim != 2:
            raise ValueError(
                f"dictionary: shape (F, d) is needed, found {tuple(self.dictionary.shape)}"
            )
        factors, width = self.dictionary.shape
        wanted = {
            "encoder": (width, factors),
            "encoder_bias": (factors,),
            "bias": (width,),
            "threshold": (factors,),
        }
        for name, shape in wanted.items():
            tensor = getattr(self, name)
            if tensor is not None and tuple(tensor.shape) != shape:
                raise ValueError(
                    f"{name}: shape {shape} is needed beside a dictionary {(factors, width)}, "
                    f"found {tuple(tensor.shape)}"
                )
        if self.largest is not None and not 1 <= self.largest <= factors:
            raise ValueError(f"largest={self.largest!r}: from 1 to the {factors} factors is needed")

    @property
    def factors(self) -> int:
        """How many factors, F."""
        return self.dictionary.shape[0]

    @property
    def width(self) -> int:
        """The width d."""
        return self.dictionary.shape[1]

    @torch.no_grad()
    def __call__(self, hidden: Tensor) -> Tensor:
        """Codes (..., F) of hidden states (..., d), in float32 at least; no gradient flows."""
        hidden = as_float(hidden)
        weight = as_float(self.encoder)
        kind = torch.promote_types(hidden.dtype, weight.dtype)
        hidden, weight = hidden.to(kind), weight.to(kind)
        if self.centred and self.bias is not None:
            hidden = hidden - self.bias
        before = hidden @ weight
        if self.encoder_bias is not None:
            before = before + self.encoder_bias
        kept = before > (0 if self.threshold is None else self.threshold)
        codes = torch.where(kept, before, 0.0).clamp(min=0)
        if self.largest is not None:
            values, at = codes.topk(self.largest, -1)
            codes = torch.zeros_like(codes).scatter_(-1, at, values)
        return codes

    def decode(self, codes: Tensor) -> Tensor:
        """The states (..., d) that codes (..., F) stand for."""
        codes = as_float(codes)
        decoded = codes @ self.dictionary.to(codes.dtype)
        return decoded if self.bias is None else decoded + self.bias

    def to(self, device: torch.device | str) -> SparseAutoencoder:
        """The same on another device."""
        moved: dict[str, Any] = {
            name: value.to(device)
            for name, value in vars(self).items()
            if isinstance(value, Tensor)
        }
        return replace(self, **moved)
