"""The commands ``geomhooks demo`` and ``geomhooks demo train``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from geomhooks import measuring
from geomhooks.cli import demo as demonstration
from geomhooks.cli import training
from geomhooks.cli.options import STATISTICS, NoReportOption, ReportOption
from geomhooks.cli.pages import choose_page, write_beside
from geomhooks.cli.progress import Interrupted, Interrupts, steps_bar
from geomhooks.cli.reading import load_reader, quieten_libraries, read_texts, write_page_of
from geomhooks.cli.table import print_table

__all__ = ["demos"]

demos = typer.Typer(rich_markup_mode=None)


@demos.callback(invoke_without_command=True)
def demo(
    context: typer.Context,
    out: Annotated[Path, typer.Option(help="Geometry file to write.")] = Path(
        "geomhooks-demo.safetensors"
    ),
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps; auto picks.")] = "auto",
    report: ReportOption = None,
    no_report: NoReportOption = False,
) -> None:
    """Measure a small real model (MiniLM) on Python's own documentation, in a minute or two.

    With "train": watch the geometry of another model while it is trained on the same texts.
    """
    if context.invoked_subcommand is not None:
        return
    measuring.check_writable(out)
    page = choose_page(out, report, none=no_report)
    folder = demonstration.minilm()
    text = demonstration.documentation()
    reader = load_reader(str(folder), length=128, device=device)
    settings = measuring.Settings(
        model="all-MiniLM-L6-v2",
        text=((text.name, text.digest),),
        statistics=tuple(STATISTICS.split(",")),
        sites=("blocks",),
        batch_size=16,
        max_length=reader.length,
        contexts=4096,
        dtype="auto",
    )
    run = measuring.Run(reader, [text], settings)
    geometry = read_texts(run, out)
    typer.echo(
        "Shares of the variance of the hidden states: pos belongs to the position, ctx\n"
        "to the text, resid to neither. Noise is what a sample of this size adds to a\n"
        "share by chance. Radius is the length after removing the mean entry; the step\n"
        "angle lies between the input and the output of a block; anisotropy is the mean\n"
        "cosine between two hidden states.\n"
        "\nNext, your own model and text:\n"
        "  geomhooks measure MODEL --text FILE\n"
        "or this geometry in Python:\n"
        f'  import geomhooks as gh; geometry = gh.load("{out}")\n'
        f'  geometry["{geometry.sites[-1]}"].pos_ctx.pos   # (T, d)\n'
    )
    write_page_of(run, geometry, page)


@demos.command()
def train(
    out: Annotated[Path, typer.Option(help="History file to write.")] = Path(
        "geomhooks-demo-train.safetensors"
    ),
    steps: Annotated[int, typer.Option(min=1, help="Steps of training.")] = training.STEPS,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps.")] = "cpu",
    report: ReportOption = None,
    no_report: NoReportOption = False,
) -> None:
    """Train a small language model on Python's documentation; see its geometry move."""
    measuring.check_writable(out)
    page = choose_page(out, report, none=no_report)
    quieten_libraries()
    with Interrupts() as interrupts, steps_bar(steps) as progress:
        history = training.train(steps, device, progress, stop=lambda: bool(interrupts.signal))
    try:
        history.save(out)
    except OSError as error:
        raise measuring.OutputError(f"cannot write {out}: {error.strerror or error}") from error
    for shown in training.tables(history):
        print_table(shown)
    if interrupts.signal:
        raise Interrupted(f"stopped early; wrote {out}", interrupts.signal)
    last = history[history.steps[-1]].sites[-1]
    typer.echo(
        "A GPT-2 of random weights learns to predict bytes; at each step the same held-out text\n"
        "is measured. pos is the part of the hidden states that belongs to the position, ctx to\n"
        "the text; the stable rank of pos says in how many directions positions differ; the step\n"
        "angle lies between the input and the output of a block.\n"
        f"\nwrote {out} ({out.stat().st_size / 1e6:.1f} MB); in Python:\n"
        f'  import geomhooks as gh; history = gh.History.load("{out}")\n'
        f'  steps, values = history.curve("{last}/pos_ctx/shares/pos")\n'
        f'  history[{history.steps[-1]}]["{last}"].pos_ctx.pos   # (T, d)\n'
        "examples/train_gpt2.py is the loop to copy.\n"
    )
    write_beside(history, page)
