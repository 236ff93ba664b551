"""Small causal language models with learned positions, trained here, and what pos becomes."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, get_cosine_schedule_with_warmup

import geomhooks as gh
from geomhooks.functional import low_frequency_share

__all__ = [
    "NOTHING",
    "QUANTITIES",
    "Stopwatch",
    "geometry_of",
    "new_model",
    "table",
    "train",
    "write",
]

BLOCKS, HEADS, WIDTH = 4, 4, 128
WARMUP = 50
DECAY, BETAS = 0.1, (0.9, 0.99)  # as in the published training
PARTS = 16  # contexts in a forward that is measured
ROUND = 5
QUANTITIES = (
    "lowest_tenth",
    "mean_difference",
    "rank",
    "stable_rank",
    "pos_share",
    "pos_noise_share",
    "relative_norm",
    "incoherence",
)
NOTHING = -100  # a label that asks for nothing, as transformers has it


def new_model(vocabulary: int, length: int, seed: int) -> Any:
    """A GPT-2 of 4 blocks and width 128 with random weights, and without dropout.

    Its position embeddings begin at zero: random ones would drown in so short a training what is
    learned of positions.
    """
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=vocabulary,
        n_positions=length,
        n_embd=WIDTH,
        n_layer=BLOCKS,
        n_head=HEADS,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=None,
        eos_token_id=None,
        loss_type="ForCausalLMLoss",
    )
    model = GPT2LMHeadModel(config)
    torch.nn.init.zeros_(model.transformer.wpe.weight)
    return model


def train(
    model: Any,
    batches: Iterator[tuple[Tensor, Tensor]],
    steps: int,
    rate: float,
    at: Sequence[int],
    look: Callable[[int, float], None],
) -> None:
    """AdamW with a cosine schedule; at some steps, ``look`` is given the step and the last loss.

    Args:
        model: to train.
        batches: pairs of token ids and labels (B, T), -100 where nothing is asked for.
        steps: how many.
        rate: the highest learning rate.
        at: steps, of which 0 is before all training.
        look: called with the model in evaluation mode.
    """
    optimizer = torch.optim.AdamW(model.parameters(), rate, betas=BETAS, weight_decay=DECAY)
    schedule = get_cosine_schedule_with_warmup(optimizer, WARMUP, steps)
    loss = float("nan")
    for step in range(steps + 1):
        if step in at:
            model.eval()
            look(step, loss)
        if step == steps:
            return
        model.train()
        ids, labels = next(batches)
        found = model(input_ids=ids, labels=labels, use_cache=False).loss
        found.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        loss = float(found.detach())


@torch.no_grad()
def geometry_of(model: Any, ids: Tensor, mask: Tensor | None = None) -> dict[str, list[Any]]:
    """What pos is like at every layer, over contexts (C, T) without their first token."""
    contexts, length = ids.shape
    statistic = gh.PosCtx(contexts=contexts, positions=length, second_moment=True)
    with gh.watch(model, sites="blocks", statistics=[statistic], skip_positions=1) as watch:
        for first in range(0, contexts, PARTS):
            part = slice(first, first + PARTS)
            told = {} if mask is None else {"attention_mask": mask[part]}
            model(input_ids=ids[part], use_cache=False, **told)
    geometry = watch.geometry()
    rows = [quantities(geometry[site].pos_ctx) for site in geometry.sites]
    return {name: [rounded(row[name]) for row in rows] for name in QUANTITIES}


def quantities(found: Any) -> dict[str, float]:
    """Of one site."""
    pos = found.pos[found.position_count > 0]
    numbers = {
        # Of frequencies: directions without order have a tenth in it, and steps of length 2.
        "lowest_tenth": low_frequency_share(pos, max(2, len(pos) // 10)),
        "mean_difference": found.smoothness.mean_difference,
        "rank": found.rank,
        "stable_rank": found.stable_rank,
        "pos_share": found.shares.pos,
        "pos_noise_share": found.noise_shares.pos / found.shares.pos,
        "relative_norm": found.relative_norm.centred,
        "incoherence": found.incoherence.mean,
    }
    return {name: float(number) for name, number in numbers.items()}


def rounded(value: float) -> float | int | None:
    """A number as a file has it; what is not finite is none."""
    if not np.isfinite(value):
        return None
    return int(value) if value == int(value) else round(value, ROUND)


def table(title: str, found: dict[str, list[Any]]) -> str:
    """Lines of what :func:`geometry_of` found, a column a layer."""
    layers = len(found[QUANTITIES[0]])
    lines = [title, f"{'':22s}" + "".join(f"{f'L{layer}':>9s}" for layer in range(layers))]
    for name in QUANTITIES:
        shown = (
            "-" if v is None else f"{v:.3f}" if isinstance(v, float) else v for v in found[name]
        )
        lines.append(f"{name:22s}" + "".join(f"{value!s:>9s}" for value in shown))
    return "\n".join(lines)


def write(path: Path, result: dict[str, Any]) -> None:
    """As JSON, each list of numbers on one line."""
    text = re.sub(
        r"\[[^\[\]{}]*\]",
        lambda found: re.sub(r"\s*\n\s*", " ", found.group()),
        json.dumps(result, indent=1),
    )
    path.write_text(text + "\n")


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    @property
    def seconds(self) -> float:
        """So far, rounded."""
        return round(time.perf_counter() - self._start, 1)
