"""Whether torch multiplies float32 matrices with all their digits: a setting of the user's."""

from __future__ import annotations

import torch

__all__ = ["precision_on"]

FULL = ("ieee", "none", "highest")


def precision_on(device: torch.device) -> str:
    """How torch multiplies float32 matrices on a device: "highest", or in which lesser way."""
    backend = torch.backends.cuda if device.type == "cuda" else torch.backends.mkldnn
    said = getattr(getattr(backend, "matmul", None), "fp32_precision", None)
    if said is None:  # torch before 2.9 has one setting for all
        said = torch.get_float32_matmul_precision()
        said = "tf32" if said == "high" or (device.type == "cuda" and said != "highest") else said
    return "highest" if said in FULL else str(said)
