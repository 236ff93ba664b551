"""Entries of hidden states of any type, as compiled loops read them.

Numba has no 16-bit floats, so such a state comes as integers of its bits: unsigned ones are
bfloat16, signed ones float16. They are widened to float32 as they are read, in vector registers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

__all__ = ["BITS", "WIDE", "widen"]

# What arrays of the entries hold, and what sums of a few of them are taken in.
BITS = {
    torch.float64: np.float64,
    torch.float32: np.float32,
    torch.bfloat16: np.uint16,
    torch.float16: np.int16,
}
WIDE = {dtype: np.float64 if dtype == torch.float64 else np.float32 for dtype in BITS}


@intrinsic  # type: ignore[untyped-decorator]
def widen(typing_context: Any, entry: Any) -> Any:
    """An entry as a float of at least 32 bits."""
    is_float = isinstance(entry, types.Float)
    wide = entry if is_float else types.float32

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        (bits,) = arguments
        if is_float:
            return bits
        if entry.signed:
            return builder.fpext(builder.bitcast(bits, ir.HalfType()), ir.FloatType())
        upper = builder.shl(builder.zext(bits, ir.IntType(32)), ir.Constant(ir.IntType(32), 16))
        return builder.bitcast(upper, ir.FloatType())

    return wide(entry), generate
