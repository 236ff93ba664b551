"""Decoders with learned positions and a LayerNorm before each sublayer: GPT-2, OPT."""

from __future__ import annotations

from geomhooks.anatomy.describing import Around, Block
from geomhooks.anatomy.families import Family
from geomhooks.anatomy.parts import BlockParts, Embeddings, Sublayer

__all__ = ["FAMILIES", "gpt2", "opt"]


def gpt2(block: Block) -> BlockParts:
    """Query, key and value in one ``Conv1D``."""
    query, key, value = block.linear("attn.c_attn").split(3)
    config = block.config
    heads = config.num_attention_heads
    scale = (query.weight.shape[1] // heads) ** -0.5 if config.scale_attn_weights else 1.0
    if config.scale_attn_by_inverse_layer_idx:
        scale /= block.index + 1
    return block.parts(
        block.attention(
            "attn",
            query=query,
            key=key,
            value=value,
            output=block.linear("attn.c_proj"),
            heads=heads,
            scale=scale,
            norm="ln_1",
        ),
        block.mlp(
            "mlp",
            up=block.linear("mlp.c_fc"),
            down=block.linear("mlp.c_proj"),
            activation=block.function("mlp.act"),
            norm="ln_2",
        ),
    )


def gpt2_embeddings(around: Around) -> Embeddings:
    """Of tokens and positions."""
    return Embeddings(around.table("wte"), around.table("wpe"))


def opt(block: Block) -> BlockParts:
    """A norm before each sublayer, but in the model of 350M parameters after it."""
    before = block.config.do_layer_norm_before
    attention = block.attention(
        "self_attn",
        query=block.linear("self_attn.q_proj"),
        key=block.linear("self_attn.k_proj"),
        value=block.linear("self_attn.v_proj"),
        output=block.linear("self_attn.out_proj"),
        heads=block.config.num_attention_heads,
        norm="self_attn_layer_norm" if before else None,
    )
    mlp = block.mlp(
        "",
        up=block.linear("fc1"),
        down=block.linear("fc2"),
        activation=block.function("activation_fn"),
        norm="final_layer_norm" if before else None,
    )
    if before:
        return block.parts(attention, mlp)
    return block.parts(
        Sublayer(attention, closing=block.norm("self_attn_layer_norm")),
        Sublayer(mlp, closing=block.norm("final_layer_norm")),
    )


def opt_embeddings(around: Around) -> Embeddings:
    """Position 0 is in the third row; where tokens are narrower than states they are no table."""
    narrow = around.has("project_in") is not None
    tokens = None if narrow else around.table("embed_tokens")
    return Embeddings(tokens, around.table("embed_positions"), offset=2)


FAMILIES = (
    Family("gpt2", gpt2, gpt2_embeddings, "ln_f"),
    Family("opt", opt, opt_embeddings, "final_layer_norm"),
)
