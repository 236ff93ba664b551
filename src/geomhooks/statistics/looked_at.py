"""Which tokens of a forward attention looks at, as far as the tokens tell."""

from __future__ import annotations

import torch
from torch import Tensor

from geomhooks.forwards.tokens import Tokens
from geomhooks.functional.attention.query_key import visible

__all__ = ["continued", "looked_at"]


def continued(tokens: Tokens) -> Tensor:
    """() or (1,) bool: the forward goes on with a cache."""
    past = tokens.end - tokens.length
    if isinstance(past, Tensor):
        return past > 0
    return torch.full((), past > 0, device=tokens.real.device)


def looked_at(
    tokens: Tokens, keys: Tensor, causal: bool, window: int | None, rows: slice = slice(None)
) -> Tensor:
    """Which query looks at which key, (B, 1, R, T) bool: of one row, context and forward.

    Args:
        tokens: of a forward.
        keys: (B, T) bool, the tokens that are looked at.
        causal: at those before a token and itself only.
        window: and of these at the last so many.
        rows: columns of the queries, R of them next to each other; by default all T.
    """
    start, stop, _ = rows.indices(tokens.length)
    allowed = visible(
        stop - start, tokens.length, causal=causal, window=window, start=start, device=keys.device
    )
    allowed = allowed & keys[:, None, None, :]
    if tokens.segments is not None:
        segments = tokens.segments[:, None]
        allowed = allowed & (segments[..., rows, None] == segments[..., None, :])
    return allowed
