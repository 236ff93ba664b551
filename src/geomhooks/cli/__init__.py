"""The command line: ``demo``, ``measure``, ``factors``, ``merge``, ``compare`` and ``report``."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> int:
    """Run the command line; returns the exit code."""
    try:
        from geomhooks.cli.commands import run
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in ("typer", "rich"):
            raise
        print(
            f"geomhooks: the command line needs {package}: pip install 'geomhooks[cli]'",
            file=sys.stderr,
        )
        return 1
    return run(sys.argv[1:])
