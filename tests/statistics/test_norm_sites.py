"""Sphere at the norms of every family: on their ellipsoids, in their planes, but for rounding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import geomhooks as gh
from geomhooks.functional import norm_constants, norm_residuals, sphere_ratio
from geomhooks.sites import is_norm, named_modules
from tests.anatomy import models, stacked, test_torch_layers
from tests.anatomy.models import token_ids

pytestmark = [
    pytest.mark.filterwarnings("ignore:enable_nested_tensor is True"),
    pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors"),
]

B, T = 3, 9
HEADS_FIRST = ("Gemma3RMSNorm",)  # where a norm of each head has (batch, heads, time, k)


def text() -> tuple[dict[str, Tensor], list[Tensor]]:
    real = stacked.lengths(B, T, True)
    return {"input_ids": token_ids(B, T), "attention_mask": real.long()}, [real]


def of_stacks(name: str) -> tuple[dict[str, Tensor], list[Tensor]]:
    found = stacked.STACKED[name][2](True)
    return found.call, [mask for mask in (found.source, found.target) if mask is not None]


def of_torch(model: nn.Module) -> tuple[dict[str, Tensor], list[Tensor]]:
    call = test_torch_layers.call_of(model, True)
    masks = (test_torch_layers.real_of(call, decodes, 8) for decodes in (False, True))
    return call, list(masks)


def first_of_each(families: dict[str, tuple[Any, ...]], *others: str) -> list[str]:
    """The first model of each family, and those whose norms are elsewhere."""
    firsts = {family: name for name, (family, *_) in reversed(families.items())}
    return [*firsts.values(), *others]


TEXTS = first_of_each(models.MODELS, "opt, norm after", "gpt_neox, one after the other")
STACKS = first_of_each(stacked.STACKED, "t5, encoder", "bart, decoder")
Made = tuple[nn.Module, dict[str, Tensor], list[Tensor]]
FAMILIES: dict[str, Callable[[], Made]] = {
    **{n: lambda n=n: (models.make(n), *text()) for n in TEXTS},  # type: ignore[misc]
    **{n: lambda n=n: (stacked.make(n), *of_stacks(n)) for n in STACKS},  # type: ignore[misc]
    **{
        f"torch, {n}": lambda n=n: (m := test_torch_layers.make(n), *of_torch(m))  # type: ignore[misc]
        for n in test_torch_layers.MODELS
    },
}


class Shown(NamedTuple):
    """What one norm took and gave, (N, d) real tokens, and what it is by its class's source."""

    entered: Tensor
    given: Tensor
    gain: Tensor
    bias: Tensor
    eps: float
    centred: bool
    rounding: float


def norms_of(model: nn.Module) -> dict[str, nn.Module]:
    return {name: module for name, module in named_modules(model).items() if is_norm(name, module)}


def weights_of(module: nn.Module, width: int) -> tuple[Tensor, Tensor]:
    """Gain and bias in float64, by the source of the class."""
    weight, bias = (getattr(module, name, None) for name in ("weight", "bias"))
    gain = torch.ones(width) if weight is None else weight.detach()
    gain = gain.double() + ("Gemma" in type(module).__name__)
    return gain, torch.zeros(width).double() if bias is None else bias.detach().double()


def draw_weights(model: nn.Module, exactly_zero: bool = True) -> None:
    """Random gains and biases; of the gains one is small, one nearly nothing, and one is zero."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for module in norms_of(model).values():
            if module.weight is not None:
                one = float("Gemma" in type(module).__name__)
                gain = torch.randn(module.weight.shape, generator=generator)
                gain[1:4] = torch.tensor([0.05, 1e-4, 0.0 if exactly_zero else -0.8])
                module.weight.copy_(gain - one)
            if getattr(module, "bias", None) is not None:
                module.bias.copy_(torch.randn(module.bias.shape, generator=generator))


def tokens_first(module: nn.Module, tensor: Tensor, masks: list[Tensor]) -> Tensor:
    """(N, d) real tokens of a norm's tensor, each head of them."""
    if tensor.ndim == 4:
        axis = 1 if type(module).__name__ in HEADS_FIRST else 2
        tensor = tensor.movedim(axis, 0)
    if tensor.ndim == 2:  # as OPT has it
        tensor = tensor.view(*masks[0].shape, -1)
    (mask, tensor), *_ = [
        (mask, one)
        for one in (tensor, tensor.transpose(0, 1))
        for mask in masks
        if one.shape[-3:-1] == mask.shape
    ]
    return tensor[..., mask, :].flatten(0, -2)


