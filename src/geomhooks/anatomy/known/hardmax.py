"""Hardmax transformers: nothing but attention, whose query, key and value are the state itself."""

from __future__ import annotations

import torch
from torch import Tensor

from geomhooks.anatomy.describing import Around, Block
from geomhooks.anatomy.families import Family
from geomhooks.anatomy.parts import BlockParts, Embeddings, Linear, Sublayer

__all__ = ["FAMILIES", "hardmax"]


def hardmax(block: Block) -> BlockParts:
    """A state z becomes (z + alpha m) / (1 + alpha); m is what the attention module gives out."""
    alpha = block.module.alpha
    assert isinstance(alpha, Tensor)
    alpha = alpha.detach()
    same = Linear(torch.eye(block.config.hidden_size, dtype=alpha.dtype, device=alpha.device), None)
    module = block.find("attention")
    attention = block.attention(
        "attention",
        query=same,
        key=same,
        value=same,
        output=same,
        heads=1,
        scale=1 / block.config.temperature,
        causal=False,
        adds=module,
    )
    step = float(alpha)
    return block.parts(Sublayer(attention, scale=step), scale=1 / (1 + step))


def hardmax_embeddings(around: Around) -> Embeddings:
    """Of words alone."""
    return Embeddings(around.table("embedding"))


FAMILIES = (Family("hardmax", hardmax, hardmax_embeddings, reads_values=True),)
