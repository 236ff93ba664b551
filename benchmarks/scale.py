"""What the default statistics cost as a run grows: tokens, sites, width, positions, contexts kept.

The hooks run in a stack of blocks that do next to nothing, so that only they are measured: seconds
in hooks by a clock around them, per site, and in units of one read (``h.sum()`` over hidden states
of the same shape, in turns); and ``gh.merge``, by number of shards. The state must be as large as
``state_bytes.py`` says. A block of the shape of a 7B model (d 4096, 2048 tokens) is run
as it is.

    python benchmarks/scale.py [--device cpu] [--forwards 9] [--quick]

writes ``benchmarks/results/scale-<device>.json`` (or ``--out``) and prints tables.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from environment import environment
from state_bytes import expected_bytes
from timing import Clock, clocked_hooks, timed
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaModel

import geomhooks as gh

OPEN = 256  # contexts that may be unfinished, as PosCtx has it by default
CACHE_BYTES = 1 << 28  # hidden states are taken in turns from more memory than any cache holds


@dataclass(frozen=True)
class Case:
    """One point: B x T tokens of width d, at a number of blocks, with room for positions."""

    batch: int = 8
    length: int = 256
    width: int = 768
    blocks: int = 4
    positions: int = 256
    contexts: int = 256
    dtype: torch.dtype = torch.float32

    def describe(self) -> dict[str, Any]:
        """As JSON holds it."""
        return vars(self) | {"dtype": str(self.dtype).removeprefix("torch.")}


class Stack(nn.Module):
    """Blocks that scale the state a little, each into new memory."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Scale() for _ in range(blocks))

    def forward(self, inputs_embeds: Tensor) -> Tensor:
        """(B, T, d) to the same."""
        for block in self.blocks:
            inputs_embeds = block(inputs_embeds)
        return inputs_embeds


class Scale(nn.Module):
    """A block."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(1.01))

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, T, d) to the same."""
        return hidden * self.factor


