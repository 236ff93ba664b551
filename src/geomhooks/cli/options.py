"""How the values of options are read."""

from __future__ import annotations

__all__ = ["names_in"]


def names_in(commas: str) -> tuple[str, ...]:
    """Names with commas between them.

    Example:
        >>> names_in("pos_ctx, sphere,")
        ('pos_ctx', 'sphere')
    """
    return tuple(name.strip() for name in commas.split(",") if name.strip())
