"""Does pos become smooth where position has to be told exactly? Models trained to add numbers.

The addition task of Song & Zhong (arXiv 2310.04861) at a size for one core: models of 3 blocks and
width 128 learn strings ``a+b=c`` with the digits of c from the last to the first, once of numbers
of which no digit of the sum carries over, and once of any numbers. What comes after ``=`` is asked
for. Numbers in training have 3 to 6 digits; accuracy is the share of new problems whose answer, by
greedy decoding, is right to the last digit, of that range and of 1 or 2 digits.

    python benchmarks/addition.py [--steps 3000] [--seed 0] [--quick]

writes ``benchmarks/results/addition.json`` (or ``--out``) after each look at a model, and prints
tables.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from small_models import (
    NOTHING,
    QUANTITIES,
    Stopwatch,
    embeddings_of,
    geometry_of,
    new_model,
    table,
    train,
    write,
)
from torch import Tensor

RESULTS = Path(__file__).parent / "results" / "addition.json"
SYMBOLS = "0123456789+=\n"
PLUS, EQUALS, END = 10, 11, 12
KINDS = ("without carry", "with carry")
TRAINED, SHORT = (3, 6), (1, 2)  # digits
LENGTH = 2 * TRAINED[1] + 2 + TRAINED[1] + 1 + 1  # a+b=c and the end, where c may be longer
BATCH = 64
HELD_OUT, TRIALS = 2048, 512
RATE = 3e-3


def main() -> None:
    """Train a model without carry and one with it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="a few steps: does it run")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    steps = 4 if arguments.quick else arguments.steps
    trials, held_out = (8, 128) if arguments.quick else (TRIALS, HELD_OUT)
    settings = {"steps": steps, "seed": arguments.seed, "batch": BATCH, "rate": RATE}
    settings |= {"trials": trials, "held_out": held_out, "length": LENGTH}
    settings |= {"digits": list(TRAINED), "short": list(SHORT)}
    for kind in arguments.kinds:
        keep = partial(write, arguments.out, settings)
        run(kind, steps, arguments.seed, trials, held_out, keep)
    print(f"written to {arguments.out}")


def problems(
    number: int, digits: tuple[int, int], carry: bool, generator: torch.Generator
) -> Tensor:
    """Token ids (N, T) of ``a+b=c``, the digits of c from the last to the first, and ends.

    Args:
        number: N.
        digits: the least and the most of a and of b, each drawn by itself.
        carry: any digits; else those of the same place sum to at most 9.
        generator: draws them.
    """
    least, most = digits
    lengths = torch.randint(least, most + 1, (number, 2), generator=generator)
    place = torch.arange(most + 1)
    # Digits from the last to the first, zero beyond the first one.
    a, b = (torch.randint(10, (number, most + 1), generator=generator) for _ in range(2))
    if not carry:
        b = (torch.rand(b.shape, generator=generator) * (10 - a)).long()
    first = place == lengths[..., None] - 1
    a, b = (leading(x, first[:, i], carry, other) for i, (x, other) in enumerate(((a, b), (b, a))))
    a, b = (x.masked_fill(place >= lengths[:, i, None], 0) for i, x in enumerate((a, b)))
    value = 10**place
    c = ((a + b) * value).sum(1, keepdim=True) // value % 10
    rows = torch.full((number, LENGTH + 1), END)  # a last column for the zeros beyond a number
    to = torch.zeros(number, 1, dtype=torch.long)
    for digits_of, reverse, after in ((a, False, PLUS), (b, False, EQUALS), (c, True, END)):
        size = size_of(digits_of)
        column = to + (place if reverse else size - 1 - place)
        rows.scatter_(1, column.where(place < size, LENGTH), digits_of)
        rows.scatter_(1, to + size, after)
        to = to + size + 1
    return rows[:, :LENGTH]


def size_of(digits: Tensor) -> Tensor:
    """(N, 1) how many digits are written of numbers (N, T), the last digit first."""
    places = torch.arange(1, digits.shape[1] + 1) * (digits > 0)
    return places.amax(1, keepdim=True).clamp(min=1)


def leading(digits: Tensor, first: Tensor, carry: bool, other: Tensor) -> Tensor:
    """The first digit of a number is no zero; without carry it still fits the other's."""
    wanted = digits.clamp(min=1)
    if not carry:  # 9 leaves room for nothing
        wanted = torch.where(other >= 9, digits, wanted)
    return torch.where(first, wanted, digits)


def labels_of(ids: Tensor) -> Tensor:
    """What is asked for: the tokens after ``=``, up to the first end."""
    after = (ids == EQUALS).long().cumsum(1) - (ids == EQUALS).long() > 0
    return torch.where(after & real(ids), ids, NOTHING)


def real(ids: Tensor) -> Tensor:
    """(N, T) bool, tokens up to the first end."""
    ends = (ids == END).long().cumsum(1)
    return ends - (ids == END).long() == 0


def batches(carry: bool, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of new problems without end."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        ids = problems(BATCH, TRAINED, carry, generator)
        yield ids, labels_of(ids)


@torch.no_grad()
def accuracy(model: Any, ids: Tensor) -> float:
    """Share of problems whose answer is right to the last digit, decoded greedily."""
    asked = (labels_of(ids) != NOTHING).int()
    written = torch.where(asked.cummax(1).values.bool(), END, ids)
    start = int((asked.argmax(1)).min())
    for column in range(start, LENGTH):
        best = model(input_ids=written[:, :column], use_cache=False).logits[:, -1].argmax(-1)
        written[:, column] = torch.where(asked[:, column].bool(), best, written[:, column])
    return float(((written == ids) | (asked == 0)).all(1).float().mean())


def run(
    kind: str,
    steps: int,
    seed: int,
    trials: int,
    contexts: int,
    keep: Callable[[dict[str, Any]], None],
) -> None:
    """Train one model, and keep what was found at its steps."""
    carry = kind == "with carry"
    model, clock = new_model(len(SYMBOLS), LENGTH, seed), Stopwatch()
    generator = torch.Generator().manual_seed(seed + 1)
    held_out = problems(contexts, TRAINED, carry, generator)
    tests = {
        "accuracy": problems(trials, TRAINED, carry, generator),
        "accuracy_short": problems(trials, SHORT, carry, generator),
    }
    at = sorted({0, steps // 8, steps // 2, steps})
    found: dict[str, Any] = {"kind": kind, "quantities": list(QUANTITIES), "steps": []}

    def look(step: int, loss: float) -> None:
        with torch.no_grad():
            ours = model(input_ids=held_out, labels=labels_of(held_out)).loss
        entry = {
            "step": step,
            "loss": None if loss != loss else round(loss, 5),
            "held_out_loss": round(float(ours), 5),
            **{name: round(accuracy(model, ids), 4) for name, ids in tests.items()},
            "position_embeddings": embeddings_of(model),
            "geometry": geometry_of(model, held_out, real(held_out).long()),
        }
        found["steps"].append(entry)
        keep({**found, "seconds": clock.seconds})
        title = (
            f"\n{kind}, step {step}: held-out loss "
            f"{entry['held_out_loss']:.4f}, right {entry['accuracy']:.3f}, of 1 or 2 digits "
            f"{entry['accuracy_short']:.3f}"
        )
        print(table(title, entry["geometry"], entry["position_embeddings"]), flush=True)

    train(model, batches(carry, seed), steps, RATE, at, look)


if __name__ == "__main__":
    main()
