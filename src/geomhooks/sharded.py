"""Tensors that are spread over ranks, as ``DTensor`` or by hand, as hooks meet them.

Putting one together takes a collective, and ranks with different numbers of forwards would wait
for each other for ever. So a hook reads what is whole on this rank, and refuses the rest.
"""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor, nn

from geomhooks.errors import SiteError, TokensError

__all__ = [
    "REPLICATED",
    "is_put_away",
    "is_spread",
    "local_tensor",
    "refuse_piece_of_rows",
    "refuse_piece_of_width",
]

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


def is_put_away(tensor: Tensor) -> bool:
    """Its memory was given back until its layer runs, as FullyShardedDataParallel does."""
    if tensor.device.type == "meta" or not tensor.numel():
        return False
    return tensor.untyped_storage().nbytes() == 0


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


def refuse_piece_of_rows(site: str, shown: int, told: int) -> None:
    """Raise where each of several processes has a piece of every row, as a plain tensor.

    So have they with torch's ``SequenceParallel``, and under context parallelism. Where a stage of
    a model pools its tokens, a site before it has shown them all.

    Args:
        site: whose hidden states are shorter than what the model was called with.
        shown: their length, and
        told: that of the call.

    Raises:
        TokensError: as many processes run as would have such pieces.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return
    number = dist.get_world_size()
    for parts in (n for n in range(2, number + 1) if number % n == 0):
        piece = -(-told // parts)
        if shown in (piece, told - (parts - 1) * piece):
            raise TokensError(
                f"site {site!r} shows {shown} of the {told} tokens of each row, and {number} "
                "processes run: under sequence or context parallelism each has a piece of the row, "
                "and no hook can tell which. Say it for the piece of each rank, and take all ranks "
                "together: watch.tokens(positions=..., contexts=..., mask=...) and "
                "geometry(sync=True); or watch a site that shows whole rows. Where the model pools "
                "tokens, state the positions of what it makes of them"
            )


def refuse_piece_of_width(name: str, module: nn.Module, width: int, *, is_input: bool) -> None:
    """Raise where a layer of a tensor parallel plan shows this rank's part of its features.

    Args:
        name: of the site.
        module: at which it is.
        width: of what it shows.
        is_input: its input is shown.

    Raises:
        SiteError: its weight is spread over ranks, and is for another number of features.
    """
    weight = getattr(module, "weight", None)
    if not isinstance(module, (nn.Linear, nn.Embedding)) or weight is None:
        return
    whole = weight.shape[1 if is_input or isinstance(module, nn.Embedding) else 0]
    if is_spread(weight) and width < whole:
        raise SiteError(
            f"site {name!r} shows {width} of the {whole} features of a layer that a parallel plan "
            f"has spread over ranks; a hook gathers nothing. {REPLICATED}"
        )
