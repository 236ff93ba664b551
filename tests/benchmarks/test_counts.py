"""What the benchmarks count and compare by: bytes, and errors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

BATCH, LENGTH, WIDTH = SHAPE = 2, 3, 8
READ = 4 * BATCH * LENGTH * WIDTH
TOKENS = 4 * BATCH * LENGTH


@pytest.mark.parametrize(
    ("work", "expected"),
    [
        (lambda h: h.sum(-1), READ + TOKENS),
        (lambda h: h + h, 3 * READ),
        (lambda h: h.add_(1.0), 2 * READ),
        (lambda h: h.view(-1).unsqueeze(0).T, 0),
        (lambda h: h.double(), READ + 2 * READ),
        (lambda h: h - h[0, 0], READ + 4 * WIDTH + READ),
        (lambda h: h + h[:1].expand(BATCH, -1, -1), READ + READ // BATCH + READ),
        (lambda h: torch.empty_like(h), 0),
        (lambda h: torch.zeros(5), 20),
    ],
)
def test_moved_bytes(benchmarks: Path, work: Callable[[Tensor], Any], expected: int) -> None:
    from byte_counts import Moved

    h = torch.ones(SHAPE)
    with Moved() as mode:
        work(h)
    assert mode.bytes == expected


@pytest.mark.parametrize("shape", [(8, 256, 384), (4, 128, 768)])
def test_plain_torch_moves_what_its_lines_say(
    benchmarks: Path, shape: tuple[int, int, int]
) -> None:
    """A line a reduction in ``reductions/plain.py``, and besides only numbers of tokens."""
    from byte_counts import plain

    batch, length, width = shape
    small = 40 * 8 / (4 * width) + 40 * 8 / length  # forty numbers of a token, of a context
    by_lines = {
        "entries": (2 + 1) + (2 + 2) + 1 + (2 + 1),  # |h|^2; where(h - shift); sum; |x|^2
        "position_sum": 1 + 2 / batch + 4 / batch,  # x.sum(0), added to the state
        "context_sum": 1,
        "directions": 2,  # a product with the weights, one with the shift
        "step": 3 + 1 + 3 + 1 + 2 + 3 + 2 + 1,
    }
    for name, count in plain(shape).items():
        assert by_lines[name] <= count.whole <= by_lines[name] + small, name


@pytest.mark.parametrize("shape", [(8, 256, 384), (8, 256, 576), (16, 1024, 768)])
def test_no_way_moves_less_than_the_least(benchmarks: Path, shape: tuple[int, int, int]) -> None:
    from byte_counts import at_least, fused

    least, now = at_least(shape), fused(shape)
    for name in least:
        assert least[name].memory <= now[name].memory <= now[name].whole, name


@pytest.mark.parametrize(("name", "function"), [("bytes", "tables"), ("paper", "on_paper")])
def test_tables_of_the_readme(benchmarks: Path, name: str, function: str) -> None:
    import byte_counts

    text = (benchmarks / "README.md").read_text()
    kept = text.partition(f"<!-- begin: {name} -->")[2].partition(f"<!-- end: {name} -->")[0]
    expected = getattr(byte_counts, function)()
    assert kept.strip() == expected, "run benchmarks/byte_counts.py and put its tables in"


def numbers() -> Any:
    from job import dense

    torch.manual_seed(0)
    return dense(lambda site: torch.randn(4, 5, 6) + site, 3)


def test_errors_are_found(benchmarks: Path) -> None:
    """Of every quantity, at any site, and where it is not finite."""
    from job import errors

    right = numbers()
    assert set(errors(right, right).values()) == {0.0}
    for name in vars(right):
        wrong = getattr(right, name).clone()
        wrong.view(-1)[-1] *= 1 + 1e-2
        found = errors(replace(right, **{name: wrong}), right)
        assert 1e-3 < found.pop(name) < 1e-1, name
        assert set(found.values()) == {0.0}, name
        wrong.view(-1)[0] = float("nan")
        assert errors(replace(right, **{name: wrong}), right)[name] == float("inf"), name
    with pytest.raises(ValueError, match="shares has shape"):
        errors(replace(right, shares=right.shares[1:]), right)


def test_a_peer_that_disagrees_is_complained_of(benchmarks: Path) -> None:
    from peers import complaints

    row = {"model": "m", "peer": "geomhooks", "errors": {"norm": 2e-5, "shares": float("nan")}}
    found = complaints(row)
    assert found[0] == "m, geomhooks: norm is off by 2.0e-05, more than 1e-05"
    assert len(found) == 2
    assert len(complaints(row | {"peer": "nnsight"})) == 1


def test_sums_as_one_would_write_them(benchmarks: Path) -> None:
    """In float64 they are the definitions, whatever the batches."""
    from job import Sums, dense, errors

    torch.manual_seed(0)
    states = torch.randn(3, 6, 5, 7, dtype=torch.float64) + torch.randn(7)
    sums = Sums(3, torch.float64)
    for first, last in ((0, 4), (4, 6)):
        sums.add_all(list(states[:, first:last]))
    found = errors(sums.numbers(), dense(lambda site: states[site], 3))
    assert max(found.values()) < 1e-12
