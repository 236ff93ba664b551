"""Decoders with a LayerNorm before each sublayer: GPT-2, OPT, GPT-NeoX, BLOOM."""

from __future__ import annotations

from functools import partial

from geomhooks.anatomy.describing import Around, Block
from geomhooks.anatomy.families import Family
from geomhooks.anatomy.parts import BlockParts, Embeddings, Sublayer
from geomhooks.functional.attention.alibi import alibi, alibi_slopes

__all__ = ["FAMILIES", "bloom", "gpt2", "gpt_neox", "opt"]


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


def gpt_neox(block: Block) -> BlockParts:
    """Query, key and value of each head side by side; both sublayers may read the same state."""
    heads = block.config.num_attention_heads
    query, key, value = block.linear("attention.query_key_value").deal(heads, 3)
    return block.parts(
        block.attention(
            "attention",
            query=query,
            key=key,
            value=value,
            output=block.linear("attention.dense"),
            heads=heads,
            norm="input_layernorm",
            rotary=block.rotary(),
        ),
        block.mlp(
            "mlp",
            up=block.linear("mlp.dense_h_to_4h"),
            down=block.linear("mlp.dense_4h_to_h"),
            activation=block.function("mlp.act"),
            norm="post_attention_layernorm",
        ),
        parallel=block.config.use_parallel_residual,
    )


def gpt_neox_embeddings(around: Around) -> Embeddings:
    """Of tokens alone."""
    return Embeddings(around.table("embed_in"))


def bloom(block: Block) -> BlockParts:
    """Biases of distance; sublayers may be added to what they read instead of the state.

    The model adds slope times the position of the key, which to softmax is the same.
    """
    heads = block.config.num_attention_heads
    query, key, value = block.linear("self_attention.query_key_value").deal(heads, 3)
    attention = block.attention(
        "self_attention",
        query=query,
        key=key,
        value=value,
        output=block.linear("self_attention.dense"),
        heads=heads,
        norm="input_layernorm",
        distance=partial(alibi, alibi_slopes(heads, query.weight.device)),
    )
    mlp = block.mlp(
        "mlp",
        up=block.linear("mlp.dense_h_to_4h"),
        down=block.linear("mlp.dense_4h_to_h"),
        activation=block.function("mlp.gelu_impl"),
        norm="post_attention_layernorm",
    )
    normed = block.config.apply_residual_connection_post_layernorm
    return block.parts(
        Sublayer(attention, residual_is_normed=normed), Sublayer(mlp, residual_is_normed=normed)
    )


def bloom_embeddings(around: Around) -> Embeddings:
    """Of tokens, normed."""
    norm = around.norm("word_embeddings_layernorm")
    return Embeddings(around.table("word_embeddings"), norm=norm)


FAMILIES = (
    Family("gpt2", gpt2, gpt2_embeddings, "ln_f"),
    Family("opt", opt, opt_embeddings, "final_layer_norm"),
    Family("gpt_neox", gpt_neox, gpt_neox_embeddings, "final_layer_norm"),
    Family("bloom", bloom, bloom_embeddings, "ln_f"),
)
