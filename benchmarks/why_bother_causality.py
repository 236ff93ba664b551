"""Whether terms tell the next checkpoint's quality, by the published rule and by valid ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from why_bother_runs import Run, is_flat, keys, layers, number

from geomhooks.functional.compare import granger_test, holm, settled

__all__ = ["causality"]

LEVEL = 0.01  # as published
MOST_LAGS = 15


def causality(runs: list[Run]) -> dict[str, Any]:
    """Granger's test of every term at every layer on BLEU, after as many differences as both need.

    Beside it two controls: BLEU on the terms, and the terms of one run on the BLEU of the next,
    which cannot be a cause.
    """
    kinds = ("terms to BLEU", "BLEU to terms", "terms to BLEU of another run")
    p_values: dict[str, list[float]] = {kind: [] for kind in kinds}
    smallest: dict[str, list[float]] = {kind: [] for kind in kinds}
    names, taken, restless, lags = [], [], 0, 0
    targets = [run.quality("BLEU") for run in runs]
    if any(is_flat(target) for target in targets):
        return {"reason": "the BLEU of a run never changes"}
    needed = [settled(target).differences for target in targets]
    for key in keys():
        for layer in range(1, layers(runs)):
            for at, run in enumerate(runs):
                series = run.series(key, layer)
                after = settled(series)
                own = after.differences
                restless += after.tests.verdict != "stationary"
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
        "not stationary even then": restless,
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
