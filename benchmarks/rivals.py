"""What a way to do the job is, and those with hooks: geomhooks, and hooks written by hand.

A peer is given a model that it may hook or wrap as it likes. What it takes in code that a clock can
be put around, hooks and what follows a forward, is added up in ``clock``; what a tool does inside
a forward by other means shows in the whole time only.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from job import Numbers, Sums, mean_and_variance, shares_of
from subjects import LENGTH, blocks_of
from timing import Clock, clocked_hooks
from torch import Tensor, nn

__all__ = [
    "PLAIN",
    "Bare",
    "Base",
    "Geomhooks",
    "NaiveFloat32",
    "NaiveFloat64",
    "Peer",
    "TrimmedHooks",
    "tensor_of",
]

PLAIN = {"use_cache": False, "logits_to_keep": 1}  # logits of all tokens would dwarf all else


class Peer(Protocol):
    """One way to do the job."""

    name: ClassVar[str]
    clock: Clock

    @staticmethod
    def prepare(model: nn.Module) -> None:
        """Import what it needs, which is no part of what it costs."""

    def __init__(self, model: Any, contexts: int, folder: Path) -> None: ...

    def forward(self, ids: Tensor) -> None:
        """Run the model on ids (B, T), and take in what it shows."""

    def numbers(self) -> Numbers:
        """The job's answer over all forwards so far."""

    @property
    def state_bytes(self) -> int | None:
        """What it keeps between forwards, where that can be told."""


class Base:
    """What most peers have in common."""

    name: ClassVar[str]

    @staticmethod
    def prepare(model: nn.Module) -> None:
        """Nothing to import."""

    def __init__(self, model: Any, contexts: int, folder: Path) -> None:
        self.model, self.contexts, self.folder = model, contexts, folder
        self.clock = Clock()
        self.path, self.blocks = blocks_of(model)
        self.sites = len(self.blocks) + 1
        self.set_up()

    def set_up(self) -> None:
        """Hook or wrap the model."""

    def forward(self, ids: Tensor) -> None:
        """Run the model, whose hooks do the rest."""
        self.model(input_ids=ids, **PLAIN)

    @property
    def state_bytes(self) -> int | None:
        """Unknown."""
        return None

    def hook_sites(self, read: Callable[[int, Tensor, Tensor | None], None]) -> list[Any]:
        """Have ``read(site, h, y)`` called at every site, and the clock run meanwhile."""
        timed = self.clock.timing(read)

        def before(_: nn.Module, args: Any) -> None:
            timed(0, args[0], None)

        def after(site: int) -> Callable[..., None]:
            return lambda _, args, output: timed(site, tensor_of(output), args[0])

        handles = [self.blocks[0].register_forward_pre_hook(before)]
        return handles + [b.register_forward_hook(after(i + 1)) for i, b in enumerate(self.blocks)]


class Bare(Base):
    """The model alone."""

    name = "bare"


class Geomhooks(Base):
    """A watch with the default statistics, its state no larger than the job."""

    name = "geomhooks"

    @staticmethod
    def prepare(model: nn.Module) -> None:
        """Import it, and the compiled loops."""
        from geomhooks.native import prepare

        prepare(model.parameters())

    def set_up(self) -> None:
        """Put the hooks on."""
        import geomhooks as gh

        chosen = [gh.PosCtx(contexts=self.contexts), gh.Sphere()]
        self.watch = gh.watch(self.model, statistics=chosen, positions=LENGTH).attach()

    def forward(self, ids: Tensor) -> None:
        """Run the watched model."""
        with clocked_hooks(self.clock):
            super().forward(ids)

    @property
    def state_bytes(self) -> int | None:
        """All accumulators."""
        return self.watch.nbytes

    def numbers(self) -> Numbers:
        """Read them off the geometry."""
        geometry = self.watch.geometry()
        fits = [geometry[site].pos_ctx for site in geometry.sites]
        spheres = [geometry[site].sphere for site in geometry.sites]

        def moments(name: str) -> Tensor:
            found = [getattr(sphere, name) for sphere in spheres]
            return torch.stack([torch.stack([one.mean, one.variance]) for one in found])

        return Numbers(
            torch.stack([fit.mean + fit.pos for fit in fits]),
            torch.stack([fit.mean + fit.ctx for fit in fits]),
            torch.stack([torch.stack([f.shares.pos, f.shares.ctx, f.shares.resid]) for f in fits]),
            moments("norm"),
            moments("radius"),
            torch.stack([sphere.step_angle.mean for sphere in spheres[1:]]),
            torch.stack([sphere.resultant_length for sphere in spheres]),
        )


