"""The command ``geomhooks compare``: what it takes, and what it prints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

import geomhooks as gh
from geomhooks import measuring
from geomhooks.cli.comparison_tables import tables, without_nan
from geomhooks.cli.options import names_in
from geomhooks.cli.pages import write_if_possible
from geomhooks.cli.table import print_table, printable
from geomhooks.comparing import Options, compare_geometries, compare_histories
from geomhooks.storage.files import kind_of

__all__ = ["compare_files"]


def compare_files(
    files: Annotated[
        list[Path],
        typer.Argument(metavar="FILE...", help="Geometry files, or history files; two or more."),
    ],
    groups: Annotated[
        str,
        typer.Option(
            help="Condition of each file, commas between, as a,a,b,b: tests whether files of one "
            "condition are closer."
        ),
    ] = "",
    scalars: Annotated[
        str | None,
        typer.Option(
            help="Globs over names of scalars, commas between. [default: the main ones of each "
            "statistic that the files have]"
        ),
    ] = None,
    sites: Annotated[
        str, typer.Option(help="Globs over names of sites of geometries, commas between.")
    ] = "*",
    dimensions: Annotated[
        int, typer.Option(min=1, help="Of the leading spaces of pos that are compared.")
    ] = 4,
    contexts: Annotated[
        int, typer.Option(min=8, help="Most contexts whose ctx is compared, of those in common.")
    ] = 256,
    permutations: Annotated[
        int, typer.Option(min=0, help="For each p-value of pos and ctx; 0 spares their time.")
    ] = 99,
    level: Annotated[float, typer.Option(help="Of the confidence intervals.")] = 0.95,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="HTML page of figures to write. [default: comparison.html, with --json none]",
        ),
    ] = None,
    no_page: Annotated[bool, typer.Option("--no-page", help="Write no page.")] = False,
    quality: Annotated[
        str,
        typer.Option(
            help="Of histories: a scalar, or notes by step such as losses, whose change to compare "
            "with that of the scalars."
        ),
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print all numbers as JSON.")] = False,
) -> None:
    """Compare geometries, or histories, of several runs.

    Of geometries, at every site: differences of scalars with standard errors where there are (as if
    tokens were independent); how alike ctx lies for the contexts that both have (CKA, Procrustes);
    and how far the leading spaces of pos are the same, over positions, and over directions, which
    say something only where both have one basis, as two checkpoints of a run have. Of histories,
    over the steps that all have: dynamic time warping and Spearman's correlation of each scalar.
    """
    if len(files) < 2:
        raise typer.BadParameter(f"two or more files are needed to compare; found {len(files)}")
    if not 0 < level < 1:
        raise typer.BadParameter(f"--level: a number between 0 and 1 is needed; found {level}")
    for option, names in {"--scalars": scalars, "--sites": sites}.items():
        if names is not None and not names_in(names):
            raise typer.BadParameter(f"{option} is empty; name one or more, commas between")
    conditions = names_in(groups)
    if conditions and len(conditions) != len(files):
        raise typer.BadParameter(
            f"--groups names {len(conditions)} conditions for {len(files)} files; one for each is "
            "needed"
        )
    if conditions and len(set(conditions)) in (1, len(files)):
        raise typer.BadParameter(
            f"--groups {groups}: two files of one condition and one of another are needed"
        )
    kinds = {kind_of(file): file for file in files}
    if len(kinds) > 1:
        found = " and ".join(f"{file} is a {kind}" for kind, file in kinds.items())
        raise typer.BadParameter(f"files of one kind are needed; {found}")
    if quality and "geometry" in kinds:
        raise typer.BadParameter(f"--quality {quality} is for histories; these are geometries")
    if no_page and out is not None:
        raise typer.BadParameter("--out and --no-page exclude each other; give one of them")
    if out is not None:
        measuring.check_writable(out)
    options = Options(
        scalars=names_in(scalars or ""),
        sites=names_in(sites),
        conditions=conditions,
        dimensions=dimensions,
        contexts=contexts,
        permutations=permutations,
        level=level,
        quality=quality,
    )
    paths = [str(file) for file in files]
    runs: list[gh.History] | list[gh.Geometry]
    if "history" in kinds:
        runs = [gh.History.load(file) for file in files]
        report = compare_histories(paths, runs, options)
    else:
        runs = [gh.load(file) for file in files]
        report = compare_geometries(paths, runs, options)
        if not any(
            any(site.values()) for pair in report["pairs"] for site in pair["sites"].values()
        ):
            raise typer.BadParameter(
                f"{', '.join(paths)} have no number in common to compare; "
                + "; ".join(
                    f"{path} has {', '.join(run[run.sites[0]])}"
                    for path, run in zip(paths, runs, strict=True)
                )
                + ". Measure all with the same statistics, or name numbers that all have by "
                "--scalars"
            )
    if as_json:
        typer.echo(json.dumps(without_nan(report), indent=1, allow_nan=False))
    else:
        for shown in tables(report):
            if isinstance(shown, str):
                typer.echo("\n".join(map(printable, shown.split("\n"))))
            else:
                print_table(shown)

    def write(page: Path) -> None:
        from geomhooks.report.comparison import write_comparison

        write_comparison(runs, report, page)

    if out is not None:
        try:
            write(out)
        except OSError as error:
            raise measuring.OutputError(f"cannot write {out}: {error.strerror or error}") from error
        typer.echo(f"wrote {out} ({out.stat().st_size / 1e6:.1f} MB)", err=as_json)
    elif not (no_page or as_json):
        write_if_possible(Path("comparison.html"), write, "--out")
