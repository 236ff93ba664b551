"""Batches of contexts: the same ones wherever reading begins."""

from __future__ import annotations

import torch

from geomhooks.measuring.batches import Batch, batches, context_id
from geomhooks.measuring.texts import Passages

SOURCES = [
    Passages("first", tuple("x" * (1 + 7 * i % 23) for i in range(150))),
    Passages("none", ()),
    Passages("second", tuple("y" * (1 + 5 * i % 31) for i in range(90))),
]


def cut(text: str) -> list[list[int]]:
    """Contexts of at most 5 tokens, a character each."""
    return [[ord(letter) for letter in text[i : i + 5]] for i in range(0, len(text), 5)]


def equal(one: Batch, other: Batch) -> bool:
    pairs = zip(one, other, strict=True)
    return all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
        for name, (a, b) in zip(Batch._fields, pairs, strict=True)
        if name != "done"
    )


def test_every_token_is_read_once():
    read = list(batches(SOURCES, cut, 4))
    assert sum(batch.tokens for batch in read) == sum(source.size for source in SOURCES)
    assert all(int(batch.attention_mask.sum()) == batch.tokens for batch in read)
    contexts = torch.cat([batch.contexts for batch in read])
    assert len(contexts.unique()) == len(contexts)
    assert int(contexts.min()) >= 0
    sizes = [len(batch.contexts) for batch in read]
    assert set(sizes[:-1]) == {4}


def test_padding_is_masked_and_on_the_right():
    batch = next(batches(SOURCES, cut, 8, pad=7))
    assert batch.input_ids[batch.attention_mask == 0].eq(7).all()
    assert batch.attention_mask.diff(dim=1).le(0).all()
    assert batch.input_ids.dtype == batch.attention_mask.dtype == torch.int64


def test_reading_goes_on_after_any_batch():
    read = list(batches(SOURCES, cut, 4))
    for number, batch in enumerate(read):
        rest = list(batches(SOURCES, cut, 4, cursor=batch.after))
        assert len(rest) == len(read) - number - 1
        assert all(map(equal, rest, read[number + 1 :]))


def test_progress_grows_to_the_whole():
    done = [batch.done for batch in batches(SOURCES, cut, 4)]
    assert done == sorted(done)
    assert abs(done[-1] - sum(source.size for source in SOURCES)) < 1e-6


def test_a_text_has_the_same_ids_whatever_else_is_read():
    def ids(*sources: Passages) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        for batch in batches(sources, cut, 4):
            for number, identity in zip(
                batch.sources.tolist(), batch.contexts.tolist(), strict=True
            ):
                found.setdefault(str(number), []).append(identity)
        return {number: sorted(of_text) for number, of_text in found.items()}

    first, _, second = SOURCES
    alone, among = ids(second), ids(first, second, Passages("renamed", second.texts))
    assert alone["0"] == among["1"]
    assert not set(among["2"]) & {*among["0"], *among["1"]}, "the same text once more"


def test_context_ids_tell_texts_and_places_apart():
    places = [("a", 0, 0, 0), ("b", 0, 0, 0), ("a", 1, 0, 0), ("a", 0, 1, 0), ("a", 0, 0, 1)]
    assert len({context_id(*place) for place in places}) == len(places)
    assert all(0 <= context_id(*place) < 2**63 for place in places)
