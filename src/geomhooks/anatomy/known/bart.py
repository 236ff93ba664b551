"""Encoder-decoders of one naming: BART and Marian with a norm after each sublayer, Whisper before.

Each decoder block attends to the encoder's output between its other two sublayers.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from geomhooks.anatomy.describing import Around, Block
from geomhooks.anatomy.families import Family
from geomhooks.anatomy.parts import MLP, Attention, BlockParts, Embeddings, Linear, Sublayer

__all__ = ["FAMILIES", "bart", "whisper"]


def bart(block: Block) -> BlockParts:
    """A norm after each sublayer."""
    sublayers, norms = sublayers_of(block, before=False)
    return block.parts(
        *(
            Sublayer(part, closing=block.norm(norm))
            for part, norm in zip(sublayers, norms, strict=True)
        )
    )


def whisper(block: Block) -> BlockParts:
    """A norm before each sublayer."""
    return block.parts(*sublayers_of(block, before=True)[0])


def sublayers_of(block: Block, before: bool) -> tuple[list[Attention | MLP], list[str]]:
    """The sublayers, with the norms before them or not, and the names of their norms."""
    decoder = hasattr(block.module, "encoder_attn")
    config = block.config
    heads = config.decoder_attention_heads if decoder else config.encoder_attention_heads

    def attention(path: str, norm: str, **further: Any) -> Attention:
        return block.attention(
            path,
            query=block.linear(f"{path}.q_proj"),
            key=block.linear(f"{path}.k_proj"),
            value=block.linear(f"{path}.v_proj"),
            output=block.linear(f"{path}.out_proj"),
            heads=heads,
            norm=norm if before else None,
            causal=decoder,
            **further,
        )

    norms = ["self_attn_layer_norm", "final_layer_norm"]
    sublayers: list[Attention | MLP] = [
        attention("self_attn", norms[0]),
        block.mlp(
            "",
            up=block.linear("fc1"),
            down=block.linear("fc2"),
            activation=block.function("activation_fn"),
            norm=norms[1] if before else None,
        ),
    ]
    if decoder:
        norms.insert(1, "encoder_attn_layer_norm")
        sublayers.insert(1, attention("encoder_attn", norms[1], site="", cross=True))
    return sublayers, norms


def bart_embeddings(around: Around) -> Embeddings:
    """Position 0 is in the third row; the sum is normed."""
    return Embeddings(
        around.table("embed_tokens"),
        around.table("embed_positions"),
        offset=2,
        scale=scale_of(around),
        norm=around.norm("layernorm_embedding"),
    )


def marian_embeddings(around: Around) -> Embeddings:
    """Positions are sinusoidal."""
    return Embeddings(
        around.table("embed_tokens"), around.table("embed_positions"), scale=scale_of(around)
    )


def scale_of(around: Around) -> float:
    """What embeddings of tokens are multiplied by."""
    config = around.config
    return float(config.d_model**0.5) if config.scale_embedding else 1.0


def whisper_embeddings(around: Around) -> Embeddings:
    """The encoder reads sounds, which are no tokens."""
    listens = around.has("conv1") is not None
    return Embeddings(
        None if listens else around.table("embed_tokens"), around.table("embed_positions")
    )


def biased(model: nn.Module, projection: Linear) -> Linear:
    """The bias of the logits is beside the projection."""
    bias = getattr(model, "final_logits_bias", None)
    return projection if not isinstance(bias, Tensor) else Linear(projection.weight, bias[0])


FAMILIES = (
    Family("bart", bart, bart_embeddings, head=biased),
    Family("marian", bart, marian_embeddings, head=biased),
    Family("whisper", whisper, whisper_embeddings, "layer_norm"),
)
