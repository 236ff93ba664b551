"""How many bytes the default statistics move at one site in one forward: at least, and now.

In units of one read of the hidden state (B, T, d). What plain torch moves is counted while the
reductions run, by adding up the tensors that each operation reads and writes; so is what the tiled
way moves, whose tensors stay in a cache. What the compiled loops move is written down here, by
their loops. Memory is read and written there as little as the columns "memory" say.

    python benchmarks/byte_counts.py

prints the tables of ``benchmarks/README.md``.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil, prod
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from geomhooks.accumulators.second_moment import SecondMoment
from geomhooks.forwards.calls import Call, Statement
from geomhooks.forwards.token_stream import TokenStream
from geomhooks.forwards.tokens import Tokens
from geomhooks.reductions.plain import Reduced, reduce_plain
from geomhooks.reductions.products import COLUMNS, ROWS, add_products, pieces
from geomhooks.reductions.tiled import TILE_BYTES, reduce_tiled

__all__ = ["Count", "Moved", "at_least", "fused", "on_paper", "plain", "tables", "tiled"]

SHAPES = [(8, 256, 384), (8, 256, 576), (16, 1024, 768)]
OVER_TOKENS = ("position_sum", "context_sum", "directions")
NAMES = {
    "entries": "sums over entries: norm, radius, ones, about the shift, finite or not",
    "position_sum": "sums by position",
    "context_sum": "sums by context",
    "directions": "sums of directions",
    "step": "step from the block's input",
}
WIDE, NUMBERS = 8, 8  # bytes of a number of the state; numbers found of each token
BANDWIDTH, SPEED = 3.35e12, 5e14  # of an H100 (SXM): bytes, and operations in bf16, a second
PIECE = 128  # tokens that the compiled loops add up before they turn to wide sums


class Count(NamedTuple):
    """Reads of a hidden state, or as much: of memory, and with what stays in caches."""

    memory: float
    whole: float


class Moved(TorchDispatchMode):
    """Adds up the bytes that operations read and write, views and empty memory left out."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run one operation."""
        out = func(*args, **(kwargs or {}))
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        made = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        held = {t.untyped_storage().data_ptr() for t in given}
        is_view = made and all(t.untyped_storage().data_ptr() in held for t in made)
        if "empty" in func.__name__ or (is_view and not func._schema.is_mutable):
            return out
        self.bytes += sum(map(touched, given)) + sum(map(touched, made))
        return out


def touched(tensor: Tensor) -> int:
    """Bytes of the entries that are apart in memory; an expanded one has fewer than it shows."""
    sizes = zip(tensor.shape, tensor.stride(), strict=True)
    return tensor.element_size() * prod(size for size, stride in sizes if stride)


def at_least(shape: tuple[int, int, int], entry: int = 4) -> dict[str, Count]:
    """What no way can do without: both states once, and the state's own traffic."""
    batch, length, _ = shape
    found = {
        "entries": 1.0,
        "position_sum": 2 * WIDE / (entry * batch),  # (T, d) read and written
        "context_sum": 2 * WIDE / (entry * length),  # (B, d)
        "directions": 2 * 2 * WIDE / (entry * batch * length),  # two kinds of (d,)
        "step": 1.0,
    }
    return {name: Count(value, value) for name, value in found.items()}


def fused(shape: tuple[int, int, int]) -> dict[str, Count]:
    """The compiled loops, on float32: see ``native/sums.py``.

    A piece of 128 tokens is read twice, the second time from a cache, together with the block's
    input; its sums by position are held for all rows of the batch, those by context and of
    directions are added to wide ones after each piece. What is found of each token is written, and
    read once more when the forward ends.
    """
    _, length, width = shape
    least = {name: count.memory for name, count in at_least(shape).items()}
    wide = 2 * WIDE / 4  # to read and write as many wide numbers as the state has entries
    numbers = 2 * NUMBERS * WIDE / (4 * width)
    piece = min(PIECE, length)
    return {
        "entries": Count(1 + numbers, 1 + numbers),
        # The second reading is for all three sums over tokens; it is counted here.
        "position_sum": Count(least["position_sum"], 1 + 2 + least["position_sum"]),
        "context_sum": Count(least["context_sum"], wide / piece + least["context_sum"]),
        "directions": Count(least["directions"], 2 * wide / piece + least["directions"]),
        "step": Count(1, 1),
    }


def plain(shape: tuple[int, int, int]) -> dict[str, Count]:
    """Ordinary torch, counted while it runs; every temporary goes through memory."""
    return {name: Count(v, v) for name, v in counted(reduce_plain, shape).items()}


