"""Encoders with a LayerNorm after each sublayer."""

from __future__ import annotations

from geomhooks.anatomy.describing import Around, Block
from geomhooks.anatomy.families import Family
from geomhooks.anatomy.parts import BlockParts, Embeddings, Sublayer

__all__ = ["FAMILIES", "bert"]


def bert(block: Block) -> BlockParts:
    """None of its heads looks at the past alone."""
    attention = block.attention(
        "attention",
        query=block.linear("attention.self.query"),
        key=block.linear("attention.self.key"),
        value=block.linear("attention.self.value"),
        output=block.linear("attention.output.dense"),
        heads=block.config.num_attention_heads,
        causal=bool(block.config.is_decoder),
    )
    mlp = block.mlp(
        "",
        up=block.linear("intermediate.dense"),
        down=block.linear("output.dense"),
        activation=block.function("intermediate.intermediate_act_fn"),
    )
    return block.parts(
        Sublayer(attention, closing=block.norm("attention.output.LayerNorm")),
        Sublayer(mlp, closing=block.norm("output.LayerNorm")),
    )


def bert_embeddings(around: Around) -> Embeddings:
    """Of tokens, positions and the type of the first sentence, normed."""
    return Embeddings(
        around.table("embeddings.word_embeddings"),
        around.table("embeddings.position_embeddings"),
        norm=around.norm("embeddings.LayerNorm"),
        other=around.table("embeddings.token_type_embeddings")[0],
    )


FAMILIES = (Family("bert", bert, bert_embeddings),)
