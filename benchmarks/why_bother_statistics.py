"""The statistics of "Why Bother with Geometry?" over the checkpoints of some runs.

A key of the results is method/indicator/term. Unless it says otherwise a series is the mean over
all tokens of a run's own translations at each checkpoint, in the decoder's last layer.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import Tensor
from translator_checkpoints import INDICATORS, TERMS
from why_bother_causality import causality
from why_bother_runs import Key, Run, is_flat, keys, layers, number, numbers

from geomhooks.functional.compare import (
    change_agreement,
    condition_test,
    curve_agreement,
    rank_agreement,
    sentence_overlap,
    warping_distances,
)

__all__ = ["analyse"]

DRAWS = 200  # of each bootstrap
QUALITIES = ("BLEU", "chrF", "loss", "step")
QUARTER = 100  # outputs of each quarter of quality, as published
SAMPLED = 2000  # pairs of checkpoints of one sentence
DEALS = 49  # of the tokens of a sentence


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
        "matched": matched(runs),
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


def matched(runs: list[Run]) -> dict[str, Any]:
    """How far the last run is from those of the first condition, at equal steps and equal losses.

    For each key the mean absolute difference over the second half of the last run's checkpoints:
    "seeds", of the first condition's runs to each other; "step"; and "loss", where their series are
    taken, between checkpoints, at the loss that the last run has.
    """
    seeds = [run for run in runs if run.condition == runs[0].condition]
    other = runs[-1]
    late = slice(len(other.checkpoints) // 2, None)
    wanted = other.quality("loss").numpy()[late]
    found: dict[str, Any] = {}
    for key in keys():
        own = other.series(key).numpy()[late]
        series = [run.series(key).numpy() for run in seeds]
        at_loss = [
            np.interp(wanted, np.maximum.accumulate(run.quality("loss").numpy()), values)
            for run, values in zip(seeds, series, strict=True)
        ]
        found[str(key)] = {
            name: number(float(np.mean([np.abs(one - two).mean() for one, two in pairs])))
            for name, pairs in (
                ("seeds", [(one[late], two[late]) for one, two in combinations(series, 2)]),
                ("step", [(own, one[late]) for one in series]),
                ("loss", [(own, one) for one in at_loss]),
            )
        }
    return found
