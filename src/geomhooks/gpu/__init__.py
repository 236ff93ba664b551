"""Triton on a GPU: whether its kernels can run, and those that add small sums where they belong.

They are twins of the compiled loops of ``native``: on a GPU an operation on a few numbers costs its
launch, so that what ordinary torch does in dozens is one launch here. That ordinary torch defines
what they compute, and stands in where Triton is missing.
"""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

__all__ = ["load", "on_device_of", "runs_on"]

OLDEST = (3, 3)  # Triton that knows tuples; it came with torch 2.7


def runs_on(*tensors: Tensor) -> bool:
    """Kernels can run on these tensors: on a GPU that compiles them, and nobody traces."""
    return (
        all(type(t) is Tensor and t.is_cuda for t in tensors)
        and not torch.compiler.is_compiling()
        and not torch._C._is_tracing()
        and compiles_for(tensors[0].device)
    )


def on_device_of(tensor: Tensor) -> AbstractContextManager[None]:
    """Kernels are launched on the GPU of a tensor, which need not be the current one."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


@cache
def compiles_for(device: torch.device) -> bool:
    """Triton is there, knows the device and finds a compiler for its launchers; tried once."""
    if find_spec("triton") is None or torch.cuda.get_device_capability(device) < (8, 0):
        return False
    if tuple(map(int, version("triton").split(".")[:2])) < OLDEST:
        return False
    try:
        number = torch.zeros(1, dtype=torch.int64, device=device)
        with on_device_of(number):
            load().try_out[(1,)](number)
    except Exception as error:
        warnings.warn(
            f"Triton cannot compile for {device}, so hidden states there are reduced by ordinary "
            f"torch, which gives the same numbers more slowly: {error}",
            stacklevel=2,
        )
        return False
    return True


@cache
def load(name: str = "adds") -> Any:
    """A module of kernels, imported when it is wanted: Triton takes a while."""
    return import_module(f"geomhooks.gpu.{name}")
