"""What a block does, done again with the parts that were found: by plain tensors, dense.

That it comes out the same is how one knows that the parts are the right ones.
"""

from __future__ import annotations

import torch
from torch import Tensor

from geomhooks.anatomy.parts import MLP, Attention, BlockParts, Sublayer
from geomhooks.anatomy.query_key import frozen, query_key_of
from geomhooks.errors import AnatomyError
from geomhooks.functional.attention.query_key import query_key_logits, repeat_heads, visible
from geomhooks.norms import NormModule

__all__ = [
    "attention_logits",
    "attention_mask",
    "attention_output",
    "block_output",
    "capped",
    "mlp_output",
    "normed",
]


def normed(states: Tensor, norm: NormModule | None) -> Tensor:
    """States (..., d) as they are after a norm, or as they are where there is none."""
    return states if norm is None else frozen(norm, states)(states)


def capped(logits: Tensor, cap: float | None) -> Tensor:
    """Logits as they are after a soft cap, or as they are where there is none."""
    return logits if cap is None else cap * (logits / cap).tanh()


def attention_logits(
    attention: Attention,
    hidden: Tensor,
    positions: Tensor | None = None,
    source: Tensor | None = None,
) -> Tensor:
    """Logits (B, H, T, S) before the mask, with what distance adds, and capped where they are.

    Args:
        attention: of a block.
        hidden: (B, T, d) before the norm.
        positions: (T,), or (B, T), of its tokens; by default 0 to T - 1. Where rows have positions
            of their own, distances are still those of columns.
        source: (B, S, d) the other stack's output, for cross-attention.

    Raises:
        AnatomyError: it is cross-attention, and there is no source.
    """
    if attention.cross and source is None:
        raise AnatomyError(
            f"{attention.name} makes keys and values of another stack's output; give it as source"
        )
    if positions is None:
        positions = torch.arange(hidden.shape[1], device=hidden.device)
    weights = query_key_of(attention, positions)
    if source is None:
        query, key = weights.project(hidden[None])
        other = positions
    else:
        query, key = weights.project_query(hidden[None]), weights.project_key(source[None])
        other = torch.arange(source.shape[1], device=source.device)
    logits = query_key_logits(query, key, attention.scale).sum((0, 1))
    if attention.distance is not None:
        if positions.ndim > 1:
            positions = torch.arange(hidden.shape[1], device=hidden.device)
            other = positions if source is None else other
        logits = logits + attention.distance(positions, other).to(logits)
    return capped(logits, attention.softcap)


def attention_mask(attention: Attention, length: int, real: Tensor | None = None) -> Tensor:
    """Which query looks at which key: bool, (T, S), or (B, 1, T, S) where tokens are masked.

    Args:
        attention: of a block.
        length: T; of queries, and of keys but for cross-attention.
        real: (B, S) bool, which keys are there.
    """
    allowed = visible(
        length,
        None if real is None else real.shape[1],
        causal=attention.causal and not attention.cross,
        window=attention.window,
        device=None if real is None else real.device,
    )
    return allowed if real is None else allowed & real[:, None, None, :]


def attention_output(
    attention: Attention,
    hidden: Tensor,
    positions: Tensor | None = None,
    real: Tensor | None = None,
    source: Tensor | None = None,
) -> Tensor:
    """What attention adds, (B, T, d).

    Args:
        attention: of a block.
        hidden: (B, T, d) before the norm.
        positions: (T,) of its tokens; by default 0 to T - 1.
        real: (B, S) bool, which keys are there; by default all.
        source: (B, S, d) the other stack's output, for cross-attention.

    Raises:
        AnatomyError: it is cross-attention, and there is no source.
    """
    logits = attention_logits(attention, hidden, positions, source)
    read = normed(hidden, attention.norm) if source is None else source
    if real is None and source is not None:
        real = torch.ones(source.shape[:2], dtype=torch.bool, device=source.device)
    allowed = attention_mask(attention, hidden.shape[1], real)
    shares = logits.masked_fill(~allowed, -torch.inf).softmax(-1)
    value = torch.einsum("bsd,hdk->bhsk", read, attention.value.weight.to(read))
    if attention.value.bias is not None:
        value = value + attention.value.bias.to(read)[:, None]
    mixed = shares @ repeat_heads(value, attention.heads)
    out = torch.einsum("bhtk,hkd->btd", mixed, attention.output.weight.to(read))
    return out if attention.output.bias is None else out + attention.output.bias.to(read)


def mlp_output(mlp: MLP, hidden: Tensor) -> Tensor:
    """What a feed-forward layer adds to (..., d)."""
    states = normed(hidden, mlp.norm)
    if mlp.gate is None:
        return mlp.down(mlp.activation(mlp.up(states)))
    return mlp.down(mlp.activation(mlp.gate(states)) * mlp.up(states))


def block_output(
    block: BlockParts,
    hidden: Tensor,
    positions: Tensor | None = None,
    real: Tensor | None = None,
    source: Tensor | None = None,
    source_real: Tensor | None = None,
) -> Tensor:
    """The output (B, T, d) of a block.

    Args:
        block: its parts.
        hidden: (B, T, d) its input.
        positions: (T,) of its tokens; by default 0 to T - 1.
        real: (B, T) bool, which tokens are there; by default all.
        source: (B, S, d) the other stack's output, for cross-attention, which is left out without
            it, as the models do.
        source_real: (B, S) bool, which of its tokens are there; by default all.
    """

    def adds(sublayer: Sublayer, states: Tensor) -> Tensor:
        part = sublayer.part
        if isinstance(part, MLP):
            out = mlp_output(part, states)
        elif part.cross:
            out = attention_output(part, states, positions, source_real, source)
        else:
            out = attention_output(part, states, positions, real)
        return sublayer.scale * normed(out, sublayer.after)

    total = hidden
    for sublayer in block.sublayers:
        if sublayer.kind == "cross_attention" and source is None:
            continue
        read = hidden if block.parallel else total
        kept = normed(read, sublayer.part.norm) if sublayer.residual_is_normed else total
        total = normed(kept + adds(sublayer, read), sublayer.closing)
    return block.scale * total
