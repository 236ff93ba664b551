"""Does pos become smooth where tokens mean nothing? A language model trained on text made random.

The token randomisation of Song & Zhong (arXiv 2310.04861) at a size for two cores: models of 4
blocks and width 128 are trained on windows of Python's own documentation, cut into 1024 tokens by
byte-pair encoding; on windows whose second half is replaced by random tokens; and on random tokens
alone. After some steps what pos is like is measured at every layer, on held-out windows of the
model's own kind and on held-out text.

    python benchmarks/token_randomisation.py [--steps 800] [--seed 0] [--quick]

writes ``benchmarks/results/token_randomisation.json`` (or ``--out``) and prints tables.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch
from environment import environment
from small_models import QUANTITIES, Stopwatch, geometry_of, new_model, table, train, write
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

RESULTS = Path(__file__).parent / "results" / "token_randomisation.json"
KINDS = ("text", "second half random", "random")
VOCABULARY, LENGTH, BATCH = 1024, 128, 32
HELD_OUT = 256  # windows
RATE = 1e-3


def main() -> None:
    """Train a model on each kind, and measure it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="a few steps: does it run")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    steps = 4 if arguments.quick else arguments.steps
    held_out, windows = read_text(arguments.seed, 24 if arguments.quick else HELD_OUT)
    runs = [run(kind, held_out, windows, steps, arguments.seed) for kind in KINDS]
    settings = {"steps": steps, "seed": arguments.seed, "length": LENGTH, "batch": BATCH}
    settings |= {"vocabulary": VOCABULARY, "held_out": len(held_out), "windows": len(windows)}
    write(arguments.out, {"environment": environment(), **settings, "runs": runs})
    print(f"written to {arguments.out}")


def read_text(seed: int, number: int) -> tuple[Tensor, Tensor]:
    """Windows of token ids (N, T) that are held out, and those to train on.

    The held-out ones are the end of the text, not drawn from among the others.
    """
    text = "\n\n".join(page for _, page in sorted(topics.items()))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, initial_alphabet=sorted(alphabet), show_progress=False
    )
    tokenizer.train_from_iterator([text], trainer)
    ids = torch.tensor(tokenizer.encode(text).ids)
    windows = ids[: len(ids) // LENGTH * LENGTH].view(-1, LENGTH)
    generator = torch.Generator().manual_seed(seed)
    rest, held_out = windows[:-number], windows[-number:]
    return held_out, rest[torch.randperm(len(rest), generator=generator)]


def spoil(windows: Tensor, kind: str, generator: torch.Generator) -> Tensor:
    """Windows of a kind, made from windows of text."""
    random = torch.randint(VOCABULARY, windows.shape, generator=generator)
    kept = {"text": LENGTH, "second half random": LENGTH // 2, "random": 0}[kind]
    return torch.cat([windows[:, :kept], random[:, kept:]], 1)


def batches(windows: Tensor, kind: str, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches without end, of random tokens that are new each time."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(windows), generator=generator)
        for rows in order.split(BATCH)[:-1]:
            ids = spoil(windows[rows], kind, generator)
            yield ids, ids


def run(kind: str, held_out: Tensor, windows: Tensor, steps: int, seed: int) -> dict[str, Any]:
    """Train one model, and what was found at its steps."""
    model, clock = new_model(VOCABULARY, LENGTH, seed), Stopwatch()
    own = spoil(held_out, kind, torch.Generator().manual_seed(seed + 1))
    at = sorted({0, steps // 8, steps // 2, steps})
    found: list[dict[str, Any]] = []

    def look(step: int, loss: float) -> None:
        with torch.no_grad():
            parts = [model(input_ids=ids, labels=ids).loss for ids in own.split(BATCH)]
        entry = {
            "step": step,
            "loss": None if loss != loss else round(loss, 4),
            "held_out_loss": round(float(torch.stack(parts).mean()), 4),
            "on_its_own_kind": geometry_of(model, own),
            "on_text": geometry_of(model, held_out),
        }
        found.append(entry)
        title = f"\n{kind}, step {step}: held-out loss {entry['held_out_loss']:.3f}; its own kind"
        print(table(title, entry["on_its_own_kind"]), flush=True)

    train(model, batches(windows, kind, seed), steps, RATE, at, look)
    return {"kind": kind, "seconds": clock.seconds, "quantities": list(QUANTITIES), "steps": found}


if __name__ == "__main__":
    main()
