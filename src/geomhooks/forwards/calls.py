"""What a call of a model says about its tokens, and what the user says instead."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from geomhooks.errors import TokensError
from geomhooks.forwards.caches import Marks, cache_of, marks_of, past_length

__all__ = [
    "FEATURES",
    "OPENING",
    "PLAIN",
    "STATED",
    "Call",
    "Statement",
    "add_statement",
    "copy_of",
    "one_mask",
    "read_call",
    "read_plain_call",
    "real_entries",
]

TEXT = ("input_ids", "inputs_embeds", "decoder_input_ids", "decoder_inputs_embeds")
FEATURES = ("pixel_values", "pixel_values_videos", "input_features", "input_values", "images")
OPENING = TEXT + FEATURES
# What else is read off a call.
STATED = (
    "attention_mask",
    "position_ids",
    "decoder_attention_mask",
    "decoder_position_ids",
    "tgt_key_padding_mask",
    "src_key_padding_mask",
    "labels",
    "cu_seq_lens_q",
)
PLAIN = ("tgt", "src")

# How models without position_ids number their tokens, by Hugging Face model type. All others count
# columns, after what is in the cache.
COUNT_MASK = frozenset({"opt", "bloom", "biogpt", "falcon"})
COUNT_IDS = frozenset(
    [
        "camembert",
        "data2vec-text",
        "esm",
        "ibert",
        "layoutlmv3",
        "lilt",
        "longformer",
        "luke",
        "m2m_100",
        "markuplm",
        "mpnet",
        "nllb-moe",
        "roberta",
        "roberta-prelayernorm",
        "xlm-roberta",
        "xlm-roberta-xl",
        "xmod",
    ]
)


@dataclass
class Statement:
    """What the user says of the tokens of a forward; ``None`` leaves it to the model's call.

    Attributes:
        mask: (B, T) or wider, nonzero where an entry is real.
        positions: (B, T), (1, T) or (T,) absolute positions.
        contexts: (B,) or (B, T) ids; entries of equal id are one context, also in later forwards.
        groups: (B,) or (B, T) integer labels.
    """

    mask: Tensor | None = None
    positions: Tensor | None = None
    contexts: Tensor | None = None
    groups: Tensor | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is None:
                continue
            try:
                value = torch.as_tensor(value)
            except (TypeError, ValueError, RuntimeError) as error:
                raise TokensError(
                    f"tokens: {name} is a {type(value).__name__} that is no tensor of numbers; "
                    f"number your {name}, for example with a dictionary"
                ) from error
            if name != "mask" and (value.is_floating_point() or value.dtype == torch.bool):
                raise TokensError(
                    f"tokens: {name} has dtype {value.dtype}; integers are needed. "
                    f"Number your {name}, for example with a dictionary."
                )
            if value.ndim not in (1, 2):
                raise TokensError(
                    f"tokens: {name} has shape {tuple(value.shape)}; (batch,), (batch, time) or, "
                    "for packed tokens, (tokens,) is allowed"
                )
            setattr(self, name, value if name == "mask" else value.to(torch.int64))


def add_statement(outer: Statement, said: Any) -> Statement:
    """A statement on top of another: what the new one leaves open stays as it was.

    Raises:
        TokensError: it is no mapping of the four names.
    """
    names = list(vars(outer))
    if not isinstance(said, Mapping) or set(said) - set(names):
        found = sorted(said) if isinstance(said, Mapping) else f"a {type(said).__name__}"
        raise TokensError(
            f"tokens were described by {found}; a dictionary with any of {', '.join(names)} is "
            "needed"
        )
    given = {name: value for name, value in said.items() if value is not None}
    return Statement(**{**vars(outer), **given})


@dataclass
class Call:
    """What one call of a module said about its tokens.

    Attributes:
        ids: (B, T) token ids.
        labels: (B, T) what a model is to say of each token, -100 for nothing.
        grid: (B, T) of its tokens, where it tells.
        mask: 2-D mask, nonzero where real.
        square_mask: (B, heads, T or 1, keys) mask over queries and keys.
        positions: 2-D position ids.
        past: how many positions are in the cache already; an int, or a tensor for a static cache.
        cache: the cache itself.
        marks: by which the cache is known to be that of an earlier forward.
        text: anything else (pixels, audio) has no ids, and its mask is at another resolution.
        rule: how the model numbers positions where nobody states them: "column", "mask", "ids".
        pad: id of the padding token, for the rule "ids".
        one_stack: the model is known to be no encoder-decoder, so that calls inside of this one
            that show as many embeddings show the same tokens.
    """

    ids: Tensor | None = None
    labels: Tensor | None = None
    grid: tuple[int, int] | None = None
    mask: Tensor | None = None
    square_mask: Tensor | None = None
    positions: Tensor | None = None
    past: int | Tensor = 0
    cache: Any = None
    marks: Marks = ()
    text: bool = True
    rule: str = "column"
    pad: int | None = None
    one_stack: bool = False

    @property
    def says_more_than_ids(self) -> bool:
        """Something is masked, has a position, or goes on."""
        said = (self.mask, self.square_mask, self.positions, self.cache)
        return any(one is not None for one in said)


def read_call(
    arguments: Mapping[str, Any], config: Any = None, parent: Call | None = None
) -> Call | None:
    """Read the tokens of a call off its arguments by name, or None where it opens no stream.

    An inner stack that takes its hidden states by the name ``inputs_embeds`` opens none: the call
    around it says what they are. Nor does a call that is given the very ids of the call around it
    and no mask, as embedding layers are.

    Args:
        arguments: by name.
        config: of the module that is called.
        parent: the call around it.

    Raises:
        TokensError: the call is of a kind that does not say whose its tokens are.
    """
    given = {name: value for name in OPENING if (value := arguments.get(name)) is not None}
    if not given:
        return None
    if arguments.get("read_index") is not None:
        raise TokensError(
            "transformers' continuous batching (generate_batch) was found: it lays the tokens of "
            "several generations side by side in one row and does not say whose they are. Use "
            "generate(), or leave these forwards out: with watch.pause()."
        )
    mask = one_mask(arguments.get("attention_mask"))
    inner = parent is not None and list(given) == ["inputs_embeds"]
    if inner and isinstance(mask, Tensor) and mask.ndim > 2:
        return None  # a finished mask
    one_stack = config is not None and not getattr(config, "is_encoder_decoder", False)
    call = Call(text=any(name in given for name in TEXT), one_stack=one_stack)
    prefix = ""
    if call.text:
        if "input_ids" not in given and "inputs_embeds" not in given:
            prefix = "decoder_"
        ids, embeds = arguments.get(prefix + "input_ids"), arguments.get(prefix + "inputs_embeds")
        if isinstance(ids, Tensor) and ids.ndim <= 2 and not ids.is_floating_point():
            call.ids = ids if ids.ndim == 2 else ids[None]
            call.grid = (call.ids.shape[0], call.ids.shape[1])
        elif isinstance(embeds, Tensor) and embeds.ndim >= 2:
            call.grid = (
                (embeds.shape[0], embeds.shape[1]) if embeds.ndim > 2 else (1, embeds.shape[0])
            )
    labels = arguments.get("labels")
    if isinstance(labels, Tensor) and not prefix and not labels.is_floating_point():
        call.labels = labels
    mask = one_mask(arguments.get(prefix + "attention_mask"))
    call.mask = _stated(mask)
    places = arguments.get(prefix + "position_ids")
    in_space = False
    if isinstance(places, Tensor) and places.ndim == 3:
        in_space = True  # in time, height and width, and of four in the text before these
        places = places[0] if len(places) == 4 else None
    call.positions = _stated_positions(places)
    if call.positions is None and call.grid is not None and not prefix:
        call.positions = _positions_between(arguments.get("cu_seq_lens_q"), call.grid)
    if (
        parent is not None
        and parent.says_more_than_ids
        and call.mask is None
        and same_tensor(call.ids, parent.ids)
    ):
        # As embedding layers are called, which need no mask: the call around it has said it all.
        return None if call.positions is None else replace(parent, positions=call.positions)
    if inner and parent is not None and parent.one_stack and parent.grid == call.grid:
        if call.mask is None and call.positions is None:
            return None
        call.ids = parent.ids  # as in models that put images among the embeddings of a text
    if parent is not None and parent.one_stack and parent.grid == call.grid:
        call.labels = parent.labels if call.labels is None else call.labels
    if inner and parent is not None:
        call.text = parent.text
    call.cache = cache_of(arguments)
    call.past, call.marks = past_length(call.cache), marks_of(call.cache)
    if call.text and isinstance(mask, Tensor) and mask.ndim in (3, 4):
        call.square_mask = mask if mask.ndim == 4 else mask[:, None]
    kind = getattr(config, "model_type", None)
    if in_space:
        call.rule = "mask"  # as models number the text around images
    elif kind in COUNT_MASK and (kind != "falcon" or getattr(config, "alibi", False)):
        call.rule = "mask"
    elif kind in COUNT_IDS and call.ids is not None:
        call.rule, call.pad = "ids", getattr(config, "pad_token_id", None)
    return call


def one_mask(value: Any) -> Any:
    """What a call gives as its mask; of several, one for each kind of layer, one that is there.

    Kinds of layers differ in how far back a token looks, and agree on which tokens are real.
    """
    if not isinstance(value, Mapping):
        return value
    for mask in (value.get("full_attention"), *value.values()):
        if isinstance(mask, Tensor):
            return mask
    return None


def copy_of(tensor: Tensor) -> Tensor:
    """A copy that knows of what it is one."""
    copy = tensor.clone()
    copy.original = tensor.data_ptr()  # type: ignore[attr-defined]
    return copy


def same_tensor(one: Tensor | None, other: Tensor | None) -> bool:
    """Both are one tensor, or copied from one, as compiled code has it."""
    if one is None or other is None or one is other:
        return one is not None and one is other
    if one.shape != other.shape or not (hasattr(one, "original") or hasattr(other, "original")):
        return False
    places = [getattr(tensor, "original", None) or tensor.data_ptr() for tensor in (one, other)]
    return places[0] == places[1]


def _stated(value: Any) -> Tensor | None:
    """What a call states in one or two dimensions, as a tensor.

    The 4-D masks of inner layers and positions in time, height and width are none of it.
    """
    if isinstance(value, (list, tuple, np.ndarray)):
        try:
            value = torch.as_tensor(value)
        except (TypeError, ValueError, RuntimeError):
            return None
    return value if isinstance(value, Tensor) and value.ndim in (1, 2) else None


def _stated_positions(value: Any) -> Tensor | None:
    """Positions (B, T), or (1, T) where they are stated once for all rows.

    Raises:
        TokensError: they are no whole numbers.
    """
    positions = _stated(value)
    if positions is None:
        return None
    if positions.is_floating_point() or positions.dtype == torch.bool:
        raise TokensError(
            f"position_ids has dtype {positions.dtype}; integers are needed. Give absolute "
            "positions by watch.tokens(positions=...), or run the model inside watch.pause()."
        )
    return positions if positions.ndim == 2 else positions[None]


def _positions_between(bounds: Any, grid: tuple[int, int]) -> Tensor | None:
    """Positions (B, T) within texts that lie one behind the other.

    Args:
        bounds: (texts + 1,) where each begins among the B T tokens, and the last one ends, as
            kernels of flash attention are told; or anything else, which says nothing.
        grid: (B, T).
    """
    if not isinstance(bounds, Tensor) or bounds.ndim != 1 or not len(bounds):
        return None
    column = torch.arange(grid[0] * grid[1], device=bounds.device)
    begun = torch.searchsorted(bounds.to(torch.int64), column, right=True) - 1
    return (column - bounds[begun.clamp(min=0)]).view(grid)


def read_plain_call(arguments: Mapping[str, Any]) -> Call:
    """What a call that takes neither ids nor pixels says of its tokens.

    The arguments of torch's own transformers are read as well: of a decoder those of its target.
    """
    call = Call()
    for states, padding in (
        ("tgt", "tgt_key_padding_mask"),
        ("src", "src_key_padding_mask"),
    ):
        hidden, mask = arguments.get(states), arguments.get(padding)
        if isinstance(hidden, Tensor) and hidden.ndim == 2:
            call.grid = (1, len(hidden))  # unbatched
        if isinstance(mask, Tensor) and mask.ndim <= 2:
            # torch's own convention: True, or minus infinity, where an entry is padding.
            call.mask = (mask if mask.ndim == 2 else mask[None]) == 0
            call.grid = (call.mask.shape[0], call.mask.shape[1])
        if isinstance(hidden, Tensor):
            return call
    call.mask = _stated(arguments.get("attention_mask"))
    call.positions = _stated_positions(arguments.get("position_ids"))
    return call


def real_entries(mask: Tensor) -> Tensor:
    """Where a mask says that an entry is real: nonzero, or zero where the mask is additive.

    An additive mask has zeros and large negative numbers; no other mask is negative anywhere.
    """
    if not mask.is_floating_point():
        return mask != 0
    return torch.where((mask < 0).any(), mask == 0, (mask != 0) & ~mask.isnan())
