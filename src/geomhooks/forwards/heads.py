"""Norms over the entries of each head, whose tensors have four axes: which one is time.

Queries and keys are normed as (batch, time, heads, k) in some models (Qwen 3) and as
(batch, heads, time, k) in others (Gemma 3). A wrong guess would go unnoticed, and count heads as
positions. So time is the axis that is as long as the tokens are many, in the first forward where
only one of both is; a module's axes stay where they are, so that this settles it for all others.
"""

from __future__ import annotations

from collections.abc import Sequence

from einops import rearrange
from torch import Tensor

from geomhooks.errors import SiteError

__all__ = ["find_time_axis", "heads_to_rows"]


def find_time_axis(
    shape: Sequence[int], grid: tuple[int, int] | None, settled: int | None, name: str
) -> int:
    """Which axis of (batch, time, heads, k) or (batch, heads, time, k) is time.

    Args:
        shape: of the tensor.
        grid: (B, T) of the forward's tokens, where something tells.
        settled: what another forward has told.
        name: of the site, for the message.

    Raises:
        SiteError: nothing tells.

    Example:
        >>> find_time_axis((2, 7, 4, 8), (2, 7), None, "attention.q_norm")
        1
        >>> find_time_axis((2, 7, 7, 8), (2, 7), 2, "attention.q_norm")
        2
    """
    if settled is not None:
        return settled
    if shape[1] == shape[2] == 1:
        return 1  # it is the same either way
    fitting = [axis for axis in (1, 2) if grid == (shape[0], shape[axis])]
    if len(fitting) == 1:
        return fitting[0]
    if grid is None:
        found = "nothing in the call says how many tokens there are"
    elif fitting:
        found = f"there are as many heads as tokens, {grid[1]}"
    else:
        found = f"the tokens are {grid}"
    raise SiteError(
        f"site {name!r} is a norm, and has a tensor of shape {tuple(shape)}; {found}, so that it "
        "cannot be told which axis is time. Where each head is normed, give "
        f"layout={{{name!r}: 'b t h k -> b t h k'}} if time comes first, as in Qwen 3, or "
        f"{{{name!r}: 'b h t k -> b t h k'}} if heads do, as in Gemma 3, or let a forward with "
        "another number of tokens be the first; where pixels are, layout='b c h w -> b (h w) c'"
    )


def heads_to_rows(tensor: Tensor, axis: int) -> Tensor:
    """(batch, time, heads, k), or with time at axis 2, to (heads batch, time, k)."""
    return rearrange(tensor, "b t h k -> (h b) t k" if axis == 1 else "b h t k -> (h b) t k")
