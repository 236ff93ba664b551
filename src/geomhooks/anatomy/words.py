"""The words of a model: its tokenizer, and its embeddings as the heads of a block read them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from geomhooks.anatomy.families import Anatomy, Stack
from geomhooks.anatomy.finding import find_anatomy
from geomhooks.anatomy.parts import Attention, Linear, Sublayer
from geomhooks.anatomy.rebuilding import normed
from geomhooks.anatomy.virtual_matrices import standardised
from geomhooks.errors import AnatomyError
from geomhooks.functional.shapes import as_float

__all__ = ["WordRows", "Words", "single_tokens", "word_rows"]


@dataclass(frozen=True)
class Words:
    """What turns text into tokens and back.

    Attributes:
        encode: ids of a text, without special tokens.
        decode: text of ids.
    """

    encode: Callable[[str], Sequence[int]]
    decode: Callable[[list[int]], str]

    @classmethod
    def of(cls, tokenizer: Any) -> Words:
        """Of a tokenizer.

        Args:
            tokenizer: of Hugging Face's transformers or tokenizers, anything else with ``encode``
                and ``decode`` such as tiktoken's, or a pair (encode, decode) of functions.

        Raises:
            TypeError: it is something else.

        Example:
            >>> words = Words.of(
            ...     (
            ...         lambda text: [ord(c) - 97 for c in text],
            ...         lambda ids: "".join(chr(97 + i) for i in ids),
            ...     )
            ... )
            >>> words.encode("cab"), words.decode([2, 0, 1])
            ([2, 0, 1], 'cab')
        """
        if isinstance(tokenizer, Words):
            return tokenizer
        pair = tokenizer if isinstance(tokenizer, tuple) else None
        if pair is None and hasattr(tokenizer, "encode") and hasattr(tokenizer, "decode"):
            pair = (tokenizer.encode, tokenizer.decode)
        if pair is None or len(pair) != 2 or not all(map(callable, pair)):
            raise TypeError(
                "tokenizer: one with encode and decode is needed, or a pair of such functions, "
                f"found {type(tokenizer).__name__}"
            )
        encode, decode = pair
        plain = {"add_special_tokens": False} if takes(encode, "add_special_tokens") else {}

        def ids(text: str) -> Sequence[int]:
            found = encode(text, **plain)
            return list(getattr(found, "ids", found))

        return cls(ids, decode)

    def texts(self, indices: Tensor) -> list[Any]:
        """The text of each index, in lists as the tensor is shaped."""
        known: dict[int, str] = {}

        def text(part: Any) -> Any:
            if isinstance(part, list):
                return [text(each) for each in part]
            if part not in known:
                known[part] = self.decode([part])
            return known[part]

        found: list[Any] = text(indices.tolist())
        return found


def takes(function: Callable[..., Any], name: str) -> bool:
    """Whether a function has an argument of that name."""
    try:
        return name in inspect.signature(function).parameters
    except (TypeError, ValueError):  # some written in other languages do not say
        return False


def single_tokens(words: Iterable[str], tokenizer: Any, size: int | None = None) -> dict[str, int]:
    """Those of some words that are one token each, and its number.

    Molina's probes take common nouns written without a space before them. With tokenizers that mark
    the beginnings of words, such as GPT-2's, "time" and " time" are different tokens.

    Args:
        words: texts.
        tokenizer: of :meth:`Words.of`.
        size: rows of the model's table of tokens, which a token has to be one of.

    Raises:
        ValueError: none of them is one token, a token is beyond the table, or the words are one
            text.

    Example:
        >>> pair = (lambda text: [ord(c) - 97 for c in text], lambda ids: chr(97 + ids[0]))
        >>> single_tokens(["a", "ab", "c"], pair)
        {'a': 0, 'c': 2}
    """
    if isinstance(words, str):
        raise ValueError(f"words={words!r}: a list of words is needed, such as [{words!r}]")
    encode = Words.of(tokenizer).encode
    words = list(words)
    ids = {word: encode(word) for word in words}
    found = {word: int(tokens[0]) for word, tokens in ids.items() if len(tokens) == 1}
    if not found:
        raise ValueError(
            f"none of {len(words)} words is one token of this tokenizer; give others, such as with "
            "a space before them"
        )
    beyond = {word: token for word, token in found.items() if size is not None and token >= size}
    if beyond:
        word, token = next(iter(beyond.items()))
        raise ValueError(
            f"{word!r} is token {token}, and the model's table has {size} rows: the tokenizer is "
            "another model's"
        )
    return found


@dataclass(frozen=True)
class WordRows:
    """The embeddings of all words around one attention.

    Attributes:
        attention: whose heads read them.
        sublayer: the attention in its block.
        stack: that the block is in.
        embedded: (V, d) as they come into the first block, without positions.
        unembedding: (V, d) the rows that states are compared with for the next token.
    """

    attention: Attention
    sublayer: Sublayer
    stack: Stack
    embedded: Tensor
    unembedding: Tensor

    @cached_property
    def read(self) -> Tensor:
        """(V, d) after the norm before attention."""
        return normed(self.embedded, self.attention.norm)

    @cached_property
    def standardised(self) -> Tensor:
        """(V, d) before the gain and shift of that norm."""
        return standardised(self.embedded, self.attention.norm)

    def logit_lens(self, indices: Tensor, updates: Tensor, *, alone: bool = False) -> Tensor:
        """What the unembedding would see if attention made an update of words, and no more came.

        Args:
            indices: (n,) of the words.
            updates: (..., n, d) of heads; the bias of the output is added.
            alone: of the updates alone: words and the bias of the output are left out.
        """
        bias = self.attention.output.bias
        if bias is not None and not alone:
            updates = updates + bias.to(updates)
        state = self.sublayer.scale * normed(updates, self.sublayer.after)
        if not alone:
            kept = self.read if self.sublayer.residual_is_normed else self.embedded
            state = kept[indices] + state
        return normed(normed(state, self.sublayer.closing), self.stack.final_norm)


def word_rows(model: nn.Module | Anatomy, layer: int | str) -> WordRows:
    """The embeddings of all words as the heads of one block would read them at once.

    Args:
        model: or what :func:`find_anatomy` found of it.
        layer: number or name of the block.

    Raises:
        AnatomyError: the family is not known, there is no such block, or no table of tokens as wide
            as the hidden states.
    """
    anatomy = model if isinstance(model, Anatomy) else find_anatomy(model)
    attention = anatomy.at(layer)
    stack, sublayer = next(
        (stack, sublayer)
        for stack in anatomy.stacks.values()
        for block in stack.blocks
        for sublayer in block.sublayers
        if sublayer.part is attention
    )
    embedded = token_table(stack)
    return WordRows(attention, sublayer, stack, embedded, unembedding_rows(anatomy, stack))


def token_table(stack: Stack) -> Tensor:
    """(V, d) the embeddings of tokens as they come into the first block, without positions.

    Raises:
        AnatomyError: there are none.
    """
    around = stack.embeddings
    if around is None or around.tokens is None:
        raise AnatomyError(
            f"the stack {stack.name!r} has no table of tokens as wide as its hidden states, and "
            "no words to probe its heads with"
        )
    return normed(around.scale * as_float(around.tokens), around.norm)


def unembedding(anatomy: Anatomy, stack: Stack) -> Linear:
    """The head (d, V), or the embeddings where the model has none.

    Raises:
        AnatomyError: there are none, or they are not as wide as hidden states.
    """
    if anatomy.unembedding is not None:
        found = anatomy.unembedding
    elif stack.embeddings is not None and stack.embeddings.tokens is not None:
        found = Linear(stack.embeddings.tokens.T, None)
    else:
        raise AnatomyError(
            f"{anatomy.family.name}: there is neither a head nor a table of tokens, so that states "
            "tell of no words; watch the model with its head, or leave out statistics of words"
        )
    width, read = stack.blocks[0].attention.output.weight.shape[2], len(found.weight)
    if read != width:
        raise AnatomyError(
            f"the unembedding reads {read} entries and hidden states have {width}; a projection "
            "stands between"
        )
    return found


def unembedding_rows(anatomy: Anatomy, stack: Stack) -> Tensor:
    """(V, d) of :func:`unembedding`."""
    return as_float(unembedding(anatomy, stack).weight.T)
