"""lm-evaluation-harness's simple_evaluate, unmodified, with the geometry of what it reads.

    pip install '.[transformers]' accelerate lm-eval
    python examples/harness_evaluate.py EleutherAI/pythia-160m lambada_openai

The harness fills batches up with zeros and does not tell the model so; `fillers` tells the watch.
With a fixed batch size: finding one (batch_size="auto") runs made-up batches, which would count.
"""

from __future__ import annotations

import sys
from typing import Any

import lm_eval
import torch
from lm_eval.models.huggingface import HFLM

import geomhooks as gh


def fillers(_: Any, arguments: dict[str, Any]) -> dict[str, Any] | None:
    """Of a call without a mask: the zeros at the end of each row are no tokens."""
    ids = arguments.get("input_ids")
    if ids is None or arguments.get("attention_mask") is not None:
        return None
    return {"mask": ids.ne(0).flip(1).cumsum(1).flip(1) > 0}


def main(name: str, *tasks: Any, **options: Any) -> None:
    """Evaluate a hub name or local folder on tasks by name, or dictionaries that define them."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    lm = HFLM(pretrained=name, device=device, batch_size=8)
    with gh.watch(lm.model, tokens=fillers) as watch:
        results = lm_eval.simple_evaluate(model=lm, tasks=list(tasks), **options)
    print(lm_eval.utils.make_table(results))
    geometry = watch.geometry()
    for site in geometry.sites:
        shares, norm = geometry[site].pos_ctx.shares, geometry[site].sphere.norm.mean
        print(f"{site:32} pos {shares.pos:.3f}  ctx {shares.ctx:.3f}  norm {norm:.2f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
