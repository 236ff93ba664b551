"""How the loops are compiled: when they are first asked for, and kept on disk from then on."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from hashlib import sha256
from pathlib import Path
from types import FunctionType
from typing import Any

import numba
import torch
from numba.core.caching import FunctionCache

__all__ = ["compiled", "for_types", "forget_older", "with_loop"]

Function = Callable[..., Any]

# Sums may be taken in any order and products fused; NaN and infinity keep their meaning.
FAST = {"reassoc", "contract", "nsz", "arcp"}
# Of entries, and of what sums of a few of them are taken in: see ``entries``.
NAMES = {
    torch.float64: ("f8", "f8"),
    torch.float32: ("f4", "f4"),
    torch.bfloat16: ("u2", "f4"),
    torch.float16: ("i2", "f4"),
}


def forget_older() -> None:
    """Remove from disk what was compiled of other sources than these.

    Numba sees that the file of a function has changed, not that those have of loops that it calls.
    """
    sources = sorted(Path(__file__).parent.glob("*.py"))
    digest = sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()
    try:
        folder = Path(FunctionCache(forget_older).cache_path)
        known = folder / "loops.sha256"
        if not known.exists() or known.read_text() != digest:
            for file in folder.glob("*.nb[ic]"):
                file.unlink(missing_ok=True)
            folder.mkdir(parents=True, exist_ok=True)
            known.write_text(digest)
    except (OSError, RuntimeError):  # no folder that anything could be kept in
        return


forget_older()


def compiled(signature: str | None = None) -> Callable[[Function], Function]:
    """Compile for these types, at once; without any, when first called from another loop."""

    def compile_it(function: Function) -> Function:
        def decorate(keep: bool) -> Function:
            options = {"nogil": True, "fastmath": FAST, "error_model": "numpy", "cache": keep}
            found: Function = numba.njit(signature, **options)(function)
            return found

        try:
            return decorate(keep=True)
        except RuntimeError:  # no folder that it could be kept in
            return decorate(keep=False)

    return compile_it


def for_types(signature: str) -> Callable[[Function], Callable[[torch.dtype], Function]]:
    """Compile for each type of hidden state when it is first asked for.

    In the signature {0} stands for its entries, {1} for sums of them.
    """

    def compile_it(function: Function) -> Callable[[torch.dtype], Function]:
        @cache
        def ask(dtype: torch.dtype) -> Function:
            return compiled(signature.format(*NAMES[dtype]))(function)

        return ask

    return compile_it


def with_loop(function: Function, loop: Function) -> Function:
    """A function that is not compiled yet, whose global name ``loop`` is this compiled one.

    Numba looks on disk for what a function has closed over, too, and a compiled function is
    another thing there in every process: it would never be found. Globals are not looked at, so
    the function has to have closed over something else that is different for another loop.
    """
    names = {**function.__globals__, "loop": loop}
    closed = function.__closure__
    found = FunctionType(function.__code__, names, function.__name__, None, closed)
    found.__qualname__ = function.__qualname__
    return found
