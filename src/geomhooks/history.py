"""``History``: snapshots by step, the scalars as curves, in one file.

The file is a safetensors file as a geometry's, of the kind "history" (see
:mod:`geomhooks.storage.files`). Its tensors are ``steps`` (S,), ``values`` (S, N) with a row a step
and a column a scalar, and ``present`` (S, N), false where a step has no such scalar; the columns'
names are in the metadata. The state of a snapshot that is kept is under ``snapshot/<step>/``, its
description in the metadata.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from geomhooks.errors import FileFormatError, HistoryError, MissingExtraError, SchemaError
from geomhooks.snapshot import Geometry, of_file
from geomhooks.statistics.base import Statistic
from geomhooks.storage.descriptions import list_of, mapping_of, record, text, unchecked, whole
from geomhooks.storage.files import (
    MAX_BYTES,
    notes_of,
    read_document,
    write_document,
)
from geomhooks.storage.packing import thin_tensors, unpack_state

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["History", "select_scalars"]

SCHEMA = 1
KIND = "history"
Snapshots = int | Literal["all"]
DOCUMENT = record(
    {
        "kind": text,
        "schema": whole(0),
        "names": list_of(text),
        "snapshots": unchecked,
        "only": list_of(text),
        "stride": whole(1),
        "descriptions": mapping_of(unchecked),
    },
    {"notes": unchecked, "versions": unchecked},
)


class History:
    """A series of snapshots by step.

    The scalars of every step are kept, nine bytes each: the default statistics have about 125 at a
    site, so that a thousand steps of a model of 12 blocks are 15 MB; ``only`` takes fewer, and
    spares the decompositions that some of them need.
    The tensors behind them are the state of a watch, which may be hundreds of megabytes a step, and
    ``snapshots`` says of how many steps they are kept: none by default, or at most so many, spread
    evenly over the steps however many come (whenever there would be one too many, every second one
    is let go; the newest always stays), or "all", which grows without bound. They are kept in the
    host's memory, as few rows as hold something.

    Args:
        snapshots: of how many steps to keep the whole state: 0, a number from 2, or "all".
        only: globs over the names of scalars, such as ``"*/pos_ctx/shares/*"``; ``*`` stands for
            anything.
        notes: anything JSON can hold, kept in the file.

    Raises:
        HistoryError: an argument is none of what is allowed.

    Example:
        >>> import torch, geomhooks as gh
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
        >>> history = gh.History(snapshots="all")
        >>> with gh.watch(model, statistics=[gh.Sphere()]) as watch:
        ...     for step in range(0, 30, 10):
        ...         _ = model(torch.ones(2, 3, 4) * (1 + step))
        ...         history.append(step, watch.geometry())
        ...         watch.reset()
        >>> steps, values = history.curve("0@in/sphere/norm/mean")
        >>> steps, values
        (tensor([ 0, 10, 20]), tensor([ 2., 22., 42.], dtype=torch.float64))
        >>> history[10]["0@in"].sphere.norm.mean
        tensor(22., dtype=torch.float64)
    """

    def __init__(
        self,
        *,
        snapshots: Snapshots = 0,
        only: str | Sequence[str] = "*",
        notes: Mapping[str, Any] | None = None,
    ) -> None:
        if snapshots != "all" and (
            not isinstance(snapshots, int) or isinstance(snapshots, bool) or snapshots in (1, -1)
            or snapshots < 0
        ):  # fmt: skip
            raise HistoryError(
                f'History(snapshots={snapshots!r}): 0, an integer of at least 2, or "all" is needed'
            )
        self.only = (only,) if isinstance(only, str) else tuple(only)
        if not self.only or not all(isinstance(pattern, str) for pattern in self.only):
            raise HistoryError(f"History(only={only!r}): one or more globs over names are needed")
        self.snapshots = snapshots
        self.notes = dict(notes or {})
        self._statistics: tuple[Statistic, ...] = ()
        self._max_bytes: int | None = None
        self._columns: dict[str, int] = {}
        self._steps: list[int] = []
        self._rows: list[tuple[np.ndarray, np.ndarray]] = []  # values, and which are there
        self._stride = 1
        self._states: dict[int, dict[str, Any]] = {}  # by step

    # What was kept

    @property
    def steps(self) -> list[int]:
        """The steps, ascending."""
        return list(self._steps)

    @property
    def names(self) -> list[str]:
        """Names of all scalars."""
        return list(self._columns)

    @property
    def kept(self) -> list[int]:
        """The steps whose whole geometry was kept."""
        return list(self._states)

    def __len__(self) -> int:
        return len(self._steps)

    def __iter__(self) -> Iterator[int]:
        return iter(self.steps)

    def __contains__(self, step: object) -> bool:
        return step in self._steps

    def __repr__(self) -> str:
        span = f", {self._steps[0]} to {self._steps[-1]}" if self._steps else ""
        return (
            f"History({len(self)} steps{span}; {len(self._columns)} scalars, "
            f"{len(self._states)} geometries)"
        )

    def __getitem__(self, step: int) -> Geometry:
        """The whole geometry of a step.

        Raises:
            HistoryError: there is no such step, or only its scalars were kept.
            SchemaError: of a history from a file, a statistic in it is unknown, or what is said of
                the geometry and what is held of it do not fit together.
        """
        self._index(step)
        if step not in self._states:
            kept = f"of steps {_some(self.kept)}" if self._states else "of none"
            raise HistoryError(
                f"of step {step} only the scalars were kept (history.scalars({step})); whole "
                f"geometries were kept {kept}, by History(snapshots={self.snapshots!r})"
            )
        try:
            state = unpack_state(self._states[step], self._statistics, self._max_bytes)
        except SchemaError as error:
            raise SchemaError(f"the geometry of step {step}: {error}") from error
        return of_file(state, {}, f"the geometry of step {step}")

    def scalars(self, step: int) -> dict[str, float]:
        """The scalars of a step by name.

        Raises:
            HistoryError: there is no such step.
        """
        values, present = self._rows[self._index(step)]
        return {
            name: float(values[column])
            for name, column in self._columns.items()
            if column < len(values) and present[column]
        }

    def curve(self, name: str) -> tuple[Tensor, Tensor]:
        """A scalar over the steps that have it.

        Args:
            name: such as ``"transformer.h.3/pos_ctx/shares/pos"``.

        Returns:
            The steps (S,), int64, and the values (S,), float64.

        Raises:
            HistoryError: no step has it.
        """
        column = self._columns.get(name)
        if column is None and not self._columns:
            raise HistoryError(
                f"no scalar {name!r}: the history is empty; add geometries with "
                "history.append(step, watch.geometry())"
            )
        if column is None:
            near = difflib.get_close_matches(name, self._columns, n=4, cutoff=0.4)
            hint = f"did you mean {', '.join(near)}?" if near else "history.names lists them"
            raise HistoryError(f"no scalar {name!r} among {len(self._columns)}; {hint}")
        found = [
            (step, values[column])
            for step, (values, present) in zip(self._steps, self._rows, strict=True)
            if column < len(values) and present[column]
        ]
        steps, numbers = zip(*found, strict=True) if found else ((), ())
        return (
            torch.tensor(steps, dtype=torch.int64, device="cpu"),
            torch.tensor(numbers, dtype=torch.float64, device="cpu"),
        )

    def frame(self) -> pd.DataFrame:
        """The scalars as a pandas table, a row for each step; NaN where a step has no such scalar.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise MissingExtraError(
                "frame() needs pandas: pip install 'geomhooks[frame]'"
            ) from error
        values, present = self._table()
        table = np.where(present, values, np.nan)
        index = pd.Index(self._steps, name="step", dtype="int64")
        return pd.DataFrame(table, index=index, columns=self.names)

    @property
    def nbytes(self) -> int:
        """What the history takes, in bytes."""
        arrays = [a for row in self._rows for a in row]
        tensors: list[Tensor] = [t for s in self._states.values() for t in s["tensors"].values()]
        return sum(a.nbytes for a in arrays) + sum(t.nbytes for t in tensors)

    # Adding

    def append(self, step: int, geometry: Geometry) -> None:
        """Add the snapshot of a step.

        Raises:
            HistoryError: the step is not after the last one, or it is no geometry.
        """
        if not isinstance(geometry, Geometry):
            raise HistoryError(
                f"append({step!r}, ...) needs a geometry, such as watch.geometry(), and found "
                f"a {type(geometry).__name__}"
            )
        if not isinstance(step, int) or isinstance(step, bool) or step < 0:
            raise HistoryError(f"append({step!r}, ...): steps are integers from 0")
        if self._steps and step <= self._steps[-1]:
            raise HistoryError(
                f"append({step}, ...): the last step is {self._steps[-1]}, and steps ascend; "
                f"history.cut({step - 1}) forgets what came after step {step - 1}"
            )
        scalars = geometry.scalars(only=self.only)
        for name in scalars:
            self._columns.setdefault(name, len(self._columns))
        values = np.zeros(len(self._columns))
        present = np.zeros(len(self._columns), np.bool_)
        at = [self._columns[name] for name in scalars]
        values[at], present[at] = list(scalars.values()), True
        self._steps.append(step)
        self._rows.append((values, present))
        if self.snapshots:
            state = geometry._state
            self._states[step] = {
                "description": state.describe(),
                "tensors": thin_tensors(state),
            }
            self._thin_out()

    def _thin_out(self) -> None:
        """Let go of whole geometries until there are no more than wanted; the newest stays."""
        index = {step: number for number, step in enumerate(self._steps)}

        def wanted(step: int) -> bool:
            return index[step] % self._stride == 0 or step == self._steps[-1]

        self._states = {step: state for step, state in self._states.items() if wanted(step)}
        while self.snapshots != "all" and len(self._states) > self.snapshots:
            self._stride *= 2
            self._states = {step: state for step, state in self._states.items() if wanted(step)}

    def cut(self, step: int) -> None:
        """Forget everything after a step, as where a run goes on from an earlier checkpoint."""
        keep = sum(number <= step for number in self._steps)
        del self._steps[keep:], self._rows[keep:]
        self._states = {number: s for number, s in self._states.items() if number <= step}

    # Files

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file, atomically; an existing file is replaced.

        Raises:
            SchemaError: notes or parameters of statistics are not JSON.
        """
        values, present = self._table()
        document = {
            "kind": KIND,
            "schema": SCHEMA,
            "names": self.names,
            "snapshots": self.snapshots,
            "only": list(self.only),
            "stride": self._stride,
            "descriptions": {str(step): s["description"] for step, s in self._states.items()},
            "notes": self.notes,
        }
        tensors = {
            "steps": torch.tensor(self._steps, dtype=torch.int64, device="cpu"),
            "values": torch.from_numpy(values),
            "present": torch.from_numpy(present),
        }
        places: set[int] = set()
        for step, state in self._states.items():
            for name, tensor in state["tensors"].items():
                # Of a geometry that was given at two steps; a file has a place for each.
                again = tensor.data_ptr() in places
                places.add(tensor.data_ptr())
                tensors[f"snapshot/{step}/{name}"] = tensor.clone() if again else tensor
        write_document(path, document, tensors)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        statistics: Iterable[Statistic] = (),
        max_bytes: int = MAX_BYTES,
    ) -> History:
        """Read a history from a file, whoever made it; it can be appended to.

        Args:
            path: a file that :meth:`save` wrote.
            statistics: instances of your own statistics in it; files never run code.
            max_bytes: of memory that each geometry may take beyond what is stored of it, as in
                :func:`geomhooks.load`.

        Raises:
            FileNotFoundError: there is no such file.
            FileFormatError: the file is truncated, foreign, or newer than this library, or what it
                says and what it holds do not fit together.
        """
        document, tensors = read_document(path, KIND, SCHEMA)
        name = os.fspath(path)
        try:
            DOCUMENT(document, "history")
            history = cls(
                snapshots=document["snapshots"],
                only=document["only"],
                notes=notes_of(document, name),
            )
            history._take(document, tensors)
        except (HistoryError, SchemaError) as error:
            raise FileFormatError(f"{name}: {error}") from error
        history._statistics = tuple(statistics)
        history._max_bytes = max_bytes
        return history

    def _take(self, document: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Fill an empty history with what a file holds."""
        names, given = document["names"], dict(tensors)
        number = given["steps"].numel() if "steps" in given else 0
        for key, shape, kind in (
            ("steps", (number,), torch.int64),
            ("values", (number, len(names)), torch.float64),
            ("present", (number, len(names)), torch.bool),
        ):
            found = given.pop(key, None)
            if found is None or tuple(found.shape) != shape or found.dtype != kind:
                told = "none" if found is None else f"{found.dtype} {tuple(found.shape)}"
                raise SchemaError(f"tensor {key!r}: {kind} {shape} are needed, found {told}")
        steps: list[int] = tensors["steps"].tolist()
        if steps != sorted(set(steps)) or min(steps, default=0) < 0:
            raise SchemaError("steps: numbers from 0 are needed, ascending")
        if len(set(names)) != len(names):
            raise SchemaError("names: they have to be all different")
        self._columns = {name: column for column, name in enumerate(names)}
        self._steps = steps
        values, present = tensors["values"].numpy(), tensors["present"].numpy()
        self._rows = [(values[row], present[row]) for row in range(len(steps))]
        self._stride = document["stride"]
        described = document["descriptions"]
        known = {str(step): step for step in steps}
        if strange := sorted(set(described) - set(known)):
            raise SchemaError(f"descriptions: there is no step {strange[0]!r:.80}")
        self._states = {
            known[step]: {"description": description, "tensors": {}}
            for step, description in described.items()
        }
        for name, tensor in given.items():
            prefix, _, rest = name.partition("/")
            step, _, path = rest.partition("/")
            if prefix != "snapshot" or step not in described:
                raise SchemaError(f"the tensor {name!r:.120} belongs to no step that is described")
            self._states[known[step]]["tensors"][path] = tensor

    def _table(self) -> tuple[np.ndarray, np.ndarray]:
        """Values, and which of them are there, (S, N)."""
        values = np.zeros((len(self._steps), len(self._columns)))
        present = np.zeros(values.shape, np.bool_)
        for number, (row, there) in enumerate(self._rows):
            values[number, : len(row)], present[number, : len(row)] = row, there
        return values, present

    def _index(self, step: int) -> int:
        if step not in self._steps:
            raise HistoryError(f"no step {step!r}; there are {_some(self._steps) or 'none yet'}")
        return self._steps.index(step)


def select_scalars(scalars: Mapping[str, float], patterns: Iterable[str]) -> dict[str, float]:
    """The scalars whose name matches one of the globs, in their own order.

    Example:
        >>> select_scalars({"h.0/pos_ctx/shares/pos": 0.5, "h.0/pos_ctx/count": 8}, ["*/shares/*"])
        {'h.0/pos_ctx/shares/pos': 0.5}
    """
    patterns = tuple(patterns)
    return {
        name: value
        for name, value in scalars.items()
        if any(fnmatchcase(name, pattern) for pattern in patterns)
    }


def _some(steps: Sequence[int]) -> str:
    """A few of many steps."""
    if len(steps) <= 6:
        return ", ".join(map(str, steps))
    return f"{', '.join(map(str, steps[:3]))}, ..., {steps[-1]}"
