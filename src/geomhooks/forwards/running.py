"""A block while it runs: what its sublayers' modules have given out so far, until it is read."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor, nn

from geomhooks.errors import HookError, SiteError
from geomhooks.forwards.frames import unwrap_transforms, version_of
from geomhooks.sharded import REPLICATED, local_tensor
from geomhooks.sites import to_batch_time_width

if TYPE_CHECKING:
    from geomhooks.anatomy.parts import BlockParts
    from geomhooks.plan import SitePlan

__all__ = ["Look", "Running", "look_back", "looks_at"]


class Look(NamedTuple):
    """A module inside a block that is looked at, and as what its output and input are kept."""

    module: nn.Module
    number: int
    """of the sublayer, counted from 0"""
    what: str
    """the sublayer, for messages"""
    out: str | None
    """ "out", or None where its output is of no interest"""
    into: str | None
    """ "raw", "mixed", or None"""
    optional: bool
    """it need not run, as cross-attention without a source"""


class Kept(NamedTuple):
    """A tensor, and how often it had been written when it was kept."""

    tensor: Tensor
    version: int

    @property
    def is_changed(self) -> bool:
        """It has been overwritten since."""
        return version_of(self.tensor) != self.version


def looks_at(block: BlockParts, heads: bool) -> list[Look]:
    """The modules of a block whose outputs are what its sublayers add.

    Args:
        block: its parts.
        heads: also look at what the heads mix, before the projection from them.

    Raises:
        SiteError: there is none that is called.
    """
    found = []
    for index, sublayer in enumerate(block.sublayers):
        what = f"the {sublayer.kind} of {block.name!r}"
        module = sublayer.module
        if module is None:
            raise SiteError(
                f"{what} does not say which module's output it adds: describe its last projection "
                "by block.linear(path), as help(geomhooks.anatomy.Family) shows, or say the module "
                "as adds= of the attention"
            )
        into, projection = None if sublayer.after is None else "raw", None
        optional = sublayer.kind == "cross_attention"
        if heads and sublayer.kind != "mlp":
            projection = sublayer.part.output.module  # type: ignore[union-attr]
            if projection is None:
                raise SiteError(
                    f"what each head of {what} writes cannot be seen: its projection is inside of "
                    f"a {type(module).__name__} that does not call it as a module; leave out heads"
                )
        if projection is module:
            into = "mixed"
        elif projection is not None:
            found.append(Look(projection, index, what, None, "mixed", optional))
        found.append(Look(module, index, what, "out", into, optional))
    return found


class Running:
    """A block in one call.

    Args:
        entered: its input, to see whether the block overwrites it; None where that cannot be told.
    """

    def __init__(self, entered: Tensor | None) -> None:
        self._entered = None if entered is None else Kept(entered, version_of(entered))
        self._kept: dict[int, dict[str, Kept]] = {}

    def keep(self, look: Look, name: str, tensor: Tensor | None, found: str, copy: bool) -> None:
        """Keep what a module shows until the block is read.

        Args:
            look: at which module.
            name: as what.
            tensor: its output or input, or None where it has none, and then
            found: is what was found instead.
            copy: the memory is good for the time of this call only.

        Raises:
            SiteError: it is no tensor, or the module ran before in this call of the block.
        """
        if tensor is None:
            raise SiteError(f"{look.what}: its module shows no floating tensor, but {found}")
        kept = self._kept.setdefault(look.number, {})
        if name in kept:
            raise SiteError(
                f"{look.what}: its module ran twice in one call of the block, so that what it adds "
                "is in several pieces; run it at once, as with chunk_size_feed_forward=0"
            )
        tensor = unwrap_transforms(tensor, look.what).detach()
        # Inference tensors do not count how often they are written.
        tensor = tensor.clone() if copy or tensor.is_inference() else tensor
        kept[name] = Kept(tensor, version_of(tensor))

    def check_input(self, site: str, out: Tensor) -> None:
        """Raise if the block has overwritten its input.

        Raises:
            SiteError: it has.
        """
        if self._entered is None:
            return
        entered = self._entered.tensor
        if self._entered.is_changed or (
            entered.is_inference() and entered.data_ptr() == out.data_ptr()
        ):
            raise SiteError(
                f"site {site!r} overwrites its input in place: what its sublayers are added to is "
                "lost; make its residual addition out of place"
            )

    def of_sublayers(
        self, looks: list[Look], number: int, bring: Callable[[Tensor, str], Tensor]
    ) -> list[dict[str, Tensor] | None]:
        """What was kept of each sublayer, by name; None of cross-attention that did not run.

        Args:
            looks: at the block's modules.
            number: of its sublayers.
            bring: brings a tensor to (B, T, ...), given what it is, for messages.

        Raises:
            HookError: a module did not run.
            SiteError: what it gave out was overwritten before the block was read.
        """
        found: list[dict[str, Tensor] | None] = [None] * number
        for look in looks:
            kept = self._kept.get(look.number, {})
            if not kept and look.optional:
                continue
            named = found[look.number] = found[look.number] or {}
            for name in (look.out, look.into):
                if name is None:
                    continue
                if name not in kept:
                    raise HookError(
                        f"{look.what}: its {type(look.module).__name__} did not run in this call "
                        "of the block, or was not called as a module, so that what it adds was not "
                        "seen"
                    )
                if kept[name].is_changed:
                    raise SiteError(
                        f"{look.what}: what its {type(look.module).__name__} shows is overwritten "
                        "in place before the block ends; make what follows it out of place"
                    )
                named[name] = bring(kept[name].tensor, look.what)
        return found


def look_back(
    site: SitePlan, running: Running | None, out: Tensor, grid: tuple[int, int] | None
) -> list[dict[str, Tensor] | None]:
    """What the sublayers of a block have given out in the call that ends, (B, T, ...) by name.

    Args:
        site: the block.
        running: that call, or None where its beginning was not seen.
        out: what the block gives out.
        grid: of :func:`geomhooks.sites.to_batch_time_width`.

    Raises:
        HookError: a sublayer was not seen.
        SiteError: what it gave out cannot be read.
    """
    name = site.place.name
    if running is None:
        raise HookError(
            f"site {name!r} was read without the beginning of its call: the watch was attached, or "
            "resumed, in the middle of a forward; do it between two"
        )
    running.check_input(name, out)

    def bring(tensor: Tensor, what: str) -> Tensor:
        tensor = local_tensor(tensor, what, REPLICATED)
        if not tensor.is_nested and tensor.shape[:-1] != out.shape[:-1]:
            if tensor.numel() * out.shape[-1] != out.numel() * tensor.shape[-1]:
                raise SiteError(
                    f"{what}: its module shows a tensor of shape {tuple(tensor.shape)}, and the "
                    f"block one of shape {tuple(out.shape)}; of each token one row is needed"
                )
            tensor = tensor.reshape(*out.shape[:-1], tensor.shape[-1])  # some join batch and time
        return to_batch_time_width(tensor, name, site.layout, grid)

    return running.of_sublayers(site.looks, site.sublayers, bring)
