"""What a file says beside its tensors, looked at before anything is made of it.

A file may come from anywhere. What this module lets through is text that can be written again, and
a description whose parts are of the kinds that :meth:`geomhooks.state.State.describe` gives, so
that nobody after it has to expect anything else.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from typing import Any

from geomhooks.checks import is_number, is_whole
from geomhooks.errors import SchemaError
from geomhooks.statistics.base import Site

__all__ = [
    "check_description",
    "flag",
    "items_of",
    "list_of",
    "mapping_of",
    "number",
    "parse",
    "record",
    "text",
    "unchecked",
    "whole",
]

Check = Callable[[Any, str], None]
DEEPEST = 64  # of JSON in JSON; what is told of a geometry has 6
LONGEST = 300  # digits, of a number that is one in floating point as well
LARGEST = (1 << 62) - 1  # of a whole number, so that what is one more is one in 64 bits as well


def parse(told: str) -> dict[str, Any]:
    """The object in a piece of JSON.

    Raises:
        ValueError: it is no JSON, or no object; a name stands twice in an object; a whole number
            has more than 300 digits; it is nested deeper than 64 times, or has half of a surrogate
            pair, which no file can hold.
    """
    try:
        found = json.loads(told, object_pairs_hook=_once, parse_int=_whole_number)
    except RecursionError:
        raise ValueError(f"its JSON is nested deeper than {DEEPEST} times") from None
    if not isinstance(found, dict):
        raise ValueError(f"its metadata are no JSON object, but a {type(found).__name__}")
    level = [found]
    for _ in range(DEEPEST):
        level = [part for held in level for part in _parts(held)]
    if level:
        raise ValueError(f"its JSON is nested deeper than {DEEPEST} times")
    json.dumps(found, ensure_ascii=False).encode()
    return found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{name!r:.80} stands twice in an object of its JSON")
        found[name] = value
    return found


def _whole_number(digits: str) -> int:
    if len(digits) > LONGEST:
        raise ValueError(f"a whole number in its JSON has {len(digits)} digits, over {LONGEST}")
    return int(digits)


def _parts(held: Any) -> list[Any]:
    parts = held.values() if isinstance(held, dict) else held
    return [part for part in parts if isinstance(part, dict | list)]


# Each of these raises a SchemaError that says where, what is needed, and what was found.


def _need(fits: bool, where: str, needed: str, found: Any) -> None:
    if not fits:
        raise SchemaError(f"{where}: {needed} is needed, found {found!r:.80}")


def text(value: Any, where: str) -> None:
    """A string."""
    _need(isinstance(value, str), where, "a text", value)


def flag(value: Any, where: str) -> None:
    """True or False."""
    _need(isinstance(value, bool), where, "true or false", value)


def whole(least: int) -> Check:
    """A whole number that is not less, and fits in 64 bits."""

    def check(value: Any, where: str) -> None:
        fits = is_whole(value) and least <= value <= LARGEST
        _need(fits, where, f"a whole number from {least}", value)

    return check


def number(value: Any, where: str) -> None:
    """A real number, which may be infinite or none."""
    _need(is_number(value), where, "a number", value)


def _number_or_none(value: Any, where: str) -> None:
    _need(value is None or is_number(value), where, "a number or null", value)


def unchecked(value: Any, where: str) -> None:
    """Anything."""


def list_of(each: Check) -> Check:
    """A list whose items all pass a check."""

    def check(value: Any, where: str) -> None:
        _need(isinstance(value, list | tuple), where, "a list", value)
        for item in value:
            each(item, where)

    return check


def items_of(*each: Check) -> Check:
    """A list of so many items, each with a check of its own."""

    def check(value: Any, where: str) -> None:
        fits = isinstance(value, list | tuple) and len(value) == len(each)
        _need(fits, where, f"a list of {len(each)}", value)
        for item, check_item in zip(value, each, strict=True):
            check_item(item, where)

    return check


def mapping_of(each: Check) -> Check:
    """An object whose values all pass a check."""

    def check(value: Any, where: str) -> None:
        _need(isinstance(value, Mapping), where, "an object", value)
        for name, item in value.items():
            text(name, where)
            each(item, f"{where}.{name:.80}")

    return check


def record(needed: Mapping[str, Check], optional: Mapping[str, Check] | None = None) -> Check:
    """An object of given names, each with a check of its own."""
    known = {**needed, **(optional or {})}

    def check(value: Any, where: str) -> None:
        _need(isinstance(value, Mapping), where, "an object", value)
        missing, strange = sorted(set(needed) - set(value)), sorted(set(value) - set(known))
        if missing or strange:
            raise SchemaError(
                f"{where}: {', '.join(known)} are needed; "
                + (f"{missing[0]!r} is missing" if missing else f"found {strange[0]!r:.80}")
            )
        for name, item in value.items():
            known[name](item, f"{where}.{name}")

    return check


OF_TYPES: dict[str, Check] = {
    "str": text,
    "int": whole(0),
    "bool": flag,
    "float | None": _number_or_none,
    "Mapping[str, int]": mapping_of(whole(0)),
}
SITE = {field.name: OF_TYPES[str(field.type)] for field in fields(Site)}
NEEDED = [f.name for f in fields(Site) if f.default is MISSING and f.default_factory is MISSING]
NAMES = list_of(text)
DESCRIPTION = record(
    {
        "model": text,
        "shards": NAMES,
        "selection": mapping_of(unchecked),
        "statistics": mapping_of(record({"class": text, "parameters": mapping_of(unchecked)})),
        "streams": mapping_of(
            record(
                {
                    "positions": whole(1),
                    "open": whole(1),
                    "first_key": whole(-LARGEST),
                    "exclude": list_of(whole(-LARGEST)),
                    "skip": whole(0),
                    "statistics": NAMES,
                }
            )
        ),
        "sites": mapping_of(
            record(
                {
                    "site": record({name: SITE[name] for name in NEEDED}, SITE),
                    "stream": text,
                    "statistics": NAMES,
                }
            )
        ),
        "whole": NAMES,
    }
)


def check_description(description: Any) -> None:
    """Raise unless a description is of the right kinds, and names only what it has.

    Raises:
        SchemaError: saying where, what is needed, and what was found.
    """
    DESCRIPTION(description, "description")
    NAMES(description["selection"].get("sites"), "description.selection.sites")
    for name, entry in description["sites"].items():
        where = f"description.sites.{name:.80}"
        site, stream = entry["site"], entry["stream"]
        if stream not in description["streams"]:
            raise SchemaError(f"{where}: there is no stream {stream!r:.80}")
        capacity = description["streams"][stream]["positions"]
        _need(site["name"] == name, f"{where}.site.name", repr(name)[:80], site["name"])
        _need(site["width"] > 0, f"{where}.site.width", "a whole number from 1", site["width"])
        _need(
            site["positions"] == capacity,
            f"{where}.site.positions",
            f"the capacity {capacity} of its stream",
            site["positions"],
        )
    listed = [
        *((f"sites.{n:.80}", e["statistics"]) for n, e in description["sites"].items()),
        *((f"streams.{n:.80}", e["statistics"]) for n, e in description["streams"].items()),
        ("whole", description["whole"]),
    ]
    for where, names in listed:
        for name in names:
            if name not in description["statistics"]:
                raise SchemaError(f"description.{where}: there is no statistic {name!r:.80}")
