"""Which calls may open a token stream, and what a Hugging Face config says of its size."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from geomhooks.calls import OPENING

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

    What lies between such a module and the site (blocks, attention) opens nothing.
    """
    chosen: dict[str, None] = {"": None}
    for site in sites:
        outer = [name for name in enclosing(site) if name in modules]
        naming = [index for index, name in enumerate(outer) if names_opening(modules[name])]
        for name in outer[min(naming, default=0) :]:
            if not isinstance(modules[name], nn.ModuleList):
                chosen[name] = None
    return [
        Opener(
            n,
            modules.get(n, root),
            parameters_of(modules.get(n, root)),
            config_of(n, modules),
            n == "",
        )
        for n in chosen
    ]


def config_of(name: str, modules: Mapping[str, nn.Module]) -> Any:
    """The Hugging Face config of the nearest module that has one."""
    for outer in (name, *enclosing(name), ""):
        config = getattr(modules.get(outer), "config", None)
        if config is not None and hasattr(config, "model_type"):
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
