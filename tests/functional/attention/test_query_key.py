"""The split of logits against a dense float64 computation of whole queries and keys."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from geomhooks.functional import (
    Rotary,
    freeze_norm,
    project_parts,
    published_query_key_logits,
    query_key_logits,
    repeat_heads,
    split_states,
)

B, T, D, H, G, K = 2, 7, 12, 4, 2, 6


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


HIDDEN = 3 * draw(B, T, D, seed=1) + 2
MEAN, POS, CTX = draw(D, seed=2), draw(T, D, seed=3), draw(B, D, seed=4)
QUERY, KEY = draw(H, D, K, seed=5), draw(G, D, K, seed=6)
QUERY_BIAS, KEY_BIAS = draw(H, K, seed=7), draw(G, K, seed=8)
GAIN, BIAS = draw(D, seed=9), draw(D, seed=10)


def angles(width: int, interleaved: bool) -> tuple[Tensor, Tensor]:
    """(T, width / 2) angles, and the same as they stand at the entries of a head."""
    frequency = 100.0 ** (-torch.arange(width // 2, dtype=torch.float64) / (width // 2))
    angle = torch.arange(T).double()[:, None] * frequency
    return angle, angle.repeat_interleave(2, 1) if interleaved else torch.cat((angle, angle), 1)


def turn_as_complex(vectors: Tensor, angle: Tensor, interleaved: bool) -> Tensor:
    """A rotary embedding as its authors write it: complex numbers, turned."""
    width = 2 * angle.shape[1]
    part = vectors[..., :width]
    if interleaved:
        real, imaginary = part[..., 0::2], part[..., 1::2]
    else:
        real, imaginary = part[..., : width // 2], part[..., width // 2 :]
    turned = torch.complex(real, imaginary) * torch.polar(torch.ones_like(angle), angle)
    pair = (turned.real, turned.imag)
    joined = torch.stack(pair, -1).flatten(-2) if interleaved else torch.cat(pair, -1)
    return torch.cat((joined, vectors[..., width:]), -1)


def norm(kind: str, hidden: Tensor) -> Tensor:
    if kind == "layer":
        return F.layer_norm(hidden, (D,), GAIN, BIAS, 1e-5)
    return F.rms_norm(hidden, (D,), GAIN, 1e-5) if kind == "rms" else hidden


@pytest.mark.parametrize("kind", ["layer", "rms", "none"])
@pytest.mark.parametrize("turned", [None, (K, False), (K, True), (4, False), (4, True)])
def test_the_parts_add_up_to_the_logits(kind: str, turned: tuple[int, bool] | None) -> None:
    normed = norm(kind, HIDDEN)
    query = torch.einsum("btd,hdk->bhtk", normed, QUERY) + QUERY_BIAS[:, None]
    key = torch.einsum("btd,hdk->bhtk", normed, KEY) + KEY_BIAS[:, None]
    rotary = None
    if turned is not None:
        angle, at_entries = angles(*turned)
        query, key = (turn_as_complex(x, angle, turned[1]) for x in (query, key))
        rotary = Rotary(at_entries.cos(), at_entries.sin(), turned[1])
    key = torch.stack([key[:, h // (H // G)] for h in range(H)], dim=1)
    expected = query @ key.mT * K**-0.5

    frozen = {
        "layer": freeze_norm(HIDDEN, GAIN, BIAS, eps=1e-5),
        "rms": freeze_norm(HIDDEN, GAIN, eps=1e-5, centred=False),
        "none": None,
    }[kind]
    parts = split_states(HIDDEN, MEAN, POS, CTX)
    split = query_key_logits(
        project_parts(parts, QUERY, QUERY_BIAS, frozen, rotary),
        project_parts(parts, KEY, KEY_BIAS, frozen, rotary),
    )
    assert split.shape == (5, 5, B, H, T, T)
    torch.testing.assert_close(split.sum((0, 1)), expected, rtol=1e-11, atol=1e-11)


def test_a_part_that_is_not_there_takes_no_part() -> None:
    """Planted: ctx is zero in the states, and pos lies where the query's weights are zero."""
    weight = QUERY.clone()
    weight[:, :3] = 0
    pos = torch.zeros(T, D, dtype=torch.float64)
    pos[:, :3] = POS[:, :3]
    parts = split_states(HIDDEN, MEAN, pos, torch.zeros(B, D, dtype=torch.float64))
    frozen = freeze_norm(HIDDEN, GAIN, eps=1e-5, centred=False)
    split = query_key_logits(project_parts(parts, weight, norm=frozen), project_parts(parts, KEY))
    assert not split[1].any(), "a query of pos"
    assert not split[2].any(), "a query of ctx"
    assert not split[:, 2].any(), "a key of ctx"
    assert not split[4].any(), "there are no biases"
    for part in (split[0, 1], split[3, 1], split[0, 3]):
        assert part.abs().min() > 0


