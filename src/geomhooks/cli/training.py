"""What ``geomhooks demo train`` does: train a small language model, and measure it at some steps.

``examples/train_gpt2.py`` is the same as a script to copy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from rich import box
from rich.table import Table
from torch import Tensor

import geomhooks as gh
from geomhooks.cli.demo import documentation
from geomhooks.errors import MissingExtraError

__all__ = ["Progress", "measured_steps", "tables", "train"]

LENGTH = 64  # positions, and tokens of a context
BATCH = 32
HELD_OUT = 256  # contexts that are measured, and not trained on
STEPS = 300


class Progress(NamedTuple):
    """How far training is."""

    step: int
    loss: float


def measured_steps(steps: int, number: int = 8) -> list[int]:
    """Steps at which to measure: more of them early, when more changes.

    Example:
        >>> measured_steps(300)
        [0, 5, 19, 42, 75, 117, 169, 230, 300]
    """
    return sorted({0, steps, *(round(steps * (k / number) ** 2) for k in range(1, number))})


def new_model() -> Any:
    """A GPT-2 of 4 blocks and width 64, with random weights; its tokens are bytes."""
    try:
        from transformers import GPT2Config, GPT2LMHeadModel
    except ImportError as error:
        raise MissingExtraError(
            "the demo needs transformers: pip install 'geomhooks[cli]'"
        ) from error
    config = GPT2Config(
        vocab_size=256,
        n_positions=LENGTH,
        n_embd=64,
        n_layer=4,
        n_head=4,
        bos_token_id=None,
        eos_token_id=None,
        loss_type="ForCausalLMLoss",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return GPT2LMHeadModel(config)


def new_data() -> tuple[Iterator[Tensor], Tensor]:
    """Batches to train on, without end, and contexts to measure, (256, 64); bytes as integers."""
    text = "\n\n".join(documentation().texts).encode()
    contexts = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
    contexts = contexts[: len(contexts) // LENGTH * LENGTH].view(-1, LENGTH)
    random = torch.Generator().manual_seed(0)
    contexts = contexts[torch.randperm(len(contexts), generator=random, device="cpu")]
    held_out, rest = contexts[:HELD_OUT], contexts[HELD_OUT:]

    def batches() -> Iterator[Tensor]:
        while True:
            order = torch.randperm(len(rest), generator=random, device="cpu")
            yield from (rest[rows] for rows in torch.split(order, BATCH))

    return batches(), held_out


def train(
    steps: int = STEPS,
    device: str = "cpu",
    report: Callable[[Progress], None] = lambda progress: None,
    stop: Callable[[], bool] = lambda: False,
) -> gh.History:
    """Train, measuring the held-out contexts at some steps; only these forwards count."""
    model = new_model().to(device)
    batches, held_out = new_data()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    history = gh.History(snapshots="all", notes={"model": str(model.config), "losses": {}})
    statistics = [gh.PosCtx(contexts=HELD_OUT), gh.Sphere()]
    measured = set(measured_steps(steps))
    with gh.watch(model, when="eval", statistics=statistics) as watch:
        for step in range(steps + 1):
            if step in measured:
                model.eval()
                with torch.no_grad():
                    parts = torch.split(held_out.to(device), BATCH)
                    losses = [loss_of(model, part) for part in parts]
                history.append(step, watch.geometry())
                history.notes["losses"][str(step)] = float(torch.stack(losses).mean())
                watch.reset()
            if step == steps or stop():
                break
            model.train()
            loss = loss_of(model, next(batches).to(device))
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()
            report(Progress(step + 1, float(loss.detach())))
    return history


def loss_of(model: Any, ids: Tensor) -> Tensor:
    """Mean loss of the next byte, in nats."""
    loss: Tensor = model(input_ids=ids, labels=ids).loss
    return loss


def tables(history: gh.History) -> list[Table]:
    """A row a step, a column a site: share and stable rank of pos, share of ctx, step angles."""
    sites = history[history.kept[0]].sites
    shown = [
        ("share of pos", "pos_ctx/shares/pos", "{:.3f}".format),
        ("stable rank of pos", "pos_ctx/stable_rank", "{:.2f}".format),
        ("share of ctx", "pos_ctx/shares/ctx", "{:.3f}".format),
        ("step angle", "sphere/step_angle/mean", lambda angle: f"{math.degrees(angle):.1f}°"),
    ]
    return [_table(history, sites, *each) for each in shown]


def _table(
    history: gh.History, sites: Sequence[str], title: str, name: str, show: Callable[[float], str]
) -> Table:
    table = Table(box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    table.add_column(f"{title}\nstep", justify="right", no_wrap=True)
    table.add_column("\nloss", justify="right", no_wrap=True)
    named = [site for site in sites if f"{site}/{name}" in history.names]
    for site in named:
        table.add_column(f"\n{site.removeprefix('transformer.')}", justify="right", no_wrap=True)
    for step in history.steps:
        scalars = history.scalars(step)
        loss = history.notes["losses"][str(step)]
        values = [show(scalars[f"{site}/{name}"]) for site in named]
        table.add_row(str(step), f"{loss:.2f}", *values)
    return table