class TrimmedHooks(Base):
    """Hooks made as cheap for this very job as torch's operations allow.

    Seven reads of a hidden state: one each for the sums over rows, the norm, the mean entry; less
    than two for the sums by context and of directions in one batched product; two and a temporary
    that is kept for the product with the block's input, whose norm and mean are known from the site
    before. Everything of the size of a hidden state is float32.
    """

    name = "hooks trimmed by hand"

    def set_up(self) -> None:
        """Allocate everything, and hook."""
        self.width = self.model.config.hidden_size
        wide = {"dtype": torch.float64}
        self.position_sum = torch.zeros(self.sites, LENGTH, self.width)
        self.context_sum = torch.zeros(self.sites, self.contexts, self.width)
        self.direction = torch.zeros(self.sites, self.width, **wide)
        self.scalars = torch.zeros(self.sites, 5, **wide)
        self.seen = 0
        self.weights = self.product = torch.empty(0)
        self.before: tuple[Tensor, Tensor] = self.product, self.product
        self.hook_sites(self.read)

    def read(self, site: int, h: Tensor, y: Tensor | None) -> None:
        """Add one forward at one site."""
        rows = slice(self.seen, self.seen + len(h))
        self.position_sum[site].add_(h.sum(0))
        norm, mean = torch.linalg.vector_norm(h, dim=-1), h.mean(-1)
        radius = norm.square().sub_(mean.square(), alpha=self.width).sqrt_()
        if len(self.weights) != len(h):
            self.weights = torch.ones(len(h), 2, LENGTH)
            self.product = torch.empty_like(h)
        torch.reciprocal(radius, out=self.weights[:, 1])
        sums = torch.bmm(self.weights, h)
        self.context_sum[site, rows] = sums[:, 0]
        self.direction[site] += sums[:, 1].sum(0) - (mean / radius).sum()
        values = torch.stack([norm, radius]).double()
        self.scalars[site, 0:2] += values.sum((1, 2))
        self.scalars[site, 2:4] += values.square().sum((1, 2))
        if y is not None:
            dot = torch.mul(h, y, out=self.product).sum(-1)
            mean_before, radius_before = self.before
            dot.sub_(mean * mean_before, alpha=self.width).div_(radius * radius_before)
            self.scalars[site, 4] += dot.clamp_(-1, 1).acos_().sum()
        self.before = mean, radius

    def forward(self, ids: Tensor) -> None:
        """Run the model, and count its contexts."""
        super().forward(ids)
        self.seen += len(ids)

    @property
    def state_bytes(self) -> int | None:
        """The running sums."""
        held = self.position_sum, self.context_sum, self.direction, self.scalars
        return sum(tensor.nbytes for tensor in held)

    def numbers(self) -> Numbers:
        """Divide."""
        seen, tokens = self.seen, self.seen * LENGTH
        position_sum, context_sum = self.position_sum.double(), self.context_sum[:, :seen].double()
        norm, radius, norm_square, radius_square, angle = (self.scalars / tokens).unbind(1)
        shares = [
            shares_of(p, c, square)
            for p, c, square in zip(position_sum, context_sum, norm_square * tokens, strict=True)
        ]
        return Numbers(
            position_sum / seen,
            context_sum / LENGTH,
            torch.stack(shares),
            mean_and_variance(norm, norm_square),
            mean_and_variance(radius, radius_square),
            angle[1:],
            self.direction.norm(dim=-1) / tokens,
        )


class NaiveHooks(Base):
    """The job as one would write it, in a hook at every block."""

    dtype: ClassVar[torch.dtype]

    def set_up(self) -> None:
        """Hook."""
        self.sums = Sums(self.sites, self.dtype)
        self.hook_sites(self.sums.add)

    def numbers(self) -> Numbers:
        """Divide."""
        return self.sums.numbers()


class NaiveFloat32(NaiveHooks):
    """In the type of the hidden states."""

    name = "naive hooks, float32"
    dtype = torch.float32


class NaiveFloat64(NaiveHooks):
    """Cast to float64 first."""

    name = "naive hooks, float64"
    dtype = torch.float64


def tensor_of(output: Any) -> Tensor:
    """The hidden states that a block returns, alone or as the first of several."""
    return output if isinstance(output, Tensor) else output[0]
