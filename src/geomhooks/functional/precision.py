"""Whether torch multiplies float32 matrices with all their digits: settings of the user's."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

__all__ = ["precision_on", "without_autocast"]

FULL = ("ieee", "none", "highest")


def precision_on(device: torch.device) -> str:
    """How torch multiplies float32 matrices on a device: "highest", or in which lesser way."""
    backend = torch.backends.cuda if device.type == "cuda" else torch.backends.mkldnn
    said = getattr(getattr(backend, "matmul", None), "fp32_precision", None)
    if said is None:  # torch before 2.9 has one setting for all
        said = torch.get_float32_matmul_precision()
        said = "tf32" if said == "high" or (device.type == "cuda" and said != "highest") else said
    return "highest" if said in FULL else str(said)


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Where sums keep the precision that they are asked for in."""
    kind = device.type
    if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
        return nullcontext()
    return torch.autocast(kind, enabled=False)
