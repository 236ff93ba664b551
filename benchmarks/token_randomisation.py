"""Does pos become smooth where tokens mean nothing? A language model trained on text made random.

The token randomisation of Song & Zhong (arXiv 2310.04861) at a size for one core: models of 3
blocks and width 128 are trained on windows of text, cut into 512 tokens by byte-pair encoding; on
windows whose second half is replaced by random tokens; and on random tokens alone. After some steps
what pos is like is measured at every layer, on held-out windows of the model's own kind and on
held-out text.

    python benchmarks/token_randomisation.py [--text brown] [--steps 1500] [--seed 0] [--quick]

writes ``benchmarks/results/token_randomisation.json`` (or ``--out``) after each look at a model,
and prints tables. The text is Python's documentation, or what song_zhong.py takes for one.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch
from corpora import labelled
from small_models import (
    QUANTITIES,
    Stopwatch,
    embeddings_of,
    geometry_of,
    new_model,
    table,
    train,
    write,
)
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

RESULTS = Path(__file__).parent / "results" / "token_randomisation.json"
KINDS = ("text", "second half random", "random")
VOCABULARY, LENGTH, BATCH = 512, 64, 16
STRETCHES = 100  # of the text, each tenth of which is held out
HELD_OUT = 2048  # windows
THIN = 3  # every third position: as many as a problem of addition.py has
RATE = 2e-3


def main() -> None:
    """Train a model on each kind, and measure it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--text", default="documentation")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="a few steps: does it run")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    steps = 4 if arguments.quick else arguments.steps
    held_out, stretches = read_text(
        arguments.text, arguments.seed, 128 if arguments.quick else HELD_OUT
    )
    settings = {"text": Path(arguments.text).name, "tokens": stretches.numel(), "steps": steps}
    settings |= {"seed": arguments.seed, "length": LENGTH, "batch": BATCH, "rate": RATE}
    settings |= {"vocabulary": VOCABULARY, "held_out": len(held_out), "thin": THIN}
    for kind in arguments.kinds:
        keep = partial(write, arguments.out, settings)
        run(kind, held_out, stretches, steps, arguments.seed, keep)
    print(f"written to {arguments.out}")


def read_text(text: str, seed: int, number: int) -> tuple[Tensor, Tensor]:
    """Held-out windows (N, T) of token ids, and the stretches of text (S, L) to train on.

    Each tenth stretch is held out. Windows are at random places of those, and may overlap; those of
    the first half are of other stretches than those of the second.

    Args:
        text: "documentation", all pages of Python's own, or what ``corpora.labelled`` takes.
        seed: of the places.
        number: N.
    """
    pages = (
        [page for _, page in sorted(topics.items())]
        if text == "documentation"
        else [page for _, page in labelled(text)]
    )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, initial_alphabet=sorted(alphabet), show_progress=False
    )
    tokenizer.train_from_iterator(pages, trainer)
    ids = torch.tensor([token for page in pages for token in tokenizer.encode(page + "\n\n").ids])
    stretches = ids[: len(ids) // STRETCHES * STRETCHES].view(STRETCHES, -1)
    own = torch.arange(STRETCHES) % 10 == 9
    generator = torch.Generator().manual_seed(seed)
    kept = stretches[own]
    held_out = [windows_of(kept[half::2], number // 2, generator) for half in (0, 1)]
    return torch.cat(held_out), stretches[~own]


def windows_of(stretches: Tensor, number: int, generator: torch.Generator) -> Tensor:
    """Windows (N, T) at random places of stretches (S, L)."""
    rows = torch.randint(len(stretches), (number, 1), generator=generator)
    starts = torch.randint(stretches.shape[1] - LENGTH + 1, (number, 1), generator=generator)
    return stretches[rows, starts + torch.arange(LENGTH)]


def spoil(windows: Tensor, kind: str, generator: torch.Generator) -> Tensor:
    """Windows of a kind, made from windows of text."""
    random = torch.randint(VOCABULARY, windows.shape, generator=generator)
    kept = {"text": LENGTH, "second half random": LENGTH // 2, "random": 0}[kind]
    return torch.cat([windows[:, :kept], random[:, kept:]], 1)


def batches(stretches: Tensor, kind: str, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches without end, of windows and random tokens that are new each time."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        ids = spoil(windows_of(stretches, BATCH, generator), kind, generator)
        yield ids, ids


def run(
    kind: str,
    held_out: Tensor,
    stretches: Tensor,
    steps: int,
    seed: int,
    keep: Callable[[dict[str, Any]], None],
) -> None:
    """Train one model, and keep what was found at its steps."""
    model, clock = new_model(VOCABULARY, LENGTH, seed), Stopwatch()
    own = spoil(held_out, kind, torch.Generator().manual_seed(seed + 1))
    at = sorted({0, steps // 8, steps // 2, steps})
    found: dict[str, Any] = {"kind": kind, "quantities": list(QUANTITIES), "steps": []}

    def look(step: int, loss: float) -> None:
        with torch.no_grad():
            parts = [model(input_ids=ids, labels=ids).loss for ids in own.split(64)]
        entry = {
            "step": step,
            "loss": None if loss != loss else round(loss, 4),
            "held_out_loss": round(float(torch.stack(parts).mean()), 4),
            "position_embeddings": embeddings_of(model),
            "on_text": geometry_of(model, held_out, thin=THIN),
        }
        entry["on_its_own_kind"] = (
            entry["on_text"] if kind == "text" else geometry_of(model, own, thin=THIN)
        )
        found["steps"].append(entry)
        keep({**found, "seconds": clock.seconds})
        title = f"\n{kind}, step {step}: held-out loss {entry['held_out_loss']:.3f}; its own kind"
        print(table(title, entry["on_its_own_kind"], entry["position_embeddings"]), flush=True)

    train(model, batches(stretches, kind, seed), steps, RATE, at, look)


if __name__ == "__main__":
    main()
