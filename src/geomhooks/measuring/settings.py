"""What decides the numbers of a run, and whether two runs have the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from inspect import signature
from pathlib import Path
from typing import Any

import geomhooks as gh
from geomhooks.errors import SchemaError
from geomhooks.measuring.errors import ResumeError
from geomhooks.storage.descriptions import items_of, list_of, text

__all__ = ["GROUPED", "Settings", "check_same", "statistics_named"]


GROUPED = gh.GroupMeans.name  # whose groups are the texts
SECOND_PASS = (gh.Attention,)  # statistics that need to be told more than the text
ENCODED = gh.Factors.name  # which needs a dictionary
BUFFERS = (gh.Trajectories,)  # which keep all states of a context: of a few, not of thousands


@dataclass(frozen=True)
class Settings:
    """What decides the numbers of a run; one that goes on must have the same.

    Attributes:
        model: hub name or folder.
        text: name and hash of each text.
        statistics: by name.
        sites: as :func:`geomhooks.watch` takes them.
        batch_size: contexts in a batch.
        max_length: the most tokens of a context.
        contexts: how many contexts to keep.
        dtype: of the model.
        gguf_file: the weights, if they come from one.
        dictionary: name and digest of the factors, where there are some.
    """

    model: str
    text: tuple[tuple[str, str], ...]
    statistics: tuple[str, ...]
    sites: tuple[str, ...]
    batch_size: int
    max_length: int
    contexts: int
    dtype: str
    gguf_file: str | None = None
    dictionary: tuple[str, str] | None = None


def statistics_named(
    names: Sequence[str], texts: Sequence[str], **options: Any
) -> list[gh.Statistic]:
    """Statistics by name, each with those of the options that it has.

    Args:
        names: of the statistics.
        texts: names of the texts, each of which is a group of contexts.
        options: arguments of the statistics.

    Raises:
        ValueError: a name is not known, or named twice, such a statistic needs to be told more, or
            groups are to be compared and there is one.
    """
    known = gh.statistics.REGISTRY
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"the statistic {name} is named twice; name each once")
        if name not in known:
            raise ValueError(f"no statistic {name!r}; there are {', '.join(sorted(known))}")
        if known[name] in SECOND_PASS:
            raise ValueError(
                f"{name} needs the geometry of a first pass over the text; in Python give it by "
                "gh.Attention(geometry)"
            )
    if GROUPED in names and len(texts) < 2:
        raise ValueError(
            f"{GROUPED} compares groups of contexts, and each text is one; give several by --text, "
            "or in Python labels by watch.tokens(groups=...)"
        )
    if ENCODED in names and options.get("encoder") is None:
        raise ValueError(
            f"{ENCODED} needs the dictionary that hidden states are encoded in; give its file by "
            "--dictionary, or in Python gh.Factors(dictionary, penalty)"
        )
    built, given = [], {**options, "names": _different(texts)}
    for name in names:
        takes = set(signature(known[name]).parameters)
        if known[name] in BUFFERS:
            takes.discard("contexts")
        built.append(known[name](**{key: given[key] for key in given if key in takes}))
    return built


def _different(names: Sequence[str]) -> list[str]:
    """Names as results may have them: those that occur more than once are numbered."""
    return [
        f"{name} ({names[: place + 1].count(name)})" if names.count(name) > 1 else name
        for place, name in enumerate(names)
    ]


TEXTS = list_of(items_of(text, text))


def check_same(path: Path, notes: dict[str, Any], settings: Settings) -> None:
    """Refuse to go on from a file that other settings made.

    Raises:
        ResumeError: names each setting that differs, with both values.
    """
    saved = notes.get("settings")
    if not isinstance(saved, dict):
        raise ResumeError(f"{path} was not written by geomhooks measure, so it cannot be resumed")
    try:
        TEXTS(saved.get("text"), "notes.settings.text")
    except SchemaError as error:
        raise ResumeError(f"{path}: {error}") from error
    wanted = asdict(settings)
    differ = [name for name in wanted if saved.get(name) != _jsonable(wanted[name])]
    if differ:
        changes = "; ".join(_change(name, saved.get(name), wanted[name]) for name in differ)
        raise ResumeError(
            f"cannot resume from {path}: {changes}. Give the same again, or start anew with "
            "--overwrite"
        )


def _jsonable(value: Any) -> Any:
    return [_jsonable(item) for item in value] if isinstance(value, (tuple, list)) else value


def _change(name: str, old: Any, new: Any) -> str:
    if name != "text":
        return f"{name} was {_shown(old)}, now {_shown(new)}"
    before, now = [file for file, _ in old or ()], [file for file, _ in new]
    if before != now:
        return f"text was {', '.join(before)}, now {', '.join(now)}"
    changed = [a[0] for a, b in zip(old, _jsonable(new), strict=True) if a != b]
    return f"text {', '.join(changed)} has changed, or is cut into other documents"


def _shown(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)
