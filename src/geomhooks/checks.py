"""What is asked of arguments in many places."""

from __future__ import annotations

from numbers import Real

__all__ = ["check_flags", "check_needed", "check_positive", "is_number", "is_whole"]


def is_whole(value: object) -> bool:
    """An integer, which True and False are not here."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    """A real number, which True and False are not here."""
    return isinstance(value, Real) and not isinstance(value, bool)


def check_needed(owner: str, **settings: object) -> None:
    """Raise unless settings are positive integers.

    Raises:
        ValueError: one of them is something else, or None.
    """
    for name, value in settings.items():
        if value is None:
            raise ValueError(f"{owner}({name}=None): a positive integer is needed")
    check_positive(owner, **settings)


def check_flags(owner: str, **settings: object) -> None:
    """Raise unless settings are True or False.

    Raises:
        ValueError: one of them is something else.
    """
    for name, value in settings.items():
        if not isinstance(value, bool):
            raise ValueError(f"{owner}({name}={value!r:.80}): True or False is needed")


def check_positive(owner: str, **settings: object) -> None:
    """Raise unless settings are positive integers, or None.

    Raises:
        ValueError: one of them is something else.
    """
    for name, value in settings.items():
        if value is not None and not (is_whole(value) and value > 0):  # type: ignore[operator]
            raise ValueError(f"{owner}({name}={value!r}): a positive integer is needed")
