"""Two and four real processes count as one would: what torchrun runs, a test to each check."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from geomhooks.distributed import device_of
from tests.distributed.launch import expect_success
from tests.distributed.program import CHECKS


@pytest.mark.parametrize(
    ("backends", "device"),
    [("cpu:gloo,cuda:nccl", "cpu"), ("cpu:gloo", "cpu"), ("cuda:nccl", "cuda:3")],
)
def test_the_device_of_a_backend(
    monkeypatch: pytest.MonkeyPatch, backends: str, device: str
) -> None:
    monkeypatch.setattr(dist, "get_backend_config", lambda group: backends)
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 3)
    assert device_of(None) == torch.device(device)
    bound = SimpleNamespace(bound_device_id=torch.device("cuda:5"))
    own = device if device == "cpu" else "cuda:5"
    assert device_of(bound) == torch.device(own)


@pytest.mark.parametrize("check", [check.__name__ for check in CHECKS])
@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks(ranks: int, check: str) -> None:
    expect_success(ranks, check)
