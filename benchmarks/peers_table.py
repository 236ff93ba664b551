"""The result of ``peers.py`` as text: a line while it runs, and a Markdown table of its file."""

from __future__ import annotations

from typing import Any

__all__ = ["show_row", "table"]


def show_row(row: dict[str, Any]) -> str:
    """One line."""
    line = f"{row['model']:18s} {row['peer']:22s} "
    if "failed" in row:
        return line + "failed: " + row["failed"]
    if "ratio" in row:
        low, high = row["quartiles"]
        line += f"ratio {row['ratio']:.3f} [{low:.3f}, {high:.3f}]  "
        line += f"outside {percent(row['outside'])}  "
    for mark in row.get("memory", ()):
        line += f"{mark['contexts']}: {mark['forwards_mib']:.0f}, {mark['whole_mib']:.0f} MiB  "
    return line + " ".join(f"{name} {error:.0e}" for name, error in row.get("errors", {}).items())


def table(result: dict[str, Any]) -> str:
    """Markdown, a table for each model."""
    contexts = result["contexts"]
    head = ["way", "forward (quartiles)", "hooks and after it"]
    head += [f"whole job, {n}" for n in contexts] + [f"MiB, {n}" for n in contexts]
    head += ["of them state", "error"]
    lines = [where(result["environment"], result["rounds"])]
    for model in dict.fromkeys(row["model"] for row in result["rows"]):
        rows = [row for row in result["rows"] if row["model"] == model]
        bare = next((row["bare_seconds"] for row in rows if "bare_seconds" in row), None)
        took = "" if bare is None else f" A bare forward took {bare:.2f} s."
        lines += ["", f"**{model}**, {result['batch']} contexts of 256 tokens a forward.{took}", ""]
        lines += [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
        lines += [f"| {' | '.join(cells(row, result))} |" for row in rows]
    return "\n".join(lines)


def where(environment: dict[str, Any], rounds: int) -> str:
    """A sentence on versions and machine."""
    machine = environment["machine"]
    packages = ", ".join(f"{n} {v}" for n, v in environment["packages"].items() if v)
    return (
        f"{environment['date']}, {machine['threads']} threads of {machine['processor']}, "
        f"{rounds} rounds; {packages}."
    )


def cells(row: dict[str, Any], result: dict[str, Any]) -> list[str]:
    """The cells of one peer; empty where something was not measured."""
    contexts = result["contexts"]
    if "failed" in row:
        return [row["peer"], f"failed: {row['failed']}", *[""] * (3 + 2 * len(contexts))]
    marks = {mark["contexts"]: mark for mark in row.get("memory", ())}
    ratio = outside = state = error = ""
    whole, held = [""] * len(contexts), [""] * len(contexts)
    if "ratio" in row:
        low, high = row["quartiles"]
        ratio, outside = f"{row['ratio']:.3f} ({low:.3f} to {high:.3f})", percent(row["outside"])
    for place, mark in enumerate(marks[number] for number in contexts if number in marks):
        held[place] = f"{mark['forwards_mib']:.0f} ({mark['whole_mib']:.0f})"
        if "ratio" in row:
            seconds = row["bare_seconds"] * mark["contexts"] / result["batch"]
            whole[place] = f"{row['ratio'] + mark['finish_seconds'] / seconds:.3f}"
    if "state_mib" in row:
        state = f"{row['state_mib']:.0f}"
    if "errors" in row:
        error = f"{max(row['errors'].values()):.0e}"
    return [row["peer"], ratio, outside, *whole, *held, state, error]


def percent(share: float) -> str:
    """A share in per cent."""
    return f"{100 * share:.2f} %"
