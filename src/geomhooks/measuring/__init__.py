"""The engine behind the command line: texts, models, and runs that survive an interruption."""

from geomhooks.measuring.errors import OutputError
from geomhooks.measuring.models import Reader, load_model
from geomhooks.measuring.outputs import check_writable, remove_unfinished, save
from geomhooks.measuring.run import Progress, Run, Stopped
from geomhooks.measuring.settings import Settings, check_same, statistics_named
from geomhooks.measuring.texts import Passages, Source, TextFile

__all__ = [
    "OutputError",
    "Passages",
    "Progress",
    "Reader",
    "Run",
    "Settings",
    "Source",
    "Stopped",
    "TextFile",
    "check_same",
    "check_writable",
    "load_model",
    "remove_unfinished",
    "save",
    "statistics_named",
]
