"""The statistics of "Why Bother with Geometry?" over the checkpoints of some runs.

A key of the results is method/indicator/term. Unless it says otherwise a series is the mean over
all tokens of a run's own translations at each checkpoint, in the decoder's last layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from translator_checkpoints import INDICATORS, TERMS, Checkpoint

from geomhooks.functional.compare import (
    change_agreement,
    condition_test,
    curve_agreement,
    granger_test,
    holm,
    rank_agreement,
    sentence_overlap,
    settled,
    warping_distances,
)

__all__ = ["Key", "Run", "analyse", "keys"]

DRAWS = 200  # of each bootstrap
QUALITIES = ("BLEU", "chrF", "loss", "step")
QUARTER = 100  # outputs of each quarter of quality, as published
SAMPLED = 2000  # pairs of checkpoints of one sentence
DEALS = 49  # of the tokens of a sentence
LEVEL = 0.01  # as published
MOST_LAGS = 15


class Run(NamedTuple):
    """The checkpoints of a training."""

    name: str
    condition: str
    checkpoints: list[Checkpoint]

    def quality(self, name: str) -> Tensor:
        """(S,) of each checkpoint; less loss is better."""
        if name == "step":
            return torch.tensor([float(one.step) for one in self.checkpoints])
        sign = -1 if name == "loss" else 1
        return torch.tensor([sign * one.quality[name] for one in self.checkpoints]).double()

    def series(self, key: Key, layer: int = -1, decoding: str = "generated") -> Tensor:
        """(S,) means over all tokens."""
        rows = [
            c.means[decoding, key.method][layer, key.at, key.indicator] for c in self.checkpoints
        ]
        return torch.tensor(rows).double()


class Key(NamedTuple):
    """One indicator of one term."""

    method: str
    indicator: int
    term: str

    @property
    def at(self) -> int:
        """Which of the method's terms."""
        return TERMS[self.method].index(self.term)

    def __str__(self) -> str:
        return f"{self.method}/{INDICATORS[self.indicator]}/{self.term}"


def keys() -> Iterator[Key]:
    """All of both methods."""
    for method, terms in TERMS.items():
        for indicator in range(len(INDICATORS)):
            for term in terms:
                yield Key(method, indicator, term)


def analyse(runs: list[Run]) -> dict[str, Any]:
    """All statistics, as a file has them."""
    shortest = min(len(run.checkpoints) for run in runs)
    runs = [run._replace(checkpoints=run.checkpoints[:shortest]) for run in runs]
    return {
        "curves": {
            run.name: {name: numbers(abs(run.quality(name))) for name in QUALITIES} for run in runs
        },
        "by_layer": by_layer(runs),
        "changes": changes(runs),
        "sentences": sentences(runs),
        "warping": warping(runs),
        "forced_agreement": forced_agreement(runs),
        "overlap": overlap(runs),
        "generated_and_forced": generated_and_forced(runs),
        "causality": causality(runs),
    }


def by_layer(runs: list[Run]) -> dict[str, Any]:
    """Of the first and last checkpoint, by run, means and deviations over tokens at each layer."""
    found: dict[str, Any] = {}
    for key in keys():
        of_runs = {}
        for run in runs:
            first, last = (run.checkpoints[at] for at in (0, -1))
            at = ("generated", key.method)
            of_runs[run.name] = {
                "first": numbers(first.means[at][:, key.at, key.indicator]),
                "last": numbers(last.means[at][:, key.at, key.indicator]),
                "deviation": numbers(last.deviations[at][:, key.at, key.indicator]),
            }
        found[str(key)] = of_runs
    return found


def changes(runs: list[Run]) -> dict[str, Any]:
    """Correlation of a term's change with that of quality, over pairs of checkpoints.

    By quality and by which pairs, "all" or "successive": for each key a row a layer of a number for
    each run; "L1" is the sum over a method's terms of how much each changes. "intervals" are of all
    pairs, the last layer and BLEU.
    """
    depth = layers(runs)
    # Of successive checkpoints the step changes always by the same.
    wanted_of = [(quality, which) for quality in QUALITIES for which in ("all", "successive")][:-1]
    found: dict[str, Any] = {f"{quality}, {which}": {} for quality, which in wanted_of}
    found["intervals"] = {}
    sources: dict[str, Callable[[Run, int], Tensor]] = {
        str(key): lambda run, layer, key=key: run.series(key, layer)  # type: ignore[misc]
        for key in keys()
    }
    for method, terms in TERMS.items():
        for indicator, what in enumerate(INDICATORS):
            several = [Key(method, indicator, term) for term in terms]
            sources[f"{method}/{what}/L1"] = lambda run, layer, several=several: torch.stack(  # type: ignore[misc]
                [run.series(key, layer) for key in several], 1
            )
    for quality, which in wanted_of:
        gap = None if which == "all" else 1
        for name, source in sources.items():
            wanted = (quality, which) == ("BLEU", "all")
            rows = []
            for layer in range(1, depth):
                each = [
                    change_agreement(
                        source(run, layer),
                        run.quality(quality),
                        largest_gap=gap,
                        draws=DRAWS if wanted and layer == depth - 1 else 1,
                    )
                    for run in runs
                ]
                rows.append(numbers([one.value for one in each]))
            found[f"{quality}, {which}"][name] = rows
            if wanted:
                found["intervals"][name] = [numbers(one.interval[:2]) for one in each]
    return found


