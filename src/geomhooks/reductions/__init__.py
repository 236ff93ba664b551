"""What a site computes once per forward for all its statistics.

Every reduction of the hidden states h (B, T, d), of the block's input, the tokens and the site's
fixed shift s (d,) that any statistic needs is computed here, together, so that no two statistics
read the same hidden state twice. ``plain`` is the definition in ordinary torch, right everywhere
and traced by compilers; ``tiled`` computes the same in pieces that stay in a CPU's cache.
"""

from __future__ import annotations

import torch
from torch import Tensor

from geomhooks.reductions.plain import NAMES, Reduced, reduce_plain, reduce_update_plain
from geomhooks.reductions.tiled import reduce_tiled, reduce_update_tiled
from geomhooks.tokens import Tokens

__all__ = ["NAMES", "Reduced", "reduce", "reduce_update"]


def reduce(
    needs: frozenset[str],
    out: Tensor,
    into: Tensor | None,
    tokens: Tokens,
    shift: Tensor,
    known: Reduced | None = None,
) -> Reduced:
    """Compute the reductions named in ``needs`` in the way that suits the device.

    The arguments are those of :func:`~geomhooks.reductions.plain.reduce_plain`.
    """
    if _in_tiles(out):
        return reduce_tiled(needs, out, into, tokens, shift, known)
    return reduce_plain(needs, out, into, tokens, shift, known)


def reduce_update(out: Tensor, into: Tensor) -> Reduced:
    """The reductions of the update from ``into`` to ``out`` (B, T, d) alone, for all tokens."""
    return reduce_update_tiled(out, into) if _in_tiles(out) else reduce_update_plain(out, into)


def _in_tiles(out: Tensor) -> bool:
    """Eager on a CPU; a compiler fuses the plain form better, and a GPU has no use for tiles."""
    return out.device.type == "cpu" and not torch.compiler.is_compiling()
