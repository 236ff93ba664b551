"""The states of a model of blocks, read by hooks of our own in one process."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tests.reference import Observations


def seen_densely(model: nn.Module, ids: Tensor) -> dict[str, Observations]:
    """The states behind each block in float64, of texts (B, T) that are contexts of their own."""
    seen = {}
    for index, block in enumerate(model.get_submodule("blocks")):  # type: ignore[arg-type]

        def keep(_: Any, __: Any, out: Tensor, name: str = f"blocks.{index}") -> None:
            seen[name] = out.detach().double().flatten(0, 1).numpy()

        block.register_forward_hook(keep)
    with torch.no_grad():
        model(ids)
    number, length = ids.shape
    positions, contexts = np.tile(np.arange(length), number), np.repeat(np.arange(number), length)
    return {name: Observations(states, positions, contexts) for name, states in seen.items()}
