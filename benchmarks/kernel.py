"""How near the reductions on a GPU come to a copy of the bytes that they have to read.

For each shape and type: a device copy of as many bytes as the hidden states and the block's input
have (half of them read, half of them written), then the same reductions by Triton, by plain torch,
and by ``torch.compile`` of plain torch; each launched one by one, and replayed from a CUDA graph,
which takes launches out of the picture. Host time is what a call takes before it returns.

    python benchmarks/kernel.py [--repeat 50] [--tune]

prints a table and writes ``benchmarks/results/kernel-cuda.json``. Where there is no GPU it says so,
and prints what has to move and how long that takes at a stated bandwidth.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from environment import environment
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import geomhooks as gh
from geomhooks.forwards.calls import Call, Statement
from geomhooks.forwards.token_stream import TokenStream
from geomhooks.forwards.tokens import Tokens
from geomhooks.reductions import on_cuda
from geomhooks.reductions.plain import NAMES, reduce_plain

NEEDS = NAMES - {"shifted"}  # all that the default statistics need
SHAPES = {
    "GPT-2 124M": (16, 1024, 768),
    "GPT-2 XL": (16, 1024, 1600),
    "2048 wide": (16, 2048, 2048),
    "7B block": (8, 2048, 4096),
    "8192 wide": (4, 2048, 8192),
}
TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
BANDWIDTHS = {"A100 80 GB": 2.0e12, "H100 SXM": 3.35e12}  # bytes a second, by their data sheets


def main() -> None:
    """Measure where there is a GPU, else reckon."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeat", type=int, default=50)
    parser.add_argument("--tune", action="store_true", help="also try other tiles")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        on_paper()
        return
    rows = []
    for label, shape in SHAPES.items():
        for name, dtype in TYPES.items():
            row = {"shape": list(shape), "model": label, "type": name}
            row |= measure(shape, dtype, arguments.repeat)
            if arguments.tune:
                row["tiles"] = tune(shape, dtype, arguments.repeat)
            rows.append(row)
            print(show(row), flush=True)
            torch.cuda.empty_cache()
    path = Path(__file__).parent / "results" / "kernel-cuda.json"
    path.write_text(json.dumps({"environment": environment(), "rows": rows}, indent=1) + "\n")
    print(f"written to {path.name}")


def inputs(shape: tuple[int, int, int], dtype: torch.dtype) -> tuple[Any, ...]:
    """What a site in the middle of a stack hands to its reductions."""
    batch, length, width = shape
    into = torch.randn(shape, device="cuda", dtype=dtype)
    out = into + 0.3 * torch.randn(shape, device="cuda", dtype=dtype)
    stream = TokenStream("", length, batch, 1)
    stream.allocate(torch.device("cuda"))
    tokens: Tokens = stream.resolve(Call(), Statement(), batch, length)
    shift = out[0, 1].double()
    target = torch.zeros((length, width), dtype=torch.float64, device="cuda")
    known = on_cuda.reduce_triton(NEEDS - {"step"}, into, None, tokens, shift)
    return NEEDS, out, into, tokens, shift, known, target


