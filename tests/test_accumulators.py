"""Accumulators: adding in parts and merging is adding at once, whatever the parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import geomhooks as gh
from geomhooks.accumulators.table import hash_keys

ROWS = 4
SIMPLE: dict[str, tuple[Callable[[], Any], Callable[..., np.ndarray]]] = {
    "sum": (lambda: gh.Sum((ROWS,)), np.add),
    "min": (lambda: gh.Min((ROWS,)), np.minimum),
    "max": (lambda: gh.Max((ROWS,)), np.maximum),
}
seeds = st.integers(0, 2**31)


def draw_batch(rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Values, rows and which of them count; what does not count is NaN."""
    shape = (int(rng.integers(1, 4)), int(rng.integers(1, 6)))
    where = rng.random(shape) < 0.7
    values = np.where(where, rng.standard_normal(shape), np.nan)
    return (
        torch.from_numpy(values),
        torch.from_numpy(rng.integers(0, ROWS, shape)),
        torch.from_numpy(where),
    )


@pytest.mark.parametrize("kind", SIMPLE)
@given(seed=seeds, parts=st.integers(1, 4))
def test_parts_merged_are_the_whole(kind: str, seed: int, parts: int) -> None:
    make, ufunc = SIMPLE[kind]
    rng = np.random.default_rng(seed)
    shards = [make().allocate() for _ in range(parts)]
    expected = shards[0].value.numpy().copy()
    for shard in shards:
        for _ in range(2):
            values, at, where = draw_batch(rng)
            shard.add(values, at=at, where=where)
            ufunc.at(expected, at[where].numpy(), values[where].numpy())
    for other in shards[1:]:
        shards[0].merge(other)
    np.testing.assert_allclose(shards[0].value, expected, rtol=1e-12)


@pytest.mark.parametrize("kind", SIMPLE)
def test_without_rows_all_leading_dimensions_are_reduced(kind: str) -> None:
    make, ufunc = SIMPLE[kind]
    values = torch.randn(
        3, 5, ROWS, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    accumulator = make().allocate()
    accumulator.add(values)
    np.testing.assert_allclose(
        accumulator.value, ufunc.reduce(values.numpy(), axis=(0, 1)), rtol=1e-12
    )


@pytest.mark.parametrize("kind", SIMPLE)
def test_rows_may_be_a_slice(kind: str) -> None:
    make, _ = SIMPLE[kind]
    values = torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    where = torch.tensor([[True, False], [True, True], [False, True]])
    by_slice, by_index = make().allocate(), make().allocate()
    by_slice.add(values, at=slice(1, 3), where=where)
    by_index.add(values, at=torch.tensor([1, 2]).expand(3, 2), where=where)
    torch.testing.assert_close(by_slice.value, by_index.value)


@given(seed=seeds, parts=st.integers(1, 4), offset=st.sampled_from([0.0, 1e4]))
def test_moments(seed: int, parts: int, offset: float) -> None:
    """Against NumPy, with shards whose shifts differ, and a mean of thousands of deviations."""
    rng = np.random.default_rng(seed)
    shards = [gh.Moments((ROWS, 2)).allocate() for _ in range(parts)]
    kept: list[tuple[np.ndarray, np.ndarray]] = []
    for shard in shards:
        for _ in range(2):
            values, at, where = draw_batch(rng)
            both = torch.stack([values + offset, 2 * values], -1)
            shard.add(both, at, where)
            kept.append((at[where].numpy(), both[where].numpy()))
    for other in shards[1:]:
        shards[0].merge(other)
    rows, values = (np.concatenate(parts) for parts in zip(*kept, strict=True))
    found = shards[0].summary(pooled=False)
    for row in range(ROWS):
        here = values[rows == row]
        assert found["count"][row].tolist() == [len(here)] * 2
        for name, function in {
            "mean": np.mean,
            "variance": np.var,
            "min": np.min,
            "max": np.max,
        }.items():
            expected = function(here, axis=0) if len(here) else np.full(2, np.nan)
            np.testing.assert_allclose(
                found[name][row], expected, rtol=1e-9, atol=1e-9, err_msg=name
            )


def test_counts_beyond_what_a_float_can_count() -> None:
    count = gh.Sum((), torch.int64).allocate()
    count.add(torch.tensor(2**53))
    count.add(torch.tensor(1))
    assert int(count.value) == 2**53 + 1


@given(seed=seeds, capacity=st.integers(1, 6), parts=st.integers(1, 3))
def test_a_table_keeps_the_least_by_priority(seed: int, capacity: int, parts: int) -> None:
    """Keys that come several times add up, and never come back once they were given up."""
    rng = np.random.default_rng(seed)
    tables = [gh.Table(capacity, {"total": ((2,), torch.float64)}).allocate() for _ in range(parts)]
    expected: dict[int, np.ndarray] = {}
    for table in tables:
        for _ in range(3):
            keys = rng.choice(12, size=int(rng.integers(1, 8)), replace=False)
            values = rng.standard_normal((len(keys), 2))
            for key, value in zip(keys.tolist(), values, strict=True):
                expected[key] = expected.get(key, 0) + value
            key = torch.from_numpy(keys)
            placement = table.place(key, hash_keys(key), torch.ones(len(key), dtype=torch.bool))
            table.write(placement, total=torch.from_numpy(values))
    for other in tables[1:]:
        tables[0].merge(other)
    least = sorted(expected, key=lambda key: int(hash_keys(torch.tensor([key]))[0]))[:capacity]
    held = {
        int(key): row
        for key, row in zip(tables[0]["key"][:-1], tables[0]["total"], strict=False)
        if key >= 0
    }
    assert held.keys() == set(least)
    for key, row in held.items():
        np.testing.assert_allclose(row, expected[key], rtol=1e-9, atol=1e-12)


@given(st.lists(st.integers(-(2**63) + 1, 2**63 - 1), min_size=2, max_size=50, unique=True))
def test_hashes_are_different_and_not_negative(keys: list[int]) -> None:
    hashes = hash_keys(torch.tensor(keys))
    assert len(set(hashes.tolist())) == len(keys)
    assert int(hashes.min()) >= 0


def test_a_sample_by_hash_is_uniform() -> None:
    """Of running numbers, each tenth is about as often in the lowest tenth of the hashes."""
    chosen = hash_keys(torch.arange(100_000)) < 2**63 // 10
    by_tenth = chosen.view(10, -1).sum(1)
    assert int(by_tenth.sum()) == pytest.approx(10_000, abs=400)
    assert all(abs(int(number) - 1000) < 150 for number in by_tenth)


@pytest.mark.parametrize(
    "make", [make for make, _ in SIMPLE.values()] + [lambda: gh.Moments((ROWS, 2))]
)
def test_reset_and_unpack(make: Callable[[], Any]) -> None:
    empty, used = make().allocate(), make().allocate()
    values, at, where = draw_batch(np.random.default_rng(0))
    if isinstance(used, gh.Moments):
        values = torch.stack([values, values], -1)
    used.add(values, at, where)
    packed = {name: tensor.clone() for name, tensor in used.pack().items()}
    used.reset()
    for name, tensor in used.pack().items():
        assert torch.equal(tensor, empty[name])
    used.unpack(packed)
    for name, tensor in used.pack().items():
        assert torch.equal(tensor, packed[name])


def test_unpacking_another_shape_names_the_tensor_and_both_shapes() -> None:
    with pytest.raises(gh.errors.SchemaError, match=r"value.*\(5,\).*\(4,\)"):
        gh.Sum((4,)).allocate().unpack({"value": torch.zeros(5)})