def sentences(runs: list[Run]) -> dict[str, Any]:
    """The same with the chrF of single sentences; for each key and run a value and its interval.

    "quarters": pairs of outputs, as many of each quarter of quality, over all checkpoints; "last":
    pairs of sentences at the last checkpoint; "checkpoints": one sentence at two checkpoints.
    """
    found: dict[str, Any] = {"quarters": {}, "last": {}, "checkpoints": {}}
    for key in keys():
        rows: dict[str, list[Any]] = {name: [] for name in found}
        for run in runs:
            draw = np.random.default_rng(0)
            at = ("generated", key.method)
            terms = np.stack(
                [c.sentences[at][:, -1, key.at, key.indicator] for c in run.checkpoints]
            )
            quality = np.stack([c.sentence_chrf for c in run.checkpoints])  # (S, G)
            order = quality.ravel().argsort(kind="stable")
            chosen = np.concatenate(
                [
                    draw.choice(part, min(QUARTER, len(part)), replace=False)
                    for part in np.array_split(order, 4)
                ]
            )
            for name, x, q in (
                ("quarters", terms.ravel()[chosen], quality.ravel()[chosen]),
                ("last", terms[-1], quality[-1]),
            ):
                one = change_agreement(
                    torch.from_numpy(x), torch.from_numpy(q), block=1, draws=DRAWS, pairs=5000
                )
                rows[name].append(numbers([one.value, *one.interval[:2]]))
            steps, number = quality.shape
            early, late = np.sort(
                np.stack([draw.permutation(steps)[:2] for _ in range(SAMPLED)]), 1
            ).T
            which = draw.integers(number, size=SAMPLED)
            agreed = rank_agreement(
                torch.from_numpy(terms[late, which] - terms[early, which]),
                torch.from_numpy(quality[late, which] - quality[early, which]),
                torch.from_numpy(which),
                draws=DRAWS,
            )
            rows["checkpoints"].append(numbers([agreed.value, *agreed.interval[:2]]))
        for name, values in rows.items():
            found[name][str(key)] = values
    return found


def warping(runs: list[Run]) -> dict[str, Any]:
    """Distances between runs and tests of conditions, for each key; and of BLEU and the loss."""
    conditions = [run.condition for run in runs]
    sources: dict[str, list[Tensor]] = {
        name: [run.quality(name) for run in runs] for name in ("BLEU", "loss")
    }
    sources |= {str(key): [run.series(key) for run in runs] for key in keys()}
    found = {}
    for name, series in sources.items():
        if any(is_flat(one) for one in series):
            found[name] = None
            continue
        distances = warping_distances(series)
        row: dict[str, Any] = {"distances": [numbers(line) for line in distances]}
        for permute in ("runs", "pairs"):
            for statistic in ("mean", "mann_whitney"):
                test = condition_test(
                    distances,
                    conditions,
                    statistic=statistic,  # type: ignore[arg-type]
                    permute=permute,  # type: ignore[arg-type]
                    alternative="closer",
                )
                row |= {"same": number(test.same), "different": number(test.different)}
                row[f"p of {permute}, {statistic}"] = number(test.p_value)
                row[f"arrangements of {permute}"] = test.arrangements
        found[name] = row
    return found


def forced_agreement(runs: list[Run]) -> dict[str, Any]:
    """Rank correlation of two runs' numbers for the same tokens, for each key and pair of runs.

    "curve" has it at each checkpoint; "last" with an interval, for which sentences are drawn.
    """
    found: dict[str, Any] = {}
    for key in keys():
        of_pairs = {}
        for one, other in combinations(runs, 2):
            sides = [
                [
                    torch.from_numpy(c.tokens["forced", key.method][:, key.at, key.indicator])
                    for c in run.checkpoints
                ]
                for run in (one, other)
            ]
            owners = torch.from_numpy(one.checkpoints[-1].owners["forced"])
            curve = [rank_agreement(x, y).value for x, y in zip(*sides, strict=True)]
            last = rank_agreement(sides[0][-1], sides[1][-1], owners, draws=DRAWS)
            of_pairs[f"{one.name} {other.name}"] = {
                "curve": numbers(curve),
                "last": numbers([last.value, *last.interval[:2]]),
            }
        found[str(key)] = of_pairs
    return found


