"""The most memory that this process has held, as the kernel counts it."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

__all__ = ["forget_peak", "give_back_freed", "peak_bytes", "resident_bytes"]

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
PEAK_ONLY = "5"  # of what can be cleared there: the high-water mark of resident memory


def resident_bytes() -> int:
    """What is resident now."""
    return _field("VmRSS")


def peak_bytes() -> int:
    """The most that was resident since :func:`forget_peak`."""
    return _field("VmHWM")


def forget_peak() -> None:
    """Begin anew from what is resident now.

    Raises:
        RuntimeError: the system does not offer it.
    """
    try:
        CLEAR.write_text(PEAK_ONLY)
    except OSError as error:
        raise RuntimeError(
            f"peak memory is read from /proc, as Linux has it; here ({os.uname().sysname}) writing "
            f"to {CLEAR} failed: {error}"
        ) from error


def give_back_freed() -> None:
    """Have the allocator return what nobody uses, where it knows how to: as glibc does."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _field(name: str) -> int:
    for line in STATUS.read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"{STATUS} has no {name}")
