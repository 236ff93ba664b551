"""Queries, keys and logits of a model's attention, split by the parts of its hidden states."""

from __future__ import annotations

import torch
from torch import Tensor

from geomhooks.anatomy.describing import Attention
from geomhooks.functional.query_key import FrozenNorm, freeze_norm, project_parts

__all__ = ["freeze", "query_key_parts"]


def freeze(attention: Attention, hidden: Tensor) -> FrozenNorm | None:
    """The norm before attention as it acts on these states, or None where there is none.

    Args:
        attention: of one block.
        hidden: (..., T, d).
    """
    norm = attention.norm
    if norm is None:
        return None
    gain, bias = norm.affine(hidden)
    return freeze_norm(hidden, gain, bias, eps=norm.eps, centred=norm.centred)


def query_key_parts(
    attention: Attention, parts: Tensor, positions: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Queries and keys of the parts of hidden states, and of the biases.

    The logits are :func:`geomhooks.functional.query_key_logits` of both and ``attention.scale``;
    added up over the parts of query and key they are the model's own.

    Args:
        attention: of one block.
        parts: (P, ..., T, d) that add up to the hidden states at ``attention.site``.
        positions: (T,) or (..., T) of the tokens, for a rotary embedding; by default 0 to T - 1.

    Returns:
        (P + 1, ..., H, T, k) and (P + 1, ..., G, T, k); the last is the biases'.
    """
    norm = freeze(attention, parts.sum(0))
    rotary = None
    if attention.rotary is not None:
        if positions is None:
            positions = torch.arange(parts.shape[-2], device=parts.device)
        rotary = attention.rotary(positions)
    return (
        project_parts(parts, *attention.query, norm, rotary),
        project_parts(parts, *attention.key, norm, rotary),
    )
