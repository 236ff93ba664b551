"""Exit codes, and every failure told in one line."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import cast

import typer

from geomhooks.cli.progress import Interrupted
from geomhooks.cli.table import printable
from geomhooks.errors import (
    AnatomyError,
    FileFormatError,
    GeomhooksError,
    SchemaError,
    SiteError,
)
from geomhooks.measuring.errors import (
    ModelError,
    OptionError,
    OutOfMemoryError,
    OutputError,
    PeerError,
    ResumeError,
    TextError,
)
from geomhooks.measuring.ranks import Elsewhere, Ranks
from geomhooks.measuring.run import is_out_of_memory

__all__ = ["EXIT_CODES", "guarded"]

EXIT_CODES: dict[str, tuple[int, tuple[type[Exception], ...]]] = {
    "wrong option or argument": (2, (SiteError, AnatomyError, OptionError)),
    "no such model, or it cannot be loaded or run": (3, (ModelError,)),
    "text missing, empty, or no UTF-8": (4, (TextError,)),
    "output cannot be written": (5, (OutputError,)),
    "out of memory": (6, (OutOfMemoryError,)),
    "geometry file cannot be read, merged or resumed": (
        7,
        (FileFormatError, SchemaError, ResumeError),
    ),
}
INTERRUPTED = 128 + signal.SIGINT
TELLING = 10.0  # seconds in which a process can say what went wrong
# typer.BadParameter, UsageError, ClickException; typer has moved the module they are defined in.
ClickException = cast("type[Exception]", typer.BadParameter.__mro__[2])


def guarded(command: Callable[[], object], arguments: Sequence[str] = ()) -> int:
    """Run a command; tell a failure in one line on stderr; return the exit code."""
    try:
        code = int(cast("int | None", command()) or 0)
        if code == INTERRUPTED:  # newer typer swallows the KeyboardInterrupt and returns this
            raise KeyboardInterrupt
        return code
    except (KeyboardInterrupt, typer.Abort):
        return _fail(INTERRUPTED, "interrupted", everywhere=True)
    except Interrupted as error:
        return _fail(128 + error.number, str(error), everywhere=True)
    except ClickException as error:
        message = error.format_message()  # type: ignore[attr-defined]
        found = _found(message, arguments)
        return _fail(2, f"{message}{found} (see --help)", everywhere=True)
    except Elsewhere:
        return _leave_last(1)
    except PeerError as error:
        return _fail(1, str(error), everywhere=True)
    except GeomhooksError as error:
        return _fail(_exit_code(error), str(error))
    except FileNotFoundError as error:
        return _fail(7, str(error))
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return _fail(6, f"out of memory: {error}. Try a smaller model, or fewer --contexts")


def _found(message: str, arguments: Sequence[str]) -> str:
    """What was given to the option that the message is about, unless it says so itself."""
    for option, value in pairwise(arguments):
        if option.startswith("-") and f"'{option}'" in message and value not in message:
            return f"; found {value!r}"
    return ""


def _exit_code(error: GeomhooksError) -> int:
    for code, kinds in EXIT_CODES.values():
        if isinstance(error, kinds):
            return code
    return 1


def _fail(code: int, message: str, *, everywhere: bool = False) -> int:
    """Tell a failure; one that befalls all processes of a run is told by the first."""
    if everywhere and Ranks.started().rank:
        return code if code > 128 else _leave_last(code)  # signals have come to all
    print(f"geomhooks: {printable(' '.join(message.split()))}", file=sys.stderr)
    return code


def _leave_last(code: int) -> int:
    """Give way to the process that tells what went wrong: torchrun ends all once one has ended."""
    time.sleep(TELLING)
    return code