def tiled(shape: tuple[int, int, int]) -> dict[str, Count]:
    """The same in tiles of a few rows: temporaries stay in a cache, the position sums do not."""
    batch, length, width = shape
    least = {name: count.memory for name, count in at_least(shape).items()}
    tiles = ceil(batch / max(1, TILE_BYTES // (length * width * 4)))
    memory = least | {"position_sum": tiles * least["position_sum"]}
    whole = counted(reduce_tiled, shape)
    return {name: Count(memory[name], whole[name]) for name in NAMES}


def counted(way: Callable[..., Reduced], shape: tuple[int, int, int]) -> dict[str, float]:
    """What each reduction adds to those that are always taken, in reads."""
    arguments = inputs(shape)
    always = moved(way, frozenset(), *arguments)
    found = {"entries": moved(way, frozenset({"norm", "radius"}), *arguments)}
    for name in (*OVER_TOKENS, "step"):
        found[name] = moved(way, frozenset({name}), *arguments) - always
    read = 4 * prod(shape)
    return {name: bytes_ / read for name, bytes_ in found.items()}


def moved(
    way: Callable[..., Reduced],
    needs: frozenset[str],
    out: Tensor,
    into: Tensor,
    tokens: Tokens,
    shift: Tensor,
    known: Reduced,
    position_sum: Tensor,
) -> int:
    """Bytes that one way moves for some reductions."""
    target = position_sum if "position_sum" in needs else None
    with Moved() as mode:
        way(needs, out, into, tokens, shift, known, target)
    return mode.bytes


def inputs(shape: tuple[int, int, int]) -> tuple[Any, ...]:
    """A forward at a block: its output and input, tokens, the shift, and the state."""
    batch, length, width = shape
    torch.manual_seed(0)
    into = torch.randn(shape)
    out = into + 0.1 * torch.randn(shape)
    stream = TokenStream("", length, batch, 1)
    stream.allocate(torch.device("cpu"))
    tokens = stream.resolve(Call(past=0), Statement(), batch, length)
    shift = torch.zeros(width, dtype=torch.float64)
    known = reduce_plain(frozenset({"norm", "radius"}), into, None, tokens, shift)
    return out, into, tokens, shift, known, torch.zeros(length, width, dtype=torch.float64)


def second_moment(shape: tuple[int, int, int]) -> tuple[float, Count]:
    """The product x^T x of ``Covariance``, in reads: at least, and as it is done.

    A thousand rows at a time are read, stay in a cache while they are multiplied, and what comes
    out is added to the upper triangle of the wide (d, d) sum: its traffic is once for each piece.
    """
    batch, length, width = shape
    read, arguments = 4 * prod(shape), inputs(shape)
    out, _, tokens, shift, *_ = arguments
    target = SecondMoment(width).allocate()
    with Moved() as mode:
        add_products([target], out, tokens.real, shift)
    triangle = width * (width + 1) / 2 * WIDE * 2 / read
    touched_ = triangle + min(COLUMNS, width) * width / 2 * WIDE * 2 / read  # by blocks of columns
    chunks = len(list(pieces(batch, length, ROWS)))
    return 1 + triangle, Count(1 + chunks * touched_, mode.bytes / read)


def tables() -> str:
    """All shapes, as Markdown."""
    return "\n\n".join(map(table, SHAPES))


def on_paper() -> str:
    """What the floor is of the time of a 7B block on a GPU, as Markdown.

    Bytes at least over the GPU's bandwidth, beside the operations of a Llama block in its weights
    and, causal, in its attention over the speed that large products reach.
    """
    length, width, inner = 2048, 4096, 11008
    weights = 4 * width**2 + 3 * width * inner
    lines = [
        f"| contexts a forward | MiB at least | at {BANDWIDTH / 1e12:.2f} TB/s "
        f"| block at {SPEED / 1e12:.0f} TFLOP/s | share |",
        "|---|---|---|---|---|",
    ]
    for batch in (1, 4, 8):
        shape = (batch, length, width)
        reads = sum(count.memory for count in at_least(shape, entry=2).values())
        moved_ = reads * 2 * prod(shape)
        block = (2 * weights + 2 * length * width) * batch * length / SPEED
        floor = moved_ / BANDWIDTH
        lines.append(
            f"| {batch} | {moved_ / 2**20:.0f} | {1e6 * floor:.0f} us | {1e3 * block:.1f} ms "
            f"| {100 * floor / block:.1f} % |"
        )
    return "\n".join(lines)


def table(shape: tuple[int, int, int]) -> str:
    """One shape."""
    ways = [at_least(shape), fused(shape), tiled(shape), plain(shape)]
    mebibytes = 4 * prod(shape) / 2**20
    lines = [
        f"{shape}: one read is {mebibytes:.1f} MiB.",
        "",
        "| | at least | compiled: memory | in all | tiled: memory | in all | plain torch |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, what in NAMES.items():
        lines.append(f"| {what} | {' | '.join(cells([way[name] for way in ways]))} |")
    sums = [Count(*map(sum, zip(*way.values(), strict=True))) for way in ways]
    lines.append(f"| **default statistics** | {' | '.join(cells(sums))} |")
    least, product = second_moment(shape)
    cells_of = f"{least:.2f} | {product.memory:.2f} | {product.whole:.2f}"
    lines.append(
        f"| `Covariance`, besides | {cells_of} | the same | the same | {product.whole:.2f} |"
    )
    return "\n".join(lines)


def cells(ways: list[Count]) -> list[str]:
    """What is moved at least, both counts of two ways, and all of plain torch."""
    least, compiled, tiles, torch_ = ways
    numbers = (least.memory, *compiled, *tiles, torch_.whole)
    return [f"{number:.2f}" for number in numbers]


if __name__ == "__main__":
    print(tables(), on_paper(), sep="\n\n")
