"""What attention and feed-forward layers add, each by itself, to the states on the hyper-sphere."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from geomhooks.accumulators import Accumulator, Count, Moments
from geomhooks.checks import check_positive
from geomhooks.errors import SiteError
from geomhooks.forwards.tokens import Tokens
from geomhooks.functional.shapes import as_float
from geomhooks.functional.sphere.updates import head_writes, update_parts
from geomhooks.results import Result, Unavailable
from geomhooks.statistics.base import Reading, Site, Statistic
from geomhooks.statistics.by_position import by_position

if TYPE_CHECKING:
    from geomhooks.anatomy.additions import Addition

__all__ = ["Updates"]

FEATURES = ("norm", "radial", "tangential", "radial_share", "step_angle")
OF_HEADS = ("size", "radial", "tangential")
PIECE = 1 << 19  # bytes of states that are worked on at a time, which stay in a CPU's cache


class Updates(Statistic):
    r"""How far attention and the feed-forward layer each move a state, outwards and along.

    A block's sublayers each add an update u to a state y. With both less the mean of their entries,
    r the length of y and e its direction, the update has a radial part
    :math:`\rho = \langle u, e \rangle` and a tangential one :math:`\tau = |u - \rho e|`, and turns
    the state by :math:`\theta = \mathrm{atan2}(\tau, r + \rho)` (geometry after R. Molina,
    "Traveling Words: A Geometric Interpretation of Transformers", arXiv 2309.07315).

    y is the state as the sublayer's output is added to it: in a block with a norm after each
    sublayer, before that norm; in one whose sublayers work side by side, with what those before it
    in the description have added. u is the output of the sublayer's last projection, or of the norm
    after it where there is one, and in training what dropout has not yet been applied to.

    Taken at blocks (``sites="blocks"``) of models that :mod:`geomhooks.anatomy` knows.

    Args:
        heads: also what each head of attention writes. It is read off what goes into the projection
            from the heads, and torch's own ``MultiheadAttention`` does not show that.
        positions: capacity T; by default the smaller of the model's maximum and 2048. All
            statistics of a watch share one capacity.

    Results, for each sublayer by name, ``attention``, ``cross_attention`` and ``mlp``. Each has
    ``mean``, ``variance`` (population), ``min``, ``max`` and ``count`` over all tokens, and
    ``at_position`` the same at each position, shape (T,):

    - ``norm``, the length of the update as it is; ``radial`` :math:`\rho / r` and ``tangential``
      :math:`\tau / r`, relative to the state; ``radial_share`` :math:`\rho^2 / (\rho^2 + \tau^2)`;
      ``step_angle`` :math:`\theta` in radians.
    - ``heads``, if asked for, with ``size``, the length of what each head adds, ``radial`` and
      ``tangential``, all relative to r; ``mean``, ``variance``, ``min``, ``max``, ``count`` of
      shape (H,). The biases of the projection belong to no head.
    - ``non_finite``, tokens left out because an entry of y or u is not finite.

    ``gap`` says how far the block's output h is from what its input and these updates add up to,
    :math:`|h - h'| / |h|`: rounding, and in training what dropout has changed.

    ``without_first`` holds all of them without position 0, whose token often is an outlier. A
    sublayer that no token went through, as cross-attention in a model that was given no source,
    has a reason instead of numbers.

    Raises:
        ValueError: an argument is not what it has to be.

    Example:
        >>> import torch, geomhooks as gh
        >>> from transformers import GPT2Config, GPT2Model
        >>> config = GPT2Config(n_layer=2, n_embd=8, n_head=2, n_positions=16, vocab_size=10)
        >>> model, texts = GPT2Model(config).eval(), torch.randint(10, (20, 16))
        >>> with torch.no_grad(), gh.watch(model, statistics=[gh.Updates(heads=True)]) as watch:
        ...     _ = model(texts)
        >>> found = watch.geometry()["h.1"].updates
        >>> found.attention.radial.count, found.mlp.step_angle.at_position.mean.shape
        (tensor(320), torch.Size([16]))
        >>> found.attention.heads.size.mean.shape, bool(found.gap.max < 1e-5)
        (torch.Size([2]), True)
    """

    taps: ClassVar[tuple[str, ...]] = ("out", "in")
    uses: tuple[str, ...] = ("additions",)

    def __init__(self, heads: bool = False, positions: int | None = None) -> None:
        check_positive("Updates", positions=positions)
        if not isinstance(heads, bool):
            raise ValueError(f"Updates(heads={heads!r}): True or False is needed")
        self.heads, self.positions = heads, positions
        if heads:
            self.uses = ("additions", "heads")

    def accumulators(self, site: Site) -> dict[str, Accumulator]:
        """Moments by position of each sublayer, and of each head.

        Raises:
            SiteError: sublayers are called alike.
        """
        found: dict[str, Accumulator] = {"gap": Moments((site.positions, 1))}
        for name, heads in site.sublayers.items():
            found[name] = Moments((site.positions, len(FEATURES)))
            found[f"{name}_non_finite"] = Count((2,))
            if self.heads and heads:
                # Rows: tokens at positions other than 0, and at position 0.
                found[f"{name}_heads"] = Moments((2, len(OF_HEADS) * heads))
        number = sum(3 if self.heads and heads else 2 for heads in site.sublayers.values())
        if len(found) <= number:
            raise SiteError(
                f"Updates at {site.name!r}: {', '.join(site.sublayers)} are called alike"
            )
        return found

    def update(self, state: Mapping[str, Any], reading: Reading) -> None:
        """Add what the sublayers of one block add in one forward."""
        tokens = reading.tokens
        for addition in reading.additions:
            found = in_pieces(parts_of, addition.state, addition.added)
            values, radius = found[:-1], found[-1]
            finite = torch.isfinite(radius) & torch.isfinite(values[0])
            add(state[addition.name], values, tokens, tokens.real & finite)
            lost, first = tokens.real & ~finite, tokens.first
            number = torch.stack([lost & ~first, lost & first]).sum((1, 2))
            state[f"{addition.name}_non_finite"].value.add_(number)
            if self.heads and reading.site.sublayers[addition.name]:
                heads = heads_of(addition, radius)
                rows = first.to(torch.int64)
                where = (tokens.real & finite)[None]
                Moments.add_each([state[f"{addition.name}_heads"]], heads[:, None], rows, where)
        rebuilt = reading.additions[-1].left if reading.additions else reading.taps["in"]
        add(state["gap"], in_pieces(gap, reading.taps["out"], rebuilt), tokens, tokens.real)

    def compute(self, state: Mapping[str, Any]) -> Mapping[str, Any]:
        """Everything, with and without position 0."""
        return self._describe(state, 0) | {"without_first": Result(**self._describe(state, 1))}

    def _describe(self, state: Mapping[str, Any], first: int) -> dict[str, Any]:
        """Results over positions from ``first`` on."""
        site: Site = state["site"]
        out: dict[str, Any] = {}
        for name, heads in site.sublayers.items():
            lost = state[f"{name}_non_finite"].value
            lost = lost[0] if first else lost.sum()
            if not int(state[name]["count"].sum()) and not int(lost):
                out[name] = Unavailable(f"no token went through the {name} of {site.name!r}")
                continue
            found = by_position(state[name], FEATURES, first) | {"non_finite": lost}
            if self.heads and heads:
                pooled = state[f"{name}_heads"].summary(slice(0, 1 if first else 2))
                each = {key: value.view(-1, heads) for key, value in pooled.items()}
                rows = enumerate(OF_HEADS)
                found["heads"] = Result(
                    **{f: Result(**{key: v[row] for key, v in each.items()}) for row, f in rows}
                )
            out[name] = Result(**found)
        return out | by_position(state["gap"], ("gap",), first)


def add(moments: Moments, values: Tensor, tokens: Tokens, where: Tensor) -> None:
    """Add (features, B, T) at the tokens' positions."""
    Moments.add_each([moments], values[:, None], tokens.at, where[None])


