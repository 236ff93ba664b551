"""Tensors that are spread over ranks (``DTensor``), as hooks meet them.

Putting one together takes a collective, and ranks with different numbers of forwards would wait
for each other for ever. So a hook reads what is whole on this rank, and refuses the rest.
"""

from __future__ import annotations

from torch import Tensor, nn

from geomhooks.errors import SiteError

__all__ = ["REPLICATED", "is_spread", "local_tensor"]

REPLICATED = (
    "Watch a site that is replicated, such as a whole block, or have the parallel plan replicate "
    "it: output_layouts=Replicate()"
)


def is_spread(tensor: Tensor) -> bool:
    """It is a DTensor of which this rank does not have the whole."""
    mesh = getattr(tensor, "device_mesh", None)
    if mesh is None:
        return False
    sizes: tuple[int, ...] = tuple(mesh.shape)
    placements = tensor.placements  # type: ignore[attr-defined]
    return any(n > 1 and not p.is_replicate() for n, p in zip(sizes, placements, strict=True))


def local_tensor(tensor: Tensor, what: str, remedy: str) -> Tensor:
    """A tensor as this rank has it; of a replicated DTensor the plain tensor, which is all of it.

    Args:
        tensor: any tensor.
        what: what it is, for the message.
        remedy: what to do where it is spread.

    Raises:
        SiteError: it is spread over ranks.
    """
    if type(tensor) is Tensor or type(tensor) is nn.Parameter:
        return tensor
    if is_spread(tensor):
        raise SiteError(
            f"{what} is a DTensor of shape {tuple(tensor.shape)} that is spread over ranks as "
            f"{tensor.placements}; a hook reads what is whole on its rank, and gathers "  # type: ignore[attr-defined]
            f"nothing. {remedy}"
        )
    if hasattr(tensor, "to_local"):
        local: Tensor = tensor.to_local()
        return local
    return tensor