def measure(shape: tuple[int, int, int], dtype: torch.dtype, repeat: int) -> dict[str, Any]:
    """Milliseconds of each way, and what share of the copy's bandwidth they come to."""
    given = inputs(shape, dtype)
    batch, length, width = shape
    read = 2 * batch * length * width * dtype.itemsize  # h and y, each once
    source = torch.empty(read // 2, dtype=torch.uint8, device="cuda")
    copy = torch.empty_like(source)
    compiled = torch.compile(reduce_plain)
    ways: dict[str, Callable[[], Any]] = {
        "copy": lambda: copy.copy_(source),
        "triton": lambda: on_cuda.reduce_triton(*given),
        "plain": lambda: reduce_plain(*given),
        "compiled": lambda: compiled(*given),
    }
    row: dict[str, Any] = {"bytes": read, "tile": on_cuda.tile_for(
        *shape, on_cuda.processors_of(given[1].device))._asdict()}  # fmt: skip
    for name, way in ways.items():
        row[name] = timings(way, repeat)
        for mode in ("eager_ms", "graph_ms"):
            if row[name].get(mode):
                speed = read / (1e-3 * row[name][mode])
                row[name][mode.replace("_ms", "_gb_s")] = round(speed / 1e9, 1)
    return row


def timings(way: Callable[[], Any], repeat: int) -> dict[str, Any]:
    """Device time launched one by one and by a graph, and host time; medians in milliseconds."""
    try:
        for _ in range(3):
            way()
        torch.cuda.synchronize()
    except Exception as error:  # a compiler that fails must not take the other numbers along
        return {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
    host = []
    for _ in range(repeat):
        torch.cuda.synchronize()
        start = time.perf_counter()
        way()
        host.append(1e3 * (time.perf_counter() - start))
    found: dict[str, Any] = {
        "eager_ms": round(on_device(way, repeat), 4),
        "host_ms": round(statistics.median(host), 4),
    }
    try:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            way()
        found["graph_ms"] = round(on_device(graph.replay, repeat), 4)
    except Exception as error:
        torch.cuda.synchronize()
        found["graph_error"] = f"{type(error).__name__}: {error}".splitlines()[0]
    return found


def on_device(way: Callable[[], Any], repeat: int) -> float:
    """Median milliseconds between two events, with the caches emptied of what is read."""
    waste = torch.empty(256 << 20, dtype=torch.uint8, device="cuda")
    spent = []
    for _ in range(repeat):
        waste.zero_()
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        before.record()
        way()
        after.record()
        torch.cuda.synchronize()
        spent.append(before.elapsed_time(after))
    return statistics.median(spent)


def tune(shape: tuple[int, int, int], dtype: torch.dtype, repeat: int) -> list[dict[str, Any]]:
    """Milliseconds of other tiles, from a graph."""
    given = inputs(shape, dtype)
    chosen = on_cuda.tile_for(*shape, on_cuda.processors_of(given[1].device))
    ours, tried = on_cuda.tile_for, []
    for columns in {max(1, chosen.columns // 2), chosen.columns, 2 * chosen.columns}:
        for warps in {max(1, chosen.warps // 2), chosen.warps, 2 * chosen.warps}:
            for rows in {max(1, chosen.rows // 2), chosen.rows}:
                tile = chosen._replace(columns=columns, warps=warps, rows=rows)
                on_cuda.tile_for = lambda *_, tile=tile: tile  # type: ignore[assignment]
                try:
                    spent = timings(lambda: on_cuda.reduce_triton(*given), repeat)
                finally:
                    on_cuda.tile_for = ours
                tried.append({**tile._asdict(), **spent})
    return sorted(tried, key=lambda row: row.get("graph_ms", float("inf")))


def show(row: dict[str, Any]) -> str:
    """A few lines of the table."""
    shape = "x".join(map(str, row["shape"]))
    lines = [f"{row['model']} {shape} {row['type']}, {row['bytes'] / 2**20:.0f} MiB of h and y"]
    for name in ("copy", "triton", "plain", "compiled"):
        found = row[name]
        if "error" in found:
            lines.append(f"  {name:9s} {found['error']}")
            continue
        line = f"  {name:9s} eager {found['eager_ms']:8.3f} ms  host {found['host_ms']:7.3f} ms"
        if "graph_ms" in found:
            share = row["copy"].get("graph_ms", float("nan")) / found["graph_ms"]
            line += f"  graph {found['graph_ms']:8.3f} ms  {100 * share:5.1f} % of the copy"
        lines.append(line)
    return "\n".join(lines)


def moved(shape: tuple[int, int, int], itemsize: int, tile: on_cuda.Tile) -> dict[str, int]:
    """Bytes that the kernels move for a site and forward: see the docstring of ``on_cuda``."""
    batch, length, width = shape
    tokens, parts = batch * length, -(-batch // tile.rows)
    return {
        "states": 2 * itemsize * tokens * width,
        "positions": 16 * length * width * parts,
        "contexts": 8 * tokens * width // tile.columns,
        "tokens": 128 * tokens + 64 * tokens,
    }


def on_paper() -> None:
    """What has to move, how long that takes, and how much is launched; nothing is measured."""
    print("There is no GPU here: nothing is measured. On paper, a site and forward moves, in MiB:")
    for label, itemsize in (("GPT-2 124M", 2), ("7B block", 2), ("GPT-2 124M", 4)):
        shape = SHAPES[label]
        parts = moved(shape, itemsize, on_cuda.tile_for(*shape, 132))
        named = ", ".join(f"{name} {size / 2**20:.1f}" for name, size in parts.items())
        whole = sum(size for name, size in parts.items() if name != "contexts")
        print(f"{label} {'x'.join(map(str, shape))}, {itemsize} bytes an entry: {named}")
        for device, bandwidth in BANDWIDTHS.items():
            floor, all_of_it = parts["states"] / bandwidth, whole / bandwidth
            print(
                f"  at the {bandwidth / 1e12:.2f} TB/s of an {device}: {1e6 * floor:.1f} us for "
                f"the states alone, {1e6 * all_of_it:.1f} us with all but the contexts, which are "
                "added in its cache"
            )
    plain, small, rest = operations()
    print(
        "Launches of a site and forward, where Triton runs and (by plain torch): reductions 4, or "
        f"5 where positions are no columns ({plain:.0f}); small sums 6: counts 2, contexts 1, "
        f"directions 1, moments 2 ({small:.0f}). By plain torch either way: {rest:.0f}, its part "
        "of the stream's and of the end of a forward included."
    )


class Counting(TorchDispatchMode):
    """Counts operations that would launch a kernel: all but views and allocations."""

    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        """Count one, and run it."""
        found = function(*arguments, **(named or {}))
        views = any(r.alias_info is not None and not r.alias_info.is_write
                    for r in function._schema.returns)  # fmt: skip
        if not views and "empty" not in function.__name__:
            self.number += 1
        return found


def operations(depth: int = 4) -> tuple[float, float, float]:
    """Operations of plain torch, a site: of the reductions, of the sums with twins, of the rest."""
    from geomhooks import state
    from geomhooks.accumulators import contexts, moments, two_way, unit_vectors
    from geomhooks.forwards import routing

    counted = {"reductions": 0, "small sums": 0}

    def counting(way: Callable[..., Any], under: str) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            with Counting() as mode:
                found = way(*arguments)
            counted[under] += mode.number
            return found

        return run

    modules = (contexts, moments, state, two_way, unit_vectors)
    changes: list[tuple[Any, str, Any]] = [(m, "usable", lambda *_: False) for m in modules]
    changes.append((routing, "reduce", counting(reduce_plain, "reductions")))
    twins = ((two_way.TwoWay, "count"), (two_way.TwoWay, "follow"),
             (unit_vectors.UnitVectors, "add"), (moments.Moments, "add_each"))  # fmt: skip
    for owner, name in twins:
        way = counting(getattr(owner, name), "small sums")
        changes.append((owner, name, staticmethod(way) if name == "add_each" else way))
    held = [(owner, name, vars(owner)[name]) for owner, name, _ in changes]
    model = torch.nn.Sequential(*(torch.nn.Linear(16, 16) for _ in range(depth)))
    states: Tensor = torch.randn(4, 8, 16)
    try:
        for owner, name, value in changes:
            setattr(owner, name, value)
        watch = gh.watch(model, statistics=[gh.PosCtx(), gh.Sphere()])
        with torch.no_grad(), watch:
            model(states)
            counted |= dict.fromkeys(counted, 0)
            with Counting() as mode:
                model(states)
    finally:
        for owner, name, value in held:
            setattr(owner, name, value)
    sites = len(watch.geometry().sites)
    small = counted["small sums"]
    rest = mode.number - counted["reductions"] - small - depth
    return counted["reductions"] / sites, small / sites, rest / sites


if __name__ == "__main__":
    main()
