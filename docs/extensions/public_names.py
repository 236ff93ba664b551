"""Which names a package makes public, by the part of it that defines them."""

from __future__ import annotations

import importlib


def home(package: str, name: str) -> str:
    """The module that defines a public name; of what is no class or function, the package."""
    value = getattr(importlib.import_module(package), name)
    return str(getattr(value, "__module__", package))


def public_names(package: str, *parts: str) -> list[str]:
    """Public names of a package, together where one module defines them.

    Args:
        package: a module with ``__all__``.
        parts: modules within it, by their name there: what these, and modules in them, define is
            chosen; or public names. Without parts, all is chosen.
    """
    found = importlib.import_module(package)
    names = sorted(found.__all__, key=lambda name: home(package, name))
    if not parts:
        return names
    chosen: list[str] = []
    for part in parts:
        inside = f"{package}.{part}."
        defined = [n for n in names if f"{home(package, n)}.".startswith(inside)]
        chosen += defined or [name for name in names if name == part]
    return chosen
