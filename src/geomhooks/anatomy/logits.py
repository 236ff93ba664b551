"""How pos and ctx make the logits of a model's attention, whole matrices of one batch.

:class:`geomhooks.Attention` streams what is to be said of many.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from geomhooks.anatomy.families import Anatomy
from geomhooks.anatomy.finding import find_anatomy
from geomhooks.anatomy.parts import Attention
from geomhooks.anatomy.query_key import query_key_parts
from geomhooks.anatomy.rebuilding import attention_mask
from geomhooks.errors import HookError, SiteError, TokensError
from geomhooks.forwards.calls import FEATURES, Call, Statement, read_call, read_plain_call
from geomhooks.forwards.hooks import by_name
from geomhooks.forwards.openers import config_of, parameters_of
from geomhooks.forwards.token_stream import positions_of
from geomhooks.functional.attention.query_key import query_key_logits, split_states
from geomhooks.functional.shapes import as_float
from geomhooks.sites import find_tensor, named_modules, unwrap
from geomhooks.snapshot import Geometry

__all__ = ["SplitLogits", "attention_parts"]


class SplitLogits(NamedTuple):
    """The logits of one attention for one batch, split."""

    logits: Tensor
    """(5, 5, B, H, T, T) by mean, pos, ctx, resid and bias of query and key; they add up to the
    model's own, before its cap where it has one. What distance adds is with the biases. NaN at
    tokens whose pos is not known."""
    allowed: Tensor
    """(B, 1, T, T) where a query looks at a key, and pos of both is known"""


class Rows(NamedTuple):
    """The tokens of a batch, a context a row."""

    positions: Tensor
    """(B, T)"""
    real: Tensor
    """(B, T)"""


def attention_parts(
    model: nn.Module, geometry: Geometry, inputs: Mapping[str, Any], layer: int | str
) -> SplitLogits:
    """Run a prompt and split the logits of one block's attention by the parts of its input.

    mean and pos are the geometry's; ctx of each row is the mean of what they leave of its tokens,
    and resid is the rest. :func:`geomhooks.anatomy.find_anatomy` says for which models. Of an
    encoder-decoder it is the self-attention of either stack; the decoder's tokens are those of
    ``decoder_input_ids``. Where no ``position_ids`` are given, tokens have the positions that the
    family gives them, as a watch has it: those of columns, or, as in OPT and RoBERTa, counted
    without the padding. Pixels and sounds have the positions of columns, and so have the tokens of
    torch's own layers, which get their masks by the call of the layer.

    Args:
        model: that the geometry was measured on.
        geometry: with ``PosCtx`` at the blocks, ``sites="blocks"``.
        inputs: what the model is called with, by name; a context a row.
        layer: number or name of the block.

    Raises:
        AnatomyError: the family is not known, or there is no such block.
        SiteError: the geometry lacks the site or its ``pos_ctx``.
        TokensError: inputs are not given by name, or positions cannot be told.
        HookError: the block did not run.

    Example:
        >>> import torch, geomhooks as gh
        >>> from transformers import GPT2Config, GPT2Model
        >>> from geomhooks.anatomy import attention_parts
        >>> config = GPT2Config(n_layer=2, n_embd=8, n_head=2, n_positions=16, vocab_size=10)
        >>> model = GPT2Model(config).eval()
        >>> texts = torch.randint(10, (20, 16))
        >>> with gh.watch(model, statistics=[gh.PosCtx()]) as watch:
        ...     _ = model(texts)
        >>> split = attention_parts(model, watch.geometry(), {"input_ids": texts[:1, :6]}, layer=1)
        >>> split.logits.shape
        torch.Size([5, 5, 1, 2, 6, 6])
    """
    if not isinstance(inputs, Mapping):
        raise TokensError(
            "inputs: what the model is called with by name is needed, such as "
            f"{{'input_ids': ids}} or what a tokenizer returns; found {type(inputs).__name__}"
        )
    anatomy = find_anatomy(model)
    attention = anatomy.at(layer)
    by_call = attention.check is not None
    config = config_of(attention.block, named_modules(unwrap(model)))
    stated = None if by_call else read_rows(inputs, prefix_of(anatomy, attention), config)
    found: list[SplitLogits] = []

    def split(hidden: Tensor, arguments: Mapping[str, Any]) -> None:
        if attention.check is not None:
            attention.check(arguments)
            hidden, rows = rows_of_call(attention, hidden, arguments)
        else:
            rows = rows_of_features(inputs, hidden) if stated is None else stated
        parts, known = parts_at(attention, geometry, hidden, rows)
        query, key = query_key_parts(attention, parts, rows.positions.to(hidden.device))
        logits = query_key_logits(query, key, attention.scale)
        if attention.distance is not None:
            columns = torch.arange(hidden.shape[1], device=hidden.device)
            logits[-1, -1] += attention.distance(columns, columns).to(logits)
        both = known[:, None, :, None] & known[:, None, None, :]
        found.append(SplitLogits(logits, both & attention_mask(attention, hidden.shape[1], known)))

    with input_of_block(model, attention, split), torch.no_grad():
        model(**inputs)
    return found[0]


def prefix_of(anatomy: Anatomy, attention: Attention) -> str:
    """What names of a model's arguments begin with that say the tokens of a block."""
    (block,) = (block for block in anatomy.blocks if block.name == attention.block)
    decodes = any(sublayer.kind == "cross_attention" for sublayer in block.sublayers)
    return "decoder_" if decodes and len(anatomy.stacks) > 1 else ""