def overlap(runs: list[Run]) -> dict[str, Any]:
    """Overlap of two runs' tokens within sentences, of their own translations at the end.

    For each key and pair of runs: value, ends of its interval, p-value, what chance has.
    """
    found: dict[str, Any] = {}
    for key in keys():
        of_pairs = {}
        for one, other in combinations(runs, 2):
            sides = []
            for run in (one, other):
                last = run.checkpoints[-1]
                values = last.tokens["generated", key.method][:, key.at, key.indicator]
                sides += [torch.from_numpy(values), torch.from_numpy(last.owners["generated"])]
            same = sentence_overlap(*sides, draws=DRAWS, permutations=DEALS)
            of_pairs[f"{one.name} {other.name}"] = numbers(
                [same.value, *same.interval[:2], same.p_value, same.expected]
            )
        found[str(key)] = of_pairs
    return found


def generated_and_forced(runs: list[Run]) -> dict[str, Any]:
    """Agreement of both ways of decoding over checkpoints, for each key, a number for each run."""
    ways: dict[str, dict[str, Any]] = {
        "spearman": {},
        "pearson": {"coefficient": "pearson"},
        "spearman of differences": {"differences": 1},
    }
    return {
        str(key): {
            name: numbers(
                [
                    curve_agreement(
                        run.series(key), run.series(key, decoding="forced"), draws=1, **options
                    ).value
                    for run in runs
                ]
            )
            for name, options in ways.items()
        }
        for key in keys()
    }


def causality(runs: list[Run]) -> dict[str, Any]:
    """Granger's test of every term at every layer on BLEU, after as many differences as both need.

    Beside it two controls: BLEU on the terms, and the terms of one run on the BLEU of the next,
    which cannot be a cause.
    """
    kinds = ("terms to BLEU", "BLEU to terms", "terms to BLEU of another run")
    p_values: dict[str, list[float]] = {kind: [] for kind in kinds}
    smallest: dict[str, list[float]] = {kind: [] for kind in kinds}
    names, taken, lags = [], [], 0
    targets = [run.quality("BLEU") for run in runs]
    if any(is_flat(target) for target in targets):
        return {"reason": "the BLEU of a run never changes"}
    needed = [settled(target).differences for target in targets]
    for key in keys():
        for layer in range(1, layers(runs)):
            for at, run in enumerate(runs):
                series = run.series(key, layer)
                own = settled(series).differences
                names.append(f"{key}, layer {layer}, {run.name}")
                taken.append(own)
                following = (at + 1) % len(runs)
                for kind, target in zip(kinds, (at, at, following), strict=True):
                    times = max(own, needed[target])
                    sides = [
                        torch.from_numpy(np.diff(side.numpy(), times))
                        for side in (series, targets[target])
                    ]
                    cause, effect = sides[::-1] if kind == kinds[1] else sides
                    test = granger_test(cause, effect, most_lags=MOST_LAGS)
                    p_values[kind].append(test.p_value)
                    smallest[kind].append(test.uncorrected)
                    lags = max(lags, len(test.p_values))
    found: dict[str, Any] = {
        "differences of BLEU": needed,
        "differences of terms": [taken.count(times) for times in range(3)],
        "most lags": lags,
        "tests": len(names),
    }
    for kind in kinds:
        corrected = holm(p_values[kind])
        found[kind] = {
            "published rule": sum(p <= LEVEL for p in smallest[kind]),
            "corrected for lags": sum(p <= LEVEL for p in p_values[kind]),
            "corrected for all": int((corrected <= LEVEL).sum()),
            "smallest p": number(float(corrected.min())),
        }
    best = holm(p_values[kinds[0]])
    found["causes"] = {
        names[at]: number(float(best[at])) for at in torch.nonzero(best <= 0.05)[:, 0].tolist()
    }
    return found


def layers(runs: list[Run]) -> int:
    """Sites of the decoder."""
    return len(runs[0].checkpoints[0].means["generated", "by_part"])


def is_flat(series: Tensor) -> bool:
    """Nothing to be compared."""
    return float(series.max() - series.min()) <= 1e-9 * float(series.abs().max())


def number(value: float) -> float | None:
    """With five digits, as a file has it; what is not finite is none."""
    return float(f"{value:.5g}") if np.isfinite(value) else None


def numbers(values: Any) -> list[float | None]:
    """Of several."""
    return [number(float(value)) for value in values]
