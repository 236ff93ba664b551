"""Decoders with RMSNorm, rotary embedding and gated feed-forward layers."""

from __future__ import annotations

from geomhooks.anatomy.describing import Around, Block
from geomhooks.anatomy.families import Family
from geomhooks.anatomy.parts import BlockParts, Embeddings

__all__ = ["FAMILIES", "llama"]


def llama(block: Block) -> BlockParts:
    """Groups of query heads share a key head."""
    return block.parts(
        block.attention(
            "self_attn",
            query=block.linear("self_attn.q_proj"),
            key=block.linear("self_attn.k_proj"),
            value=block.linear("self_attn.v_proj"),
            output=block.linear("self_attn.o_proj"),
            heads=block.config.num_attention_heads,
            key_heads=block.config.num_key_value_heads,
            norm="input_layernorm",
            rotary=block.rotary(),
        ),
        block.mlp(
            "mlp",
            up=block.linear("mlp.up_proj"),
            gate=block.linear("mlp.gate_proj"),
            down=block.linear("mlp.down_proj"),
            activation=block.function("mlp.act_fn"),
            norm="post_attention_layernorm",
        ),
    )


def llama_embeddings(around: Around) -> Embeddings:
    """Of tokens alone."""
    return Embeddings(around.table("embed_tokens"))


FAMILIES = (Family("llama", llama, llama_embeddings, "norm"),)
