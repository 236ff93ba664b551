"""What a site computes once per forward for all its statistics.

Every reduction of the hidden states h (B, T, d), of the block's input, the tokens and the site's
fixed shift s (d,) that any statistic needs is computed here, together, so that no two statistics
read the same hidden state twice. ``plain`` is the definition in ordinary torch, right everywhere
and traced by compilers; ``fused`` computes the same on a CPU in one pass over memory, and ``tiled``
stands in for it where numba is not installed; ``on_cuda`` computes it on a GPU in one pass, where
Triton is there, which comes with torch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from geomhooks.forwards.tokens import Tokens
from geomhooks.native import usable
from geomhooks.reductions.fused import DTYPES, OnePass, reduce_fused, reduce_move_fused, workers_for
from geomhooks.reductions.on_cuda import kernels_run, reduce_move_triton, reduce_triton
from geomhooks.reductions.plain import (
    NAMES,
    Directions,
    Reduced,
    reduce_move_plain,
    reduce_plain,
    sites_that_wait,
)
from geomhooks.reductions.tiled import reduce_tiled

__all__ = [
    "DTYPES",
    "NAMES",
    "Directions",
    "OnePass",
    "Reduced",
    "reduce",
    "reduce_move",
    "sites_that_wait",
    "workers_for",
]


def reduce(
    needs: frozenset[str],
    out: Tensor,
    into: Tensor | None,
    tokens: Tokens,
    shift: Tensor,
    known: Reduced | None = None,
    position_sum: Tensor | None = None,
) -> Reduced:
    """Compute the reductions named in ``needs`` in the way that suits the device.

    The arguments are those of :func:`~geomhooks.reductions.plain.reduce_plain`.
    """
    way = reduce_plain
    if out.dtype in DTYPES and usable(out):
        way = reduce_fused
    elif kernels_run(out) and (into is None or kernels_run(into)):
        way = reduce_triton
    elif out.device.type == "cpu" and not torch.compiler.is_compiling():
        way = reduce_tiled
    return way(needs, out, into, tokens, shift, known, position_sum)


def reduce_move(out: Tensor, into: Tensor) -> Reduced:
    """The reductions of the move from ``into`` to ``out`` (B, T, d) alone, for all tokens."""
    if kernels_run(out, into):
        return reduce_move_triton(out, into)
    return (
        reduce_move_fused(out, into)
        if out.dtype in DTYPES and usable(out, into)
        else reduce_move_plain(out, into)
    )
