"""What kind of norm a module is, found out by trying it on one vector."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from geomhooks.frames import unwrap_transforms
from geomhooks.sharded import is_spread, local_tensor

__all__ = ["NormModule", "inspect_norm"]

WHOLE = (
    "FSDP has put the norm's weights away before the hook ran: shard the block around the norm "
    "instead of the norm itself, or start to watch before fully_shard"
)


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
        weight, bias = (self._parameter(name) for name in ("weight", "bias"))
        gain = like.new_ones(width) if weight is None else weight.detach() + self.offset
        return gain, like.new_zeros(width) if bias is None else bias.detach()

    def _parameter(self, name: str) -> Tensor | None:
        value = getattr(self.module, name, None)
        if value is None:
            return None
        what = f"the {name} of a norm"
        return local_tensor(unwrap_transforms(value, what), what, WHOLE)


def inspect_norm(module: nn.Module) -> NormModule | None:
    """Find out what a norm module does; None if it is no LayerNorm or RMSNorm over (d,)."""
    if any(is_spread(parameter) for parameter in module.parameters(recurse=False)):
        found = inspect_norm(with_made_up_weights(module))
        return found and replace(found, module=module)
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


def with_made_up_weights(module: nn.Module) -> nn.Module:
    """A norm of the same kind with whole weights; what kind it is does not depend on them."""
    twin = object.__new__(type(module))  # without a call of __init__, as FSDP's classes make one
    twin.__dict__.update(module.__dict__)
    twin._parameters = {
        name: None if p is None else nn.Parameter(made_up(p), requires_grad=False)
        for name, p in module._parameters.items()
    }
    return twin


def made_up(parameter: Tensor) -> Tensor:
    """Numbers about 1 of a parameter's full shape."""
    entries = torch.arange(parameter.numel(), device=parameter.device, dtype=torch.float32)
    return (1 + 0.1 * (entries * 0.3).cos()).view(parameter.shape).to(parameter.dtype)
