"""The threads that torch itself keeps ready, for loops that are compiled here.

After one of torch's operations its threads wait for the next, busily and for a while: threads of
one's own would have to fight them for the processor's cores. The threads are OpenMP's, so that its
library, which torch has loaded, will run any function on them.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import Any

import llvmlite.binding
import torch
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

__all__ = ["address", "run_on_threads", "team_size", "thread_number", "threads"]

NUMBER, SIZE, RUN = "omp_get_thread_num", "omp_get_num_threads", "GOMP_parallel"
thread_number = types.ExternalFunction(NUMBER, types.int32())
team_size = types.ExternalFunction(SIZE, types.int32())
# Arguments: a C function void(void*), what it is given, how many threads (the environment may limit
# them to fewer), and flags. It runs on all of them, told apart by `thread_number`.
run_on_threads = types.ExternalFunction(
    RUN, types.void(types.voidptr, types.voidptr, types.uint32, types.uint32)
)


@intrinsic  # type: ignore[untyped-decorator]
def address(typing_context: Any, number: Any) -> Any:
    """An integer as a pointer."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(number), generate


@cache
def library() -> Any:
    """The OpenMP library that torch runs on, or None where it is another or cannot be told."""
    path = Path(torch.__file__).parent / "lib" / "libgomp.so.1"
    if not path.exists():
        return None
    return ctypes.CDLL(str(path))  # the one that is loaded already


def define_functions() -> None:
    """Say where OpenMP's functions are, before anything that calls them is compiled."""
    known = library()
    for name, alone in ((NUMBER, _first), (SIZE, _single), (RUN, _run_alone)):
        function = alone if known is None else getattr(known, name)
        llvmlite.binding.add_symbol(name, ctypes.cast(function, ctypes.c_void_p).value)


_first = ctypes.CFUNCTYPE(ctypes.c_int32)(lambda: 0)
_single = ctypes.CFUNCTYPE(ctypes.c_int32)(lambda: 1)


@ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)  # type: ignore[untyped-decorator]
def _run_alone(function: int, data: int, number: int, flags: int) -> None:
    ctypes.CFUNCTYPE(None, ctypes.c_void_p)(function)(data)


define_functions()


def threads() -> int:
    """How many may share a loop: as many as torch uses, or one."""
    return 1 if library() is None else torch.get_num_threads()
