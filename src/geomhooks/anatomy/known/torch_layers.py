"""torch.nn.TransformerEncoderLayer and TransformerDecoderLayer, in whatever model they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from geomhooks.anatomy.describing import Around, Block, read_norm
from geomhooks.anatomy.families import Family
from geomhooks.anatomy.parts import MLP, Attention, BlockParts, Linear, Sublayer
from geomhooks.errors import AnatomyError
from geomhooks.forwards.frames import unwrap_transforms
from geomhooks.norms import NormModule
from geomhooks.sharded import is_put_away, is_spread

__all__ = ["FAMILIES", "torch_family"]

LAYERS = (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)
METHODS = ("forward", "_sa_block", "_mha_block", "_ff_block")


def torch_family(
    name: str, *, encoder_is_causal: bool = False, decoder_is_causal: bool = True
) -> Family:
    """A family of models whose blocks are torch's own.

    Such models are known without it, as long as tokens see all others in encoders and the past
    alone in decoders. A layer does not know: a mask that comes with each call says it. Calls that
    say otherwise than the family are refused.

    Args:
        name: of the model's class.
        encoder_is_causal: tokens see the past alone in a ``TransformerEncoderLayer``.
        decoder_is_causal: the same in a ``TransformerDecoderLayer``.

    Example:
        >>> from geomhooks.anatomy import find_anatomy, register, torch_family
        >>> class LanguageModel(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        ...         self.blocks = nn.TransformerEncoder(layer, 2)
        >>> register(torch_family("LanguageModel", encoder_is_causal=True))
        >>> find_anatomy(LanguageModel()).at(0).causal
        True
    """

    def block(block: Block) -> BlockParts:
        decoder = isinstance(block.module, nn.TransformerDecoderLayer)
        return torch_layer(block, decoder_is_causal if decoder else encoder_is_causal)

    return Family(name, block, final_norm=norm_after, blocks=LAYERS)


def torch_layer(block: Block, causal: bool) -> BlockParts:
    """A norm before or after each sublayer, as the layer says."""
    module = block.module
    known = next((kind for kind in LAYERS if isinstance(module, kind)), None)
    changed = [n for n in METHODS if getattr(known, n, None) is not getattr(type(module), n, None)]
    if known is None or changed:
        raise AnatomyError(
            f"{block.name} is a {type(module).__name__} that is no layer of torch or has its own "
            f"{', '.join(changed)}; describe it with geomhooks.anatomy.register"
        )
    before = bool(module.norm_first)
    decoder = known is nn.TransformerDecoderLayer
    norms = ["norm1", "norm2", "norm3"] if decoder else ["norm1", "norm2"]
    sublayers: list[Attention | MLP] = [
        multihead(
            block,
            "self_attn",
            norms[0] if before else None,
            causal=causal,
            check=check_of(block, causal, decoder),
        ),
        block.mlp(
            "",
            up=block.linear("linear1"),
            down=block.linear("linear2"),
            activation=block.function("activation"),
            norm=norms[-1] if before else None,
        ),
    ]
    if decoder:
        cross = multihead(
            block,
            "multihead_attn",
            norms[1] if before else None,
            site="",
            cross=True,
        )
        sublayers.insert(1, cross)
    if before:
        return block.parts(*sublayers)
    return block.parts(
        *(Sublayer(part, closing=block.norm(n)) for part, n in zip(sublayers, norms, strict=True))
    )


def multihead(block: Block, path: str, norm: str | None, **further: Any) -> Attention:
    """Attention with query, key and value in one parameter.

    Raises:
        AnatomyError: it is otherwise.
    """
    module, name = block.find(path), f"{block.name}.{path}"
    fused, bias = getattr(module, "in_proj_weight", None), getattr(module, "in_proj_bias", None)
    extra = getattr(module, "bias_k", None) is not None or getattr(module, "add_zero_attn", False)
    if not isinstance(module, nn.MultiheadAttention) or not isinstance(fused, Tensor) or extra:
        raise AnatomyError(
            f"{name} is a {type(module).__name__} whose query, key and value are not those of a "
            "torch.nn.MultiheadAttention with one in_proj_weight and no further keys"
        )
    whole = fused.is_floating_point() and fused.ndim == 2 and not is_spread(fused)
    if not whole or is_put_away(unwrap_transforms(fused, name)):
        raise AnatomyError(
            f"{name}.in_proj_weight is no whole matrix of floating numbers on this rank; gather a "
            "sharded model and undo quantisation first"
        )
    query, key, value = Linear(
        unwrap_transforms(fused, name).detach().T,
        None if bias is None else unwrap_transforms(bias, name).detach(),
    ).split(3)
    return block.attention(
        path,
        query=query,
        key=key,
        value=value,
        # Its weights are used without a call of it.
        output=block.linear(f"{path}.out_proj")._replace(module=None),
        adds=module,
        heads=module.num_heads,
        norm=norm,
        **further,
    )


def check_of(block: Block, causal: bool, decoder: bool) -> Callable[[Mapping[str, Any]], None]:
    """Refuses calls whose mask says otherwise than the description."""
    name, kind = block.name, type(block.model).__name__
    mask_name, flag_name = ("tgt_mask", "tgt_is_causal") if decoder else ("src_mask", "is_causal")
    option = "decoder_is_causal" if decoder else "encoder_is_causal"

    def check(arguments: Mapping[str, Any]) -> None:
        flag = bool(arguments.get(flag_name))
        if arguments.get(mask_name) is not None and not flag:
            raise AnatomyError(
                f"{name} was called with a {mask_name} and {flag_name}=False, so that which tokens "
                f"look at which is not known; give a causal mask with {flag_name}=True, or none"
            )
        if flag != causal:
            raise AnatomyError(
                f"{name} was called with {flag_name}={flag}, but is described with "
                f"causal={causal}; say how it is called by geomhooks.anatomy.register("
                f"geomhooks.anatomy.torch_family({kind!r}, {option}={flag}))"
            )

    return check


def norm_after(around: Around) -> NormModule | None:
    """The norm of the TransformerEncoder or TransformerDecoder around the blocks."""
    name = around.stack.rpartition(".")[0]
    outer = around.model.get_submodule(name)
    if not isinstance(outer, (nn.TransformerEncoder, nn.TransformerDecoder)):
        return None
    return None if outer.norm is None else read_norm(outer.norm, f"the norm of {name or 'model'}")


FAMILIES = (torch_family("torch"),)
