"""Loops for the CPU, compiled by numba: what torch would take many passes over memory for.

A hidden state on a CPU is read once, its small sums are added where they belong in the same call,
and neither costs more to start than to run. Every loop here has a twin in ordinary torch, which
defines it, serves other devices and compilers, and stands in where numba is not installed
(``pip install 'geomhooks[fast]'``).
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

__all__ = ["installed", "load", "prepare", "usable"]


@cache
def installed() -> bool:
    """Numba is there and compiles (NUMBA_DISABLE_JIT makes it interpret, which would be slow)."""
    if find_spec("numba") is None:
        return False
    import numba

    return not numba.config.DISABLE_JIT


def usable(*tensors: Tensor) -> bool:
    """The compiled loops can run on these tensors: on a CPU, and nobody traces."""
    return (
        all(type(t) is Tensor and t.device.type == "cpu" for t in tensors)
        and not torch.compiler.is_compiling()
        and not torch._C._is_tracing()
        and installed()
    )


@cache
def load(name: str = "adds") -> Any:
    """A module of compiled loops, imported when it is wanted: numba takes a while."""
    return import_module(f"geomhooks.native.{name}")


def prepare(tensors: Iterable[Tensor]) -> None:
    """Compile before the first forward what states beside such parameters on a CPU will need.

    It takes seconds once on a machine, and a moment from then on.
    """
    found = {t.dtype for t in tensors if t.device.type == "cpu" and t.is_floating_point()}
    if found and installed():
        sums, site, moves = load("sums"), load("site"), load("moves")
        site.run()
        moves.run()
        for dtype in found & set(load("entries").BITS):
            if dtype in (torch.float32, torch.float64):
                sums.settle(dtype)
            for work in (site.work, moves.work):
                work(dtype)
        load("notes").whole()
        for name in ("adds", "folds", "places"):
            load(name)
