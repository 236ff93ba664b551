"""What a sentence at the top of a page is, and what all of them are made with."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from geomhooks.errors import UnidentifiedError
from geomhooks.report.figures.found import lookup

if TYPE_CHECKING:
    from geomhooks.snapshot import Geometry

__all__ = ["Finding", "between", "extremes", "listed", "percent", "place", "read", "scalars"]


class Finding(NamedTuple):
    """One thing that stands out."""

    subject: str
    """in a word or two"""
    text: str
    figure: str = ""
    """name of the figure that shows it"""


def scalars(geometry: Geometry, path: str) -> dict[str, float]:
    """A number by site, where there is one that is finite."""
    found = {}
    for site in geometry.sites:
        value = read(geometry[site], path)
        if isinstance(value, Tensor) and value.ndim == 0 and math.isfinite(float(value)):
            found[site] = float(value)
    return found


def read(result: Any, path: str) -> Any:
    """What is at the end of a path of names; None where it is not there or not determined."""
    try:
        return lookup(result, path)
    except UnidentifiedError:
        return None


def extremes(values: Mapping[str, float]) -> tuple[str, str]:
    """The sites of the largest and of the smallest value."""
    return max(values, key=lambda site: values[site]), min(values, key=lambda site: values[site])


def place(site: str) -> str:
    """A site in a sentence.

    Example:
        >>> place("h.1"), place("h.0@in")
        ('h.1', 'h.0@in (what comes into the first block)')
    """
    if not site.endswith("@in"):
        return site or "the output of the model"
    block = "the first block" if site.split(".")[-1] == "0@in" else "it"
    return f"{site} (what comes into {block})"


def percent(share: float) -> str:
    """Such as "12 %", with a digit more where it is small.

    Example:
        >>> percent(0.123), percent(0.0123)
        ('12 %', '1.2 %')
    """
    return f"{100 * share:.0f} %" if abs(share) >= 0.0995 else f"{100 * share:.1f} %"


def between(values: Sequence[float], show: Any = percent) -> str:
    """The smallest and the largest, or one where both read alike.

    Example:
        >>> between([0.2, 0.1, 0.3]), between([0.101, 0.102])
        ('10 % to 30 %', '10 %')
    """
    low, high = show(min(values)), show(max(values))
    return low if low == high else f"{low} to {high}"


def listed(names: Sequence[str], most: int = 3) -> str:
    """Names in a sentence, of many the first.

    Example:
        >>> listed(["a", "b"]), listed(["a", "b", "c", "d", "e"])
        ('a and b', 'a, b, c and 2 more')
    """
    if len(names) > most:
        return f"{', '.join(names[:most])} and {len(names) - most} more"
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
