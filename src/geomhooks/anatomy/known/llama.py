"""Decoders with RMSNorm, rotary embedding and gated feed-forward layers."""

from __future__ import annotations

from typing import Any

from geomhooks.anatomy.describing import Around, Block
from geomhooks.anatomy.families import Family
from geomhooks.anatomy.parts import MLP, Attention, BlockParts, Embeddings

__all__ = [
    "FAMILIES",
    "gated",
    "grouped",
    "llama",
    "mistral",
    "phi3",
    "qwen2",
    "qwen3",
    "window",
    "window_of_layer",
]


def grouped(block: Block, **further: Any) -> Attention:
    """Attention in which groups of query heads share a key head.

    Args:
        block: whose it is.
        further: for :meth:`Block.attention`.
    """
    told: dict[str, Any] = {"norm": "input_layernorm", "rotary": block.rotary()} | further
    return block.attention(
        "self_attn",
        query=block.linear("self_attn.q_proj"),
        key=block.linear("self_attn.k_proj"),
        value=block.linear("self_attn.v_proj"),
        output=block.linear("self_attn.o_proj"),
        heads=block.config.num_attention_heads,
        key_heads=block.config.num_key_value_heads,
        **told,
    )


def gated(block: Block, norm: str = "post_attention_layernorm") -> MLP:
    """The gated feed-forward layer, after a norm."""
    return block.mlp(
        "mlp",
        up=block.linear("mlp.up_proj"),
        gate=block.linear("mlp.gate_proj"),
        down=block.linear("mlp.down_proj"),
        activation=block.function("mlp.act_fn"),
        norm=norm,
    )


def window(block: Block) -> int | None:
    """How many tokens a query sees where all blocks are told the same."""
    size: int | None = block.config.sliding_window
    # Where both sides are seen the config's number is that of those on each.
    return size if size is None or block.causal else size + 1


def window_of_layer(block: Block) -> int | None:
    """The same where blocks are told apart."""
    sliding = block.config.layer_types[block.index] == "sliding_attention"
    return window(block) if sliding else None


def llama(block: Block) -> BlockParts:
    """Every block sees all tokens."""
    return block.parts(grouped(block), gated(block))


def mistral(block: Block) -> BlockParts:
    """Every block sees a window, or none does."""
    return block.parts(grouped(block, window=window(block)), gated(block))


def qwen2(block: Block) -> BlockParts:
    """Some blocks see a window."""
    return block.parts(grouped(block, window=window_of_layer(block)), gated(block))


def qwen3(block: Block) -> BlockParts:
    """Queries and keys are normed, each head of them."""
    attention = grouped(
        block,
        window=window_of_layer(block),
        query_norm=block.norm("self_attn.q_norm"),
        key_norm=block.norm("self_attn.k_norm"),
    )
    return block.parts(attention, gated(block))


def phi3(block: Block) -> BlockParts:
    """Query, key and value are in one projection, and gate and up in another."""
    heads, key_heads = block.config.num_attention_heads, block.config.num_key_value_heads
    fused = block.linear("self_attn.qkv_proj")
    width = fused.weight.shape[1] // (heads + 2 * key_heads)
    query, key, value = fused.split(heads * width, key_heads * width, key_heads * width)
    gate, up = block.linear("mlp.gate_up_proj").split(2)
    return block.parts(
        block.attention(
            "self_attn",
            query=query,
            key=key,
            value=value,
            output=block.linear("self_attn.o_proj"),
            heads=heads,
            key_heads=key_heads,
            norm="input_layernorm",
            rotary=block.rotary(),
            window=window(block),
        ),
        block.mlp(
            "mlp",
            up=up,
            gate=gate,
            down=block.linear("mlp.down_proj"),
            activation=block.function("mlp.activation_fn"),
            norm="post_attention_layernorm",
        ),
    )


def llama_embeddings(around: Around) -> Embeddings:
    """Of tokens alone."""
    return Embeddings(around.table("embed_tokens"))


FAMILIES = tuple(
    Family(name, block, llama_embeddings, "norm")
    for name, block in {
        "llama": llama,
        "mistral": mistral,
        "qwen2": qwen2,
        "qwen3": qwen3,
        "phi3": phi3,
    }.items()
)
