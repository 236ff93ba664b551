"""Leaders and followers of whole matrices, one context and one head at a time, in float64.

With NumPy alone; nothing here imports geomhooks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from tests.reference import Expected, Numbers, exact, plain, relative_to

ROUNDING = 1e-5
OF_CONTEXTS = (
    "leaders", "leader_share", "new_leaders", "leaders_so_far", "overlap", "initial_fraction",
    "first_index_leaders", "attractors", "in_degree", "in_degree_entropy", "basins", "basin",
    "depth",
)  # fmt: skip
LEADING = OF_CONTEXTS[:7]
OF_TOKENS = ("sink", "largest", "entropy", "softness", "ties", "distance", "distance_after",
             "ratio", "step", "unexplained")  # fmt: skip


class Options(NamedTuple):
    """Of the statistic."""

    directions: np.ndarray
    vocabulary: int
    """how many ids there are; all larger ones are counted together"""
    tolerance: float = 1e-5
    radius: float = 1e-4
    cosine: float = 0.9


class Layer(NamedTuple):
    """One context at one block."""

    scores: np.ndarray
    """(H, T, T) before the softmax, -inf where a query does not look"""
    before: np.ndarray
    """(T, d)"""
    after: np.ndarray
    """(T, d)"""
    seen_before: np.ndarray
    """(T, d) through the norm before attention"""
    seen_after: np.ndarray
    lengths: np.ndarray
    """(2, H, T) of what is seen, before and after"""


class Text(NamedTuple):
    """One context at all blocks."""

    entered: np.ndarray
    """(T, d) what comes into the first"""
    layers: list[Layer]
    first: np.ndarray
    """(T,) bool, at position 0"""
    ids: np.ndarray
    """(T,)"""


class Margins:
    """How near any comparison came to going the other way."""

    def __init__(self) -> None:
        self.nearest = np.inf

    def above(self, one: Any, other: Any, scale: Any) -> Any:
        """One is above the other; noted by how much of a scale."""
        found = np.asarray(one) - np.asarray(other)
        with np.errstate(invalid="ignore", divide="ignore"):
            apart = np.abs(found) / scale
        apart = apart[np.isfinite(apart)]
        self.nearest = min(self.nearest, apart.min(initial=np.inf))
        return found > 0


class Head(NamedTuple):
    """One head on one context."""

    target: np.ndarray
    near: np.ndarray
    alone: np.ndarray
    tokens: dict[str, np.ndarray]


def look(layer: Layer, head: int, first: np.ndarray, options: Options, margins: Margins) -> Head:
    """Targets, and what is measured of each token."""
    scores, before, after = layer.scores[head], layer.before, layer.after
    number = len(before)
    reach = options.radius * np.linalg.norm(before, axis=1).max()
    apart = np.linalg.norm(before[:, None] - before[None], axis=-1)
    away = apart + 2 * reach * np.eye(number)  # itself is no question
    margins.above(away, reach, reach + 1e-300)
    near = apart <= reach
    found: dict[str, list[float]] = {name: [] for name in OF_TOKENS}
    target, alone = np.zeros(number, int), np.zeros(number, bool)
    for i, row in enumerate(scores):
        top = row.max()
        seen = row > -np.inf
        bound = top - options.tolerance * abs(top)
        scale = np.abs(row[seen]).max()
        others = seen & (np.arange(number) != row.argmax())
        margins.above(row[others], bound, scale)
        chosen = row >= bound
        target[i] = chosen.argmax()
        alone[i] = near[i][chosen].all()
        share = np.exp(row - top) / np.exp(row - top).sum()
        mean = before[chosen].mean(0)
        way, move = mean - before[i], after[i] - before[i]
        there = np.linalg.norm(way) <= reach
        numbers = {
            "sink": first[target[i]],
            "largest": share.max(),
            "entropy": -(share[share > 0] * np.log(share[share > 0])).sum(),
            "softness": np.abs(share - chosen / chosen.sum()).sum() / 2,
            "ties": chosen.sum(),
            "distance": np.linalg.norm(way),
            "distance_after": np.linalg.norm(after[i] - mean),
        }
        numbers["ratio"] = numbers["step"] = numbers["unexplained"] = np.nan
        if not there:
            numbers["ratio"] = numbers["distance_after"] / numbers["distance"]
            numbers["step"] = move @ way / (way @ way)
            size = (move @ move) * (way @ way)
            numbers["unexplained"] = 1 - (move @ way) ** 2 / size if size else np.nan
        for name, value in numbers.items():
            found[name].append(float(value))
    return Head(target, near, alone, {name: np.array(v) for name, v in found.items()})


def lead(head: Head, known: set[int]) -> tuple[set[int], set[int]]:
    """Who leads now, given who did before, and who of them is new."""
    alone = np.flatnonzero(head.alone).tolist()
    new = {
        i for i in alone
        if not any(head.near[i, j] for j in alone if j < i)
        and not any(head.near[i, j] for j in known)
    }  # fmt: skip
    return new | (known & set(alone)), new


def graph(target: np.ndarray, counted: np.ndarray) -> dict[str, float]:
    """Of one context; tokens that are not counted are no targets and no ends."""
    tokens = np.flatnonzero(counted)
    number = len(tokens)
    pointed = [int(target[i]) for i in tokens if counted[target[i]]]
    share = np.unique(pointed, return_counts=True)[1] / max(len(pointed), 1)
    ends: list[int] = []
    deepest = 0
    for i in tokens:
        path = [int(i)]
        while target[path[-1]] not in path:
            path.append(int(target[path[-1]]))
        begin = path.index(target[path[-1]])
        deepest = max(deepest, begin)
        ends.append(min(path[begin:]))
    ends = [end for end in ends if counted[end]]
    sizes = np.unique(ends, return_counts=True)[1]
    return {
        "attractors": len(share),
        "in_degree": share.max(initial=0) * len(pointed) / number,
        "in_degree_entropy": -(share * np.log(share)).sum() if len(share) else np.nan,
        "basins": len(sizes),
        "basin": sizes.max(initial=0) / number,
        "depth": deepest,
    }


def leading(
    now: set[int], new: set[int], so_far: set[int], begun: set[int], index: set[int],
    counted: np.ndarray,
) -> dict[str, float]:  # fmt: skip
    """Numbers of the leaders of one context."""
    keep = set(np.flatnonzero(counted).tolist())
    now, new, so_far, begun, index = (one & keep for one in (now, new, so_far, begun, index))
    return {
        "leaders": len(now),
        "leader_share": len(now) / len(keep),
        "new_leaders": len(new),
        "leaders_so_far": len(so_far),
        "overlap": len(now & begun) / len(now | begun) if now | begun else np.nan,
        "initial_fraction": len(begun) / len(now) if now else np.nan,
        "first_index_leaders": len(index),
    }


def clusters(states: np.ndarray, counted: np.ndarray, cosine: float, margins: Margins) -> int:
    """A greedy cover, in order."""
    begun: list[np.ndarray] = []
    for state in states[counted] / np.linalg.norm(states[counted], axis=1, keepdims=True):
        if not margins.above([state @ other for other in begun], cosine, 1.0).any():
            begun.append(state)
    return len(begun)


def outside(before: np.ndarray, after: np.ndarray, counted: np.ndarray, options: Options,
            margins: Margins) -> np.ndarray:  # fmt: skip
    """Tokens that leave the hull."""
    old, new = before[counted] @ options.directions.T, after @ options.directions.T
    longest = np.abs(old).max()
    return margins.above(new, old.max(0) + ROUNDING * longest, longest).any(1)


def moments(columns: Sequence[Any], scale: Any = None, rtol: float = 2e-5) -> Numbers:
    """Of values (n, H) or (n,), of which those that are no number do not count."""
    values = np.asarray(columns, np.float64)
    with np.errstate(all="ignore"):
        there = np.isfinite(values)
        count = there.sum(0)
        kept = np.where(there, values, 0)
        mean = kept.sum(0) / np.where(count, count, np.nan)
        spread = np.where(there, values - mean, 0) ** 2
        low = np.where(there, values, np.inf).min(0)
        high = np.where(there, values, -np.inf).max(0)
    size = np.where(there, np.abs(values), 0).max(0) if scale is None else scale
    nothing = count == 0
    return {
        "mean": relative_to(size, mean, rtol),
        "variance": relative_to(size**2, spread.sum(0) / np.where(count, count, np.nan), rtol),
        "min": relative_to(size, np.where(nothing, np.nan, low), rtol),
        "max": relative_to(size, np.where(nothing, np.nan, high), rtol),
        "count": exact(count),
    }


def prefixed(prefix: str, numbers: Numbers) -> Numbers:
    return {f"{prefix}.{name}": number for name, number in numbers.items()}


def leaders(texts: Sequence[Text], options: Options) -> tuple[list[Numbers], float]:
    """Numbers of what comes in and of each block, and the least margin of any comparison."""
    margins = Margins()
    depth = len(texts[0].layers)
    kept: list[dict[str, list[Any]]] = [{} for _ in range(depth + 1)]
    words = [np.zeros((2, options.vocabulary + 1), int) for _ in range(depth + 1)]

    def keep(layer: int, name: str, value: Any) -> None:
        kept[layer].setdefault(name, []).append(value)

    for text in texts:
        every = np.ones(len(text.first), bool)
        choices = {"": every, "without_first.": ~text.first}
        for prefix, counted in choices.items():
            if counted.any():
                keep(0, f"{prefix}cluster_count",
                     clusters(text.entered, counted, options.cosine, margins))  # fmt: skip
        heads = len(text.layers[0].scores)
        so_far: list[set[int]] = [set() for _ in range(heads)]
        begun: list[set[int]] = []
        for number, layer in enumerate(text.layers, 1):
            found = [look(layer, h, text.first, options, margins) for h in range(heads)]
            both = [lead(f, s) for f, s in zip(found, so_far, strict=True)]
            now, new = ([pair[which] for pair in both] for which in (0, 1))
            before = [set(one) for one in so_far]
            so_far = [n | s for n, s in zip(now, so_far, strict=True)]
            begun = now if number == 1 else begun
            index = [set(np.flatnonzero(f.target == np.arange(len(f.target)))) for f in found]
            for head in now:
                for token in head:
                    word = min(int(text.ids[token]), options.vocabulary)
                    words[number][int(text.first[token]), word] += 1
            shorter = layer.lengths[1] < layer.lengths[0] * (1 - ROUNDING)
            plain_lengths = [np.linalg.norm(s, axis=1) for s in (layer.before, layer.after)]
            shortened = plain_lengths[1] < plain_lengths[0] * (1 - ROUNDING)
            for old, fresh in ((layer.lengths[0], layer.lengths[1]), tuple(plain_lengths)):
                margins.above(fresh, old * (1 - ROUNDING), old)
            for prefix, counted in choices.items():
                if not counted.any():
                    continue
                for name in OF_TOKENS:
                    columns = np.stack([f.tokens[name] for f in found], 1)[counted]
                    keep(number, prefix + name, columns)
                rows = [
                    leading(*sets, counted)
                    for sets in zip(now, new, so_far, begun, index, strict=True)
                ]
                graphs = [graph(f.target, counted) for f in found]
                any_new = set().union(*now) - set().union(*before)
                whole = leading(
                    set().union(*now), any_new, set().union(*so_far), set().union(*begun),
                    set().union(*index), counted,
                )  # fmt: skip
                for name in OF_CONTEXTS:
                    source = rows if name in LEADING else graphs
                    keep(number, prefix + name, [row[name] for row in source])
                    if name in LEADING:
                        keep(number, f"{prefix}any_head.{name}", whole[name])
                keep(number, f"{prefix}cluster_count",
                     clusters(layer.after, counted, options.cosine, margins))  # fmt: skip
                gone = outside(layer.before, layer.after, counted, options, margins)
                keep(number, f"{prefix}outside", gone[counted].astype(float))
                keep(number, f"{prefix}norm_decreased", shortened[counted].astype(float))
                seen = layer.seen_before, layer.seen_after
                gone = outside(*seen, counted, options, margins)
                keep(number, f"{prefix}seen.outside", gone[counted].astype(float))
                keep(number, f"{prefix}seen.norm_decreased", shorter.T[counted].astype(float))
    return [numbers_of(kept[0], None), *map(numbers_of, kept[1:], words[1:])], margins.nearest


# What is made of differences of states, or their ratios, which lose digits.
LOOSE = {"ratio": 1e-3, "step": 1e-3, "unexplained": 1e-3, "softness": 1e-4, "entropy": 1e-4}


def of_numbers(values: np.ndarray) -> float:
    """The mean of those that are numbers."""
    there = values[np.isfinite(values)]
    return float(there.mean()) if len(there) else np.nan


def numbers_of(kept: dict[str, list[Any]], words: np.ndarray | None) -> Numbers:
    """Moments of what was kept at one site, and its words."""
    out: Numbers = {}
    for name, values in kept.items():
        short = name.rpartition(".")[2]
        of_tokens = np.ndim(values[0]) > 0 and short not in OF_CONTEXTS
        columns = np.concatenate(values) if of_tokens else np.asarray(values, float)
        found = moments(columns, rtol=LOOSE.get(short, 2e-5))
        if of_tokens and short in ("softness", "entropy"):
            found = moments(columns, np.float64(1), LOOSE[short])
        out |= prefixed(name, found)
        if short in (*OF_TOKENS, *OF_CONTEXTS) and ".any_head" not in f".{name}":
            prefix = name.removesuffix(short)
            mean = found["mean"]
            out[f"{prefix}mean_heads.{short}"] = Expected(
                of_numbers(mean.value), np.abs(mean.scale).max(), mean.rtol
            )
    if words is None:
        return out
    for prefix, (*inside, beyond) in (("", words.sum(0)), ("without_first.", words[0])):
        counts = np.array(inside)
        order = np.lexsort((np.arange(len(counts)), -counts))[: min(20, int((counts > 0).sum()))]
        out[f"{prefix}words.ids"] = exact(order)
        out[f"{prefix}words.counts"] = exact(counts[order])
        out[f"{prefix}words.total"] = exact(counts.sum())
        out[f"{prefix}words.beyond"] = exact(beyond)
        out[f"{prefix}left_out"] = exact(0)
    return out


__all__ = ["Layer", "Options", "Text", "leaders", "plain"]
