"""The commands: what they take, and what they print."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

import geomhooks as gh
from geomhooks import measuring
from geomhooks.cli.compare_command import compare_files
from geomhooks.cli.demo_command import demos
from geomhooks.cli.factors_command import show_factors
from geomhooks.cli.failures import EXIT_CODES, guarded
from geomhooks.cli.options import STATISTICS, NoReportOption, ReportOption, names_in
from geomhooks.cli.pages import choose_page, write_beside
from geomhooks.cli.reading import load_reader, print_geometry, read_texts, write_page_of
from geomhooks.cli.report_command import report_file
from geomhooks.cli.table import print_table
from geomhooks.statistics.digests import digest_of
from geomhooks.storage.dictionaries import FactorDictionary, load_dictionary

__all__ = ["app", "run"]

ENDINGS = "Exit codes: " + "; ".join(f"{code} {what}" for what, (code, _) in EXIT_CODES.items())

app = typer.Typer(
    name="geomhooks",
    help="Measure the geometry of a network's hidden states while it runs.",
    epilog=ENDINGS + "; 1 anything else; 130 interrupted.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def run(arguments: Sequence[str]) -> int:
    """Run the command line; returns the exit code."""
    given = _spread(arguments, "--text")
    return guarded(lambda: app(given, standalone_mode=False), given)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"geomhooks {gh.__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Measure the geometry of a network's hidden states while it runs."""


@app.command()
def measure(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Hub name or local folder.")],
    text: Annotated[
        list[Path],
        typer.Option(
            metavar="FILE...",
            help="Text files, UTF-8; .jsonl and .ndjson are read as JSON lines.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="Geometry file to write.")] = Path(
        "geometry.safetensors"
    ),
    sites: Annotated[
        str,
        typer.Option(
            help="blocks, attention, mlp, norms, embeddings; or names with *, @in. Commas between."
        ),
    ] = "blocks",
    statistics: Annotated[str, typer.Option(help="Names, commas between.")] = STATISTICS,
    batch_size: Annotated[int, typer.Option(min=1, help="Contexts in a batch.")] = 8,
    max_length: Annotated[
        int | None,
        typer.Option(
            min=1, help="Most tokens of a context; longer documents are cut. [default: at most 512]"
        ),
    ] = None,
    contexts: Annotated[int, typer.Option(min=1, help="Contexts to keep, sampled.")] = 4096,
    dictionary: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Dictionary of the statistic factors.")
    ] = None,
    documents: Annotated[
        Literal["paragraphs", "lines", "files"],
        typer.Option(help="What a document is in a text file: blank lines between, a line, all."),
    ] = "paragraphs",
    field: Annotated[str, typer.Option(help="Field of a JSON line that holds its text.")] = "text",
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps; auto picks.")] = "auto",
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        typer.Option(help="Of the model; auto is that of its checkpoint."),
    ] = "auto",
    gguf_file: Annotated[
        str | None, typer.Option(help="GGUF file of the model to read the weights from.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where an interrupted run stopped.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the output of an earlier run.")
    ] = False,
    checkpoint_every: Annotated[
        float, typer.Option(min=0, help="Seconds between checkpoints, kept beside the output.")
    ] = 60.0,
    report: ReportOption = None,
    no_report: NoReportOption = False,
    no_labels: Annotated[
        bool,
        typer.Option(
            "--no-labels", help="Keep no texts: neither file nor page says how contexts begin."
        ),
    ] = False,
) -> None:
    """Measure MODEL while it reads text files of any size, as a stream; write a page of figures.

    Interrupted with Ctrl-C, or killed, it goes on with --resume from its last checkpoint and ends
    with the same numbers. Each piece of a document that is longer than --max-length is a context
    of its own.

    Started by torchrun (torchrun --nproc-per-node 4 -m geomhooks measure ...), the processes share
    out the documents, keep a checkpoint each, and write one file.
    """
    ranks = measuring.Ranks.started()
    readers: list[measuring.Reader] = []
    pages: list[Path | None] = []

    def prepare() -> measuring.Run | gh.Geometry:
        """The run that is to be done, or the geometry that is there already."""
        measuring.check_writable(out)
        pages.append(choose_page(out, report, none=no_report))
        checkpoint = measuring.checkpoint_of(out, ranks)
        _check_earlier_runs(out, ranks, resume=resume, overwrite=overwrite)
        factors = None if dictionary is None else load_dictionary(dictionary)
        _check_names(statistics, sites, [path.name for path in text], factors)
        sources = [measuring.TextFile.open(path, documents, field) for path in text]
        reader = load_reader(
            model,
            quiet=ranks.rank > 0,
            gguf_file=gguf_file,
            length=max_length,
            device=ranks.device(device),
            dtype=dtype,
        )
        readers.append(reader)
        settings = measuring.Settings(
            model=model,
            text=tuple((source.name, source.digest) for source in sources),
            statistics=names_in(statistics),
            sites=names_in(sites),
            batch_size=batch_size,
            max_length=reader.length,
            contexts=contexts,
            dtype=dtype,
            gguf_file=gguf_file,
            dictionary=_named(dictionary, factors),
        )
        if resume and ranks.rank == 0 and out.exists() and not checkpoint.exists():
            geometry = gh.load(out)
            measuring.check_same(out, geometry.notes, settings)
            return geometry
        run = measuring.Run(
            reader,
            sources,
            settings,
            checkpoint,
            checkpoint_every,
            ranks,
            _coder(factors),
            labels=not no_labels,
        )
        if resume:
            run.resume()
        elif overwrite:
            measuring.remove_checkpoints(out, ranks)
        if ranks.rank == 0:
            measuring.remove_unfinished(out)
        return run

    with ranks.joined():
        whole = ranks.together(prepare)
        finished = ranks.gather(isinstance(whole, gh.Geometry))[0]
        if isinstance(whole, gh.Geometry):
            Console(stderr=True).print(f"{out} is finished already", highlight=False)
            print_geometry(whole, readers[0])
            write_beside(whole, pages[0], words=readers[0].word)
        elif not finished:
            tokens = sum(ranks.gather(whole.progress.tokens))
            if tokens and ranks.rank == 0:
                typer.echo(f"going on after {tokens:,} tokens", err=True)
            geometry = read_texts(whole, out)
            if ranks.rank == 0:
                write_page_of(whole, geometry, pages[0])


