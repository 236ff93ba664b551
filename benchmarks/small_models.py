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
from environment import environment
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, get_cosine_schedule_with_warmup

import geomhooks as gh
from geomhooks.functional import dct_spectrum, low_frequency_share, stable_rank

__all__ = [
    "NOTHING",
    "QUANTITIES",
    "Stopwatch",
    "embeddings_of",
    "geometry_of",
    "new_model",
    "table",
    "train",
    "write",
]

BLOCKS, HEADS, WIDTH = 3, 4, 128
WARMUP = 100
DECAY, BETAS = 0.1, (0.9, 0.99)  # as in the published training
PARTS = 64  # contexts in a forward that is measured
ROUND = 5
# Of directions of positions, however they were come by.
SMOOTHNESS = ("neighbours", "any_two", "low_tenth", "low_tenth_unordered")
THINNED = ("thinned_neighbours", "thinned_low_tenth", "thinned_low_tenth_unordered")
QUANTITIES = (
    *SMOOTHNESS,
    *THINNED,
    "low_tenth_with_noise",
    "mean_difference_with_noise",
    "rank",
    "stable_rank",
    "pos_share",
    "pos_noise_share",
    "relative_norm",
    "incoherence",
)
NOTHING = -100  # a label that asks for nothing, as transformers has it


def new_model(vocabulary: int, length: int, seed: int) -> Any:
    """A GPT-2 of 3 blocks and width 128 with random weights, and without dropout.

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
        activation_function="gelu_pytorch_tanh",  # GPT-2's own, in one operation
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
def geometry_of(
    model: Any, ids: Tensor, mask: Tensor | None = None, thin: int | None = None
) -> dict[str, list[Any]]:
    """What pos is like at every layer, over contexts without their first token.

    Args:
        model: with learned positions.
        ids: (C, T), whose first and second half have no context in common.
        mask: (C, T) of the tokens that count.
        thin: also the smoothness of every so many positions alone, as of a shorter context.
    """
    halves = [half_of(model, ids, mask, which) for which in (0, 1)]
    whole = gh.merge(halves)
    rows = [
        quantities(whole[site].pos_ctx, *(half[site].pos_ctx for half in halves), thin)
        for site in whole.sites
    ]
    return {name: [rounded(row[name]) for row in rows] for name in QUANTITIES}


def half_of(model: Any, ids: Tensor, mask: Tensor | None, which: int) -> gh.Geometry:
    """The geometry over one half of the contexts."""
    contexts, length = ids.shape
    statistic = gh.PosCtx(contexts=contexts, positions=length, second_moment=True)
    first, end = (0, contexts // 2) if which == 0 else (contexts // 2, contexts)
    with gh.watch(model, sites="blocks", statistics=[statistic], skip_positions=1) as watch:
        for at in range(first, end, PARTS):
            part = slice(at, min(at + PARTS, end))
            told = {} if mask is None else {"attention_mask": mask[part]}
            model(input_ids=ids[part], use_cache=False, **told)
    return watch.geometry()


def quantities(found: Any, first: Any, second: Any, thin: int | None) -> dict[str, float]:
    """Of one site, from all contexts and from each half of them."""
    pos = found.pos[found.position_count > 0]
    gram = gram_without_noise(first, second)
    thinned = smoothness_of(gram[::thin, ::thin]) if thin else {}
    numbers = {
        **smoothness_of(gram),
        **{name: thinned.get(name.removeprefix("thinned_"), float("nan")) for name in THINNED},
        "low_tenth_with_noise": low_frequency_share(pos, tenth(len(pos))),
        "mean_difference_with_noise": found.smoothness.mean_difference,
        "rank": found.rank,
        "stable_rank": found.stable_rank,
        "pos_share": found.shares.pos,
        "pos_noise_share": found.noise_shares.pos / found.shares.pos,
        "relative_norm": found.relative_norm.centred,
        "incoherence": found.incoherence.mean,
    }
    return {name: float(number) for name, number in numbers.items()}


def gram_without_noise(first: Any, second: Any) -> Tensor:
    """(T, T) the scalar products of pos, expected as over contexts without end.

    Noise in pos is independent between two halves of the contexts, and only there: neighbouring
    tokens of one context have noise in common, which makes pos look smoother than it is, as the
    noise of each token by itself makes it look rougher.
    """
    length = min(len(first.pos), len(second.pos))
    seen = (first.position_count[:length] > 0) & (second.position_count[:length] > 0)
    product = first.pos[:length][seen] @ second.pos[:length][seen].T
    return (product + product.T) / 2


def tenth(positions: int) -> int:
    """How many frequencies a tenth of them is: those of waves longer than twenty positions."""
    return max(2, round(positions / 10))


def smoothness_of(gram: Tensor) -> dict[str, float]:
    """Of the directions of T positions, given their scalar products (T, T).

    The mean cosine of neighbours, and of any two positions, which is what neighbours would have in
    an order by chance; the share of the lowest tenth of all frequencies in the trace of the cosine
    Gram matrix's spectrum, and that by chance. NaN where the square of a length is not positive:
    there is too much noise for a direction.
    """
    squares, size = gram.diagonal(), len(gram)
    if not bool((squares > 0).all()):
        return dict.fromkeys(SMOOTHNESS, float("nan"))
    unit = gram / (squares[:, None] * squares).sqrt()
    any_two = float((unit.sum() - size) / (size * (size - 1)))
    # By chance the constant keeps what it has, and the others have as much of the rest each.
    constant = float(unit.sum()) / size**2
    low = tenth(size)
    return {
        "neighbours": float(unit.diagonal(1).mean()),
        "any_two": any_two,
        "low_tenth": float(dct_spectrum(unit, low).trace() / size),
        "low_tenth_unordered": constant + (1 - constant) * (low - 1) / (size - 1),
    }


@torch.no_grad()
def embeddings_of(model: Any) -> dict[str, Any]:
    """The same of the learned position embeddings themselves, which are known without noise."""
    rows = model.transformer.wpe.weight[1:].double()
    rows = rows - rows.mean(0)
    numbers = smoothness_of(rows @ rows.T) | {"stable_rank": float(stable_rank(rows))}
    return {name: rounded(number) for name, number in numbers.items()}


def rounded(value: float) -> float | int | None:
    """A number as a file has it; what is not finite is none."""
    if not np.isfinite(value):
        return None
    return int(value) if value == int(value) else round(value, ROUND)


def table(title: str, found: dict[str, list[Any]], embeddings: dict[str, Any]) -> str:
    """Lines of what was found, a column for the embeddings and one for each layer."""
    layers = len(found[QUANTITIES[0]])
    heads = ["learned", *(f"L{layer}" for layer in range(layers))]
    lines = [title, f"{'':28s}" + "".join(f"{head:>9s}" for head in heads)]
    for name in QUANTITIES:
        values = [embeddings.get(name), *found[name]]
        shown = ("-" if v is None else f"{v:.3f}" if isinstance(v, float) else v for v in values)
        lines.append(f"{name:28s}" + "".join(f"{value!s:>9s}" for value in shown))
    return "\n".join(lines)


def write(path: Path, settings: dict[str, Any], run: dict[str, Any]) -> None:
    """As JSON, each list of numbers on one line.

    Runs of other kinds that are in the file stay, where they had the same settings.
    """
    before = json.loads(path.read_text()) if path.exists() else {}
    same = all(before.get(name) == value for name, value in settings.items())
    others = [other for other in before["runs"] if other["kind"] != run["kind"]] if same else []
    result = {**settings, "runs": [*others, {**run, "environment": environment()}]}
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
