"""Vision transformers: no tokens, a norm before each sublayer, every patch sees all."""

from __future__ import annotations

from torch import Tensor

from geomhooks.anatomy.describing import Around, Block
from geomhooks.anatomy.families import Family
from geomhooks.anatomy.parts import BlockParts, Embeddings
from geomhooks.errors import AnatomyError

__all__ = ["FAMILIES", "vit"]


def vit(block: Block) -> BlockParts:
    """A patch is what a token is elsewhere."""
    return block.parts(
        block.attention(
            "attention",
            query=block.linear("attention.q_proj"),
            key=block.linear("attention.k_proj"),
            value=block.linear("attention.v_proj"),
            output=block.linear("attention.o_proj"),
            heads=block.config.num_attention_heads,
            norm="layernorm_before",
            causal=False,
        ),
        block.mlp(
            "mlp",
            up=block.linear("mlp.fc1"),
            down=block.linear("mlp.fc2"),
            activation=block.function("mlp.activation_fn"),
            norm="layernorm_after",
        ),
    )


def vit_embeddings(around: Around) -> Embeddings:
    """Of positions, the first of which is that of the class token."""
    positions = getattr(around.find("embeddings"), "position_embeddings", None)
    if not isinstance(positions, Tensor):
        raise AnatomyError(f"the embeddings around {around.stack!r} have no position_embeddings")
    return Embeddings(None, positions.detach()[0])


FAMILIES = (Family("vit", vit, vit_embeddings, "layernorm"),)
