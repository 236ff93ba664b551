"""A device that is not the CPU, in software: mistakes that a GPU punishes are punished here.

Its tensors hold one on the CPU, which only their operators reach. An operator that is given tensors
of both sides raises, as on a GPU; what would make the host wait for the device raises within
:func:`no_waiting`. The device has one process to itself, since torch knows it from then on.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

import geomhooks

NAME = "elsewhere"
_setup_privateuseone_for_python_backend(NAME)
DEVICE = torch.device(NAME, 0)

aten = torch.ops.aten
# Their results, or the shapes of them, depend on numbers that the host has to see.
WAITING = {
    aten._local_scalar_dense.default,
    aten._unique2.default,
    aten.equal.default,
    aten.is_nonzero.default,
    aten.masked_select.default,
    aten.nonzero.default,
    aten.unique_consecutive.default,
    aten.unique_dim.default,
}
# Indices may lie on the host.
INDEXING = {
    aten._index_put_impl_.default,
    aten.index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
}
# Elsewhere a single number of the host does as well; here it does not.
STRICT = {
    "addmm", "bmm", "bucketize", "cat", "gather", "index_add", "index_copy", "index_fill",
    "masked_fill", "masked_scatter", "mm", "scatter", "scatter_add", "scatter_reduce",
    "searchsorted",
}  # fmt: skip
# Others begin with an empty tensor.
MADE = (
    "arange", "arange.start", "arange.start_step", "eye", "eye.m", "linspace", "logspace", "rand",
    "rand.generator", "randint", "randint.generator", "randint.low", "randint.low_generator",
    "randn", "randn.generator", "randperm", "randperm.generator", "tril_indices", "triu_indices",
)  # fmt: skip

SOURCE = str(Path(geomhooks.__file__).parent)
_patient = True


@contextmanager
def no_waiting() -> Iterator[None]:
    """Within, whatever of geomhooks makes the host wait for the device raises."""
    global _patient
    _patient = False
    try:
        yield
    finally:
        _patient = True


def _wait(what: object) -> None:
    if _patient:
        return
    frame: FrameType | None = sys._getframe()
    while frame is not None and not frame.f_code.co_filename.startswith(SOURCE):
        frame = frame.f_back
    if frame is not None:  # models themselves may wait
        raise RuntimeError(f"the host waits for {NAME}: {what}")


class Elsewhere(Tensor):
    """A tensor there; ``held`` is what it holds, here."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> Elsewhere:
        with torch.inference_mode(False):  # no tensor of a mode without versions can be one
            made: Elsewhere = Tensor._make_wrapper_subclass(
                cls,
                held.shape,
                strides=held.stride(),
                storage_offset=held.storage_offset(),
                dtype=held.dtype,
                device=DEVICE,
            )
        made.held = held
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(
        cls, operator: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        wanted = torch.device(kwargs["device"]).type if kwargs.get("device") else NAME
        if "device" in kwargs and wanted == NAME:
            kwargs["device"] = "cpu"
        to_host = wanted != NAME
        if operator is aten.copy_.default:
            to_host = not isinstance(args[0], cls)
        elif operator not in (
            aten._to_copy.default,
            aten._has_compatible_shallow_copy_type.default,
        ):
            check_together(operator, tree_leaves((args, kwargs)))
        if to_host or operator in WAITING:
            _wait(operator)
        out = operator(*tree_map(_held, args), **tree_map(_held, kwargs))
        if to_host:
            return args[0] if operator is aten.copy_.default else out
        name = operator._schema.name
        if name.endswith("_") and not name.endswith("__"):
            return args[0]
        return kwargs["out"] if "out" in kwargs else tree_map(_there, out)

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    def tolist(self) -> Any:
        _wait("tolist")
        return self.held.tolist()

    def numpy(self, **_: Any) -> Any:
        raise TypeError(f"can't convert {NAME} device type tensor to numpy. Use Tensor.cpu()")

    __array__ = numpy

    def __iter__(self) -> Any:
        return iter(self.unbind(0))

    def __repr__(self, **_: Any) -> str:
        return repr(self.held)

    def __format__(self, specification: str) -> str:
        return format(self.held, specification)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Saved, it is read again as a tensor of the host."""
        _wait("save")
        return self.held.__reduce_ex__(protocol)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        if id(self) not in memo:
            made: Tensor = Elsewhere(self.held.clone()).requires_grad_(self.requires_grad)
            is_parameter = getattr(self, "_is_param", False)
            memo[id(self)] = nn.Parameter(made, self.requires_grad) if is_parameter else made
        found: Tensor = memo[id(self)]
        return found


def check_together(operator: Any, given: list[Any]) -> None:
    """Raise if a tensor of the host is among them, unless it is a number and may be."""
    strict = operator._schema.name.removeprefix("aten::").rstrip("_") in STRICT
    for one in given:
        if isinstance(one, Tensor) and not isinstance(one, Elsewhere) and (one.ndim or strict):
            if operator not in INDEXING:
                shape = tuple(one.shape)
                raise RuntimeError(f"{operator}: tensors on {NAME} and on the cpu, {shape}")
            _wait(f"{operator} with indices of the host")


def _held(value: Any) -> Any:
    return value.held if isinstance(value, Elsewhere) else value


def _there(value: Any) -> Any:
    is_here = isinstance(value, Tensor) and not isinstance(value, Elsewhere)
    return Elsewhere(value) if is_here else value


def _empty(size: Any, dtype: Any = None, *_: Any, **__: Any) -> Tensor:
    return Elsewhere(torch.empty(size, dtype=dtype, device="cpu"))


def _empty_strided(size: Any, stride: Any, dtype: Any = None, *_: Any, **__: Any) -> Tensor:
    return Elsewhere(torch.empty_strided(size, stride, dtype=dtype, device="cpu"))


def _copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    if not isinstance(target, Elsewhere):
        _wait("copy to the host")
    _held(target).copy_(_held(source))
    return target


def _made(operator: Any) -> Callable[..., Tensor]:
    def make(*args: Any, **kwargs: Any) -> Tensor:
        return Elsewhere(operator(*args, **{**kwargs, "device": "cpu"}))

    return make


LIBRARY: Any = torch.library.Library("aten", "IMPL")
LIBRARY.impl("empty.memory_format", _empty, "PrivateUse1")
LIBRARY.impl("empty_strided", _empty_strided, "PrivateUse1")
LIBRARY.impl("_copy_from", _copy_from, "PrivateUse1")
LIBRARY.impl("_copy_from_and_resize", _copy_from, "PrivateUse1")
for _name in MADE:
    _packet, _, _overload = _name.partition(".")
    LIBRARY.impl(
        _name, _made(getattr(getattr(aten, _packet), _overload or "default")), "PrivateUse1"
    )
