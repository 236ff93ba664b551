"""What a computation hands out: named tensors, nested, read like attributes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from geomhooks.errors import UnidentifiedError

__all__ = ["Lazy", "Result", "Unavailable"]


class Unavailable:
    """A result that the data do not determine; reading it raises the reason.

    Args:
        reason: to be read by whoever asks for it.
        by_choice: it is not the data's fault: the statistic was not asked to determine it, or not
            told what it takes. It is then none of the names of its :class:`Result`, so that one can
            go through all of these.
    """

    def __init__(self, reason: str, *, by_choice: bool = False) -> None:
        self.reason = reason
        self.by_choice = by_choice


class Lazy:
    """A result that takes long to compute: it is when it is first read, and then it is kept.

    Args:
        compute: gives it; called once.
        scalar: False where it is known to be no single number, so that nobody who collects numbers
            need compute it.
        pickled: False where it takes so long that a pickle or a copy does without, unless it is
            computed already.

    Example:
        >>> result = Result(rank=Lazy(lambda: torch.tensor(3)))
        >>> result
        Result(rank=not computed yet)
        >>> int(result.rank), result
        (3, Result(rank=3))
    """

    def __init__(
        self, compute: Callable[[], Any], *, scalar: bool = True, pickled: bool = True
    ) -> None:
        self._compute = compute
        self.may_be_scalar = scalar
        self._pickled = pickled

    @cached_property
    def value(self) -> Any:
        """What it is; no further Lazy."""
        with torch.no_grad():
            return self._compute()

    @property
    def is_computed(self) -> bool:
        """Reading it costs nothing."""
        return "value" in self.__dict__

    def __getstate__(self) -> dict[str, Any]:
        # What goes in a pickle or a copy, where functions cannot go.
        value = Unavailable("it was not computed before the results were copied or pickled")
        if self._pickled or self.is_computed:
            value = self.value
        return {"value": value, "may_be_scalar": self.may_be_scalar, "_pickled": self._pickled}


class Result(Mapping[str, Any]):
    """Named results; ``result.name`` and ``result["name"]`` are the same.

    Example:
        >>> shares = Result(pos=torch.tensor(0.25), ctx=torch.tensor(0.75))
        >>> float(shares.pos), list(shares)
        (0.25, ['pos', 'ctx'])
    """

    def __init__(self, /, **values: Any) -> None:
        self._values = values

    def __getitem__(self, name: str) -> Any:
        value = self._values[name]
        if isinstance(value, Lazy):
            value = value.value
        if isinstance(value, Unavailable):
            raise UnidentifiedError(f"{name}: {value.reason}")
        return value

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "_values" not in self.__dict__:
            raise AttributeError(name)
        if name not in self._values:
            raise AttributeError(f"no result {name!r}; there are {', '.join(self)}")
        return self[name]

    def __iter__(self) -> Iterator[str]:
        return (name for name in self._values if name in self)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __contains__(self, name: object) -> bool:
        value = self._values.get(name)  # type: ignore[call-overload]
        return name in self._values and not (isinstance(value, Unavailable) and value.by_choice)

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self._values]

    def __repr__(self) -> str:
        def show(value: Any) -> str:
            if isinstance(value, Lazy):
                return show(value.value) if value.is_computed else "not computed yet"
            if isinstance(value, Tensor):
                return f"{value.item():.6g}" if value.ndim == 0 else f"{tuple(value.shape)}"
            if isinstance(value, Unavailable):
                return "unavailable"
            return repr(value)

        return (
            f"Result({', '.join(f'{name}={show(value)}' for name, value in self._values.items())})"
        )

    def _repr_html_(self) -> str:
        """What a notebook shows: numbers, shapes, and small curves."""
        from geomhooks.report.notebook import result_html

        return result_html(self)

    def scalars(
        self, prefix: str = "", wanted: Callable[[str], bool] | None = None
    ) -> dict[str, float]:
        """All 0-dimensional results, flat, as floats.

        Args:
            prefix: what their names begin with.
            wanted: says by its name whether a scalar is wanted; others are not computed.
        """
        flat: dict[str, float] = {}
        for name, value in self._values.items():
            if isinstance(value, Result):
                flat |= value.scalars(f"{prefix}{name}/", wanted)
                continue
            if wanted is not None and not wanted(prefix + name):
                continue
            if isinstance(value, Lazy):
                value = value.value if value.may_be_scalar else None
            if isinstance(value, Tensor) and value.ndim == 0:
                flat[prefix + name] = float(value.to(torch.float64))
        return flat