def test_contexts_estimated_from_their_own_tokens() -> None:
    real = torch.ones(B, T, dtype=torch.bool)
    real[1, 4:] = False
    states = (MEAN + POS + CTX[:, None]).masked_fill(~real[..., None], float("nan"))
    parts = split_states(states, MEAN, POS, real=real)
    torch.testing.assert_close(parts[2, :, 0], CTX)
    assert parts[3][real].abs().max() < 1e-12
    every = split_states(MEAN + POS + CTX[:, None], MEAN, POS)
    torch.testing.assert_close(every[2, :, 0], CTX)


def test_float32_states_and_float64_parts() -> None:
    parts = split_states(HIDDEN.float(), MEAN, POS, CTX)
    assert parts.dtype == torch.float64
    torch.testing.assert_close(parts.sum(0), HIDDEN.float().double(), rtol=1e-14, atol=1e-14)


def test_bfloat16_is_not_summed_as_such() -> None:
    hidden = HIDDEN.bfloat16()
    frozen = freeze_norm(hidden, eps=1e-5)
    torch.testing.assert_close(frozen.scale, freeze_norm(hidden.double(), eps=1e-5).scale.float())


@pytest.mark.parametrize("twice", [False, True])
def test_the_published_split(twice: bool) -> None:
    hidden, pos = HIDDEN[0], POS
    key_weight, key_bias = draw(H, D, K, seed=11), draw(H, K, seed=12)
    found = published_query_key_logits(
        hidden, pos, QUERY, key_weight, QUERY_BIAS, key_bias,
        gain=GAIN, bias=BIAS, eps=1e-5, normed_twice=twice,
    )  # fmt: skip

    def layer_norm(x: Tensor) -> Tensor:
        return F.layer_norm(x, (D,), GAIN, BIAS, 1e-5)

    for h in range(H):

        def logits(x: Tensor, y: Tensor, h: int = h) -> Tensor:
            query = x @ QUERY[h] + QUERY_BIAS[h]
            return query @ (y @ key_weight[h] + key_bias[h]).T / K**0.5

        for a, x in enumerate((pos, hidden - pos)):
            for b, y in enumerate((pos, hidden - pos)):
                once = layer_norm(x)
                asks = layer_norm(once) if twice and b == 1 else once
                torch.testing.assert_close(found.parts[a, b, h], logits(asks, layer_norm(y)))
        torch.testing.assert_close(found.total[h], logits(layer_norm(hidden), layer_norm(hidden)))
    assert (found.parts.sum((0, 1)) - found.total).abs().max() > 0.1 * found.total.abs().max()


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"pos of shape \(7, 12\), found \(12,\) and \(6, 12\)"):
        split_states(HIDDEN, MEAN, POS[:-1])
    with pytest.raises(ValueError, match=r"ctx: shape \(2, 12\) is needed.*found \(7, 12\)"):
        split_states(HIDDEN, MEAN, POS, POS)
    parts = split_states(HIDDEN, MEAN, POS)
    with pytest.raises(ValueError, match=r"weights \(H, d, k\)"):
        project_parts(parts, QUERY[0])
    with pytest.raises(ValueError, match=r"bias: shape \(4, 6\) is needed"):
        project_parts(parts, QUERY, KEY_BIAS)
    with pytest.raises(ValueError, match="4 query heads cannot share 3 key heads"):
        repeat_heads(draw(3, T, K), 4)
