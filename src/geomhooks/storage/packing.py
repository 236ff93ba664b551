"""A state as JSON and tensors by path, and back: the same for files, for resuming and for messages.

Of a tensor most of whose rows hold nothing yet (a table of 4096 contexts that has seen 30), the
others are stored, and their indices as ``<tensor>@rows``.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from geomhooks.accumulators import Accumulator, Field
from geomhooks.errors import SchemaError, SiteError
from geomhooks.forwards.token_stream import TokenStream
from geomhooks.state import Shift, SiteState, State, StreamState, plain_value
from geomhooks.statistics import REGISTRY
from geomhooks.statistics.base import Site, Statistic
from geomhooks.storage.descriptions import check_description

__all__ = ["pack_state", "restore_tensors", "thin_tensors", "unpack_state"]

ROWS = "@rows"


def pack_state(state: State) -> dict[str, Any]:
    """A state as JSON and tensors by path."""
    return {"description": state.describe(), "tensors": state.tensors()}


def restore_tensors(
    accumulators: Iterable[tuple[str, Accumulator]],
    tensors: Mapping[str, Tensor],
    prefix: str,
    *,
    check_only: bool = False,
) -> None:
    """Copy tensors by path into accumulators.

    Raises:
        SchemaError: a tensor is missing or has another shape.
    """
    for path, accumulator in accumulators:
        start = f"{prefix}{path}/"
        mine = {n.removeprefix(start): t for n, t in tensors.items() if n.startswith(start)}
        if check_only:
            accumulator.check(mine, prefix + path)
        else:
            accumulator.unpack(mine, prefix + path)


def unpack_state(
    packed: Mapping[str, Any],
    statistics: Iterable[Statistic] = (),
    max_bytes: int | None = None,
) -> State:
    """A state from JSON and tensors.

    Nothing is allocated but rows that hold nothing, and that after all tensors have been looked at.

    Args:
        packed: of :func:`pack_state`.
        statistics: instances of statistics that are not geomhooks' own.
        max_bytes: of those rows; by default as many as there are.

    Raises:
        SchemaError: a statistic is unknown, a tensor is missing, of the wrong shape or belongs to
            nothing, or the description is none.
    """
    description, tensors = packed["description"], packed["tensors"]
    check_description(description)
    try:
        state = _described(description, tensors, statistics)
    except SiteError as error:  # of a state that is larger than its statistic allows
        raise SchemaError(str(error)) from error
    _check_tensors(state, tensors, max_bytes)
    for path, accumulator in state.accumulators():
        held = {
            name: thicken(f"{path}/{name}", tensors, field)
            for name, field in accumulator.fields.items()
        }
        accumulator.adopt(held, path)
    return state


def _described(
    description: Mapping[str, Any], tensors: Iterable[str], statistics: Iterable[Statistic]
) -> State:
    """The state that a description is of, without tensors, of which the names are given."""
    given = {}
    for statistic in statistics:
        if not isinstance(statistic, Statistic):
            raise SchemaError(f"statistics: {statistic!r} is no instance of gh.Statistic")
        given[statistic.name] = statistic
    known = {
        name: _statistic(name, entry, given) for name, entry in description["statistics"].items()
    }
    for scope, what, names in _uses(description):
        for name in names:
            if known[name].scope != scope:
                raise SchemaError(f"{what}: {name} is of the scope {known[name].scope!r}")
    state = State(
        known,
        description["model"],
        list(description["shards"]),
        selection=dict(description["selection"]),
    )
    for name, entry in description["streams"].items():
        stream = TokenStream(
            name,
            entry["positions"],
            entry["open"],
            entry["first_key"],
            tuple(entry["exclude"]),
            entry["skip"],
        )
        state.streams[name] = StreamState(stream, _shared(stream, description, tensors, known), {})
    for index, (name, entry) in enumerate(description["sites"].items()):
        site = Site(**entry["site"])
        own = {n: known[n].accumulators(site) for n in entry["statistics"]}
        state.sites[name] = SiteState(site, entry["stream"], own, Shift(site.width), order=index)
        stream_state = state.streams[entry["stream"]]
        for n in description["streams"][entry["stream"]]["statistics"]:
            stream_state.statistics.setdefault(n, known[n].accumulators(site))
        for n in description["whole"]:
            state.whole.setdefault(n, known[n].accumulators(site))
    for name, entry in description["streams"].items():
        for n in entry["statistics"]:  # of a stream whose sites are elsewhere
            if n not in state.streams[name].statistics and state.sites:
                any_site = next(iter(state.sites.values())).site
                state.streams[name].statistics[n] = known[n].accumulators(any_site)
    return state


def _shared(
    stream: TokenStream,
    description: Mapping[str, Any],
    tensors: Iterable[str],
    known: Mapping[str, Statistic],
) -> dict[str, Accumulator]:
    """What sites of a stream share: what statistics of its sites need, and what is there.

    Sites that have not run, and so are not described, may have been meant to share more.
    """
    name = stream.name
    sites = [site for site in description["sites"].values() if site["stream"] == name]
    needed = {n for site in sites for s in site["statistics"] for n in known[s].shared(stream)}
    start = f"stream/{name}/"
    there = {
        path.removeprefix(start).partition("/")[0] for path in tensors if path.startswith(start)
    }
    shared = {n: a for s in known.values() for n, a in s.shared(stream).items()}
    return {n: a for n, a in shared.items() if n in needed | there}


def _uses(description: Mapping[str, Any]) -> Iterator[tuple[str, str, list[str]]]:
    """The statistics that are said to be used, by what they have to be the state of."""
    for scope in ("site", "stream"):
        for name, entry in description[f"{scope}s"].items():
            yield scope, f"{scope} {name!r:.80}", entry["statistics"]
    yield "model", "the whole model", description["whole"]


def _check_tensors(state: State, tensors: Mapping[str, Tensor], max_bytes: int | None) -> None:
    """Raise unless tensors, as they are stored, are what a state holds."""
    left, empty = set(tensors), 0
    for path, accumulator in state.accumulators():
        for name, field in accumulator.fields.items():
            full = f"{path}/{name}"
            left -= {full, full + ROWS}
            stored, used = tensors.get(full), tensors.get(full + ROWS)
            if stored is None:
                raise SchemaError(f"there is no tensor {full!r:.120}")
            if used is None:
                fits = tuple(stored.shape) == tuple(field.shape)
            else:
                fits = bool(field.shape) and stored.shape[1:] == field.shape[1:]
                empty += max(0, field.nbytes - stored.nbytes)
                _check_rows(used, len(stored) if stored.ndim else 0, field.shape, full)
            if not fits:
                raise SchemaError(
                    f"tensor {full!r:.120} has shape {tuple(stored.shape)}, not "
                    f"{tuple(field.shape)}{'' if used is None else ' or rows of it'}"
                )
            field.check(stored, f"tensor {full!r:.120}")
    if left:
        raise SchemaError(f"the tensor {min(left)!r:.120} belongs to nothing that is described")
    if max_bytes is not None and empty > max_bytes:
        raise SchemaError(
            f"what is described takes {empty:,} bytes for rows that hold nothing, more than "
            f"max_bytes={max_bytes:,}; raise max_bytes if it comes from somebody you trust"
        )


def _check_rows(used: Tensor, number: int, shape: tuple[int, ...], name: str) -> None:
    """Raise unless these are indices of that many rows, ascending."""
    if used.dtype != torch.int64 or tuple(used.shape) != (number,):
        raise SchemaError(
            f"tensor {name + ROWS!r:.120}: {number} indices are needed, one for each row of "
            f"{name!r:.120}; found {used.dtype} {tuple(used.shape)}"
        )
    ascending = bool((used[1:] > used[:-1]).all())
    if number and not (ascending and int(used[0]) >= 0 and int(used[-1]) < shape[0]):
        raise SchemaError(
            f"tensor {name + ROWS!r:.120}: indices from 0 to {shape[0] - 1} are needed, ascending"
        )


def thin_tensors(state: State) -> dict[str, Tensor]:
    """All tensors of a state by path, on the host, as they are stored."""
    return {
        key: value.contiguous()
        for path, accumulator in state.accumulators()
        for name, tensor in accumulator.pack().items()
        for key, value in thin(f"{path}/{name}", tensor.cpu(), accumulator.fields[name]).items()
    }


def thin(name: str, tensor: Tensor, field: Field) -> dict[str, Tensor]:
    """A tensor as it is stored: whole, or the rows that hold something and their indices."""
    rows = len(tensor) if tensor.ndim else 0
    if rows < 16:
        return {name: tensor}
    used = (tensor.reshape(rows, -1) != field.empty).any(1).nonzero()[:, 0]
    if 2 * len(used) > rows:
        return {name: tensor}
    return {name: tensor[used], name + ROWS: used}


def thicken(name: str, tensors: Mapping[str, Tensor], field: Field) -> Tensor:
    """Undo :func:`thin`."""
    stored, used = tensors[name], tensors.get(name + ROWS)
    if used is None:
        return stored
    shape = tuple(field.shape)
    if field.empty:
        whole = torch.full(shape, field.empty, dtype=stored.dtype, device=stored.device)
    else:  # memory that systems give when it is first written to
        whole = torch.zeros(shape, dtype=stored.dtype, device=stored.device)
    whole[used] = stored
    return whole


def _statistic(name: str, entry: Mapping[str, Any], given: Mapping[str, Statistic]) -> Statistic:
    if name in given:
        mine, theirs = plain_value(given[name].parameters), plain_value(entry["parameters"])
        for key in {*mine, *theirs}:
            if mine.get(key) != theirs.get(key):
                raise SchemaError(
                    f"{name}.{key} differs: {mine.get(key)!r} in the statistic given, "
                    f"{theirs.get(key)!r} in the file"
                )
        return given[name]
    if name not in REGISTRY:
        raise SchemaError(
            f"the file has the statistic {name!r:.80} ({entry['class']:.80}), which is not "
            "geomhooks' own; give it: gh.load(path, statistics=["
            f"{entry['class'].rpartition('.')[2]:.80}(...)])"
        )
    kind = REGISTRY[name]
    try:
        inspect.signature(kind).bind(**entry["parameters"])
        return kind(**entry["parameters"])
    except (TypeError, ValueError) as error:
        raise SchemaError(f"the parameters of {name}: {error}") from error
