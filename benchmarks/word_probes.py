"""The tables of "Traveling Words" that weights alone give: numbers, and lists of words beside them.

What goes into a result file are plain numbers; lists of words stay as the library gives them, for
``word_lists.py`` to write down.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from geomhooks.anatomy import (
    Anatomy,
    BiasWords,
    HeadWords,
    SingularWords,
    Words,
    attention_mask,
    attention_output,
    bias_words,
    capped,
    constants_of_norm,
    embedding_distances,
    head_spectra,
    key_words,
    query_key_form_of,
    single_tokens,
    singular_words,
    standardised,
    value_output_of,
    value_words,
    word_rows,
)
from geomhooks.errors import AnatomyError
from geomhooks.functional import coverage, nearest_rows
from geomhooks.functional.nearest import Metric

__all__ = [
    "NOUNS",
    "Lists",
    "Settings",
    "attention_error",
    "chosen_blocks",
    "distances",
    "each",
    "norms",
    "noun_tokens",
    "number",
    "probes",
    "spectra",
]

NOUNS = Path(__file__).parent / "common_nouns.txt"
MATRICES = "query_key", "value_output"
VARIANTS = "original", "centred", "scaled", "centred_and_scaled"
CONSTANTS = "shift_length", "plane_distance", "largest_axis", "smallest_axis", "anisotropy"


class Settings(NamedTuple):
    """How words are looked for."""

    nearest: int = 5
    """words of a list"""
    singular: int = 20
    """leading singular values of a head"""
    distance: int = 0
    """tokens from the key to the query, for rotary embeddings"""
    metric: Metric = "dot"


@dataclass
class Lists:
    """The words of one block; None is what it has not, and ``missing`` says why."""

    block: str
    keys: HeadWords | None = None
    values: HeadWords | None = None
    updates: HeadWords | None = None
    query_key: SingularWords | None = None
    value_output: SingularWords | None = None
    biases: BiasWords | None = None
    missing: dict[str, str] = field(default_factory=dict)

    def look(self, name: str, find: Callable[[], Any]) -> Any:
        """Find one of them, or keep the reason why the model has no such thing."""
        try:
            setattr(self, name, find())
        except AnatomyError as error:
            self.missing[name] = str(error)
        return getattr(self, name)


def chosen_blocks(number: int) -> list[int]:
    """The first, the middle and the last: 0, 5 and 11 of GPT-2's 12, as published."""
    return sorted({0, (number - 1) // 2, number - 1})


def noun_tokens(nouns: Sequence[str], tokenizer: Any, form: str = "most") -> list[str]:
    """Nouns that are one token, as they are written: with a space before them or without.

    Args:
        nouns: without spaces.
        tokenizer: of the model.
        form: "plain", as published; "spaced", as they are inside a sentence; or "most", the one of
            both in which more of them are one token, plain where it makes no difference.
    """
    encode = Words.of(tokenizer).encode
    forms = {"plain": list(nouns), "spaced": [f" {noun}" for noun in nouns]}
    known = {n: [word for word in words if len(encode(word)) == 1] for n, words in forms.items()}
    found = max(known.values(), key=len) if form == "most" else known[form]
    if not found:
        raise SystemExit(f"none of {len(nouns)} nouns is one token of this tokenizer ({form})")
    return found


def distances(anatomy: Anatomy) -> dict[str, Any]:
    """How far the embeddings are from the sphere: the four variants of the published table."""
    found = embedding_distances(anatomy)
    table = {name: numbers(getattr(found, name)._asdict()) for name in VARIANTS}
    return {"words": found.words, **numbers(found._asdict(), "mean_norm", "scale"), **table}


def norms(anatomy: Anatomy) -> list[dict[str, Any]]:
    """What the weights of each norm say of where its outputs are."""
    stack = anatomy.stack()
    width = stack.blocks[0].attention.output.weight.shape[2]
    every = [
        (f"{block.name}, {sublayer.kind}{place}", norm)
        for block in stack.blocks
        for sublayer in block.sublayers
        for place, norm in (
            ("", sublayer.part.norm),
            (", after it", sublayer.after),
            (", after the sum", sublayer.closing),
        )
    ]
    if stack.embeddings is not None:
        every.insert(0, ("embeddings", stack.embeddings.norm))
    every.append(("final", stack.final_norm))
    return [
        {"norm": title, **numbers(constants_of_norm(norm, width)._asdict(), *CONSTANTS)}
        for title, norm in every
        if norm is not None
    ]


def spectra(anatomy: Anatomy) -> list[dict[str, Any]]:
    """Singular values of all heads of all blocks, without the gain of the norm, as published."""
    rows: list[dict[str, Any]] = []
    for block in anatomy.stack().blocks:
        for of in MATRICES:
            row: dict[str, Any] = {"block": block.name, "of": of}
            try:
                found = head_spectra(block.attention, of, folded=False)
            except AnatomyError as error:
                rows.append(row | {"missing": str(error)})
                continue
            row |= {
                name: each(getattr(found, name)) for name in ("coverage_index", "effective_rank")
            }
            rows.append(row | {"largest": each(found.values[:, 0])})
    return rows


def probes(
    anatomy: Anatomy, tokenizer: Any, nouns: Sequence[str], layer: int, how: Settings
) -> tuple[dict[str, Any], Lists]:
    """Both probes of one block: its numbers, and its words."""
    attention = anatomy.at(layer)
    asked, told = (anatomy, tokenizer), {"k": how.nearest, "metric": how.metric}
    turned = told | {"distance": how.distance}
    lists, found = Lists(attention.block), {"block": attention.block}
    keys = lists.look("keys", lambda: key_words(*asked, nouns, layer, **turned))
    if keys is not None:
        found["keys"] = agreement(keys)
    values = lists.look("values", lambda: value_words(*asked, nouns, layer, **told))
    if values is not None:
        lengths = [each(head) for head in values.lengths]
        mean = each(values.lengths.mean(1))
        without = without_update(anatomy, tokenizer, values, layer, how)
        found["values"] = {**agreement(values), "without_update": without, "length_mean": mean}
        found["values"]["lengths"] = lengths
    updates = lists.look("updates", lambda: value_words(*asked, nouns, layer, alone=True, **told))
    if updates is not None:
        found["updates"] = agreement(updates)
    for of in MATRICES:
        given = {**turned, "number": how.singular}
        singular = lists.look(
            of, lambda of=of, given=given: singular_words(*asked, layer, of, **given)
        )
        if singular is not None:
            every = head_spectra(attention, of, distance=how.distance, folded=False).values
            found[of] = {
                "values": [each(head) for head in singular.values],
                "coverage": [each(head) for head in coverage(every)],
            }
    biases = lists.look("biases", lambda: bias_words(*asked, layer, **turned))
    if biases is not None:
        lengths = torch.linalg.vector_norm(biases.directions, dim=-1)
        found["biases"] = {"query": each(lengths[0]), "key": each(lengths[1])}
    return {**found, "missing": lists.missing}, lists


def agreement(found: HeadWords) -> dict[str, list[Any]]:
    """What can be counted of lists: is the noun in its own, and how do they differ.

    ``same`` is the share of nouns whose list has the noun in it in any spelling; ``distinct`` the
    number of different words in the lists of all nouns, over what it would be if no two lists had a
    word in common.
    """
    same, distinct = [], []
    for lists in found.nearest:
        pairs = zip(found.words, lists, strict=True)
        hits = [plain(noun) in map(plain, near) for noun, near in pairs]
        same.append(number(sum(hits) / len(hits)))
        words = [word for near in lists for word in near]
        distinct.append(number(len(set(words)) / len(words)))
    return {"same": same, "distinct": distinct}


@torch.no_grad()
def without_update(
    anatomy: Anatomy, tokenizer: Any, found: HeadWords, layer: int, how: Settings
) -> list[Any]:
    """Of each head, the share of the words of values that are there without any update too.

    The read-out adds an update to the word's own embedding. Where that is much longer, the lists
    tell which words are near the word, and nothing of the head.
    """
    rows = word_rows(anatomy, layer)
    own = list(single_tokens(found.words, tokenizer).values())
    ids = torch.tensor(own, device=rows.embedded.device)
    states = rows.logit_lens(ids, torch.zeros_like(rows.embedded[ids]))
    same = nearest_rows(states, rows.unembedding, how.nearest, metric=how.metric).indices
    hits = (found.indices[..., None] == same[:, None]).any(-1)
    return each(hits.double().mean((1, 2)))


def plain(word: str) -> str:
    """A token in small letters, without the marks of where in a word it stands."""
    return word.strip().removeprefix("##").lower()


@torch.no_grad()
def attention_error(anatomy: Anatomy, layer: int, hidden: Tensor) -> float | None:
    """How far the output of attention made of virtual matrices is from that of the projections.

    Args:
        anatomy: of the model.
        layer: number of the block.
        hidden: (1, T, d) what comes into attention, before its norm.

    Returns:
        The length of the difference over that of the output; None where heads have no such form.
    """
    attention = anatomy.at(layer)
    states = standardised(hidden, attention.norm)
    length = hidden.shape[1]
    columns = torch.arange(length, device=hidden.device)
    logits = hidden.new_zeros(1, attention.heads, length, length)
    try:
        for distance in range(1 - length, length):
            form = query_key_form_of(attention, distance, last=length - 1)
            at = columns[:, None] - columns == distance
            logits[..., at] = form.terms(states).total.to(logits)[..., at]
    except AnatomyError:
        return None
    logits = capped(logits, attention.softcap)
    shares = logits.masked_fill(~attention_mask(attention, length), -torch.inf).softmax(-1)
    out = (shares @ value_output_of(attention).updates(states)).sum(1)
    if attention.output.bias is not None:
        out = out + attention.output.bias
    own = attention_output(attention, hidden)
    return float(torch.linalg.vector_norm(out - own) / torch.linalg.vector_norm(own))


def numbers(found: dict[str, Any], *names: str) -> dict[str, Any]:
    """Some of a result's tensors of one number, or all, as a file has them; None stays."""
    chosen = {name: found[name] for name in names or found}
    return {n: None if value is None else number(value) for n, value in chosen.items()}


def each(values: Tensor) -> list[Any]:
    """The numbers of a tensor (n,) as a file has them."""
    return [number(value) for value in values]


def number(value: Tensor | float) -> float | None:
    """Six digits; what is not finite is none."""
    value = float(value)
    return float(f"{value:.6g}") if math.isfinite(value) else None
