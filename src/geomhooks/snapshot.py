"""``Geometry``: the results by site, as tensors; stack, scalars, save, load, merge."""

from __future__ import annotations

import difflib
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from geomhooks.errors import (
    FileFormatError,
    HookError,
    MissingExtraError,
    NothingCountedError,
    SchemaError,
    SiteError,
)
from geomhooks.forwards.token_stream import CENSUS
from geomhooks.left_out import warn_of_what_is_left_out
from geomhooks.results import Lazy, Result
from geomhooks.state import SiteState, State
from geomhooks.statistics.base import Statistic
from geomhooks.storage.files import MAX_BYTES, read_file, write_file
from geomhooks.storage.packing import pack_state
from geomhooks.uniting import Part, stages_of
from geomhooks.uniting import unite as find_union

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Geometry", "load", "merge"]

REAL = CENSUS.index("real")
NOTHING = torch.zeros(len(CENSUS), dtype=torch.int64, device="cpu")


class Geometry:
    """A snapshot of running geometry; results are computed when they are first read.

    ``geometry[site]`` has the results of each statistic by its name, such as
    ``geometry["transformer.h.3"].pos_ctx.mean``. Statistics over a token stream or the whole model
    are under ``geometry.model``. ``geometry.tokens`` says for each token stream how many forwards
    and tokens were counted, masked, beyond the capacity, or in contexts for which a forward had no
    room.
    """

    def __init__(
        self, state: State, notes: Mapping[str, Any] | None = None, *, strict: bool = True
    ) -> None:
        self._state = state
        self.notes = dict(notes or {})
        self._results: dict[str, Result] = {}
        fired = {name: s for name, s in state.sites.items() if int(s.forwards.value) > 0}
        if not any(s.stream.census.value[REAL] for s in state.streams.values()):
            raise NothingCountedError(f"no token has been counted yet: {why_none(state)}")
        silent = [name for name in state.sites if name not in fired]
        if silent and strict:
            raise HookError(f"these sites have counted nothing: {', '.join(silent)}")
        self._sites = dict(sorted(fired.items(), key=lambda item: item[1].order))
        warn_of_what_is_left_out(state, self._sites, stacklevel=3)
        self.uneven = self._find_uneven()
        if self.uneven:
            warnings.warn(
                "sites have seen other numbers of forwards than their token stream, as after an "
                f"exception half way or a module that runs several times: {self.uneven}",
                stacklevel=3,
            )

    def _find_uneven(self) -> dict[str, int]:
        """Forwards by site, for streams whose sites do not agree."""
        by_stream: dict[str, dict[str, int]] = {}
        for name, site in self._sites.items():
            by_stream.setdefault(site.stream, {})[name] = int(site.forwards.value)
        return {
            name: number
            for stream, numbers in by_stream.items()
            for name, number in numbers.items()
            if number != int(self._state.streams[stream].stream.census.value[0])
        }

    @property
    def sites(self) -> list[str]:
        """Names of the sites in forward order."""
        return list(self._sites)

    @property
    def tokens(self) -> dict[str, dict[str, int]]:
        """Counts of each token stream: forwards, entries, real, masked, beyond, crowded."""
        return {
            name: dict(zip(CENSUS, s.stream.census.value.tolist(), strict=True))
            for name, s in self._state.streams.items()
        }

    def __getitem__(self, site: str) -> Result:
        """The results of one site, by statistic.

        Raises:
            SiteError: there is no such site.
        """
        if site not in self._sites:
            raise SiteError(f"no site {site!r}; there are {', '.join(self._sites)}")
        if site not in self._results:
            self._results[site] = self._compute(self._sites[site])
        return self._results[site]

    def __iter__(self) -> Iterator[str]:
        return iter(self._sites)

    def __len__(self) -> int:
        return len(self._sites)

    def __repr__(self) -> str:
        return (
            f"Geometry({self._state.model}, {len(self)} sites: {', '.join(self._state.statistics)})"
        )

    def _repr_html_(self) -> str:
        """What a notebook shows: a row for each site, with small curves by position."""
        from geomhooks.report.notebook import geometry_html

        return geometry_html(self)

    @property
    def measured_on(self) -> str:
        """The model's class, name and number of parameters."""
        return self._state.model

    @property
    def model(self) -> Result:
        """Results of statistics whose state is the whole model's, or a token stream's.

        Those of a stream are under ``geometry.model[stream][statistic]``.
        """
        statistics = self._state.statistics
        results: dict[str, Any] = {
            name: Result(**statistics[name].compute(accumulators))
            for name, accumulators in self._state.whole.items()
        }
        for name, stream in self._state.streams.items():
            found = {
                s: Result(**statistics[s].compute({**stream.shared, **accumulators}))
                for s, accumulators in stream.statistics.items()
            }
            if found:
                results[name] = Result(**found)
        return Result(**results)

    def _compute(self, site: SiteState) -> Result:
        shared = self._state.streams[site.stream].shared
        # Of blocks that ran in stages, each on a rank of its own, none has the whole stack.
        stages = stages_of([s.site for s in self._state.sites.values()])
        in_stages = stages[site.site.stack] > 1
        given = {"site": site.site, "shift": site.shift["value"], "in_stages": in_stages}
        found: dict[str, Any] = {}
        for name, accumulators in site.statistics.items():
            with torch.no_grad():
                found[name] = Result(
                    **self._state.statistics[name].compute({**shared, **accumulators, **given})
                )
        return Result(**found)

    def stack(self, path: str) -> Tensor:
        """One result over all sites that have it, in forward order, (L, ...).

        Args:
            path: statistic and result, such as ``"pos_ctx.mean"`` or ``"sphere.radius.mean"``.

        Raises:
            SiteError: no site has it.
            SchemaError: its shape differs between sites.
        """
        found = {
            name: value for name in self._sites if (value := self._lookup(name, path)) is not None
        }
        if not found:
            raise SiteError(f"no site has a tensor {path!r}; {self._hint_at(path)}")
        shapes = {name: tuple(value.shape) for name, value in found.items()}
        if len(set(shapes.values())) > 1:
            raise SchemaError(
                f"{path!r} cannot be stacked, its shape differs between sites: {shapes}"
            )
        return torch.stack(list(found.values()))

    def _hint_at(self, path: str) -> str:
        """Paths like this one, or the results of the last site."""
        if not self._sites:
            return "none has counted anything"
        there = _paths(self[self.sites[-1]])
        if within := [name for name in there if name.startswith(f"{path}.")]:
            return f"there are {', '.join(within)}"
        near = difflib.get_close_matches(path, there, n=3, cutoff=0.85)
        if near:
            return f"did you mean {', '.join(near)}?"
        groups = dict.fromkeys(".".join(name.split(".")[:2]) for name in there)
        return f"the last has {', '.join(groups)}"

    def _lookup(self, site: str, path: str) -> Tensor | None:
        value: Any = self[site]
        for part in path.split("."):
            if not isinstance(value, Result) or part not in value:
                return None
            value = value[part]
        return value if isinstance(value, Tensor) else None

    def scalars(self, only: str | Iterable[str] | None = None) -> dict[str, float]:
        """All single numbers, flat: ``{"transformer.h.3/sphere/radius/mean": 12.3, ...}``.

        Args:
            only: globs over their names, such as ``"*/pos_ctx/shares/*"``; those that match none
                are not computed, which saves the decompositions of pos and the like.
        """
        patterns = (only,) if isinstance(only, str) else None if only is None else tuple(only)

        def matches(name: str) -> bool:
            return any(fnmatchcase(name, pattern) for pattern in patterns or ())

        wanted = None if patterns is None else matches
        flat: dict[str, float] = {}
        for name in self._sites:
            flat |= self[name].scalars(f"{name}/", wanted)
        return flat | self.model.scalars("model/", wanted)

    def frame(self) -> pd.DataFrame:
        """The scalars as a pandas table, a row for each site.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise MissingExtraError(
                "frame() needs pandas: pip install 'geomhooks[frame]'"
            ) from error
        return pd.DataFrame({name: self[name].scalars() for name in self._sites}).T.rename_axis(
            "site"
        )

    def state_dict(self) -> dict[str, Any]:
        """The state behind the snapshot, for :meth:`Watch.load_state_dict`."""
        return pack_state(self._state)

    def save(self, path: str | os.PathLike[str], notes: Mapping[str, Any] | None = None) -> None:
        """Write one safetensors file, atomically.

        Args:
            path: where to; an existing file is replaced.
            notes: anything JSON can hold, to be found again as ``geometry.notes``.
        """
        write_file(path, self._state, self.notes if notes is None else notes)


def why_none(state: State) -> str:
    """What may be the reason that no token has been counted."""
    total = sum((s.stream.census.value.cpu() for s in state.streams.values()), NOTHING)
    counts = dict(zip(CENSUS, total.tolist(), strict=True))
    if counts["entries"]:
        return (
            f"of {counts['entries']} entries {counts['masked']} were masked or excluded, and "
            f"{counts['beyond']} stood beyond the capacity for positions; check the mask, or raise "
            "watch(positions=...)"
        )
    return (
        "run the model inside the watch, on a batch that is not empty. A model that was compiled "
        "and run before it was watched has no hooks in its compiled code: call "
        "torch._dynamo.reset() first"
    )


def load(
    path: str | os.PathLike[str],
    *,
    statistics: Iterable[Statistic] = (),
    max_bytes: int = MAX_BYTES,
) -> Geometry:
    """Read a geometry from a file; whoever made it, files never run code.

    Args:
        path: a file that :meth:`Geometry.save` wrote.
        statistics: instances of your own statistics in it.
        max_bytes: of memory that it may take beyond what the file takes, for tables that are
            mostly empty and are stored without their empty rows.

    Raises:
        FileNotFoundError: there is no such file.
        FileFormatError: the file is truncated, foreign, or newer than this library.
        SchemaError: a statistic in it is unknown or has other parameters, or what it says and what
            it holds do not fit together.
    """
    state, notes = read_file(path, statistics, max_bytes)
    return of_file(state, notes, os.fspath(path))


def of_file(state: State, notes: Mapping[str, Any], where: str) -> Geometry:
    """The geometry of a state that was read.

    Raises:
        FileFormatError: nothing has been counted.
    """
    if not any(s.stream.census.value[REAL] for s in state.streams.values()):
        raise FileFormatError(f"{where}: no token has been counted in it")
    return Geometry(state, notes, strict=False)


def merge(geometries: Sequence[Geometry], *, unite: bool = False) -> Geometry:
    """The geometry of all shards together, as if one stream had seen their tokens.

    Args:
        geometries: snapshots of different runs over the same model, sites and statistics.
        unite: they need not have the same sites, as files of the stages of a pipeline have not;
            sites of equal name are one place.

    Raises:
        SchemaError: a shard is in two of them, or they differ; the message names the field.
    """
    if isinstance(geometries, Geometry):
        raise SchemaError("merge needs a list of geometries, found one; give gh.merge([a, b])")
    geometries = list(geometries)
    strange = [type(g).__name__ for g in geometries if not isinstance(g, Geometry)]
    if not geometries or strange:
        found = f"a {strange[0]}" if strange else "nothing"
        raise SchemaError(f"merge needs geometries, found {found}; read files with gh.load(path)")
    if unite:
        states = [geometry._state for geometry in geometries]
        union = find_union([Part.of(state) for state in states], "part")
        state = union.fit(states[0].clone("cpu"))
        for part in states[1:]:
            state.take_in(union.fit(part.clone("cpu")))
        return Geometry(union.arrange(state), geometries[0].notes, strict=False)
    state = geometries[0]._state.clone("cpu")
    for other in geometries[1:]:
        state.merge(other._state)
    return Geometry(state, geometries[0].notes, strict=False)


def _paths(result: Result) -> list[str]:
    names = []
    for statistic in result:
        value = result._values[statistic]
        if isinstance(value, Result):
            names += [f"{statistic}.{path}" for path in _tensor_paths(value)]
    return names


def _tensor_paths(result: Result) -> Iterator[str]:
    """Paths of the tensors in a result, one level down; of deeper ones the first few suffice."""
    for name, value in result._values.items():
        if isinstance(value, Result):
            yield from (
                f"{name}.{n}" for n, v in value._values.items() if isinstance(v, Tensor | Lazy)
            )
        elif isinstance(value, Tensor | Lazy):
            yield name
