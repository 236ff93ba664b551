"""Models that are measured here, and small enough to be trained on a processor.

>>> import torch
>>> from geomhooks.models import HardmaxClassifier
>>> model = HardmaxClassifier(vocab_size=50, hidden_size=2)
>>> model(torch.tensor([[3, 4, 5, 0], [7, 8, 0, 0]])).shape
torch.Size([2])
"""

from geomhooks.models.hardmax import (
    HardmaxAttention,
    HardmaxBlock,
    HardmaxClassifier,
    HardmaxConfig,
    HardmaxTransformer,
)

__all__ = [
    "HardmaxAttention",
    "HardmaxBlock",
    "HardmaxClassifier",
    "HardmaxConfig",
    "HardmaxTransformer",
]
