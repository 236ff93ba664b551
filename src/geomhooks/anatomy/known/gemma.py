"""Gemma: as Llama, with gains of 1 + w, scaled embeddings and, from the second on, more norms."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from geomhooks.anatomy.describing import Around, Block
from geomhooks.anatomy.families import Family
from geomhooks.anatomy.known.llama import gated, grouped, window_of_layer
from geomhooks.anatomy.parts import Attention, BlockParts, Embeddings, Sublayer
from geomhooks.errors import AnatomyError
from geomhooks.functional.attention.query_key import Rotary

__all__ = ["FAMILIES", "gemma", "gemma2", "gemma3"]


def gemma(block: Block) -> BlockParts:
    """Every block sees all tokens."""
    check_direction(block)
    return block.parts(grouped(block), gated(block))


def gemma2(block: Block) -> BlockParts:
    """Every other block sees a window; logits of attention are capped."""
    check_direction(block)
    return sandwiched(
        block,
        grouped(
            block,
            scale=block.config.query_pre_attn_scalar**-0.5,
            window=window_of_layer(block),
            softcap=block.config.attn_logit_softcapping,
        ),
    )


def gemma3(block: Block) -> BlockParts:
    """Queries and keys are normed; blocks that see a window have a rotary embedding of their own.

    ``config.attn_logit_softcapping`` is there but acts on nothing.
    """
    config = block.config
    both = bool(getattr(config, "use_bidirectional_attention", False))
    kind = config.layer_types[block.index]
    return sandwiched(
        block,
        grouped(
            block,
            scale=config.query_pre_attn_scalar**-0.5,
            causal=not both,
            # Told to look both ways, its windows reach less far than those of other families.
            window=config.sliding_window if kind == "sliding_attention" else None,
            rotary=rotary_of_kind(block, kind),
            query_norm=block.norm("self_attn.q_norm"),
            key_norm=block.norm("self_attn.k_norm"),
        ),
    )


def rotary_of_kind(block: Block, kind: str) -> Callable[[Tensor], Rotary]:
    """Of one module that has both, or, before transformers 5, of one of two modules."""
    apart = any(name.endswith("rotary_emb_local") for name, _ in block.model.named_modules())
    if not apart:
        return block.rotary(layer_type=kind)
    return block.rotary(name="rotary_emb_local" if kind == "sliding_attention" else "rotary_emb")


def sandwiched(block: Block, attention: Attention) -> BlockParts:
    """Each sublayer between two norms."""
    return block.parts(
        Sublayer(attention, after=block.norm("post_attention_layernorm")),
        Sublayer(
            gated(block, norm="pre_feedforward_layernorm"),
            after=block.norm("post_feedforward_layernorm"),
        ),
    )


def check_direction(block: Block) -> None:
    """Refuse what transformers does or not, by the implementation of attention.

    Raises:
        AnatomyError: the config says that tokens see what comes after them.
    """
    if getattr(block.config, "use_bidirectional_attention", False):
        raise AnatomyError(
            f"{type(block.model).__name__} has use_bidirectional_attention, which some "
            "implementations of its attention heed and others do not; set it to False and, where "
            "tokens see what comes after them, config.is_causal = False"
        )


def gemma_embeddings(around: Around) -> Embeddings:
    """Of tokens, times the square root of the width."""
    table = around.table("embed_tokens")
    # Rounded as the model does: to 55.5 instead of 55.4 in bfloat16 at width 3072.
    scale = torch.tensor(table.shape[1] ** 0.5, device="cpu").to(table.dtype)
    return Embeddings(table, scale=float(scale))


FAMILIES = tuple(
    Family(name, block, gemma_embeddings, "norm")
    for name, block in {"gemma": gemma, "gemma2": gemma2, "gemma3_text": gemma3}.items()
)
