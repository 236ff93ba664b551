"""What a model's head says of sums of some of the terms of hidden states."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from geomhooks.accumulators import Accumulator, Count, Sum
from geomhooks.errors import TokensError
from geomhooks.forwards.tokens import Tokens
from geomhooks.results import Result, Unavailable
from geomhooks.statistics.next_word import next_tokens

__all__ = ["add_scores", "score_sums", "scores", "subsets", "targets_of"]

ROWS = 512  # tokens whose logits are there at once
NOTHING = -100  # a label that asks for nothing, as transformers has it


def subsets(names: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """All sums of some of the terms by name, the smallest first.

    Example:
        >>> subsets(("input", "attention"))
        {'input': (0,), 'attention': (1,), 'input_attention': (0, 1)}
    """
    indices = range(len(names))
    chosen = (c for size in range(1, len(names) + 1) for c in combinations(indices, size))
    return {"_".join(names[i] for i in each): each for each in chosen}


def score_sums(number: int) -> dict[str, Accumulator]:
    """Sums of cross-entropy and right answers of each of some subsets, and how many tokens."""
    return {
        "cross_entropy": Sum((number,)),
        "right": Count((number,)),
        "answers": Count(),
    }


def targets_of(tokens: Tokens, causal: bool, site: str) -> tuple[Tensor, Tensor]:
    """The words (B, T) that a model is to say, and whether (B, T) there is one.

    Of a causal model that is the next token of the context, where labels are given one that they
    ask for; of others what the labels ask for.

    Raises:
        TokensError: neither tells.
    """
    if causal:
        if tokens.ids is None:
            raise TokensError(
                f"the scores of subsets at {site!r} need the ids of the tokens; give input_ids"
            )
        follower, known = next_tokens(tokens)
        if tokens.labels is not None:
            known = known & (tokens.labels.gather(1, follower) != NOTHING)
        return tokens.ids.gather(1, follower), known & tokens.real
    if tokens.labels is None:
        raise TokensError(
            f"the scores of subsets at {site!r} need what the masked words are; give the model "
            "labels=, with -100 where nothing is masked"
        )
    return tokens.labels, (tokens.labels != NOTHING) & tokens.real


def add_scores(
    state: Mapping[str, Any],
    terms: Tensor,
    head: Callable[[Tensor], Tensor],
    targets: Tensor,
    known: Tensor,
    chosen: Mapping[str, tuple[int, ...]],
) -> None:
    """Add one forward.

    Args:
        state: the accumulators of :func:`score_sums`.
        terms: (K, B, T, d) after the final norm where there is one.
        head: makes logits of sums of them.
        targets: (B, T) words.
        known: (B, T) bool, where there is one.
        chosen: the subsets.
    """
    rows, right_words = terms.flatten(1, 2), targets.flatten()
    there = known.flatten()
    for first in range(0, rows.shape[1], ROWS):
        part = slice(first, first + ROWS)
        some = there[part]
        words = torch.where(some, right_words[part], 0)
        entropies, hits = [], []
        for each in chosen.values():
            logits = head(rows[list(each), part].sum(0))
            kept = logits.logsumexp(-1) - logits.gather(1, words[:, None])[:, 0]
            entropies.append(torch.where(some, kept, 0.0).to(state["cross_entropy"].value).sum())
            hits.append(((logits.argmax(-1) == words) & some).sum())
        state["cross_entropy"].value.add_(torch.stack(entropies))
        state["right"].value.add_(torch.stack(hits))
    state["answers"].value.add_(there.sum())


def scores(state: Mapping[str, Any], names: Sequence[str]) -> Result | Unavailable:
    """Accuracy and cross-entropy of each subset by name."""
    count = state["answers"].value
    if not int(count):
        return Unavailable("no token had a word to be said")
    found = {
        "accuracy": state["right"].value / count,
        "cross_entropy": state["cross_entropy"].value / count,
    }
    by_name = {
        what: Result(**dict(zip(names, values.unbind(), strict=True)))
        for what, values in found.items()
    }
    return Result(**by_name, count=count)