def in_pieces(function: Callable[..., Tensor], *states: Tensor) -> Tensor:
    """A function of tensors (n, d) to (features, n), of (B, T, d) to (features, B, T)."""
    batch, length, width = states[0].shape
    flat = [one.reshape(batch * length, width) for one in states]
    size = PIECE // (4 * width) if flat[0].device.type == "cpu" else batch * length
    pieces = zip(*(torch.split(one, max(size, 1)) for one in flat), strict=True)
    return torch.cat([function(*piece) for piece in pieces], 1).view(-1, batch, length)


def parts_of(state: Tensor, added: Tensor) -> Tensor:
    """(6, n) the features of updates, and the radius r of the states."""
    parts = update_parts(state, added)
    r = parts.radius
    values = parts.norm, parts.radial / r, parts.tangential / r, parts.radial_share, parts.angle, r
    return torch.stack(values)


def heads_of(addition: Addition, radius: Tensor) -> Tensor:
    """(3 H, B, T) size, radial and tangential part of each head's, relative to r."""
    found = head_writes(*addition.of_heads(), addition.state)
    return torch.cat(found, -1).movedim(-1, 0) / radius


def gap(out: Tensor, rebuilt: Tensor) -> Tensor:
    """(1, n) how far one is from the other, relative to its length."""
    out = as_float(out)
    found: Tensor = (out - rebuilt).norm(dim=-1) / out.norm(dim=-1)
    return found[None]
