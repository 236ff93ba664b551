"""What a geometry left out, or was not told, that whoever measured may not have meant."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping

from geomhooks.forwards.token_stream import CENSUS
from geomhooks.state import SiteState, State
from geomhooks.statistics.group_means import GroupMeans
from geomhooks.statistics.pos_ctx import PosCtx
from geomhooks.statistics.sphere import Sphere

__all__ = ["warn_of_what_is_left_out"]

REAL, CROWDED = CENSUS.index("real"), CENSUS.index("crowded")
NAMED = 3  # sites that a warning names


def warn_of_what_is_left_out(state: State, sites: Mapping[str, SiteState], stacklevel: int) -> None:
    """Warn of tokens without room, of states that are not finite, and of labels that nobody gave.

    Args:
        state: of the geometry.
        sites: those that have counted something, by name.
        stacklevel: of the warnings, as :func:`warnings.warn` counts from the caller.
    """
    crowded = {n: int(s.stream.census.value[CROWDED]) for n, s in state.streams.items()}
    if any(crowded.values()):
        warnings.warn(
            f"tokens left out because one forward had more contexts than there is room for: "
            f"{crowded}; raise PosCtx(open_contexts=...)",
            stacklevel=stacklevel + 1,
        )
    lost = {name: number for name, site in sites.items() if (number := _not_finite(state, site))}
    if lost:
        warnings.warn(
            f"tokens left out because an entry of their hidden state is NaN or infinite: "
            f"{_some(f'{number} at {name!r}' for name, number in lost.items())}. Where that is, "
            "PosCtx gives plain means instead of the fit (exact is False); look for what makes "
            "such states, or mask those tokens: watch.tokens(mask=...)",
            stacklevel=stacklevel + 1,
        )
    bare = [name for name, site in sites.items() if _has_no_labels(state, site)]
    if bare:
        warnings.warn(
            f"GroupMeans has been given no label of a group at {_some(map(repr, bare))}, so that "
            "there are no means; give labels with the forwards: with watch.tokens(groups=...)",
            stacklevel=stacklevel + 1,
        )


def _not_finite(state: State, site: SiteState) -> int:
    """Tokens that a site has left out, as far as a statistic there counts them."""
    census = state.streams[site.stream].stream.census.value
    for name, accumulators in site.statistics.items():
        if isinstance(state.statistics[name], Sphere):
            return int(accumulators["non_finite"]["value"].sum())
    if int(site.forwards.value) != int(census[0]):
        return 0  # some forwards did not come by, or several times: of that there is a warning
    for name, accumulators in site.statistics.items():
        if isinstance(state.statistics[name], PosCtx):
            return max(0, int(census[REAL] - accumulators["sums"]["position_count"].sum()))
    return 0


def _has_no_labels(state: State, site: SiteState) -> bool:
    for name, accumulators in site.statistics.items():
        statistic = state.statistics[name]
        if isinstance(statistic, GroupMeans):
            count = accumulators["sums"]["count"]
            return bool(count[statistic.groups] > 0) and bool(
                count.sum() == count[statistic.groups]
            )
    return False


def _some(items: Iterable[str]) -> str:
    named = list(items)
    more = f" and {len(named) - NAMED} more sites" if len(named) > NAMED else ""
    return ", ".join(named[:NAMED]) + more
