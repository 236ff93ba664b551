"""Running tensors that merge: ``Sum``, ``Min``, ``Max`` (``Moments`` and others are next door).

An accumulator is a few named tensors of fixed shape, a way to add one batch to them, and a rule
to merge two of them, such that adding two batches equals adding each to its own accumulator and
merging. Batches, shards, ranks, files and windows are all served by these same four verbs: *add*,
*merge*, *reset*, *pack*. Nothing here knows modules, tokens or hooks.

Adding never waits for the device, never branches on data and never changes a shape.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from geomhooks.errors import SchemaError

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = [
    "Accumulator",
    "Count",
    "Field",
    "Max",
    "Min",
    "Sum",
    "counts",
]

At = Tensor | slice | None


MOST = 1 << 48  # counted at one place; what many of these add up to is still a number in 64 bits


class Field(NamedTuple):
    """One tensor of an accumulator.

    Attributes:
        shape: of the tensor.
        dtype: of the tensor.
        empty: the value of "nothing added yet".
        bounds: the least and the largest that its whole numbers can be, which is looked at where a
            file is read; None where they can be any.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    empty: float | int | bool = 0
    bounds: tuple[int, int] | None = None

    @property
    def nbytes(self) -> int:
        """What the tensor takes, in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def check(self, found: Tensor, name: str) -> None:
        """Raise unless a tensor is of this type and within the bounds; shapes are not looked at.

        Raises:
            SchemaError: naming the tensor, and what was found.
        """
        # What has no float64 has float32 in its place.
        wide = {torch.float32, torch.float64}
        if found.dtype != self.dtype and not {found.dtype, self.dtype} <= wide:
            raise SchemaError(f"{name} has dtype {found.dtype}, not {self.dtype}")
        if self.bounds is not None and found.numel():
            least, most = self.bounds
            low, high = (int(bound) for bound in found.aminmax())
            if low < least or high > most:
                wrong = low if low < least else high
                raise SchemaError(f"{name} has {wrong}; it can be from {least} to {most}")


def counts(shape: tuple[int, ...], dtype: torch.dtype = torch.int64) -> Field:
    """A tensor of counts."""
    return Field(shape, dtype, 0, (0, MOST))


class Accumulator(ABC):
    """Named tensors of fixed shape that can be added to and merged.

    A subclass declares its tensors in ``fields``. They exist after :meth:`allocate` only, so that
    the size of a state is known (:attr:`nbytes`) before any memory is taken.
    """

    fields: dict[str, Field]
    replaced: ClassVar[int] = 0  # how often any accumulator was given other tensors
    follows: ClassVar[str | None] = (
        None  # name of a shared accumulator whose decisions it carries out
    )

    def __init__(self, fields: dict[str, Field]) -> None:
        self.fields = fields
        self.tensors: dict[str, Tensor] = {}
        self._arrays: dict[str, tuple[Tensor, Any]] = {}

    def allocate(self, device: torch.device | str = "cpu") -> Self:
        """Create the tensors on a device and return the accumulator itself."""
        device = torch.device(device)
        # State made under inference_mode could not be updated outside it.
        with torch.inference_mode(False), torch.no_grad():
            self.tensors = {
                name: torch.full(
                    field.shape, field.empty, dtype=wide(field.dtype, device), device=device
                )
                for name, field in self.fields.items()
            }
        return self

    def move(self, device: torch.device) -> None:
        """Take the tensors to another device."""
        Accumulator.replaced += 1
        with torch.inference_mode(False), torch.no_grad():
            self.tensors = {
                name: t.to(device, wide(self.fields[name].dtype, device))
                for name, t in self.tensors.items()
            }

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def array(self, name: str) -> Any:
        """A tensor on the CPU as an array on the same memory, for compiled loops."""
        tensor = self.tensors[name]
        held = self._arrays.get(name)
        if held is None or held[0] is not tensor:
            held = self._arrays[name] = tensor, np.atleast_1d(tensor.numpy())
        return held[1]

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return next(iter(self.tensors.values())).device

    @property
    def nbytes(self) -> int:
        """What the tensors take, in bytes; known before they are allocated."""
        return sum(field.nbytes for field in self.fields.values())

    def reset(self) -> None:
        """Forget everything that was added, in place."""
        for name, field in self.fields.items():
            self.tensors[name].fill_(field.empty)

    def pack(self) -> dict[str, Tensor]:
        """Return the tensors by name, not copied."""
        return dict(self.tensors)

    def check(self, tensors: Mapping[str, Tensor], where: str = "accumulator") -> None:
        """Raise unless tensors are what this accumulator holds.

        Raises:
            SchemaError: a tensor is missing, or has another shape or type.
        """
        for name, field in self.fields.items():
            if name not in tensors:
                raise SchemaError(f"{where}: there is no tensor {name!r}, only {sorted(tensors)}")
            found, shape = tensors[name], tuple(field.shape)
            if tuple(found.shape) != shape:
                raise SchemaError(
                    f"{where}: tensor {name!r} has shape {tuple(found.shape)}, not {shape}"
                )
            field.check(found, f"{where}: tensor {name!r}")

    def unpack(self, tensors: Mapping[str, Tensor], where: str = "accumulator") -> None:
        """Overwrite the tensors in place; where :meth:`check` raises, nothing is changed."""
        self.check(tensors, where)
        with torch.no_grad():
            for name, mine in self.tensors.items():
                mine.copy_(tensors[name])

    def adopt(self, tensors: Mapping[str, Tensor], where: str = "accumulator") -> None:
        """Take tensors as this accumulator's own, without allocating any."""
        self.check(tensors, where)
        Accumulator.replaced += 1
        self.tensors = {name: tensors[name] for name in self.fields}

    def clone(self, device: torch.device | str | None = None) -> Self:
        """Return an independent copy, optionally on another device."""
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        other._arrays = {}
        other.tensors = {
            n: t.detach().to(device or t.device, copy=True) for n, t in self.tensors.items()
        }
        return other

    @abstractmethod
    def merge(self, other: Self, plan: Any = None) -> Any:
        """Add everything that ``other`` holds, in place.

        ``plan`` is what the merge of the accumulator that this one ``follows`` returned.
        """

    def rebase(self, delta: Tensor, followed: Any) -> None:  # noqa: B027 - most have no vectors
        """Express sums of vectors about a shift that is smaller by ``delta`` (d,).

        Only accumulators that hold such sums have something to do. ``followed`` is the accumulator
        that this one follows, if any.
        """