def main() -> None:
    """Measure everything."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--forwards", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="small ones: does it run")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    device, forwards = torch.device(arguments.device), arguments.forwards
    if arguments.quick:
        forwards = 2
    found: dict[str, Any] = {}
    for name, cases in tables(arguments.quick).items():
        found[name] = [measure(case, device, forwards) for case in cases]
        show(f"cost against {name}", found[name])
    found["shards"] = merges(arguments.quick, device)
    show("gh.merge, by number of shards", found["shards"])
    found["7B block"] = [
        large_block(dtype, device, arguments.quick) for dtype in (torch.bfloat16, torch.float32)
    ]
    show("a block of a 7B model" + (", shrunk" if arguments.quick else ""), found["7B block"])
    path = arguments.out or Path(__file__).parent / "results" / f"scale-{device.type}.json"
    path.write_text(json.dumps({"environment": environment(), **found}, indent=1) + "\n")
    print(f"\nwritten to {path}")


def tables(quick: bool) -> dict[str, list[Case]]:
    """The cases, by what grows."""
    if quick:
        small = Case(2, 16, 32, 2, 16, 8)
        return {
            "tokens": [small, replace(small, batch=4)],
            "sites": [small, replace(small, blocks=3)],
            "width": [small, replace(small, width=48)],
            "positions": [small, replace(small, positions=64)],
            "contexts kept": [small, replace(small, contexts=64)],
        }
    tokens = [(1, 128), (1, 256), (8, 256), (16, 512), (16, 1024)]
    return {
        "tokens": [Case(b, t, positions=1024) for b, t in tokens],
        "sites": [Case(blocks=n) for n in (1, 4, 12, 32)],
        "width": [Case(width=d) for d in (128, 384, 768, 1536, 4096)],
        "positions": [Case(positions=n) for n in (256, 1024, 2048)],
        "contexts kept": [Case(contexts=n) for n in (64, 1024, 16384)],
    }


@torch.no_grad()
def measure(case: Case, device: torch.device, forwards: int) -> dict[str, Any]:
    """Time in hooks for each site and forward, and the bytes of the state.

    Raises:
        RuntimeError: the state is not as large as the formula says.
    """
    model = Stack(case.blocks).to(device, case.dtype)
    watch = watch_on(model, case)
    states = in_turns((case.batch, case.length, case.width), case.dtype, device)
    spent, reads = [], []
    with watch:
        for index in range(forwards + 2):
            clock, h = Clock(), states[index % len(states)]
            with clocked_hooks(clock):
                model(inputs_embeds=h)
            if index >= 2:  # the first settle what is settled once
                spent.append(clock.seconds)
                # Of a state whose turn is long past and still far off.
                reads.append(timed(states[(index + len(states) // 2) % len(states)].sum, {}))
    expected = expected_bytes(case.width, case.blocks, case.positions, case.contexts, OPEN)
    check_bytes(watch, expected, str(case))
    site = statistics.median(spent) / (case.blocks + 1)
    return {
        **case.describe(),
        "microseconds_a_site": round(1e6 * site, 1),
        "reads_a_site": round(site / statistics.median(reads), 1),
        "state_mib": round(expected / 2**20, 2),
    }


def watch_on(model: nn.Module, case: Case) -> Any:
    """A watch with the default statistics."""
    chosen = [gh.PosCtx(contexts=case.contexts, open_contexts=OPEN), gh.Sphere()]
    return gh.watch(model, statistics=chosen, positions=case.positions)


def in_turns(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """Enough hidden states that none is still in a cache when its turn comes again."""
    torch.manual_seed(0)
    one = torch.randn(*shape, device=device).to(dtype)
    number = min(16, 1 + CACHE_BYTES // one.nbytes)
    return [one + index for index in range(number)]


def check_bytes(watch: gh.Watch, expected: int, what: str) -> None:
    """Raise unless a state is as large as said, counting the bytes of its tensors."""
    held = sum(tensor.nbytes for tensor in watch.state_dict()["tensors"].values())
    if not held == watch.nbytes == expected:
        raise RuntimeError(
            f"{what}: the state's tensors take {held:,} bytes, watch.nbytes says "
            f"{watch.nbytes:,}, and the formula in state_bytes.py {expected:,}"
        )


@torch.no_grad()
def merges(quick: bool, device: torch.device) -> list[dict[str, Any]]:
    """Seconds that ``gh.merge`` takes for each shard."""
    case = Case(2, 16, 32, 2, 16, 8) if quick else Case(blocks=12, contexts=1024)
    model, states = (
        Stack(case.blocks),
        in_turns((case.batch, case.length, case.width), case.dtype, device),
    )
    rows = []
    for number in (2, 3) if quick else (2, 4, 8):
        shards = []
        for index in range(number):
            with watch_on(model, case) as watch:
                model(inputs_embeds=states[index % len(states)])
            shards.append(watch.geometry())
        seconds = timed(gh.merge, {"geometries": shards})
        rows.append(
            {
                **case.describe(),
                "shards": number,
                "milliseconds_a_shard": round(1e3 * seconds / number, 2),
                "shard_mib": round(watch.nbytes / 2**20, 2),
            }
        )
    return rows


@torch.no_grad()
def large_block(dtype: torch.dtype, device: torch.device, quick: bool) -> dict[str, Any]:
    """One Llama block as it is in a 7B model, watched."""
    sizes = (64, 172, 4, 32) if quick else (4096, 11008, 32, 2048)
    width, inner, heads, length = sizes
    config = LlamaConfig(
        vocab_size=8, hidden_size=width, intermediate_size=inner, num_attention_heads=heads,
        num_hidden_layers=1, max_position_embeddings=length,
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device(device):
        model = LlamaModel(config).to(dtype).eval()
    case = Case(1, length, width, 1, length, 256, dtype)
    inputs = {"inputs_embeds": torch.randn(1, length, width, device=device, dtype=dtype)}
    inputs["use_cache"] = False
    bare = [timed(model, inputs) for _ in range(3)][1:]
    spent = []
    with watch_on(model, case) as watch:
        for _ in range(3):
            clock = Clock()
            with clocked_hooks(clock):
                model(**inputs)
            spent.append(clock.seconds)
    check_bytes(watch, expected_bytes(width, 1, length, 256, OPEN), f"7B block, {dtype}")
    forward, hooks = statistics.median(bare), statistics.median(spent[1:]) / 2
    state = length * width * dtype.itemsize
    return {
        **case.describe(),
        "forward_ms": round(1e3 * forward, 2),
        "microseconds_a_site": round(1e6 * hooks, 1),
        "share_of_forward": round(hooks / forward, 5),
        "hidden_state_mib": round(state / 2**20, 2),
        "state_mib": round(watch.nbytes / 2**20, 2),
    }


def show(title: str, rows: list[dict[str, Any]]) -> None:
    """Print a table."""
    widths = {n: max(len(n), *(len(str(row[n])) for row in rows)) for n in rows[0]}
    print(f"\n{title}\n")
    print("  ".join(name.rjust(size) for name, size in widths.items()))
    for row in rows:
        print("  ".join(str(row[name]).rjust(size) for name, size in widths.items()), flush=True)


if __name__ == "__main__":
    main()
