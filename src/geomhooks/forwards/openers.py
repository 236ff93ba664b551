"""Which calls may open a token stream, and what a model's config says of its size."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from geomhooks.forwards.calls import OPENING
from geomhooks.sites import named_modules

__all__ = [
    "Opener",
    "config_of",
    "find_openers",
    "opening_module",
    "positions_from_config",
    "width_from_config",
]

DEFAULT_POSITIONS = 2048


@dataclass(frozen=True)
class Opener:
    """A module whose calls may open a token stream."""

    name: str
    module: nn.Module
    parameters: tuple[str, ...]
    config: Any
    is_root: bool


def opening_module(name: str, modules: Mapping[str, nn.Module]) -> str:
    """The nearest module around a site whose forward names ids, embeddings or pixels."""
    for outer in (*enclosing(name), ""):
        if outer in modules and names_opening(modules[outer]):
            return outer
    return ""


def enclosing(name: str) -> Iterator[str]:
    """Names of the modules around one, the nearest first."""
    while "." in name:
        name = name.rpartition(".")[0]
        yield name


def names_opening(module: nn.Module) -> bool:
    """Its calls are about tokens: by name, or because it is torch's own encoder or decoder."""
    if isinstance(module, (nn.TransformerEncoder, nn.TransformerDecoder)):
        return True
    return any(name in OPENING for name in parameters_of(module))


def parameters_of(module: nn.Module) -> tuple[str, ...]:
    """Names of the positional parameters of a module's forward."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    try:
        signature = inspect.signature(module.forward)
    except (TypeError, ValueError):
        return ()
    return tuple(p.name for p in signature.parameters.values() if p.kind in kinds)


def find_openers(
    root: nn.Module, modules: Mapping[str, nn.Module], sites: Sequence[str]
) -> list[Opener]:
    """The root, every module around a site that names ids or pixels, and all wrappers around those.

    What lies between such a module and the site (blocks, attention) opens nothing. A model that the
    root runs but keeps out of its module tree counts as around the sites that it holds.
    """
    chosen: dict[str, None] = {"": None}
    for site in sites:
        outer = [name for name in enclosing(site) if name in modules]
        naming = [index for index, name in enumerate(outer) if names_opening(modules[name])]
        for name in outer[min(naming, default=0) :]:
            if not isinstance(modules[name], (nn.ModuleList, nn.ModuleDict)):
                chosen[name] = None
    openers = [
        Opener(
            n,
            modules.get(n, root),
            parameters_of(modules.get(n, root)),
            config_of(n, modules),
            n == "",
        )
        for n in chosen
    ]
    return openers + _hidden_openers(root, [modules[name] for name in sites if name in modules])


def _hidden_openers(root: nn.Module, sites: Sequence[nn.Module]) -> list[Opener]:
    """The openers in models that the root holds as plain attributes.

    TransformerLens's bridge runs the model that it was made from, which has the bridge's blocks in
    the place of its own. Only that model is called in all cases, and is told ids and mask.
    """
    found: list[Opener] = []
    for attribute, hidden in vars(root).items():
        if not isinstance(hidden, nn.Module):
            continue
        inner = named_modules(hidden)
        held = [n for n, module in inner.items() if any(module is site for site in sites)]
        if held:
            found += [
                replace(opener, name=f"{attribute}.{opener.name}".rstrip("."), is_root=False)
                for opener in find_openers(hidden, inner, held)
            ]
    return found


def config_of(name: str, modules: Mapping[str, nn.Module]) -> Any:
    """The config of the nearest module that has one: Hugging Face's, or TransformerLens's."""
    for outer in (name, *enclosing(name), ""):
        for attribute, mark in (("config", "model_type"), ("cfg", "n_ctx")):
            config = getattr(modules.get(outer), attribute, None)
            if config is not None and hasattr(config, mark):
                return config
    return None


def width_from_config(config: Any) -> int | None:
    """d, where a config says it in one of the usual ways."""
    for name in ("hidden_size", "d_model", "n_embd", "dim"):
        value = getattr(config, name, None)
        if isinstance(value, int):
            return value
    return None


def positions_from_config(config: Any, stream: str) -> int:
    """The model's maximum number of positions, at most 2048."""
    side = "max_target_positions" if "decoder" in stream else "max_source_positions"
    for name in (side, "max_position_embeddings", "n_positions", "n_ctx", "seq_length"):
        value = getattr(config, name, None)
        if isinstance(value, int) and value > 0:
            return min(value, DEFAULT_POSITIONS)
    return DEFAULT_POSITIONS
