"""All tables of R. Molina's "Traveling Words" (arXiv 2309.07315), for any model with words.

From weights alone: how far embeddings are from the sphere, the words that the final norm favours,
what each norm's weights say, what single heads do to common nouns, and the words and the fall of
the singular values of heads. See README.md beside this file.

    python benchmarks/traveling_words.py [--models minilm smollm2] [--blocks 0 14 29] [--quick]

writes, of each model, numbers as JSON and lists of words as Markdown into
``benchmarks/results/traveling_words`` (or ``--out``) and prints a summary.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from environment import environment
from pretrained import CARRIED, pretrained_with_head
from small_models import Stopwatch, write
from torch import nn
from word_lists import page
from word_probes import (
    NOUNS,
    VARIANTS,
    Settings,
    attention_error,
    chosen_blocks,
    distances,
    norms,
    noun_tokens,
    probes,
    spectra,
)

from geomhooks.anatomy import find_anatomy, ranked_words

RESULTS = Path(__file__).parent / "results" / "traveling_words"
SENTENCE = "To kill two birds with one stone"  # of the published trajectory
SHOWN = 12  # nouns of a page


def main() -> None:
    """Measure, print, and write the results down."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--models",
        nargs="+",
        default=["minilm", "smollm2"],
        help=f"{', '.join(CARRIED)}; hub name or folder",
    )
    parser.add_argument("--blocks", type=int, nargs="+", help="first, middle and last by default")
    parser.add_argument("--nouns", type=Path, default=NOUNS, help="a file of words")
    parser.add_argument(
        "--form",
        choices=["most", "plain", "spaced"],
        default="most",
        help="of nouns: without a space before them, with one, or as more of them are one token",
    )
    parser.add_argument("--nearest", type=int, default=5, help="words of a list")
    parser.add_argument(
        "--distance", type=int, default=0, help="of key and query, where it matters"
    )
    parser.add_argument("--metric", choices=["dot", "cosine"], default="dot")
    parser.add_argument("--figures", type=Path, help="a folder for pictures (needs matplotlib)")
    parser.add_argument("--quick", action="store_true", help="a tiny model: does it run")
    parser.add_argument("--out", type=Path, default=RESULTS, help="a folder")
    arguments = parser.parse_args()
    how = Settings(arguments.nearest, 20, arguments.distance, arguments.metric)
    nouns = arguments.nouns.read_text().split()
    if arguments.quick:
        arguments.models, nouns = ["tiny"], list("aeiou")
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in arguments.models:
        model, tokenizer = load(name)
        title = name if name in CARRIED else Path(name).name
        known = noun_tokens(nouns, tokenizer, arguments.form)
        run, text = tables(model, tokenizer, known, arguments.blocks, how, title)
        told = {"model": title, "nouns": {"asked": len(nouns), "known": known}, **how._asdict()}
        run = {"environment": environment(), **told, **run}
        print("\n".join(summary(run)), flush=True)
        write(arguments.out / f"{title}.json", run)
        (arguments.out / f"{title}.md").write_text(text)
        if arguments.figures is not None:
            draw_figures(run, arguments.figures, title)
    print(f"written to {arguments.out}")


def load(name: str) -> tuple[nn.Module, Any]:
    """A model with its head, and its tokenizer."""
    if name == "tiny":
        from subjects import tiny

        model, tokenizer = tiny()
    else:
        model, tokenizer = pretrained_with_head(name)
    return model.eval(), tokenizer


@torch.no_grad()
def tables(
    model: Any,
    tokenizer: Any,
    nouns: list[str],
    blocks: list[int] | None,
    how: Settings,
    title: str,
) -> tuple[dict[str, Any], str]:
    """Everything of one model: numbers for the file, and the page of its words."""
    clock = Stopwatch()
    anatomy = find_anatomy(model)
    number = len(anatomy.stack().blocks)
    chosen = chosen_blocks(number) if blocks is None else blocks
    ranked = ranked_words(anatomy, tokenizer, k=how.nearest)
    found = [probes(anatomy, tokenizer, nouns, layer, how) for layer in chosen]
    ids = torch.tensor([tokenizer(SENTENCE, add_special_tokens=False).input_ids])
    hidden = model(input_ids=ids, output_hidden_states=True).hidden_states
    run = {
        "blocks": number,
        "distances": distances(anatomy),
        "norms": norms(anatomy),
        "spectra": spectra(anatomy),
        "probes": [
            row | {"attention_error": attention_error(anatomy, layer, hidden[layer])}
            for layer, (row, _) in zip(chosen, found, strict=True)
        ],
        "seconds": clock.seconds,
    }
    about = (
        f"Blocks {', '.join(map(str, chosen))} of {number}; nearest by {how.metric}. "
        f"{min(SHOWN, len(nouns))} of {len(nouns)} nouns are shown. ␣ is a space; the number "
        "behind a noun is the length of the update."
    )
    return run, page(f"Words of {title}", about, ranked, [lists for _, lists in found], SHOWN)


def draw_figures(run: dict[str, Any], folder: Path, title: str) -> None:
    """Pictures of a run."""
    from word_figures import coverage_figure, save

    folder.mkdir(parents=True, exist_ok=True)
    save(coverage_figure(run), folder / f"{title}-coverage.png")


def summary(run: dict[str, Any]) -> list[str]:
    """Lines to read: the table of distances, and the means over the heads of each chosen block."""
    found = run["distances"]
    lines = [
        f"\n{run['model']}: {run['blocks']} blocks, {found['words']} words of mean length "
        f"{found['mean_norm']}; {run['seconds']} s",
        f"{'to the sphere':20s}{'l2':>10s}{'(std)':>10s}{'1 - cos':>10s}{'(std)':>10s}",
    ]
    lines += [
        f"{variant:20s}" + "".join(f"{v:10.4f}" for v in found[variant].values())
        for variant in VARIANTS
    ]
    lines.append("")
    for row in run["probes"]:
        error = row["attention_error"]
        lines.append(f"{row['block']}: virtual matrices are off by {error}")
        for kind in ("keys", "values", "updates"):
            for count, values in row.get(kind, {}).items():
                if count != "lengths":
                    lines.append(
                        f"  {f'{kind}, {count}':24s}" + "".join(f"{v:8.3f}" for v in values)
                    )
    for row in run["spectra"]:
        if "missing" not in row and row["block"] in [probe["block"] for probe in run["probes"]]:
            for count in ("coverage_index", "effective_rank"):
                title = f"{row['block']} {row['of']}, {count}"
                lines.append(f"{title:50s}" + "".join(f"{v:7.1f}" for v in row[count]))
    return lines


if __name__ == "__main__":
    main()