def read_rows(inputs: Mapping[str, Any], prefix: str = "", config: Any = None) -> Rows | None:
    """Positions and real tokens of what a model is called with; None where it reads no tokens.

    Args:
        inputs: by name.
        prefix: "decoder_" for the tokens of the decoder of an encoder-decoder.
        config: of the model, which says how it numbers them.

    Raises:
        TokensError: they cannot be told, or a row is not one context.
    """
    for name in ("past_key_values", "cache"):
        if inputs.get(name) is not None:
            raise TokensError(f"{name}: keys of an earlier call cannot be split; give whole texts")
    ids, embeds = f"{prefix}input_ids", f"{prefix}inputs_embeds"
    mask_name, positions_name = f"{prefix}attention_mask", f"{prefix}position_ids"
    tokens = inputs.get(ids)
    tokens = inputs.get(embeds) if tokens is None else tokens
    if tokens is None and not prefix and any(inputs.get(name) is not None for name in FEATURES):
        return None
    if not isinstance(tokens, Tensor) or tokens.ndim < 2:
        raise TokensError(f"{ids} (B, T) or {embeds} (B, T, d) are needed, found {sorted(inputs)}")
    shape = tuple(tokens.shape[:2])
    mask, positions = inputs.get(mask_name), inputs.get(positions_name)
    for name, given in ((mask_name, mask), (positions_name, positions)):
        if given is not None and given.ndim != 2:
            raise TokensError(f"{name}: (B, T) is needed, found shape {tuple(given.shape)}")
    real = torch.ones(shape, dtype=torch.bool, device=tokens.device)
    if mask is not None:
        if mask.shape != shape:
            raise TokensError(f"{mask_name}: {shape} is needed, found {tuple(mask.shape)}")
        real = mask.bool()
    if positions is None:
        own = {"input_ids": inputs.get(ids), "inputs_embeds": inputs.get(embeds)}
        call = read_call(own | {"attention_mask": mask}, config) or Call()
        positions, _ = positions_of(call, Statement(), shape[0], shape[1], tokens.device)
        if positions is not None and call.rule == "ids" and call.ids is not None:
            real = real & (call.ids != call.pad)  # which have no position of their own
    if positions is None:
        positions = torch.arange(shape[1], device=tokens.device)
    positions = positions.expand(shape)
    both = real[:, 1:] & real[:, :-1]
    if bool((both & (positions.diff(dim=1) <= 0)).any()):
        raise TokensError(
            f"{positions_name} go back within a row; give one context a row, not packed"
        )
    return Rows(positions, real)


def rows_of_columns(hidden: Tensor, real: Tensor | None = None) -> Rows:
    """Of hidden states (B, T, d) whose positions are their columns."""
    if real is None:
        real = torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
    return Rows(torch.arange(hidden.shape[1], device=hidden.device).expand(real.shape), real)