def watch_norms(model: nn.Module, call: dict[str, Tensor], masks: list[Tensor]) -> Any:
    """The geometry of all norms, and what our own hooks saw."""
    seen: dict[str, Shown] = {}

    def look(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, out: Tensor) -> None:
            pair = (tokens_first(module, t.detach(), masks).double() for t in (args[0], out))
            eps = getattr(module, "eps", None) or module.variance_epsilon
            gain, bias = weights_of(module, out.shape[-1])
            centred = isinstance(module, nn.LayerNorm)
            seen[name] = Shown(*pair, gain, bias, eps, centred, torch.finfo(out.dtype).eps)

        return hook

    handles = [m.register_forward_hook(look(n)) for n, m in norms_of(model).items()]
    try:
        # With gradients, so that torch packs no padding away.
        with gh.watch(model, sites="norms", statistics=[gh.Sphere()]) as watch:
            model(**call)
    finally:
        for handle in handles:
            handle.remove()
    return watch.geometry(), seen


def told_by(norm: Shown) -> Tensor:
    """(d,) the entries that the output tells."""
    least = norm.rounding**0.5 * norm.bias.abs()
    return norm.gain.abs() > torch.maximum(least, 1e-6 * norm.gain.abs().max())


def bounds(norm: Shown) -> tuple[Tensor, Tensor]:
    r"""(N,) how large both gaps may be by rounding alone.

    With u half the distance of neighbouring numbers at 1, the output is rounded once, and may be
    made of a rounded x-hat and a rounded product: y is off by u (2 |x-hat gamma| + |y|), so that
    what is made of it is by :math:`u (3 |\hat x_i| + |\beta_i / \gamma_i|)` at most. Mean and scale
    are found in float32, where a mean of d numbers is off by d u times the largest.
    """
    u, in_float32 = norm.rounding / 2, 2.0**-24
    told, width = told_by(norm), norm.gain.shape[0]
    ratio = torch.where(told, norm.bias / norm.gain, 0.0).abs()
    mean = norm.entered.mean(-1, keepdim=True) if norm.centred else 0.0
    scale = ((norm.entered - mean).square().mean(-1) + norm.eps).sqrt()
    before = (norm.entered - mean) / scale[:, None]
    of_mean = width * in_float32 * norm.entered.abs().amax(-1) / scale
    off = u * (3 * before.abs() + ratio) + of_mean[:, None] + width * in_float32 * before.abs()
    off = torch.where(told, off, 0.0)
    return off.square().mean(-1).sqrt(), off.sum(-1) / width**0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_norm_of_every_family(family: str, dtype: torch.dtype) -> None:
    model, call, masks = FAMILIES[family]()
    draw_weights(model)
    model.to(dtype)
    call = {n: v.to(dtype) if v.is_floating_point() else v for n, v in call.items()}
    geometry, seen = watch_norms(model, call, masks)
    assert set(geometry.sites) == set(seen)
    never = {name for name in norms_of(model) if name not in seen}
    assert all(name.endswith("encoder_attn_layer_norm") for name in never)
    assert bool(never) == (family == "bart, decoder")
    for name, norm in seen.items():
        found = geometry[name].sphere
        assert int(found.norm.count) == len(norm.entered)
        assert ("plane_gap" in found) == norm.centred
        of_sphere, of_plane = bounds(norm)
        assert 0 < float(found.sphere_gap.max) <= float(of_sphere.max())
        if norm.centred:
            assert 0 < float(found.plane_gap.max) <= float(of_plane.max())
        # So narrow that a wrong epsilon, offset, or axis would be found out.
        assert float(of_sphere.max()) < (1e-3 if dtype == torch.float32 else 0.2)
        torch.testing.assert_close(found.ellipsoid.gain, norm.gain)
        torch.testing.assert_close(found.ellipsoid.bias, norm.bias)


@pytest.mark.parametrize("family", ["gpt2", "qwen3", "gemma3", "t5", "bart", "vit"])
def test_gaps_and_constants_are_those_of_the_geometry_of_norms(family: str) -> None:
    """Residuals of the output in its own terms, by functions that see what our own hooks saw."""
    model, call, masks = FAMILIES[family]()
    draw_weights(model, exactly_zero=False)
    with torch.no_grad():
        for module in norms_of(model).values():  # large enough that all entries tell
            module.weight[2] += 0.5
    geometry, seen = watch_norms(model, call, masks)
    for name, norm in seen.items():
        assert bool(told_by(norm).all())
        found, told = geometry[name].sphere, {"centred": norm.centred}
        radius = sphere_ratio(norm.entered, norm.eps, **told)
        residuals = norm_residuals(norm.given, norm.gain, norm.bias, radius=radius, **told)
        assert residuals.left_out == 0
        gap = ((residuals.ellipsoid + radius.square()).sqrt() - radius).abs()
        for kind in ("max", "mean"):
            expected = getattr(gap, kind)()
            torch.testing.assert_close(
                getattr(found.sphere_gap, kind), expected, rtol=1e-6, atol=1e-12
            )
            if residuals.plane is not None:
                torch.testing.assert_close(
                    getattr(found.plane_gap, kind), getattr(residuals.plane, kind)()
                )
        constants = norm_constants(norm.gain, norm.bias, **told)._asdict()
        for name, expected in constants.items():
            assert (name in found.ellipsoid) == (expected is not None)
            if expected is not None:
                torch.testing.assert_close(found.ellipsoid[name], expected)
