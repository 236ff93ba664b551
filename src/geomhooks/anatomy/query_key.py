"""Queries, keys and logits of a model's attention, split by the parts of its hidden states."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from geomhooks.anatomy.parts import Attention
from geomhooks.functional.attention.query_key import FrozenNorm, QueryKey, freeze_norm
from geomhooks.norms import NormModule

__all__ = ["freeze", "frozen", "query_key_of", "query_key_parts"]


def freeze(attention: Attention, hidden: Tensor) -> FrozenNorm | None:
    """The norm before attention as it acts on these states, or None where there is none.

    Args:
        attention: of one block.
        hidden: (..., T, d).
    """
    return None if attention.norm is None else frozen(attention.norm, hidden)


def frozen(norm: NormModule, states: Tensor) -> FrozenNorm:
    """A norm as it acts on states (..., d)."""
    gain, bias = norm.affine(states)
    return freeze_norm(states, gain, bias, eps=norm.eps, centred=norm.centred)


def query_key_of(attention: Attention, positions: Tensor) -> QueryKey:
    """What makes the logits of tokens at some positions.

    Args:
        attention: of one block.
        positions: (T,) or (..., T), for a rotary embedding.
    """
    return QueryKey(
        attention.query,
        attention.key,
        attention.scale,
        attention.causal,
        None if attention.norm is None else partial(frozen, attention.norm),
        None if attention.rotary is None else attention.rotary(positions),
        None if attention.query_norm is None else partial(frozen, attention.query_norm),
        None if attention.key_norm is None else partial(frozen, attention.key_norm),
        attention.distance,
        attention.window,
        attention.softcap,
    )


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
    if positions is None:
        positions = torch.arange(parts.shape[-2], device=parts.device)
    return query_key_of(attention, positions).project(parts)
