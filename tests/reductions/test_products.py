"""Sums of outer products, against float64, in every way that factors are made."""

from __future__ import annotations

from collections.abc import Iterator
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from geomhooks.accumulators.second_moment import SecondMoment
from geomhooks.functional.precision import precision_on
from geomhooks.reductions import products
from geomhooks.reductions.products import add_products, split_factors


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def check(moment: SecondMoment, states: Tensor, keep: Tensor, shift: Tensor, rtol: float) -> None:
    """Against the dense sums, in units of the products of root mean squares."""
    x = states[keep].double().numpy() - shift.double().numpy()
    dense = x.T @ x
    size = np.sqrt(dense.diagonal())
    found = moment.outer
    assert torch.equal(found, found.T)
    error = np.abs(found.numpy() - dense) / np.maximum(np.outer(size, size), 1e-30)
    assert error.max(initial=0) <= rtol
    np.testing.assert_allclose(moment["total"].numpy(), x.sum(0), rtol=0, atol=1e-5 * len(x) + 1e-9)
    assert int(moment["count"]) == len(x)


@given(
    st.integers(1, 5),
    st.integers(1, 40),
    st.integers(1, 20),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
    st.sampled_from([1, 3, 16, 1024]),
    st.sampled_from([1, 4, 192]),
    st.booleans(),
    st.sampled_from(["highest", "tf32", "bf16"]),
)
def test_any_shape_in_any_pieces(
    batch: int,
    length: int,
    width: int,
    dtype: torch.dtype,
    rows: int,
    columns: int,
    time_first: bool,
    precision: str,
) -> None:
    states = (
        randn(length, batch, width).transpose(0, 1) if time_first else randn(batch, length, width)
    )
    states = states.to(dtype)
    keep = torch.rand(batch, length, generator=torch.Generator().manual_seed(1)) > 0.3
    states[~keep] = float("nan")
    shift = randn(width, seed=2).to(dtype).double()
    one, two = SecondMoment(width).allocate(), SecondMoment(width).allocate()
    with (
        mock.patch.object(products, "ROWS", rows),
        mock.patch.object(products, "COLUMNS", columns),
        mock.patch.object(products, "precision_on", return_value=precision),
    ):
        add_products([one, two], states, keep, shift)
    check(one, states, keep, shift, 1e-12 if dtype == torch.float64 else 1e-6)
    for name, tensor in one.pack().items():
        assert torch.equal(tensor, two[name])
    assert int(one["forwards"]) == 1


@pytest.mark.parametrize("rows", [products.ROWS, products.ROWS_ON_DEVICES])
@pytest.mark.parametrize("kind", ["noise", "coarse", "constant", "offset", "outlier"])
def test_many_rows_keep_their_digits(kind: str, rows: int) -> None:
    """Also of the worst that sums can meet: numbers that all round the same way."""
    x = randn(4, 8192, 24)
    if kind == "coarse":
        x = x.bfloat16().float()
    elif kind == "constant":
        x = torch.linspace(1 / 3, 5, 24).expand(x.shape)
    elif kind == "offset":
        x = x + 30
    elif kind == "outlier":
        x[:, 0, 5] = 1e4
    moment = SecondMoment(24).allocate()
    keep = torch.ones(x.shape[:2], dtype=torch.bool)
    with mock.patch.object(products, "ROWS", rows):
        add_products([moment], x, keep, torch.zeros(24, dtype=torch.float64))
    check(moment, x, keep, torch.zeros(24), 5e-6)


def test_no_temporary_of_the_size_of_the_hidden_state() -> None:
    """Nor of a (d, d) matrix beside the state's own; a half-precision state is widened in part."""
    states, keep = randn(16, 512, 64).bfloat16(), torch.ones(16, 512, dtype=torch.bool)
    sizes: list[int] = []

    class Noting(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            out = function(*args, **(kwargs or {}))
            if isinstance(out, Tensor) and not out._is_view():
                sizes.append(out.numel() * out.itemsize)
            return out

    moment = SecondMoment(64).allocate()
    state = moment["outer"].numel() * moment["outer"].itemsize
    with Noting():
        add_products([moment], states, keep, torch.zeros(64, dtype=torch.float64))
    assert max(sizes) <= max(state, products.ROWS * 64 * 4)
    assert max(sizes) < states.numel() * states.itemsize


# Precision


@pytest.fixture
def settings() -> Iterator[None]:
    """The user's settings, put back."""
    yield
    torch.backends.fp32_precision = "none"
    torch.set_float32_matmul_precision("highest")
    assert precision_on(torch.device("cpu")) == precision_on(torch.device("cuda")) == "highest"


@pytest.mark.parametrize(
    ("said", "cpu", "cuda"),
    [("highest", "highest", "highest"), ("high", "tf32", "tf32"), ("medium", "bf16", "tf32")],
)
@pytest.mark.usefixtures("settings")
def test_what_the_user_has_set_is_seen_and_left_alone(said: str, cpu: str, cuda: str) -> None:
    torch.set_float32_matmul_precision(said)
    assert precision_on(torch.device("cpu")) == cpu
    assert precision_on(torch.device("cuda")) == cuda
    moment, states = SecondMoment(8).allocate(), randn(2, 50, 8)
    keep = torch.ones(2, 50, dtype=torch.bool)
    add_products([moment], states, keep, torch.zeros(8, dtype=torch.float64))
    check(moment, states, keep, torch.zeros(8), 1e-6)
    assert torch.get_float32_matmul_precision() == said


@pytest.mark.usefixtures("settings")
def test_tf32_allowed_for_cuda_alone() -> None:
    torch.backends.cuda.matmul.allow_tf32 = True
    assert precision_on(torch.device("cuda")) == "tf32"
    assert precision_on(torch.device("cpu")) == "highest"


@pytest.mark.parametrize("form", ["kept", "cut", "rounded"])
def test_tf32_products_of_split_factors_are_as_good_as_float32(form: str) -> None:
    """TF32 has 11 binary digits; hardware may cut or round the others off. 13 are left out."""
    x = randn(512, 16) * torch.logspace(-6, 6, 16)
    left, right = split_factors(x)
    exact = x.double().T @ x.double()
    scale = torch.outer(exact.diagonal(), exact.diagonal()).sqrt()

    def error(a: Tensor, b: Tensor) -> float:
        a, b = (as_tf32(v, form).double() for v in (a, b))
        return float(((a.T @ b - exact) / scale).abs().max())

    assert error(left, right) < 5e-7
    if form != "kept":
        assert error(x, x) > 1e-5  # what is guarded against


def as_tf32(x: Tensor, form: str) -> Tensor:
    bits = x.view(torch.int32)
    if form == "rounded":
        bits = bits + (1 << 12)
    return x if form == "kept" else (bits & ~((1 << 13) - 1)).view(torch.float32)
