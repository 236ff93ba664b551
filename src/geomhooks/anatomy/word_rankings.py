"""The words that a model's final norm favours, and how near its embeddings are to the sphere.

After R. Molina, "Traveling Words" (arXiv 2309.07315); from weights alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from geomhooks.anatomy.families import Anatomy
from geomhooks.anatomy.finding import find_anatomy
from geomhooks.anatomy.words import Words, token_table, unembedding_rows
from geomhooks.functional.sphere.word_geometry import (
    SphereDistances,
    WordScores,
    sphere_distances,
    word_scores,
)

__all__ = ["RankedWords", "embedding_distances", "ranked_words"]


@dataclass(frozen=True)
class RankedWords:
    """The words that the final norm favours most and least.

    Attributes:
        scores: of all words.
        top: (6, k) rows with the largest of each score, the largest first.
        bottom: (6, k) with the smallest, the smallest first.
        top_words: the same as texts, in lists.
        bottom_words: the same.
    """

    scores: WordScores
    top: Tensor
    bottom: Tensor
    top_words: list[list[str]]
    bottom_words: list[list[str]]

    def table(self) -> list[dict[str, Any]]:
        """A row for each score, end and place, counted from 1."""
        rows: list[dict[str, Any]] = []
        for at, (name, scores) in enumerate(self.scores._asdict().items()):
            for end, indices, words in (
                ("top", self.top, self.top_words),
                ("bottom", self.bottom, self.bottom_words),
            ):
                for place, (index, word) in enumerate(zip(indices[at], words[at], strict=True), 1):
                    row: dict[str, Any] = {"by": name, "end": end, "place": place}
                    rows.append(row | {"word": word, "score": float(scores[index])})
        return rows


def ranked_words(
    model: nn.Module | Anatomy, tokenizer: Any, *, k: int = 5, stack: str | None = None
) -> RankedWords:
    """The words that the final norm favours most and least, by each score.

    Where it has no bias, as RMSNorm, all words have the same score by bias and its order says
    nothing.

    Args:
        model: or what ``find_anatomy`` found of it.
        tokenizer: as :meth:`geomhooks.anatomy.Words.of` takes it.
        k: how many of each end.
        stack: by name, where there are several.

    Raises:
        AnatomyError: of the model; see :func:`geomhooks.anatomy.find_anatomy`.
        ValueError: k is out of range.

    Example:
        >>> from transformers import GPT2Config, GPT2Model
        >>> model = GPT2Model(GPT2Config(n_layer=2, n_embd=8, n_head=2, vocab_size=26))
        >>> letters = (lambda text: [ord(c) - 97 for c in text], lambda ids: chr(97 + ids[0]))
        >>> found = ranked_words(model, letters, k=2)
        >>> found.top.shape, found.table()[0]["by"], len(found.table())
        (torch.Size([6, 2]), 'norm', 24)
    """
    anatomy = model if isinstance(model, Anatomy) else find_anatomy(model)
    one = anatomy.stack(stack)
    rows = unembedding_rows(anatomy, one)
    if not 1 <= k <= len(rows):
        raise ValueError(f"k={k}: from 1 to the {len(rows)} words there are")
    gain = shift = None
    centred = False
    if one.final_norm is not None:
        gain, shift = one.final_norm.affine(rows)
        centred = one.final_norm.centred
    scores = word_scores(rows, gain, shift, centred=centred)
    every = torch.stack(scores)
    top, bottom = every.topk(k).indices, (-every).topk(k).indices
    texts = Words.of(tokenizer).texts
    return RankedWords(scores, top, bottom, texts(top), texts(bottom))


def embedding_distances(model: nn.Module | Anatomy, stack: str | None = None) -> SphereDistances:
    """How far the embeddings of words are from the sphere to which a norm takes them.

    The embeddings are those that come into the first block, without positions: after the norm of
    embeddings where a model has one, as BERT does. The norm that makes the sphere is the one before
    the first block's attention, or the final one, without its affine part; a LayerNorm with an
    epsilon of 1e-5 where there is neither.

    Args:
        model: or what ``find_anatomy`` found of it.
        stack: by name, where there are several.

    Raises:
        AnatomyError: of the model; see :func:`geomhooks.anatomy.find_anatomy`.

    Example:
        >>> from transformers import GPT2Config, GPT2Model
        >>> model = GPT2Model(GPT2Config(n_layer=2, n_embd=64, n_head=2, vocab_size=26))
        >>> bool(embedding_distances(model).scaled.l2_mean < 8)
        True
    """
    anatomy = model if isinstance(model, Anatomy) else find_anatomy(model)
    one = anatomy.stack(stack)
    norm = one.blocks[0].attention.norm or one.final_norm
    if norm is None:
        return sphere_distances(token_table(one))
    return sphere_distances(token_table(one), eps=norm.eps, centred=norm.centred)
