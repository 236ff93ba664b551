"""``geomhooks factors``: which factors there are, and at which tokens one of them is active."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import torch
import typer
from rich import box
from rich.table import Table
from rich.text import Text
from torch import Tensor

import geomhooks as gh
from geomhooks import functional, measuring
from geomhooks.cli.reading import quieten_libraries
from geomhooks.cli.table import print_table, printable
from geomhooks.errors import FileFormatError, SchemaError, SiteError

__all__ = ["show_factors"]

Level = Literal["low", "mid", "high", "none"]
WORDS = 3  # most frequent tokens of a row


class _Measured(NamedTuple):
    """Factors at all sites of a file that have them."""

    sites: list[str]
    importance: Tensor
    """(F, L)"""
    levels: functional.FactorLevels
    results: dict[str, Any]


def show_factors(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Geometry file with factors.")],
    factor: Annotated[
        int | None, typer.Option(min=0, help="Show this one, with its contexts.")
    ] = None,
    site: Annotated[
        str | None,
        typer.Option(help="Site of the contexts. [default: where the factor is most important]"),
    ] = None,
    contexts: Annotated[int, typer.Option(min=1, help="How many contexts to show.")] = 10,
    level: Annotated[Level | None, typer.Option(help="List factors of this level only.")] = None,
    number: Annotated[int, typer.Option(min=1, help="How many factors of a level to list.")] = 10,
    by: Annotated[
        Literal["centre", "peak"], typer.Option(help="Depth of a factor: of its curve's what.")
    ] = "centre",
    bounds: Annotated[
        tuple[float, float],
        typer.Option(help="Relative depths between low and mid, and mid and high."),
    ] = (1 / 3, 2 / 3),
    tokenizer: Annotated[
        str | None,
        typer.Option(help="Hub name or folder of the tokenizer. [default: that of the model]"),
    ] = None,
) -> None:
    """List the factors of a file by level; with --factor show one, and the tokens it is active at.

    The level is a rule of thumb: by where a factor's importance lies over depth, in thirds.
    """
    if not 0 <= bounds[0] <= bounds[1] <= 1:
        raise typer.BadParameter(f"--bounds: two depths from 0 to 1, the lesser first; {bounds}")
    geometry = gh.load(file)
    measured = _measured(geometry, file, by, bounds)
    if factor is not None and factor >= len(measured.importance):
        raise typer.BadParameter(
            f"--factor {factor}: {file} has {len(measured.importance)} factors, from 0 on"
        )
    if site is not None and site not in measured.sites:
        raise SiteError(f"{file} has no factors at {site!r}; it has them at {_listed(measured)}")
    decode = _decoder(geometry, file, tokenizer)
    if factor is None:
        listed = _list(measured, decode, level, number)
        if listed.row_count:
            print_table(listed)
        else:
            typer.echo(f"no factor of the level {level}; leave out --level to see all")
        return
    print_table(_curve(measured, factor, decode))
    best = measured.sites[int(measured.importance[factor].argmax())]
    print_table(_contexts(measured, factor, site or best, contexts, decode))


def _measured(
    geometry: gh.Geometry, file: Path, by: Literal["centre", "peak"], bounds: tuple[float, float]
) -> _Measured:
    """What a file has of factors.

    Raises:
        SchemaError: it has none.
        FileFormatError: its numbers cannot be those of factors.
    """
    name = gh.Factors.name
    sites = [site for site in geometry.sites if name in geometry[site]]
    if not sites:
        raise SchemaError(
            f"{file} has no factors; measure them with: geomhooks measure MODEL --text FILE "
            "--statistics factors --dictionary FILE"
        )
    results = {site: geometry[site][name] for site in sites}
    importance = torch.stack([results[site].importance for site in sites], 1)
    if not bool((torch.isfinite(importance) & (importance >= 0)).all()):
        raise FileFormatError(f"{file}: importances of factors are negative or no numbers")
    levels = functional.importance_levels(importance, by=by, bounds=bounds)
    return _Measured(sites, importance, levels, results)


def _listed(measured: _Measured) -> str:
    return ", ".join(measured.sites)


def _list(
    measured: _Measured, decode: Callable[[list[int]], str], level: Level | None, number: int
) -> Table:
    """The most important factors of each level."""
    shown = _table("factor", "level", "depth", "site", "importance", "entropy")
    shown.add_column("most frequent tokens", overflow="fold")
    names = measured.levels.names()
    largest, where = measured.importance.max(1)
    for wanted in (level,) if level else (*functional.LEVELS, "none"):
        own = torch.tensor([name == wanted for name in names], device="cpu")
        order = largest.argsort(descending=True, stable=True)
        for factor in order[own[order]][:number].tolist():
            site = measured.sites[int(where[factor])]
            ids = measured.results[site].top.token_id[factor]
            shown.add_row(
                str(factor),
                str(wanted),
                f"{float(measured.levels.depth[factor]):.2f}" if wanted != "none" else "-",
                Text(printable(site)) if float(largest[factor]) > 0 else "-",
                f"{float(largest[factor]):.3g}",
                _entropy(ids),
                _frequent(ids, decode),
            )
    return shown


def _curve(measured: _Measured, factor: int, decode: Callable[[list[int]], str]) -> Table:
    """One factor at each site."""
    level = measured.levels.names()[factor]
    shown = _table("site", "importance", "firing rate", "mean", "entropy")
    shown.title, shown.title_justify = f"factor {factor}, level {level}", "left"
    if level != "none":
        shown.title += f", depth {float(measured.levels.depth[factor]):.2f}"
    shown.add_column("most frequent tokens", overflow="fold")
    for site, found in measured.results.items():
        ids = found.top.token_id[factor]
        numbers = (found.importance, found.firing_rate, found.mean)
        shown.add_row(
            Text(printable(site)),
            *(f"{float(values[factor]):.3g}" for values in numbers),
            _entropy(ids),
            _frequent(ids, decode),
        )
    return shown


def _contexts(
    measured: _Measured,
    factor: int,
    site: str,
    number: int,
    decode: Callable[[list[int]], str],
) -> Table:
    """The tokens that one factor is most active at, in their windows."""
    shown = _table("activation", "position")
    shown.title, shown.title_justify = f"factor {factor} at {printable(site)}", "left"
    shown.add_column("context", overflow="fold")
    for context in functional.factor_contexts(measured.results[site].top, factor)[:number]:
        text = marked_text(context, decode)
        shown.add_row(f"{context.activation:.3g}", str(context.position), text)
    return shown


def marked_text(context: functional.FactorContext, decode: Callable[[list[int]], str]) -> Text:
    """A window as text, with its own token in bold between marks.

    Example:
        >>> context = functional.FactorContext(1.0, 0, 2, [7], 8, [9])
        >>> marked_text(context, lambda ids: " ".join(f"[w{i}]" for i in ids)).plain
        '[w7] «[w8]» [w9]'
    """
    if context.token < 0:
        return Text("(the ids of its tokens are not known)", style="dim")
    before = decode(context.before) if context.before else ""
    upto = decode([*context.before, context.token])
    whole = decode([*context.before, context.token, *context.after])
    if upto.startswith(before) and whole.startswith(upto):
        token, after = upto[len(before) :], whole[len(upto) :]
    else:  # the text of a token depends on its neighbours
        token, after = decode([context.token]), decode(context.after)
    word = token.lstrip(" ")
    text = Text(printable(before + token[: len(token) - len(word)]))
    text.append("«", style="dim").append(printable(word), style="bold").append("»", style="dim")
    return text.append(printable(after))


def _entropy(ids: Tensor) -> str:
    entropy = float(functional.token_entropy(ids))
    return "-" if entropy != entropy else f"{abs(entropy):.2f}"


def _frequent(ids: Tensor, decode: Callable[[list[int]], str]) -> Text:
    """The most frequent tokens, and how often they are there."""
    counts = functional.token_counts(ids)[:WORDS]
    return Text(", ".join(f"{printable(decode([i]).strip())} {times}" for i, times in counts))


def _table(*columns: str) -> Table:
    shown = Table(box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    for name in columns:
        plain = name in ("site", "level")
        shown.add_column(name, justify="left" if plain else "right", no_wrap=True)
    return shown


def _decoder(
    geometry: gh.Geometry, file: Path, tokenizer: str | None
) -> Callable[[list[int]], str]:
    """What makes text of ids: the tokenizer that is named, or that of the model that was measured.

    Raises:
        ModelError: it cannot be loaded, or none is known.
    """
    settings = geometry.notes.get("settings")
    settings = settings if isinstance(settings, dict) else {}
    name = tokenizer or settings.get("model")
    if not isinstance(name, str):
        raise measuring.ModelError(
            f"{file} does not say of which model it is; name its tokenizer by --tokenizer"
        )
    packed = None if tokenizer else settings.get("gguf_file")
    packed = packed if isinstance(packed, str) else None
    quieten_libraries()
    try:
        found = measuring.load_tokenizer(name, packed)
    except measuring.ModelError as error:
        raise measuring.ModelError(f"{error}. Name one by --tokenizer") from error

    return partial(measuring.text_of, found)