def rows_of_features(inputs: Mapping[str, Any], hidden: Tensor) -> Rows:
    """Of hidden states (B, T, d) of pixels or sounds.

    Raises:
        TokensError: a mask is not that of the hidden states.
    """
    mask, shape = inputs.get("attention_mask"), tuple(hidden.shape[:2])
    if mask is not None and tuple(mask.shape) != shape:
        raise TokensError(
            f"attention_mask: {shape}, as the hidden states of pixels or sounds have it, is "
            f"needed, found {tuple(mask.shape)}; leave it out where all is real"
        )
    return rows_of_columns(hidden, None if mask is None else mask.to(hidden.device).bool())


def rows_of_call(
    attention: Attention, hidden: Tensor, arguments: Mapping[str, Any]
) -> tuple[Tensor, Rows]:
    """Hidden states (B, T, d) of one of torch's own layers, and what its call says of them."""
    if hidden.is_nested:  # torch has left out the padding at the end of the rows
        lengths = torch.tensor([len(row) for row in hidden.unbind()], device=hidden.device)
        hidden = torch.nested.to_padded_tensor(hidden, 0.0)
        columns = torch.arange(hidden.shape[1], device=hidden.device)
        return hidden, rows_of_columns(hidden, columns < lengths[:, None])
    if hidden.ndim != 3:
        raise TokensError(
            f"{attention.block} was called with hidden states of shape {tuple(hidden.shape)}; give "
            "a batch"
        )
    if not attention.module.batch_first:
        hidden = hidden.transpose(0, 1)
    mask = read_plain_call(arguments).mask
    return hidden, rows_of_columns(hidden, mask)


def mean_and_pos(geometry: Geometry, attention: Attention) -> tuple[Tensor, Tensor]:
    """(d,) and (T, d) at the attention's input.

    Raises:
        SiteError: the geometry lacks them.
    """
    found = geometry[attention.site]
    if "pos_ctx" not in found:
        raise SiteError(
            f"the geometry has no pos_ctx at {attention.site!r}; measure it with "
            'watch(model, sites="blocks", statistics=[gh.PosCtx()])'
        )
    return found.pos_ctx.mean, found.pos_ctx.pos


def parts_at(
    attention: Attention, geometry: Geometry, hidden: Tensor, rows: Rows
) -> tuple[Tensor, Tensor]:
    """(4, B, T, d) parts of hidden states, and (B, T) the real tokens whose pos is known."""
    if hidden.shape[:-1] != rows.real.shape:
        raise SiteError(
            f"the input of {attention.block} has shape {tuple(hidden.shape)}, for tokens "
            f"{tuple(rows.real.shape)}"
        )
    hidden = as_float(hidden)
    mean, pos = (tensor.to(hidden) for tensor in mean_and_pos(geometry, attention))
    if len(mean) != hidden.shape[-1]:
        raise SiteError(
            f"the input of {attention.block} is of width {hidden.shape[-1]}, and the geometry at "
            f"{attention.site!r} of width {len(mean)}; it is of another model"
        )
    real, positions = rows.real.to(hidden.device), rows.positions.to(hidden.device)
    within = real & (positions >= 0) & (positions < len(pos))
    own = pos[positions.clamp(0, len(pos) - 1)]
    known = within & torch.isfinite(own).all(-1)
    own = own.masked_fill(~known[..., None], float("nan"))
    return split_states(hidden, mean, own, real=known), known


@contextmanager
def input_of_block(
    model: nn.Module, attention: Attention, take: Callable[[Tensor, Mapping[str, Any]], None]
) -> Iterator[None]:
    """While open, the block of an attention hands its input to ``take`` before it runs.

    With it go the arguments of the block's call, by name.

    Raises:
        HookError: it did not run.
    """
    ran = False

    def hand(module: nn.Module, args: Any, kwargs: Any) -> None:
        nonlocal ran
        hidden = find_tensor((args, kwargs))
        if hidden is None:
            raise SiteError(f"the input of {attention.block} holds no tensor of floating numbers")
        ran = True
        take(hidden.detach(), by_name(parameters_of(module), args, kwargs))

    block = unwrap(model).get_submodule(attention.block)
    handle = block.register_forward_pre_hook(hand, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
    if not ran:
        raise HookError(f"the block {attention.block} did not run")
