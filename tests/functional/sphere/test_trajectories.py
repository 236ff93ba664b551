"""Paths through depth: geodesics, detours, and what a dense computation says of real ones."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import geomhooks as gh
from geomhooks.functional import (
    angle_between,
    angles_from_first,
    layer_angles,
    path_deviation,
    slerp,
    sphere_path,
)
from tests.models import smollm, texts, tiny_gpt2
from tests.reference import angle, centred


def vectors(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


@given(st.integers(0, 2**32 - 1), st.integers(2, 7), st.booleans())
def test_lengths_are_sums_of_dense_angles(seed: int, depth: int, around_mean: bool) -> None:
    states = vectors(depth, 2, 3, 6, seed=seed)
    dense = centred(states.numpy()) if around_mean else states.numpy()
    steps = np.stack([angle(dense[i].reshape(-1, 6), dense[i + 1].reshape(-1, 6)).reshape(2, 3)
                      for i in range(depth - 1)])  # fmt: skip
    path = sphere_path(states, centred=around_mean)
    np.testing.assert_allclose(path.steps, steps, atol=1e-12)
    np.testing.assert_allclose(layer_angles(states, centred=around_mean), steps, atol=1e-12)
    np.testing.assert_allclose(path.length, steps.sum(0), atol=1e-12)
    first = angles_from_first(states, centred=around_mean)
    assert first.shape == (depth, 2, 3)
    assert float(first[0].abs().max()) == 0
    torch.testing.assert_close(first[-1], path.chord)
    # The way is no shorter than the geodesic, whatever it is.
    assert (path.tortuosity >= 1 - 1e-12).all()
    assert (path_deviation(states, centred=around_mean).angle <= path.length / 2 + 1e-12).all()


def test_along_a_geodesic() -> None:
    start, end = vectors(5, 8), vectors(5, 8, seed=1)
    fractions = torch.tensor([0.0, 0.1, 0.4, 0.75, 1.0], dtype=torch.float64)
    lengths = 1 + torch.arange(25.0, dtype=torch.float64).view(5, 5, 1)
    states = lengths * slerp(start, end, fractions)
    path = sphere_path(states, centred=False)
    torch.testing.assert_close(path.tortuosity, torch.ones(5).double())
    torch.testing.assert_close(path.steps, fractions.diff()[:, None] * angle_between(start, end))
    off = path_deviation(states, centred=False)
    assert float(off.angle.abs().max()) < 1e-7
    torch.testing.assert_close(off.along, fractions[:, None].expand(5, 5), atol=1e-7, rtol=0)


def test_a_detour_over_the_pole() -> None:
    """Along the equator by 90 degrees, but by way of the pole: two right angles for one."""
    states = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    path = sphere_path(states, centred=False)
    assert float(path.length) == pytest.approx(math.pi)
    assert float(path.tortuosity) == pytest.approx(2)
    assert path_deviation(states, centred=False).angle.tolist() == pytest.approx(
        [0, math.pi / 2, 0]
    )


def test_a_path_that_comes_back() -> None:
    states = torch.stack([vectors(4), vectors(4, seed=1), 2 * vectors(4)])
    path = sphere_path(states, centred=False)
    assert float(path.chord) == 0
    assert math.isinf(float(path.tortuosity))
    assert torch.isnan(sphere_path(vectors(1, 4).expand(3, 4)).tortuosity)


def test_states_that_are_not_there_spoil_their_own_paths_alone() -> None:
    states = vectors(3, 2, 5)
    states[:, 1] = float("nan")
    for found in (*sphere_path(states), *path_deviation(states), angles_from_first(states)):
        assert torch.isnan(found[..., 1]).all()
        assert torch.isfinite(found[..., 0]).all()


def test_what_is_refused() -> None:
    for states in (torch.ones(1, 4), torch.ones(4), torch.ones(3, 0)):
        for function in (layer_angles, angles_from_first, sphere_path, path_deviation):
            with pytest.raises(ValueError, match=r"shape \(L, ..., d\) of two layers or more"):
                function(states)


def test_the_angles_of_sphere_are_those_of_the_states() -> None:
    """What Sphere streams of a token is what its states at all layers have."""
    model, ids = tiny_gpt2(), torch.arange(12)[None]
    with torch.no_grad(), gh.watch(model, statistics=[gh.Sphere()]) as watch:
        states = torch.stack(model(ids, output_hidden_states=True).hidden_states[:-1])
        last: list[Tensor] = []
        handle = model.h[-1].register_forward_hook(lambda m, a, o: last.append(o))
        model(ids)
        handle.remove()
    states = torch.cat([states, last[0][None]])
    path, geometry = sphere_path(states), watch.geometry()
    for index, site in enumerate(geometry.sites[1:]):
        found = geometry[site].sphere
        np.testing.assert_allclose(
            found.step_angle.at_position.mean, path.steps[index, 0], rtol=1e-5
        )
    np.testing.assert_allclose(found.path_length.at_position.mean, path.length[0], rtol=1e-5)
    np.testing.assert_allclose(found.chord.at_position.mean, path.chord[0], rtol=1e-5)
    np.testing.assert_allclose(found.tortuosity.at_position.mean, path.tortuosity[0], rtol=1e-5)


def test_words_of_a_real_model() -> None:
    """The path of a word through SmolLM2 is several times as long as its geodesic."""
    model, tokenizer = smollm()
    inputs = tokenizer(texts(2, 400)[1][:200], return_tensors="pt")
    with torch.no_grad():
        states = torch.stack(model(**inputs, output_hidden_states=True).hidden_states)[:, 0]
    path = sphere_path(states, centred=False)
    dense = states.double().numpy()
    steps = np.stack([angle(a, b) for a, b in pairwise(dense)])
    np.testing.assert_allclose(path.length, steps.sum(0), rtol=1e-6)
    assert float(path.tortuosity[1:].mean()) > 2
    off = path_deviation(states, centred=False)
    np.testing.assert_allclose(
        off.along[[0, -1]], np.array([[0.0], [1.0]]).repeat(len(states[0]), 1), atol=1e-6
    )
