"""Where tensors are made that are given no device, while results are computed or states read.

With ``torch.set_default_device("cuda")``, which scripts set for their model, that is not where a
geometry is that was read from a file or put together from several ranks.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["CPU", "made_on"]

CPU = torch.device("cpu")


@contextmanager
def made_on(device: torch.device) -> Iterator[None]:
    """Make tensors on a device that are given none; also for a whole function, as a decorator.

    Example:
        >>> with torch.device("meta"), made_on(CPU):
        ...     print(torch.zeros(2).device)
        cpu
    """
    if torch.get_default_device().type == device.type:
        yield  # the usual case; a device of torch's stack costs each call of torch something
    else:
        with torch.device(device):
            yield
