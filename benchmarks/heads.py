"""What position does in attention's heads: logits by part, weights in the basis of pos, theorems.

What Song & Zhong (arXiv 2310.04861) look at in single heads, for every head of a pretrained model.
One pass over windows of text gives pos of every layer, a second one the shares of mean, pos, ctx,
resid and biases in the variance of the logits. Beside them: how each head's weights stand in the
basis of pos; how near the Gram matrix of pos is to low frequencies, and what its smoothness
guarantees; and how far the kernel of a prompt is from a product of one for each pair of parts.

    python benchmarks/heads.py [--models minilm smollm2] [--contexts 48] [--length 128] [--quick]

writes ``benchmarks/results/heads.json`` (or ``--out``) and prints tables.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from corpora import draw
from environment import environment
from pretrained import CARRIED, pretrained
from small_models import Stopwatch, rounded, write
from torch import Tensor, nn

import geomhooks as gh
from geomhooks.anatomy import Attention, find_anatomy, freeze
from geomhooks.functional import (
    QUERY_KEY_PARTS,
    kernel_factorisation,
    low_frequency_bound,
    pos_basis,
    query_key_weight,
    split_states,
    weight_alignment,
)

RESULTS = Path(__file__).parent / "results" / "heads.json"
BATCH = 8
LEADING = 20  # directions of pos, and of a span
FREQUENCIES, ORDER = 10, 1
POS, CONTENT = [QUERY_KEY_PARTS.index("pos")], [QUERY_KEY_PARTS.index(n) for n in ("ctx", "resid")]


def main() -> None:
    """Measure, print, and write the results down."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--models", nargs="+", default=["minilm", "smollm2"], help=f"{CARRIED}")
    parser.add_argument("--text", default="documentation", help="as song_zhong.py takes it")
    parser.add_argument("--contexts", type=int, default=48)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--seed", type=int, default=1234)
    parser.add_argument("--quick", action="store_true", help="a tiny model: does it run")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.models, arguments.contexts, arguments.length = ["tiny"], 16, 32
    runs = []
    for name in arguments.models:
        model, tokenizer = load(name)
        given = arguments.contexts, arguments.length, arguments.seed
        ids = draw(arguments.text, tokenizer, *given).ids
        clock = Stopwatch()
        layers = measure(model, ids)
        text = Path(arguments.text).name
        run = {"model": name, "text": text, "contexts": len(ids), "length": arguments.length}
        runs.append({**run, "seconds": clock.seconds, "layers": layers})
        print("\n".join(table(runs[-1])), flush=True)
    settings = {"leading": LEADING, "frequencies": FREQUENCIES, "order": ORDER}
    write(arguments.out, {"environment": environment(), **settings, "runs": runs})
    print(f"written to {arguments.out}")


def load(name: str) -> tuple[nn.Module, Any]:
    """A model without its head, and its tokenizer."""
    if name == "tiny":
        from subjects import tiny

        model, tokenizer = tiny()
        return model.base_model.eval(), tokenizer
    model, tokenizer = pretrained(name)
    return model.eval(), tokenizer


@torch.no_grad()
def measure(model: Any, ids: Tensor) -> list[dict[str, Any]]:
    """Everything of every layer."""
    told = {"use_cache": False} if getattr(model.config, "use_cache", False) else {}

    def run(statistic: gh.Statistic) -> gh.Geometry:
        with gh.watch(model, statistics=[statistic], positions=ids.shape[1]) as watch:
            for batch in ids.split(BATCH):
                model(input_ids=batch, **told)
        return watch.geometry()

    geometry = run(gh.PosCtx(contexts=len(ids)))
    logits = run(gh.Attention(geometry))
    with torch.no_grad():
        states = model(input_ids=ids[:1], output_hidden_states=True, **told).hidden_states
    return [
        {
            "block": attention.block,
            **of_logits(logits[attention.block].attention.shares),
            **of_weights(attention, geometry[attention.site].pos_ctx.pos),
            **of_theorems(attention, geometry[attention.site].pos_ctx, states[layer][0]),
        }
        for layer, attention in enumerate(find_anatomy(model).attention)
    ]


def of_logits(shares: Tensor) -> dict[str, Any]:
    """Shares (H, 5, 5) of the variance of the logits, by head and on average."""

    def of(query: list[int], key: list[int]) -> list[Any]:
        return [rounded(float(x)) for x in shares[:, query][:, :, key].sum((1, 2))]

    return {
        "shares": [[rounded(float(x)) for x in row] for row in shares.mean(0)],
        "pos_pos": of(POS, POS),
        "pos_content": of(POS, CONTENT),
        "content_pos": of(CONTENT, POS),
        "content_content": of(CONTENT, CONTENT),
    }


def of_weights(attention: Attention, pos: Tensor) -> dict[str, Any]:
    """Each head's query-key weights in the basis of pos."""
    basis, group = pos_basis(pos), attention.heads // attention.key_heads
    found = []
    for head in range(attention.heads):
        weights = attention.query.weight[head], attention.key.weight[head // group]
        weight = query_key_weight(*weights, scale=1.0).double() * attention.scale
        found.append(weight_alignment(weight, basis, LEADING))
    names = ("max", "min", "std", "diagonal_share", "sparse_share", "leading_share")
    numbers = {n: [rounded(float(getattr(head, n))) for head in found] for n in names}
    chance = (min(LEADING, len(pos)) / pos.shape[1]) ** 2
    return {**numbers, "leading_share_expected": rounded(chance), "pos_rank": basis.rank}


def of_theorems(attention: Attention, fit: Any, hidden: Tensor) -> dict[str, Any]:
    """The bound of low frequencies, and the error of kernels that factorise, of each head."""
    smooth = low_frequency_bound(fit.pos, FREQUENCIES, ORDER)
    parts = split_states(hidden.double(), fit.mean, fit.pos[: len(hidden)])
    norm = freeze(attention, parts.sum(0))
    seen = parts if norm is None else norm.linear(parts)
    pos, content = seen[1], seen[2] + seen[3]
    spans = tuple(torch.linalg.svd(part).Vh[:LEADING].T for part in (pos, content))
    group, errors = attention.heads // attention.key_heads, []
    for head in range(attention.heads):
        weights = attention.query.weight[head], attention.key.weight[head // group]
        weight = query_key_weight(*weights, scale=1.0).double() * attention.scale
        found = kernel_factorisation((pos, content), (pos, content), weight, spans)
        errors.append(rounded(float(found.relative_error)))
    return {
        "low_frequency_error": rounded(float(smooth.error)),
        "low_frequency_bound": rounded(float(smooth.bound)),
        "kernel_error": errors,
    }


def table(run: dict[str, Any]) -> list[str]:
    """A line a layer: means over its heads."""
    names = ("pos_pos", "pos_content", "content_pos", "content_content")
    names += ("leading_share", "sparse_share", "diagonal_share", "kernel_error")
    single = ("leading_share_expected", "low_frequency_error", "low_frequency_bound")
    lines = [
        f"\n{run['model']}, {run['text']}: {run['contexts']} contexts of {run['length']} tokens; "
        f"{run['seconds']} s; means over heads",
        f"{'':24s}" + "".join(f"{name:>16s}" for name in (*names, *(s[:15] for s in single))),
    ]
    for layer in run["layers"]:
        values = [sum(layer[n]) / len(layer[n]) for n in names] + [layer[n] for n in single]
        lines.append(f"{layer['block']:24s}" + "".join(f"{value:16.4f}" for value in values))
    return lines


if __name__ == "__main__":
    main()
