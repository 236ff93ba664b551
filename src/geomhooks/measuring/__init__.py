"""The engine behind the command line: texts, models, and runs that survive an interruption."""

from geomhooks.measuring.activations import FactorActivations
from geomhooks.measuring.errors import ModelError, OptionError, OutputError, ResumeError
from geomhooks.measuring.labels import labels_in
from geomhooks.measuring.models import Reader, load_model, load_tokenizer
from geomhooks.measuring.outputs import (
    check_writable,
    checkpoint_of,
    checkpoints_beside,
    remove_checkpoints,
    remove_unfinished,
    save,
)
from geomhooks.measuring.ranks import Elsewhere, Ranks
from geomhooks.measuring.run import Progress, Run, Stopped
from geomhooks.measuring.settings import Settings, check_same, statistics_named
from geomhooks.measuring.texts import Passages, Source, TextFile
from geomhooks.measuring.words import text_of

__all__ = [
    "Elsewhere",
    "FactorActivations",
    "ModelError",
    "OptionError",
    "OutputError",
    "Passages",
    "Progress",
    "Ranks",
    "Reader",
    "ResumeError",
    "Run",
    "Settings",
    "Source",
    "Stopped",
    "TextFile",
    "check_same",
    "check_writable",
    "checkpoint_of",
    "checkpoints_beside",
    "labels_in",
    "load_model",
    "load_tokenizer",
    "remove_checkpoints",
    "remove_unfinished",
    "save",
    "statistics_named",
    "text_of",
]