class Sum(Accumulator):
    """A running sum.

    Args:
        shape: shape of the sum.
        dtype: ``torch.float64`` for values, ``torch.int64`` for counts.

    Example:
        >>> total = Sum((3,)).allocate()
        >>> total.add(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), at=torch.tensor([[0, 2], [2, 2]]))
        >>> total.value
        tensor([1., 0., 9.], dtype=torch.float64)
    """

    def __init__(self, shape: tuple[int, ...] = (), dtype: torch.dtype = torch.float64) -> None:
        super().__init__({"value": Field(tuple(shape), dtype)})

    @property
    def value(self) -> Tensor:
        """The sum so far."""
        return self.tensors["value"]

    def add(self, values: Tensor, at: At = None, where: Tensor | None = None) -> None:
        """Add values.

        Args:
            values: of the sum's shape; or, with ``at``, one entry of the sum's trailing shape for
                each index.
            at: rows of the sum: an integer tensor whose shape leads that of ``values``, or a slice
                of rows, and then ``values`` is (batch, rows, ...) and summed over the batch.
            where: bool, its shape leads that of ``values``; entries that are False count nothing,
                even where they hold NaN.
        """
        value = self.tensors["value"]
        values = _mask(values, where, 0)
        if at is None:
            value.add_(
                values.sum(tuple(range(values.ndim - value.ndim)), dtype=value.dtype)
                if values.ndim > value.ndim
                else values
            )
        elif isinstance(at, slice):
            value[at].add_(values.sum(0, dtype=value.dtype))
        else:
            value.index_add_(0, at.reshape(-1), values.flatten(0, at.ndim - 1).to(value.dtype))

    def merge(self, other: Sum, plan: Any = None) -> None:
        """Add the other sum."""
        self.value.add_(other.value.to(self.value.device))


class Count(Sum):
    """A running count: a sum of whole numbers that are not negative."""

    def __init__(self, shape: tuple[int, ...] = ()) -> None:
        super().__init__(shape, torch.int64)
        self.fields["value"] = counts(shape)


class _Extreme(Accumulator):
    """What ``Min`` and ``Max`` share: they differ in the identity and in the comparison."""

    _identity: float
    _reduce: str

    def __init__(self, shape: tuple[int, ...] = (), dtype: torch.dtype = torch.float64) -> None:
        super().__init__({"value": Field(tuple(shape), dtype, self._identity)})

    @property
    def value(self) -> Tensor:
        """The extreme so far; infinite where nothing was added."""
        return self.tensors["value"]

    def add(self, values: Tensor, at: At = None, where: Tensor | None = None) -> None:
        """Take values into account; the arguments are those of :meth:`Sum.add`."""
        value = self.tensors["value"]
        values = _mask(values, where, self._identity).to(value.dtype)
        extreme = torch.amax if self._reduce == "amax" else torch.amin
        pick = torch.maximum if self._reduce == "amax" else torch.minimum
        if at is None:
            if values.ndim > value.ndim:
                values = extreme(values, tuple(range(values.ndim - value.ndim)))
            value.copy_(pick(value, values))
        elif isinstance(at, slice):
            value[at].copy_(pick(value[at], extreme(values, 0)))
        else:
            reduce_rows(value, at.reshape(-1), values.flatten(0, at.ndim - 1), self._reduce)

    def merge(self, other: Self, plan: Any = None) -> None:
        """Take everything that the other has seen into account."""
        self.add(other.value.to(self.value.device))


class Min(_Extreme):
    """A running minimum, ``inf`` where nothing was added.

    Example:
        >>> least = Min((2,)).allocate()
        >>> least.add(torch.tensor([[4.0, 2.0], [3.0, 5.0]]))
        >>> least.value
        tensor([3., 2.], dtype=torch.float64)
    """

    _identity = float("inf")
    _reduce = "amin"


class Max(_Extreme):
    """A running maximum, ``-inf`` where nothing was added.

    Example:
        >>> largest = Max((2,)).allocate()
        >>> largest.add(torch.tensor([[4.0, 2.0], [3.0, 5.0]]), at=slice(0, 2))
        >>> largest.value
        tensor([4., 5.], dtype=torch.float64)
    """

    _identity = -float("inf")
    _reduce = "amax"


def reduce_rows(out: Tensor, rows: Tensor, values: Tensor, reduce: str) -> None:
    """Reduce values (n, ...) into rows (n,) of ``out``, by "amin" or "amax"."""
    out.scatter_reduce_(
        0, rows.view(-1, *[1] * (values.ndim - 1)).expand_as(values), values, reduce
    )


def wide(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """The type to accumulate in: what was asked for, or float32 where a device has no float64."""
    return torch.float32 if dtype == torch.float64 and device.type == "mps" else dtype


def _mask(values: Tensor, where: Tensor | None, fill: float) -> Tensor:
    """Replace entries that do not count; a product would let NaN through."""
    if where is None:
        return values
    where = where.reshape(where.shape + (1,) * (values.ndim - where.ndim))
    return torch.where(where, values, fill)
