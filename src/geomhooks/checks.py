"""What is asked of arguments in many places."""

from __future__ import annotations

__all__ = ["check_needed", "check_positive", "is_whole"]


def is_whole(value: object) -> bool:
    """An integer, which True and False are not here."""
    return isinstance(value, int) and not isinstance(value, bool)


def check_positive(owner: str, **settings: object) -> None:
    """Raise unless settings are positive integers, or None.

    Raises:
        ValueError: one of them is something else.
    """
    for name, value in settings.items():
        if value is not None and not (is_whole(value) and value > 0):  # type: ignore[operator]
            raise ValueError(f"{owner}({name}={value!r}): a positive integer is needed")


def check_needed(owner: str, **settings: object) -> None:
    """Raise unless settings are positive integers, of which none may be left out.

    Raises:
        ValueError: one of them is something else.
    """
    check_positive(owner, **settings)
    for name, value in settings.items():
        if value is None:
            raise ValueError(f"{owner}({name}=None): a positive integer is needed")
