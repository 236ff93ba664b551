"""The words of leaders: which count, and how often they do."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from geomhooks.accumulators import Sum
from geomhooks.checks import is_number
from geomhooks.results import Result, Unavailable
from geomhooks.statistics.leader_context import Context

__all__ = ["Probe", "add_words", "check_probe", "describe_words"]


class Probe(NamedTuple):
    """Leaders z count where |<w, z> + b| is above a threshold."""

    weight: Tensor
    """(d,) w"""
    offset: float
    """b"""
    threshold: float


def check_probe(probe: Any, threshold: float) -> tuple[str | None, Probe | None]:
    """A probe's digest, and the probe where there is one.

    Raises:
        ValueError: it is no vector with a number, all of them finite, and no digest.
    """
    if probe is None or isinstance(probe, str):
        return probe, None
    pair = isinstance(probe, (tuple, list)) and len(probe) == 2
    if not pair or not isinstance(probe[0], Tensor) or probe[0].ndim != 1:
        raise ValueError(
            "Leaders(probe): a vector (d,) and a number are needed, (w, b); found "
            f"{type(probe).__name__}"
        )
    weight, offset = probe[0].detach().float().cpu(), number_of(probe[1])
    wrong = int((~weight.isfinite()).sum())
    if wrong or not math.isfinite(offset):
        found_there = f"{wrong} of {len(weight)} entries of w" if wrong else f"b={offset}"
        raise ValueError(
            f"Leaders(probe): finite numbers (w, b) are needed, as float32 has them; {found_there} "
            "would leave no word to count"
        )
    found = hashlib.blake2b(digest_size=16)
    found.update(weight.contiguous().numpy().tobytes())
    found.update(offset.hex().encode())
    return f"blake2b:{found.hexdigest()}", Probe(weight, offset, threshold)


def number_of(offset: Any) -> float:
    """The number of a probe.

    Raises:
        ValueError: it is none.
    """
    if isinstance(offset, Tensor) and offset.numel() == 1:
        offset = offset.item()
    if not is_number(offset):
        raise ValueError(f"Leaders(probe): a number b of (w, b) is needed, found {offset!r}")
    return float(offset)


def add_words(words: Sum, leading: Tensor, there: Context, probe: Probe | None) -> None:
    """Count the words of leaders, once for each head in which they lead.

    Args:
        words: (2, V + 1) away from position 0, and at it; the last of ids that are none of V.
        leading: (B, H, T) bool.
        there: the states.
        probe: says which leaders count; None for all.
    """
    ids = there.tokens.ids
    if ids is None:
        return
    beyond = words.value.shape[1] - 1
    known = there.counted
    if probe is not None:
        score = there.before @ probe.weight.to(there.before) + probe.offset
        known = known & (score.abs() > probe.threshold)
    times = torch.where(known, leading.sum(1), 0)
    at = torch.where((ids >= 0) & (ids < beyond), ids, beyond)
    at = at + (beyond + 1) * there.tokens.first
    words.value.view(-1).index_add_(0, at.flatten(), times.flatten())


def describe_words(state: Mapping[str, Any], most: int, without: bool) -> Any:
    """The words that lead most often, at most so many."""
    if "words" not in state:
        return Unavailable(
            "the stack has no table of tokens; say how many ids there are, "
            "gh.Leaders(vocabulary=V)",
            by_choice=True,
        )
    counts = state["words"].value
    counts = counts[0] if without else counts.sum(0)
    counts, beyond = counts[:-1], counts[-1]
    number = min(most, int((counts > 0).sum()))
    # By id where counts are the same.
    order = counts.argsort(descending=True, stable=True)[:number]
    return Result(ids=order, counts=counts[order], total=counts.sum(), beyond=beyond)
