r"""What attention with linear biases (ALiBi) adds to logits: less, the further away a key is.

O. Press, N. Smith, M. Lewis, "Train short, test long: attention with linear biases enables input
length extrapolation", arXiv 2108.12409.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["alibi", "alibi_slopes"]


def alibi_slopes(heads: int, device: torch.device | None = None) -> Tensor:
    r"""The slope of each head, :math:`2^{-8 h / H}` for h from 1 to H.

    That is the paper's where H is a power of two. Else the authors' code is followed: the slopes of
    the largest power of two below H, and then every other one of twice as many.

    Args:
        heads: H.
        device: of the result.

    Returns:
        (H,) float32.

    Raises:
        ValueError: there is no head.

    Example:
        >>> 1 / alibi_slopes(8)
        tensor([  2.,   4.,   8.,  16.,  32.,  64., 128., 256.])
        >>> -alibi_slopes(6).log2()
        tensor([2., 4., 6., 8., 1., 3.])
    """
    if heads < 1:
        raise ValueError(f"heads={heads}: a positive integer is needed")
    even = 1 << (heads.bit_length() - 1)
    first = torch.arange(1, even + 1, device=device) * (8 / even)
    further = (2 * torch.arange(heads - even, device=device) + 1) * (4 / even)
    return torch.cat((first, further)).neg().exp2()


def alibi(slopes: Tensor, queries: Tensor, keys: Tensor) -> Tensor:
    """What is added to the logits of a query and a key before it: their distance times -slope.

    Args:
        slopes: (H,).
        queries: (T,) positions.
        keys: (S,) positions.

    Returns:
        (H, T, S). A model may add what differs from it by a number for each query, which softmax
        does not see.

    Example:
        >>> alibi(torch.tensor([0.5]), torch.arange(3), torch.arange(3)).tril()
        tensor([[[ 0.0000,  0.0000,  0.0000],
                 [-0.5000,  0.0000,  0.0000],
                 [-1.0000, -0.5000,  0.0000]]])
    """
    return slopes[:, None, None] * (keys - queries[:, None])
