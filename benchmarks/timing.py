"""Clocks: of a forward, of a watched one, and of what the hooks alone take."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

from geomhooks.watcher import Watch

__all__ = [
    "Clock",
    "clocked_hooks",
    "quartiles",
    "share_in_hooks",
    "synchronize",
    "timed",
    "watched",
]

HOOKS = ("open_stream", "read", "close_stream")  # what of a watch runs during a forward


def synchronize() -> None:
    """Wait for the device, so that a clock on the host tells the time."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def timed(call: Callable[..., Any], inputs: Mapping[str, Any]) -> float:
    """Seconds of one call."""
    synchronize()
    start = time.perf_counter()
    call(**inputs)
    synchronize()
    return time.perf_counter() - start


def watched(model: nn.Module, inputs: Mapping[str, Any], watch: Watch) -> float:
    """Seconds of one forward with the hooks on; putting them on and off is not counted."""
    watch.attach()
    try:
        return timed(model, inputs)
    finally:
        watch.detach()


class Clock:
    """Adds up the time spent in some functions."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.calls = 0

    def timing(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, whose time is added."""

        @wraps(function)
        def timed_function(*arguments: Any, **named: Any) -> Any:
            synchronize()
            start = time.perf_counter()
            try:
                return function(*arguments, **named)
            finally:
                synchronize()
                self.seconds += time.perf_counter() - start
                self.calls += 1

        return timed_function


@contextmanager
def clocked_hooks(clock: Clock) -> Iterator[None]:
    """Inside, the clock runs whenever a hook of any watch does."""
    with ExitStack() as stack:
        for name in HOOKS:
            ours = clock.timing(getattr(Watch, name))
            stack.enter_context(patch.object(Watch, name, ours))
        yield
    if not clock.calls:
        raise RuntimeError(f"no hook of a watch ran, of {', '.join(HOOKS)}: nothing was timed")


def share_in_hooks(
    model: nn.Module, inputs: Mapping[str, Any], watch: Watch, forwards: int = 5
) -> float:
    """Median over forwards of the time inside our hooks, over the rest of the forward."""
    shares = []
    for _ in range(forwards):
        clock = Clock()
        with clocked_hooks(clock):
            whole = watched(model, inputs, watch)
        shares.append(clock.seconds / (whole - clock.seconds))
    return statistics.median(shares)


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile; of a single value, itself."""
    low, median, high = statistics.quantiles(values, n=4) if len(values) > 1 else 3 * values
    return low, median, high
