"""Encoders with a LayerNorm after each sublayer: BERT, RoBERTa, DistilBERT, MPNet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import gelu

from geomhooks.anatomy.describing import Around, Block, linear
from geomhooks.anatomy.families import Family
from geomhooks.anatomy.parts import MLP, Attention, BlockParts, Embeddings, Linear, Sublayer
from geomhooks.anatomy.rebuilding import normed
from geomhooks.anatomy.relative_positions import relative_bias

__all__ = ["FAMILIES", "bert", "distilbert", "mpnet"]


def bert(block: Block) -> BlockParts:
    """A decoder may have attention to an encoder between the two sublayers."""

    def attention(path: str, **further: Any) -> Attention:
        return block.attention(
            path,
            query=block.linear(f"{path}.self.query"),
            key=block.linear(f"{path}.self.key"),
            value=block.linear(f"{path}.self.value"),
            output=block.linear(f"{path}.output.dense"),
            heads=block.config.num_attention_heads,
            causal=bool(block.config.is_decoder),
            **further,
        )

    sublayers = [
        Sublayer(attention("attention"), closing=block.norm("attention.output.LayerNorm")),
        Sublayer(intermediate(block), closing=block.norm("output.LayerNorm")),
    ]
    if block.config.add_cross_attention:
        cross = attention("crossattention", site="", cross=True)
        closing = block.norm("crossattention.output.LayerNorm")
        sublayers.insert(1, Sublayer(cross, closing=closing))
    return block.parts(*sublayers)


def intermediate(block: Block) -> MLP:
    """The feed-forward layer, in two modules."""
    return block.mlp(
        "",
        up=block.linear("intermediate.dense"),
        down=block.linear("output.dense"),
        activation=block.function("intermediate.intermediate_act_fn"),
    )


def bert_embeddings(around: Around) -> Embeddings:
    """Of tokens, positions and the type of the first sentence, normed."""
    return Embeddings(
        around.table("embeddings.word_embeddings"),
        around.table("embeddings.position_embeddings"),
        norm=around.norm("embeddings.LayerNorm"),
        other=around.table("embeddings.token_type_embeddings")[0],
    )


def roberta_embeddings(around: Around) -> Embeddings:
    """Position 0 is in the row after that of padding."""
    return replace(bert_embeddings(around), offset=around.config.pad_token_id + 1)


def distilbert(block: Block) -> BlockParts:
    """As BERT, by other names."""
    attention = block.attention(
        "attention",
        query=block.linear("attention.q_lin"),
        key=block.linear("attention.k_lin"),
        value=block.linear("attention.v_lin"),
        output=block.linear("attention.out_lin"),
        heads=block.config.n_heads,
        causal=False,
    )
    mlp = block.mlp(
        "ffn",
        up=block.linear("ffn.lin1"),
        down=block.linear("ffn.lin2"),
        activation=block.function("ffn.activation"),
    )
    return block.parts(
        Sublayer(attention, closing=block.norm("sa_layer_norm")),
        Sublayer(mlp, closing=block.norm("output_layer_norm")),
    )


def distilbert_embeddings(around: Around) -> Embeddings:
    """Of tokens and positions, normed."""
    return Embeddings(
        around.table("embeddings.word_embeddings"),
        around.table("embeddings.position_embeddings"),
        norm=around.norm("embeddings.LayerNorm"),
    )


def mpnet(block: Block) -> BlockParts:
    """The encoder has one bias of relative positions for all blocks."""
    table = Around(block.stack, block.model, block.config).table("relative_attention_bias")
    attention = block.attention(
        "attention.attn",
        query=block.linear("attention.attn.q"),
        key=block.linear("attention.attn.k"),
        value=block.linear("attention.attn.v"),
        output=block.linear("attention.attn.o"),
        heads=block.config.num_attention_heads,
        causal=False,
        # 32 and 128 whatever the config says.
        distance=relative_bias(table, 32, 128, both_ways=True),
    )
    return block.parts(
        Sublayer(attention, closing=block.norm("attention.LayerNorm")),
        Sublayer(intermediate(block), closing=block.norm("output.LayerNorm")),
    )


def mpnet_embeddings(around: Around) -> Embeddings:
    """The row of padding is 1, whatever the config says."""
    return replace(distilbert_embeddings(around), offset=2)


def transformed(model: nn.Module, projection: Linear) -> None:
    """Heads for masked words: a layer and a norm come before the projection."""


def dense_and_norm(
    layer: str, norm: str, activation: str | Callable[[Tensor], Tensor]
) -> Callable[[nn.Module], Callable[[Tensor], Tensor]]:
    """What comes before the projection of such a head: a layer, an activation, and a norm.

    Args:
        layer: path from the model.
        norm: the same.
        activation: the same, or a function.
    """

    def transform(model: nn.Module) -> Callable[[Tensor], Tensor]:
        around = Around("", model, getattr(model, "config", None))
        first, last = linear(around.find(layer), layer), around.norm(norm)
        act = activation
        if isinstance(act, str):
            holder, _, name = act.rpartition(".")
            act = getattr(around.find(holder) if holder else model, name)
            # forward() itself of a module, not its call: nobody's hooks are to notice.
            act = act.forward if isinstance(act, nn.Module) else act
        function = act
        return lambda states: normed(function(first(states)), last)

    return transform


IN_LM_HEAD = dense_and_norm("lm_head.dense", "lm_head.layer_norm", gelu)
IN_BERT = dense_and_norm(
    "cls.predictions.transform.dense",
    "cls.predictions.transform.LayerNorm",
    "cls.predictions.transform.transform_act_fn",
)
IN_DISTILBERT = dense_and_norm("vocab_transform", "vocab_layer_norm", "activation")

FAMILIES = (
    Family("bert", bert, bert_embeddings, head=transformed, transform=IN_BERT),
    Family("roberta", bert, roberta_embeddings, head=transformed, transform=IN_LM_HEAD),
    Family("xlm-roberta", bert, roberta_embeddings, head=transformed, transform=IN_LM_HEAD),
    Family(
        "distilbert", distilbert, distilbert_embeddings, head=transformed, transform=IN_DISTILBERT
    ),
    Family("mpnet", mpnet, mpnet_embeddings, head=transformed, transform=IN_LM_HEAD),
)
