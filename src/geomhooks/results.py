"""What a computation hands out: named tensors, nested, read like attributes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from geomhooks.errors import UnidentifiedError

__all__ = ["Later", "Result", "Unavailable"]


class Unavailable:
    """A result that the data do not determine; reading it raises the reason.

    Args:
        reason: to be read by whoever asks for it.
        by_choice: it is not the data's fault: the statistic was not asked to determine it.
    """

    def __init__(self, reason: str, *, by_choice: bool = False) -> None:
        self.reason = reason
        self.by_choice = by_choice


class Later:
    """A result that costs too much to compute before somebody reads it.

    Args:
        compute: gives it; called once.
        scalar: it is a single number, which :meth:`Result.scalars` reads.
    """

    def __init__(self, compute: Callable[[], Any], *, scalar: bool = False) -> None:
        self.compute = compute
        self.scalar = scalar


class Result(Mapping[str, Any]):
    """Named results; ``result.name`` and ``result["name"]`` are the same.

    Example:
        >>> shares = Result(pos=torch.tensor(0.25), ctx=torch.tensor(0.75))
        >>> float(shares.pos), list(shares)
        (0.25, ['pos', 'ctx'])
    """

    def __init__(self, **values: Any) -> None:
        self._values = values

    def __getitem__(self, name: str) -> Any:
        value = self._values[name]
        if isinstance(value, Unavailable):
            raise UnidentifiedError(f"{name}: {value.reason}")
        if isinstance(value, Later):
            with torch.no_grad():
                value = self._values[name] = value.compute()
        return value

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "_values" not in self.__dict__:
            raise AttributeError(name)
        if name not in self._values:
            raise AttributeError(f"no result {name!r}; there are {', '.join(self._values)}")
        return self[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self._values]

    def __repr__(self) -> str:
        def show(value: Any) -> str:
            if isinstance(value, Tensor):
                return f"{value.item():.6g}" if value.ndim == 0 else f"{tuple(value.shape)}"
            if isinstance(value, (Unavailable, Later)):
                return type(value).__name__.lower()
            return repr(value)

        return (
            f"Result({', '.join(f'{name}={show(value)}' for name, value in self._values.items())})"
        )

    def scalars(self, prefix: str = "") -> dict[str, float]:
        """All 0-dimensional results, flat, as floats."""
        flat: dict[str, float] = {}
        for name, value in list(self._values.items()):
            if isinstance(value, Later) and value.scalar:
                value = self[name]
            if isinstance(value, Result):
                flat |= value.scalars(f"{prefix}{name}/")
            elif isinstance(value, Tensor) and value.ndim == 0:
                flat[prefix + name] = float(value.to(torch.float64))
        return flat
