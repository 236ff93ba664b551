"""What geometry indicators follow while a translator learns, and how much seeds disagree.

"Why Bother with Geometry?" (Mickus & Vazquez, BlackboxNLP 2023) at a size for two cores: three
seeds of one condition and one run of another, each looked at at dozens of checkpoints, where both
decompositions of the decoder's states are streamed, of its own translations and of the references.

    python benchmarks/why_bother.py [--text verses] [--folder FOLDER]

trains, measures, and writes the statistics, a table and figures into ``results/why_bother``. What
was trained and measured is kept in a folder: a run that was stopped goes on, and
``--analyse-only`` takes it from there.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from environment import PACKAGES, environment
from parallel_texts import Parallel, parallel_text
from small_models import write
from small_translators import learn_pieces, new_translator, train
from translator_checkpoints import load_run, look
from why_bother_figures import draw_figures
from why_bother_runs import Run
from why_bother_statistics import analyse
from why_bother_table import table

RESULTS = Path(__file__).parent / "results" / "why_bother"
RUNS = ("same-1111", "same-1989", "same-20232", "other-1111")  # seeds as published
PACKAGES_USED = (*PACKAGES, "tokenizers", "sacrebleu", "scipy", "statsmodels", "dtaidistance")


def main() -> None:
    """Train, measure, analyse, and write the results down."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--text", default="", help="verses; made-up; a file of pairs; by default what is there"
    )
    parser.add_argument("--folder", type=Path, help="where runs are kept")
    parser.add_argument("--runs", nargs="+", default=list(RUNS), help="condition-seed")
    parser.add_argument("--checkpoints", type=int, default=42)
    parser.add_argument("--every", type=int, default=40, help="steps from one to the next")
    parser.add_argument("--batch", type=int, default=32, help="sentences")
    parser.add_argument("--vocabulary", type=int, default=2000, help="pieces of words")
    parser.add_argument("--tests", type=int, default=200, help="sentences that are held out")
    parser.add_argument("--seed", type=int, default=1234, help="of which are held out")
    parser.add_argument("--train-only", action="store_true", help="as a part of all runs")
    parser.add_argument("--analyse-only", action="store_true", help="of runs that are there")
    parser.add_argument("--quick", action="store_true", help="something tiny: does it run")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.text, arguments.vocabulary = arguments.text or "made-up", 300
        arguments.checkpoints, arguments.every, arguments.batch, arguments.tests = 14, 2, 8, 12
    folder = arguments.folder or Path(tempfile.gettempdir()) / "why_bother"
    if not arguments.analyse_only:
        text = parallel_text(arguments.text, arguments.tests, arguments.seed)
        print(f"text: {text.name}; runs in {folder}")
        for name in arguments.runs:
            do_run(text, name, folder / name, arguments)
    if arguments.train_only:
        return
    told = json.loads((folder / arguments.runs[0] / "run.json").read_text())
    runs = [Run(name, name.rpartition("-")[0], load_run(folder / name)) for name in arguments.runs]
    start = time.perf_counter()
    result = {
        **{name: value for name, value in told.items() if name not in ("condition", "seconds")},
        "seconds": {
            name: json.loads((folder / name / "run.json").read_text())["seconds"]
            for name in arguments.runs
        },
        **analyse(runs),
        "environment": environment(PACKAGES_USED),
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    write(arguments.out / "statistics.json", result)
    (arguments.out / "tables.md").write_text(table(result))
    draw_figures(runs, result, arguments.out)
    print(table(result))
    print(f"analysed in {time.perf_counter() - start:.0f} s; written to {arguments.out}")


def do_run(text: Parallel, name: str, folder: Path, arguments: argparse.Namespace) -> None:
    """Train and measure one run, or what is left of it."""
    condition, _, seed = name.rpartition("-")
    if condition not in text.conditions or not seed.isdigit():
        raise SystemExit(f"{name}: {' or '.join(text.conditions)}, a dash and a seed are needed")
    folder.mkdir(parents=True, exist_ok=True)
    pairs = text.train[condition]
    # Of all texts, so that all runs have the same tokens.
    said = {side for one in text.train.values() for pair in one for side in pair}
    pieces = learn_pieces(sorted(said), arguments.vocabulary)
    translator = new_translator(pieces, int(seed))
    at = [arguments.every * (n + 1) for n in range(arguments.checkpoints)]
    settings = {
        "text": text.name,
        "conditions": text.conditions,
        "condition": condition,
        "pairs": {one: len(found) for one, found in text.train.items()},
        "tests": len(text.test),
        "vocabulary": pieces.get_vocab_size(),
        "batch": arguments.batch,
        "every": arguments.every,
        "checkpoints": arguments.checkpoints,
        "parameters": sum(p.numel() for p in translator.model.parameters() if p.requires_grad),
    }
    kept = folder / "run.json"
    before: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}
    if before and {n: v for n, v in before.items() if n != "seconds"} != settings:
        raise SystemExit(f"{folder} has a run of other settings; remove it, or give --folder")
    begun, gone = time.process_time(), before.get("seconds", 0.0)
    kept.write_text(json.dumps(settings | {"seconds": gone}))

    def checkpoint(step: int) -> None:
        path = folder / f"checkpoint-{step:06d}.npz"
        print(f"{name} {look(translator, text.test, step, path)}", flush=True)
        spent = round(gone + time.process_time() - begun, 1)
        kept.write_text(json.dumps(settings | {"seconds": spent}))

    train(
        translator, pairs, seed=int(seed), size=arguments.batch, at=at, look=checkpoint,
        folder=folder,
    )  # fmt: skip


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
