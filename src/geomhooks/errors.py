"""Every error that geomhooks raises: what was found, what was allowed, what to do."""

from __future__ import annotations

__all__ = [
    "AnatomyError",
    "FigureError",
    "FileFormatError",
    "GeomhooksError",
    "HistoryError",
    "HookError",
    "MissingExtraError",
    "NothingCountedError",
    "SchemaError",
    "SiteError",
    "TokensError",
    "UnidentifiedError",
    "WatchError",
]


class GeomhooksError(Exception):
    """Base of all errors of this library."""


class SiteError(GeomhooksError, ValueError):
    """A site cannot be selected, or its tensor cannot be read."""


class TokensError(GeomhooksError, ValueError):
    """What was said of the tokens of a forward contradicts itself or the hidden states."""


class WatchError(GeomhooksError, RuntimeError):
    """A watch was used in an order that makes no sense."""


class NothingCountedError(WatchError):
    """A geometry was asked for, and no token has been counted."""


class HookError(GeomhooksError, RuntimeError):
    """A hook that should have fired did not."""


class SchemaError(GeomhooksError, ValueError):
    """Two states that should fit together differ; the message names the field."""


class HistoryError(GeomhooksError, ValueError):
    """A history has no such step or number, or cannot take one."""


class FileFormatError(GeomhooksError, ValueError):
    """A file is truncated, foreign, or newer than this library."""


class UnidentifiedError(GeomhooksError, ValueError):
    """The data do not determine the number that was asked for."""


class AnatomyError(GeomhooksError, ValueError):
    """A model's family is not known, or it is not made as its family is described."""


class FigureError(GeomhooksError, ValueError):
    """A figure was asked for of what is not there to be shown."""


class MissingExtraError(GeomhooksError, ImportError):
    """An optional package is not installed; the message names the command that installs it."""
