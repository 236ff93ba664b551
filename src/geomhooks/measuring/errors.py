"""What can go wrong between a command and the hooks: the model, the text, the output."""

from __future__ import annotations

from geomhooks.errors import GeomhooksError

__all__ = [
    "ModelError",
    "OptionError",
    "OutOfMemoryError",
    "OutputError",
    "PeerError",
    "ResumeError",
    "TextError",
]


class ModelError(GeomhooksError, ValueError):
    """A model cannot be loaded, or fails on a batch of text."""


class OptionError(GeomhooksError, ValueError):
    """What was asked for cannot be had of this model, or on this machine."""


class TextError(GeomhooksError, ValueError):
    """A text cannot be read: no such file, empty, no UTF-8, or no such field."""


class OutputError(GeomhooksError, OSError):
    """The output cannot be written where it should go."""


class OutOfMemoryError(GeomhooksError, MemoryError):
    """A batch does not fit in memory; the message names a size to try."""


class PeerError(GeomhooksError, RuntimeError):
    """Another process of a run on several ended before it was done."""


class ResumeError(GeomhooksError, ValueError):
    """A run cannot go on from what was found beside its output."""
