"""T5: RMSNorm before each sublayer, logits that are not scaled, a bias of relative positions."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from geomhooks.anatomy.describing import Around, Block
from geomhooks.anatomy.families import Family
from geomhooks.anatomy.parts import MLP, Attention, BlockParts, Embeddings, Linear
from geomhooks.anatomy.relative_positions import relative_bias
from geomhooks.errors import AnatomyError
from geomhooks.forwards.frames import unwrap_transforms

__all__ = ["FAMILIES", "t5"]


def t5(block: Block) -> BlockParts:
    """Sublayers in a list, in the decoder with attention to the encoder among them."""
    decoder = bool(block.module.is_decoder)
    config = block.config

    def attention(path: str, norm: str, **further: Any) -> Attention:
        return block.attention(
            path,
            query=block.linear(f"{path}.q"),
            key=block.linear(f"{path}.k"),
            value=block.linear(f"{path}.v"),
            output=block.linear(f"{path}.o"),
            heads=config.num_heads,
            scale=1.0,
            norm=norm,
            causal=decoder,
            **further,
        )

    bias = relative_bias(
        first_table(block),
        config.relative_attention_num_buckets,
        config.relative_attention_max_distance,
        both_ways=not decoder,
    )
    sublayers: list[Attention | MLP] = [
        attention("layer.0.SelfAttention", "layer.0.layer_norm", distance=bias)
    ]
    if decoder:
        sublayers.append(
            attention("layer.1.EncDecAttention", "layer.1.layer_norm", site="", cross=True)
        )
    return block.parts(*sublayers, feed_forward(block, f"layer.{len(sublayers)}"))


def first_table(block: Block) -> Tensor:
    """What each bucket of distances adds: the first block of a stack has it for all of them.

    Raises:
        AnatomyError: it has none.
    """
    try:
        table = block.first.get_submodule("layer.0.SelfAttention.relative_attention_bias").weight
    except AttributeError as error:
        raise AnatomyError(
            f"the first block of {block.stack!r} has no layer.0.SelfAttention."
            "relative_attention_bias; its family is described otherwise. Describe the model with "
            "geomhooks.anatomy.register"
        ) from error
    assert isinstance(table, Tensor)
    return unwrap_transforms(table, block.name).detach()


def feed_forward(block: Block, path: str) -> MLP:
    """The feed-forward layer, gated in version 1.1."""
    dense = f"{path}.DenseReluDense"
    gated = block.config.is_gated_act
    return block.mlp(
        dense,
        up=block.linear(f"{dense}.wi_1" if gated else f"{dense}.wi"),
        gate=block.linear(f"{dense}.wi_0") if gated else None,
        down=block.linear(f"{dense}.wo"),
        activation=block.function(f"{dense}.act"),
        norm=f"{path}.layer_norm",
    )


def t5_embeddings(around: Around) -> Embeddings:
    """Of tokens alone."""
    return Embeddings(around.table("embed_tokens"))


def t5_head(model: nn.Module, projection: Linear) -> Linear:
    """States are scaled before the first version's head."""
    config = model.config
    if not getattr(config, "scale_decoder_outputs", False):
        return projection
    return Linear(projection.weight * config.d_model**-0.5, projection.bias)  # type: ignore[union-attr, operator]


FAMILIES = tuple(
    Family(name, t5, t5_embeddings, "final_layer_norm", t5_head) for name in ("t5", "mt5")
)