@app.command()
def merge(
    files: Annotated[
        list[Path],
        typer.Argument(metavar="FILE...", help="Geometry files of one model, two or more."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Geometry file to write.")],
    overwrite: Annotated[bool, typer.Option(help="Replace FILE if it is there.")] = False,
) -> None:
    """Merge geometry files of one model, over different texts, into one."""
    if len(files) < 2:
        raise typer.BadParameter(f"two or more files are needed to merge; found {len(files)}")
    if out.exists() and not overwrite:
        raise measuring.OutputError(f"{out} is there already; --overwrite replaces it")
    measuring.check_writable(out)
    geometries = [gh.load(file) for file in files]
    geometry = gh.merge(geometries)
    parts = [{"file": f.name, "notes": g.notes} for f, g in zip(files, geometries, strict=True)]
    measuring.save(geometry, out, {"merged": parts})
    print_table(geometry)
    typer.echo(f"wrote {out}")


app.add_typer(demos, name="demo")
app.command("compare")(compare_files)
app.command("factors")(show_factors)
app.command("report")(report_file)


def _check_earlier_runs(
    out: Path, ranks: measuring.Ranks, *, resume: bool, overwrite: bool
) -> None:
    """Raise where an earlier run's files are in the way."""
    found = measuring.checkpoints_beside(out)
    if resume:
        usual = range(ranks.number)
        own = {measuring.checkpoint_of(out, replace(ranks, rank=rank)) for rank in usual}
        foreign = [path for path in found if path not in own]
        if foreign:
            raise measuring.ResumeError(
                f"{foreign[0]} is of a run on another number of processes than {ranks.number}: "
                "start as many as then, or start anew with --overwrite"
            )
    elif overwrite:
        return
    elif found:
        raise measuring.OutputError(
            f"{found[0]} holds an interrupted run: go on with --resume, or start anew with "
            "--overwrite"
        )
    elif out.exists():
        raise measuring.OutputError(
            f"{out} exists: name another --out, or replace it with --overwrite"
        )


def _check_names(
    statistics: str, sites: str, texts: list[str], factors: FactorDictionary | None
) -> None:
    for option, names in {"--statistics": statistics, "--sites": sites}.items():
        if not names_in(names):
            raise typer.BadParameter(f"{option} is empty; name one or more, commas between")
    try:
        measuring.statistics_named(names_in(statistics), texts, encoder=_coder(factors))
    except ValueError as error:
        raise typer.BadParameter(f"--statistics: {error}") from error
    if factors is not None and gh.Factors.name not in names_in(statistics):
        raise typer.BadParameter(
            f"--dictionary is for --statistics {gh.Factors.name}; found --statistics {statistics}"
        )


def _coder(factors: FactorDictionary | None) -> gh.functional.SparseCoder | None:
    return None if factors is None else factors.coder()


def _named(path: Path | None, factors: FactorDictionary | None) -> tuple[str, str] | None:
    """What tells two dictionaries apart."""
    if path is None or factors is None:
        return None
    return path.name, digest_of(factors.coder())


def _spread(arguments: Sequence[str], option: str) -> list[str]:
    """Repeat an option before each of the values that follow it, as shells expand ``*.txt``.

    Example:
        >>> _spread(["--text", "a", "b", "--out", "c"], "--text")
        ['--text', 'a', '--text', 'b', '--out', 'c']
    """
    spread: list[str] = []
    inside = False
    for argument in arguments:
        if argument == option:
            inside = True
        elif argument.startswith("-"):
            inside = False
            spread.append(argument)
        else:
            spread += [option, argument] if inside else [argument]
    return spread
