"""Documents cut into contexts, and contexts into batches: the same ones from any place on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor

from geomhooks.measuring.texts import Place, Source

__all__ = ["Batch", "Cursor", "batches", "context_id"]

Cut = Callable[[str], Sequence[Sequence[int]]]
WINDOW = 16  # batches of contexts that are sorted by length together, so that little is padding


class Cursor(NamedTuple):
    """How far a text has been read: where the current window of batches begins, and how far in.

    Attributes:
        source: number of the text.
        offset: of the document at hand, see :class:`Place`.
        document: number of the document at hand.
        chunk: contexts of that document that stand before the window.
        batch: batches of the window that are done.
    """

    source: int = 0
    offset: int = 0
    document: int = 0
    chunk: int = 0
    batch: int = 0


class _Context(NamedTuple):
    token_ids: Sequence[int]
    identity: int
    after: Cursor
    done: float  # length of the texts up to its end


class Batch(NamedTuple):
    """Contexts of similar length, padded on the right.

    Attributes:
        input_ids: (B, T).
        attention_mask: (B, T).
        contexts: (B,) ids.
        sources: (B,) numbers of the texts that they are of.
        tokens: how many entries are no padding.
        after: how far the text has been read once this batch is done.
        done: the same as a length, in the unit of :attr:`Source.size`.
    """

    input_ids: Tensor
    attention_mask: Tensor
    contexts: Tensor
    sources: Tensor
    tokens: int
    after: Cursor
    done: float


def batches(
    sources: Sequence[Source],
    cut: Cut,
    size: int,
    pad: int = 0,
    cursor: Cursor = Cursor(),
    share: tuple[int, int] = (0, 1),
) -> Iterator[Batch]:
    """The batches that follow `cursor`.

    Args:
        sources: the texts, in order.
        cut: cuts a document into contexts of token ids.
        size: contexts in a batch.
        pad: token id to fill up with; it is masked.
        cursor: ``after`` of the last batch that is done.
        share: (i, n): of every n documents only one, counted on from text to text, is read.
    """
    start, skip = cursor._replace(batch=0), cursor.batch
    stream = _contexts(sources, cut, start, share)
    done = sum(source.size for source in sources[: start.source]) + float(start.offset)
    while window := list(islice(stream, WINDOW * size)):
        # The longest first: what does not fit in memory shows at once.
        ordered = sorted(window, key=lambda context: -len(context.token_ids))
        parts = [ordered[first : first + size] for first in range(0, len(ordered), size)]
        end = window[-1]
        for number, part in enumerate(parts[skip:], start=skip + 1):
            after = end.after if number == len(parts) else start._replace(batch=number)
            yield _pad(part, pad, after, done + (end.done - done) * number / len(parts))
        start, skip, done = end.after, 0, end.done


def context_id(digest: str, times: int, document: int, chunk: int) -> int:
    """A number for a context: the same wherever the same text is read, alone or among others.

    Args:
        digest: of the text.
        times: how often the same text was given before it.
        document: number of the document in the text.
        chunk: number of the context in the document.

    Example:
        >>> context_id("ab", 0, 3, 1) == context_id("ab", 0, 3, 1) != context_id("ab", 0, 3, 2)
        True
    """
    label = f"{digest} {times} {document} {chunk}".encode()
    return int.from_bytes(hashlib.blake2b(label, digest_size=8).digest(), "big") >> 1


def _contexts(
    sources: Sequence[Source], cut: Cut, cursor: Cursor, share: tuple[int, int]
) -> Iterator[_Context]:
    before = float(sum(source.size for source in sources[: cursor.source]))
    digests = [source.digest for source in sources]
    place, skip = Place(cursor.offset, cursor.document), cursor.chunk
    for number, source in enumerate(sources[cursor.source :], start=cursor.source):
        times = digests[:number].count(digests[number])
        for text, start, end in source.documents(place):
            if (number + start.document) % share[1] != share[0]:
                continue
            chunks = cut(text)
            for i in range(skip, len(chunks)):
                yield _Context(
                    chunks[i],
                    context_id(digests[number], times, start.document, i),
                    Cursor(number, start.offset, start.document, i + 1),
                    before + start.offset + (end.offset - start.offset) * (i + 1) / len(chunks),
                )
            skip = 0
        place = Place()
        before += source.size


def _pad(contexts: Sequence[_Context], pad: int, after: Cursor, done: float) -> Batch:
    lengths = torch.tensor([len(context.token_ids) for context in contexts], device="cpu")
    mask = torch.arange(int(lengths.max()), device="cpu") < lengths[:, None]
    input_ids = torch.full(mask.shape, pad, device="cpu")
    input_ids[mask] = torch.tensor(
        [i for context in contexts for i in context.token_ids], device="cpu"
    )
    identities = torch.tensor([context.identity for context in contexts], device="cpu")
    sources = torch.tensor([context.after.source for context in contexts], device="cpu")
    return Batch(input_ids, mask.long(), identities, sources, int(lengths.sum()), after, done)
