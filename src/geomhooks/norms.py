"""What kind of norm a module is, found out by trying it on one vector."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from geomhooks.forwards.frames import unwrap_transforms
from geomhooks.functional.shapes import as_float
from geomhooks.functional.sphere.norm_geometry import standardise
from geomhooks.sharded import local_tensor

__all__ = ["NormModule", "inspect_norm"]

WHOLE = (
    "FSDP has put the norm's weights away before the hook ran: shard the block around the norm "
    "instead of the norm itself, or start to watch before fully_shard"
)
TRIED = 16  # entries of the vector that a norm without weights is tried on


@dataclass(frozen=True)
class NormModule:
    """A norm module y = gain * (x - mean) / sqrt(s^2 + eps) + bias, or the same without a mean.

    Attributes:
        eps: epsilon.
        centred: it subtracts the mean of the entries (LayerNorm), or not (RMSNorm).
        offset: the gain is the weight plus this (1 in Gemma).
        width: how many entries it norms, or None where any number will do.
    """

    module: nn.Module
    eps: float
    centred: bool
    offset: float
    width: int | None = None

    def affine(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Gain and bias (d,) as they are now; a gain that is a sum in float32 at least."""
        width = like.shape[-1]
        weight, bias = (self._parameter(name) for name in ("weight", "bias"))
        if weight is None:
            gain = like.new_ones(width)
        else:  # models add in float32 too: in bfloat16 1 + w would lose what w has below 1/128
            gain = as_float(weight.detach()) + self.offset if self.offset else weight.detach()
        return gain, like.new_zeros(width) if bias is None else bias.detach()

    def _parameter(self, name: str) -> Tensor | None:
        value = getattr(self.module, name, None)
        if value is None:
            return None
        what = f"the {name} of a norm"
        return local_tensor(unwrap_transforms(value, what), what, WHOLE)


def inspect_norm(module: nn.Module) -> NormModule | None:
    """Find out what a norm module does; None if it is no LayerNorm or RMSNorm over (d,)."""
    weight = getattr(module, "weight", None)
    if isinstance(weight, Tensor) and (weight.ndim != 1 or weight.device.type == "meta"):
        return None
    stated = getattr(module, "normalized_shape", None)
    if isinstance(stated, (tuple, list, torch.Size)) and len(stated) != 1:
        return None
    if isinstance(weight, Tensor):
        width, like = len(weight), weight
    elif stated is not None:
        width, like = stated if isinstance(stated, int) else stated[0], torch.empty(0, device="cpu")
    elif not any(True for _ in module.parameters()):
        width, like = None, torch.empty(0, device="cpu")
    else:
        return None
    dtype = torch.promote_types(like.dtype, torch.float32)
    # forward() itself, not the module's call: nobody's hooks are to notice.
    with torch.no_grad():
        entries = torch.arange(width or TRIED, device=like.device, dtype=dtype)
        # Far from zero mean, so that centring shows, and so long that epsilon does not.
        x = 1000 * ((entries * 0.7).sin() + 2.0)
        try:
            # Weights that are all about 0, or one of them a hundred, would show less.
            twin = with_made_up_weights(module, dtype)
            odd = odd_part(twin.forward, x)
        except Exception:  # a norm with other arguments is none that this statistic knows
            return None
        told = getattr(twin, "weight", None)
        gains = {o: torch.ones_like(x) if told is None else told + o for o in (0.0, 1.0)}
        error, centred, offset = min(
            (distance(standardise(x, centred=centred) * gain, odd), centred, offset)
            for centred in (False, True)
            for offset, gain in gains.items()
        )
        eps = stated_eps(module)
        if error > 1e-2:
            if width is None:
                return None
            # It does what no norm does: measured as what it claims to be, its gaps will show it.
            return NormModule(module, eps or 0.0, isinstance(module, nn.LayerNorm), 0.0, width)
        if eps is None:
            eps = find_eps(twin.forward, x, odd, centred)
    return NormModule(module, eps, centred, offset, width)


def odd_part(forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """What a norm makes of x (d,), without its bias."""
    plus, minus = (forward(s[None])[0].to(x.dtype) for s in (x, -x))
    return (plus - minus) / 2


def distance(one: Tensor, other: Tensor) -> float:
    """Between 0 and 1: the mean difference of entries, relative to their sizes."""
    sizes = (one.abs() + other.abs()).clamp(min=torch.finfo(one.dtype).tiny)
    return float(((one - other).abs() / sizes).mean())


def stated_eps(module: nn.Module) -> float | None:
    """Epsilon by the names that it goes by."""
    for name in ("eps", "variance_epsilon", "epsilon"):
        value = getattr(module, name, None)
        if isinstance(value, (int, float)):
            return float(value)
    return None


def find_eps(forward: Callable[[Tensor], Tensor], x: Tensor, odd: Tensor, centred: bool) -> float:
    """Epsilon where no attribute says it, by how much shorter the output of a small vector is.

    Args:
        forward: of the norm.
        x: (d,) beside which epsilon is nothing, and
        odd: (d,) what becomes of it.
        centred: the norm subtracts the mean.
    """
    small = x / 1e8
    square = small.var(correction=0) if centred else small.square().mean()
    ratio = odd_part(forward, small).norm() / odd.norm()
    return max(0.0, float(square * (ratio**-2 - 1)))


def with_made_up_weights(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A norm of the same kind with whole weights; what kind it is does not depend on them."""
    twin = object.__new__(type(module))  # without a call of __init__, as FSDP's classes make one
    twin.__dict__.update(module.__dict__)
    twin._parameters = {
        name: None if p is None else nn.Parameter(made_up(p, dtype), requires_grad=False)
        for name, p in module._parameters.items()
    }
    return twin


def made_up(parameter: Tensor, dtype: torch.dtype) -> Tensor:
    """Numbers about 1 of a parameter's full shape."""
    entries = torch.arange(parameter.numel(), device=parameter.device, dtype=dtype)
    return (1 + 0.1 * (entries * 0.3).cos()).view(parameter.shape)
