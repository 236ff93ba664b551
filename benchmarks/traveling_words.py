"""All tables of R. Molina's "Traveling Words" (arXiv 2309.07315), for any model with words.

From weights alone: how far embeddings are from the sphere, the words that the final norm favours,
what each norm's weights say, what single heads do to common nouns, and the words and the fall of
the singular values of heads. From running the model: the path of the published sentence, how far
each layer is for the next word over a text, and what attention and feed-forward layers add. See
README.md beside this file.

    python benchmarks/traveling_words.py [--models minilm smollm2] [--figures FOLDER] [--quick]

writes, of each model, numbers as JSON and lists of words as Markdown into
``benchmarks/results/traveling_words`` (or ``--out``) and prints a summary.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from corpora import draw
from environment import environment
from pretrained import CARRIED, pretrained_with_head
from small_models import Stopwatch, write
from torch import nn
from word_lists import page
from word_paths import SENTENCE, Journey, drawings, follow, measure_text, section
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
    parser.add_argument("--shown", type=int, default=10, help="nouns of a page")
    parser.add_argument("--nearest", type=int, default=5, help="words of a list")
    parser.add_argument(
        "--distance", type=int, default=0, help="of key and query, where it matters"
    )
    parser.add_argument("--metric", choices=["dot", "cosine"], default="dot")
    parser.add_argument("--text", default="documentation", help="as song_zhong.py takes it")
    parser.add_argument("--contexts", type=int, default=64)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--seed", type=int, default=1234)
    parser.add_argument("--figures", type=Path, help="a folder for pictures (needs matplotlib)")
    parser.add_argument("--no-umap", action="store_true", help="without the picture by UMAP")
    parser.add_argument("--quick", action="store_true", help="a tiny model: does it run")
    parser.add_argument("--out", type=Path, default=RESULTS, help="a folder")
    arguments = parser.parse_args()
    how = Settings(arguments.nearest, 20, arguments.distance, arguments.metric)
    nouns = arguments.nouns.read_text().split()
    if arguments.quick:
        arguments.models, nouns = ["tiny"], list("aeiou")
        arguments.contexts, arguments.length = 16, 32
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in arguments.models:
        model, tokenizer = load(name)
        title = name if name in CARRIED else Path(name).name
        known = noun_tokens(nouns, tokenizer, arguments.form)
        blocks, shown = arguments.blocks, arguments.shown
        run, text = tables(model, tokenizer, known, blocks, how, shown, title)
        told = {"model": title, "nouns": {"asked": len(nouns), "known": known}, **how._asdict()}
        run = {"environment": environment(), **told, **run}
        run["sentence"], journey = follow(model, tokenizer, find_anatomy(model), how.nearest)
        text += "\n" + section(journey, run["sentence"])
        given = arguments.contexts, arguments.length, arguments.seed
        ids = draw(arguments.text, tokenizer, *given).ids
        run["text"] = {"text": Path(arguments.text).name, **measure_text(model, ids)}
        print("\n".join(summary(run)), flush=True)
        write(arguments.out / f"{title}.json", run)
        (arguments.out / f"{title}.md").write_text(text)
        if arguments.figures is not None:
            draw_figures(run, journey, arguments.figures, umap=not arguments.no_umap)
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
    shown: int,
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
        f"{min(shown, len(nouns))} of {len(nouns)} nouns are shown. ␣ is a space; the number "
        "behind a noun is the length of the update."
    )
    return run, page(f"Words of {title}", about, ranked, [lists for _, lists in found], shown)


def draw_figures(run: dict[str, Any], journey: Journey, folder: Path, umap: bool) -> None:
    """Pictures of a run."""
    from word_figures import coverage_figure, path_figure, pull_figure, save, updates_figure

    folder.mkdir(parents=True, exist_ok=True)
    figures = {"coverage": coverage_figure(run), "pull": pull_figure(run)}
    figures["updates"] = updates_figure(run)
    figures |= {f"path-{drawn.name}": path_figure(drawn) for drawn in drawings(journey, umap)}
    for name, figure in figures.items():
        save(figure, folder / f"{run['model']}-{name}.png")


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
    return [*lines, *on_the_way(run)]


def on_the_way(run: dict[str, Any]) -> list[str]:
    """Lines on the sentence and the text: a line a layer."""
    sentence, text = run["sentence"], run["text"]
    lines = [
        "",
        f"{sentence['followed']!r} in {sentence['text']!r} on its way to {sentence['next']!r}; "
        f"over {text['contexts']} contexts of {text['length']} tokens; what is added there",
    ]
    columns = ("own_cosine", "next_cosine", "words_before_the_next")
    header = [*(name.replace("_", " ") for name in columns), "pull", "next cosine"]
    added = {(row["site"], row["sublayer"]): row for row in text["updates"]}
    kinds = list(dict.fromkeys(row["sublayer"] for row in text["updates"]))
    header += [f"{kind}, {part}" for kind in kinds for part in ("radial", "tangential")]
    lines.append(f"{'':28s}" + "".join(f"{name[-21:]:>22s}" for name in header))
    for at, row in enumerate(text["next_word"]):
        values = [*(sentence[name][at] for name in columns), row["pull"], row["next_cosine"]]
        for kind in kinds:
            found = added.get((row["site"], kind), {})
            values += [found.get(part, "") for part in ("radial", "tangential")]
        lines.append(f"{row['site']:28s}" + "".join(f"{value:>22}" for value in values))
    return lines


if __name__ == "__main__":
    main()
