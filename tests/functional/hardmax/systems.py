"""Systems of tokens: random ones, those of the published figure, and one layer in NumPy."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

EMERGING = torch.tensor(
    [[1, 1 / 3], [-1 / 12, 1 / 12], [-1, -1], [0, 1 / 4], [-0.3, -0.7], [-0.6, -0.9], [0.8, 0.1],
     [0.6, 0.15]], dtype=torch.float64
)  # fmt: skip
CORNERS = torch.tensor([[1, 1], [1, -1], [-1, 1], [-1, -1]], dtype=torch.float64)


class System(NamedTuple):
    """Tokens, the form that they choose by, and their step."""

    states: Tensor
    form: Tensor
    step: float


def system(seed: int, tokens: int | None = None, width: int | None = None) -> System:
    """Two to five dimensions, 3 to 39 tokens."""
    draw = np.random.default_rng(seed)
    width = int(draw.integers(2, 6)) if width is None else width
    tokens = int(draw.integers(3, 40)) if tokens is None else tokens
    root = draw.standard_normal((width, width))
    form = root @ root.T + 0.1 * np.eye(width)
    states = draw.standard_normal((tokens, width))
    return System(torch.from_numpy(states), torch.from_numpy(form), float(draw.uniform(0.2, 3)))


def dense_layer(states: np.ndarray, form: np.ndarray, step: float) -> np.ndarray:
    """One layer by its formula, token by token."""
    after = np.empty_like(states)
    for index, token in enumerate(states):
        products = np.array([(form @ token) @ other for other in states])
        chosen = np.flatnonzero(products == products.max())
        total = sum(states[other] for other in chosen)
        after[index] = (token + step / len(chosen) * total) / (1 + step)
    return after


def triangle(seed: int) -> Tensor:
    draw = np.random.default_rng(seed)
    fixed = np.array([[1, 1], [0.5, -0.5], [-1, -1]])
    some = draw.uniform(0, 1, (2, 2)), draw.uniform(-1, 0, (2, 2))
    return torch.from_numpy(np.concatenate([fixed, *some, [[0.3, -0.2], [0.1, -0.2]]]))


def square(seed: int, *further: tuple[float, float], inside: int = 6) -> Tensor:
    draw = np.random.default_rng(seed).uniform(-0.5, 0.5, (inside, 2))
    return torch.cat(
        [CORNERS, torch.tensor(further).double().reshape(-1, 2), torch.from_numpy(draw)]
    )
