"""What the heads of a model do to words, read from its weights: no text is run through it.

After R. Molina, "Traveling Words" (arXiv 2309.07315). All words are embedded and normed as the
block would read them; a head's query-key form then says which keys a word looks for, its
value-output map what a word that is looked at adds, and the singular vectors of both which words
they are about.

Where the published code differs from its definitions, these follow the definitions: lengths of
updates are real numbers, which the published logs give cut off to whole ones. Biases of query and
key are left out of the keys of a word there, although that of the query ranks keys; ``biases=True``
takes them in.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from geomhooks.anatomy.families import Anatomy
from geomhooks.anatomy.virtual_matrices import Matrix, factors, query_key_form_of, value_output_of
from geomhooks.anatomy.words import Words, single_tokens, word_rows
from geomhooks.errors import AnatomyError
from geomhooks.functional.low_rank import factored_svd
from geomhooks.functional.nearest import Metric, align_signs, nearest_rows

__all__ = [
    "BiasWords",
    "HeadWords",
    "SingularWords",
    "bias_words",
    "key_words",
    "singular_words",
    "value_words",
]

Row = dict[str, Any]


@dataclass(frozen=True)
class HeadWords:
    """Words nearest to what the heads of an attention make of given words.

    Attributes:
        attention: its name.
        words: the n words that were put in.
        indices: (H, n, k) rows of the nearest; of values (H + 1, n, k), the last for all heads.
        scores: the same, dot products or cosines.
        nearest: the same as texts, in lists.
        lengths: (H + 1, n) |update| of values, without the bias of the output; None for keys.
    """

    attention: str
    words: list[str]
    indices: Tensor
    scores: Tensor
    nearest: list[list[list[str]]]
    lengths: Tensor | None = None

    def table(self) -> list[Row]:
        """A row for each head and word; that of all heads together is called "sum"."""
        rows = []
        for head, found in enumerate(self.nearest):
            last = self.lengths is not None and head == len(self.nearest) - 1
            for place, (word, near) in enumerate(zip(self.words, found, strict=True)):
                row: Row = {"attention": self.attention, "head": "sum" if last else head}
                row |= {"word": word, "nearest": near}
                if self.lengths is not None:
                    row["length"] = float(self.lengths[head, place])
                rows.append(row)
        return rows


@dataclass(frozen=True)
class SingularWords:
    """Words nearest to the leading singular vectors of each head.

    Attributes:
        attention: its name.
        of: "query_key" or "value_output".
        values: (H, r) singular values, the largest first.
        left_indices: (H, r, k) rows nearest to left vectors: queries, or what is looked at.
        right_indices: (H, r, k) nearest to right vectors: keys, or what is added.
        left: the same as texts, in lists.
        right: the same.
    """

    attention: str
    of: Matrix
    values: Tensor
    left_indices: Tensor
    right_indices: Tensor
    left: list[list[list[str]]]
    right: list[list[list[str]]]

    def table(self) -> list[Row]:
        """A row for each head and singular value."""
        return [
            {"attention": self.attention, "of": self.of, "head": head, "rank": rank}
            | {"value": float(self.values[head, rank])}
            | {"left": self.left[head][rank], "right": self.right[head][rank]}
            for head in range(len(self.values))
            for rank in range(self.values.shape[1])
        ]


@dataclass(frozen=True)
class BiasWords:
    """Words along and against the directions that biases prefer.

    Attributes:
        attention: its name.
        directions: (2, H, d) of the query-only term, which the softmax does not see, and of the
            key-only term, which it does.
        indices: (2, 2, H, k) rows nearest to +direction and to -direction of each.
        nearest: the same as texts, in lists.
    """

    attention: str
    directions: Tensor
    indices: Tensor
    nearest: list[list[list[list[str]]]]

    def table(self) -> list[Row]:
        """A row for each head, side and sign."""
        return [
            {"attention": self.attention, "head": head, "side": side, "sign": sign}
            | {"length": float(self.directions[at, head].norm())}
            | {"nearest": self.nearest[at][which][head]}
            for head in range(self.indices.shape[2])
            for at, side in enumerate(("query", "key"))
            for which, sign in enumerate("+-")
        ]


def key_words(
    model: nn.Module | Anatomy,
    tokenizer: Any,
    words: Iterable[str],
    layer: int | str,
    *,
    k: int = 5,
    distance: int = 0,
    biases: bool = False,
    metric: Metric = "dot",
) -> HeadWords:
    r"""From query to key: the words that each head looks for most when it reads a word.

    Of all words E as the block reads them, those whose product with :math:`e\, W_{QK}` is largest.

    Args:
        model: or what ``find_anatomy`` found of it.
        tokenizer: as :meth:`geomhooks.anatomy.Words.of` takes it.
        words: those that are no single token are left out.
        layer: number or name of the block.
        k: how many of the nearest.
        distance: how many tokens the query is after the key, for a rotary embedding.
        biases: add the key-only term of the biases, as the model does; Molina's probe does not.
        metric: "dot", as the model compares, or "cosine".

    Raises:
        AnatomyError: of the model, see :func:`geomhooks.anatomy.find_anatomy`.
        ValueError: no word is one token, or k is out of range.

    Example:
        >>> from transformers import GPT2Config, GPT2Model
        >>> model = GPT2Model(GPT2Config(n_layer=2, n_embd=8, n_head=2, vocab_size=26))
        >>> letters = (lambda text: [ord(c) - 97 for c in text], lambda ids: chr(97 + ids[0]))
        >>> found = key_words(model, letters, ["a", "b", "no"], layer=0, k=3)
        >>> found.words, found.indices.shape, len(found.table())
        (['a', 'b'], torch.Size([2, 2, 3]), 4)
    """
    rows = word_rows(model, layer)
    known = single_tokens(words, tokenizer, len(rows.read))
    form = query_key_form_of(rows.attention, distance, folded=False)
    queries = rows.read[list(known.values())] @ form.left
    directions = queries @ form.right.mT
    if biases:
        directions = directions + form.key_only[:, None]
    found = nearest_rows(directions.flatten(0, 1), rows.read, k, metric=metric)
    indices, scores = (part.view(*directions.shape[:2], k) for part in found)
    texts = Words.of(tokenizer).texts(indices)
    return HeadWords(rows.attention.name, list(known), indices, scores, texts)


def value_words(
    model: nn.Module | Anatomy,
    tokenizer: Any,
    words: Iterable[str],
    layer: int | str,
    *,
    k: int = 5,
    alone: bool = False,
    metric: Metric = "dot",
) -> HeadWords:
    """From key to value: the words that each head adds when it looks at a word and nothing else.

    The update of one head, and of all together, is added to the word's embedding with the whole
    bias of the output; the final norm and the unembedding read the sum, as if no block came after.
    A bias of the unembedding is not counted.

    Where updates are short beside embeddings, what is read so is the word itself and its spellings,
    whatever the head; ``alone`` leaves the word and the bias out, and reads the update by itself.

    Args:
        model: or what ``find_anatomy`` found of it.
        tokenizer: as :meth:`geomhooks.anatomy.Words.of` takes it.
        words: those that are no single token are left out.
        layer: number or name of the block.
        k: how many of the nearest.
        alone: read the update without the word that it is added to; Molina's probe does not.
        metric: "dot", as the model compares, or "cosine".

    Raises:
        AnatomyError: of the model, see :func:`geomhooks.anatomy.find_anatomy`.
        ValueError: no word is one token, or k is out of range.

    Example:
        >>> from transformers import GPT2Config, GPT2Model
        >>> model = GPT2Model(GPT2Config(n_layer=2, n_embd=8, n_head=2, vocab_size=26))
        >>> letters = (lambda text: [ord(c) - 97 for c in text], lambda ids: chr(97 + ids[0]))
        >>> found = value_words(model, letters, ["a", "b"], layer=1, k=3)
        >>> found.indices.shape, [row["head"] for row in found.table()]
        (torch.Size([3, 2, 3]), [0, 0, 1, 1, 'sum', 'sum'])
    """
    rows = word_rows(model, layer)
    known = single_tokens(words, tokenizer, len(rows.read))
    own = torch.tensor(list(known.values()), device=rows.read.device)
    updates = value_output_of(rows.attention, folded=False).updates(rows.read[own])
    updates = torch.cat((updates, updates.sum(0, keepdim=True)))
    states = rows.logit_lens(own, updates, alone=alone)
    found = nearest_rows(states.flatten(0, 1), rows.unembedding, k, metric=metric)
    indices, scores = (part.view(*states.shape[:2], k) for part in found)
    texts = Words.of(tokenizer).texts(indices)
    lengths = torch.linalg.vector_norm(updates, dim=-1)
    return HeadWords(rows.attention.name, list(known), indices, scores, texts, lengths)


def singular_words(
    model: nn.Module | Anatomy,
    tokenizer: Any,
    layer: int | str,
    of: Matrix = "query_key",
    *,
    number: int = 20,
    k: int = 5,
    distance: int = 0,
    folded: bool = False,
    metric: Metric = "dot",
) -> SingularWords:
    """The words that the leading singular vectors of each head's matrix point to.

    Left vectors, and right ones of query-key forms, are compared with all words as the block reads
    them; right vectors of value-output maps with the rows of the unembedding. Of both signs that a
    pair may have, it is given the one with which the right vector has the largest product.

    Args:
        model: or what ``find_anatomy`` found of it.
        tokenizer: as :meth:`geomhooks.anatomy.Words.of` takes it.
        layer: number or name of the block.
        of: "query_key" or "value_output".
        number: of singular values, at most as many as a head is wide.
        k: how many of the nearest.
        distance: how many tokens the query is after the key, for a rotary embedding.
        folded: take the gain of the norm into the matrix, and compare with words before it.
        metric: "dot", as published, or "cosine".

    Raises:
        AnatomyError: of the model, see :func:`geomhooks.anatomy.find_anatomy`.
        ValueError: k or ``of`` is out of range.

    Example:
        >>> from transformers import GPT2Config, GPT2Model
        >>> model = GPT2Model(GPT2Config(n_layer=2, n_embd=8, n_head=2, vocab_size=26))
        >>> letters = (lambda text: [ord(c) - 97 for c in text], lambda ids: chr(97 + ids[0]))
        >>> found = singular_words(model, letters, layer=0, k=3)
        >>> found.values.shape, found.left_indices.shape, len(found.table())
        (torch.Size([2, 4]), torch.Size([2, 4, 3]), 8)
    """
    rows = word_rows(model, layer)
    read = rows.standardised if folded else rows.read
    written = read if of == "query_key" else rows.unembedding
    found = factored_svd(*factors(rows.attention, of, distance, folded, centred=False))
    values = found.values[:, :number]
    left, right = (side.mT[:, :number] for side in (found.left, found.right))
    shape = left.shape[:2]
    signs = align_signs(right.flatten(0, 1), written).view(*shape, 1)
    left_indices, right_indices = (
        nearest_rows((signs * side).flatten(0, 1), table, k, metric=metric).indices.view(*shape, k)
        for side, table in ((left, read), (right, written))
    )
    texts = Words.of(tokenizer).texts
    return SingularWords(
        rows.attention.name,
        of,
        values,
        left_indices,
        right_indices,
        texts(left_indices),
        texts(right_indices),
    )


def bias_words(
    model: nn.Module | Anatomy,
    tokenizer: Any,
    layer: int | str,
    *,
    k: int = 5,
    distance: int = 0,
    folded: bool = False,
    metric: Metric = "dot",
) -> BiasWords:
    """The words along and against the directions that the biases of query and key prefer.

    Args:
        model: or what ``find_anatomy`` found of it.
        tokenizer: as :meth:`geomhooks.anatomy.Words.of` takes it.
        layer: number or name of the block.
        k: how many of the nearest.
        distance: how many tokens the query is after the key, for a rotary embedding.
        folded: with the shift of the norm among the biases, and words before its gain and shift.
        metric: "dot", as published, or "cosine".

    Raises:
        AnatomyError: it has no biases, or as :func:`geomhooks.anatomy.find_anatomy` says.
        ValueError: k is out of range.

    Example:
        >>> from transformers import GPT2Config, GPT2Model
        >>> model = GPT2Model(GPT2Config(n_layer=2, n_embd=8, n_head=2, vocab_size=26))
        >>> _ = torch.nn.init.normal_(model.h[0].attn.c_attn.bias)
        >>> letters = (lambda text: [ord(c) - 97 for c in text], lambda ids: chr(97 + ids[0]))
        >>> found = bias_words(model, letters, layer=0, k=3)
        >>> found.indices.shape, found.table()[3]["side"], found.table()[3]["sign"]
        (torch.Size([2, 2, 2, 3]), 'key', '-')
    """
    rows = word_rows(model, layer)
    form = query_key_form_of(rows.attention, distance, folded=folded)
    directions = torch.stack((form.query_only, form.key_only))
    if not bool(directions.any()):
        raise AnatomyError(
            f"{rows.attention.name} has no biases of query and key, or they are zero, and no "
            "direction is preferred" + ("" if folded else "; folded=True has the norm's shift too")
        )
    both = torch.stack((directions, -directions), 1)
    read = rows.standardised if folded else rows.read
    found = nearest_rows(both.flatten(0, 2), read, k, metric=metric)
    indices = found.indices.view(*both.shape[:3], k)
    texts = Words.of(tokenizer).texts(indices)
    return BiasWords(rows.attention.name, directions, indices, texts)
