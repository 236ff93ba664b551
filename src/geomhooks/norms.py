"""What kind of norm a module is, found out by trying it on one vector."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

__all__ = ["NormModule", "inspect_norm"]


@dataclass(frozen=True)
class NormModule:
    """A norm module y = gain * (x - mean) / sqrt(s^2 + eps) + bias, or the same without a mean.

    Attributes:
        eps: epsilon.
        centred: it subtracts the mean of the entries (LayerNorm), or not (RMSNorm).
        offset: the gain is the weight plus this (1 in Gemma).
    """

    module: nn.Module
    eps: float
    centred: bool
    offset: float

    def affine(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Gain and bias (d,) as they are now."""
        width = like.shape[-1]
        weight = getattr(self.module, "weight", None)
        bias = getattr(self.module, "bias", None)
        gain = like.new_ones(width) if weight is None else weight.detach() + self.offset
        return gain, like.new_zeros(width) if bias is None else bias.detach()


def inspect_norm(module: nn.Module) -> NormModule | None:
    """Find out what a norm module does; None if it is no LayerNorm or RMSNorm over (d,)."""
    weight = getattr(module, "weight", None)
    if isinstance(weight, Tensor) and weight.ndim != 1:
        return None
    if isinstance(module, nn.LayerNorm) and len(module.normalized_shape) != 1:
        return None
    eps = next(
        (
            float(v)
            for n in ("eps", "variance_epsilon", "epsilon")
            if isinstance(v := getattr(module, n, None), (int, float))
        ),
        0.0,
    )
    width = (
        len(weight) if isinstance(weight, Tensor) else getattr(module, "normalized_shape", (0,))[0]
    )
    if not width:
        return None
    if isinstance(weight, Tensor):
        device, dtype = weight.device, weight.dtype
        if device.type == "meta":
            return None
    else:
        device, dtype = torch.device("cpu"), torch.float32
    # forward() itself, not the module's call: nobody's hooks are to notice.
    with torch.no_grad():
        entries = torch.arange(width, device=device, dtype=torch.float32)
        x = (entries * 0.7).sin() + 2.0  # far from zero mean, so that centring shows
        try:
            plus, minus = (module.forward(s[None].to(dtype))[0].float() for s in (x, -x))
        except Exception:  # a norm with other arguments is none that this statistic knows
            return None
        odd = (plus - minus) / 2
        for centred in (True, False):
            y = x - x.mean() if centred else x
            before = y / (y.square().mean() + eps).sqrt()
            for offset in (0.0, 1.0):
                gain = torch.ones_like(x) if weight is None else weight.float() + offset
                if torch.allclose(
                    before * gain, odd, rtol=3e-2, atol=3e-2 * float(odd.abs().amax() + 1e-12)
                ):
                    return NormModule(module, eps, centred, offset)
    # It does what no norm does: measured as what it claims to be, its gaps will show it.
    return NormModule(module, eps, isinstance(module, nn.LayerNorm), 0.0)
