"""Attention at temperature zero by blocks of rows, against the simulator and whole matrices."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from geomhooks.functional import (
    HardAttention,
    attention_scores,
    follower_graph,
    hard_attention,
    hard_targets,
    hardmax_path,
    homes_of,
    leaders_over_depth,
    leading_tokens,
    logit_rows,
    tokens_outside,
)
from geomhooks.functional.hardmax.follower_graphs import FollowerGraph
from geomhooks.functional.hardmax.hard_attention import means_by_look_up, means_by_product
from geomhooks.functional.hardmax.token_covers import cover_tokens, random_directions


def simulated(
    states: Tensor, moved: Tensor, valid: Tensor, form: Tensor, known: Tensor | None = None
) -> HardAttention:
    """One layer of hardmax attention, looked at as if it were a head of a model."""
    reach = 1e-4 * states.masked_fill(~valid[..., None], 0).norm(dim=-1).amax(-1, keepdim=True)
    blocks = logit_rows(
        (states @ form.mT)[:, None],
        states[:, None],
        lambda rows: valid[:, None, None],
        scale=1.0,
        block=3,
    )
    there = {"there": valid, "known": known}
    return hard_attention(blocks, states, moved, reach.expand_as(valid), **there)


@given(data=st.data())
def test_leaders_are_the_simulators_at_every_layer(data: st.DataObject) -> None:
    """Also those that coincide, those that come to where one is, and those that emerge later."""
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**32)))
    number, width = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 4))
    states = torch.randn(2, number, width, generator=generator, dtype=torch.float64)
    alike = torch.randint(number, (2, number), generator=generator)
    states = torch.where(
        torch.rand(2, number, generator=generator)[..., None] < 0.3,
        states.gather(1, alike[..., None].expand_as(states)),
        states,
    )
    valid = torch.rand(2, number, generator=generator) < 0.8
    valid[:, 0] = True
    factor = torch.randn(width, width, generator=generator, dtype=torch.float64)
    form = factor @ factor.mT + torch.eye(width).double()
    step = data.draw(st.floats(0.2, 3))
    path = hardmax_path(states, step, 12, form=form, valid=valid)
    expected = leaders_over_depth(path, form=form, valid=valid).leaders
    known = None
    for layer in range(12):
        before, after = path[layer], path[layer + 1]
        found = simulated(before, after, valid, form, known)
        leading = leading_tokens(found, known)
        known = leading.so_far
        assert torch.equal(known[:, 0] & valid, expected[layer])
        # Of targets that coincide rounding may choose another.
        chosen = hard_targets(attention_scores(before, form), valid[:, None]).targets
        places = [
            before.gather(1, targets[..., None].expand_as(before))
            for targets in (found.targets[:, 0], chosen)
        ]
        torch.testing.assert_close(places[0][valid], places[1][valid], rtol=1e-6, atol=1e-6)
        # The dynamics' own step, whatever the tokens.
        steps = found.step[:, 0][valid]
        steps = steps[steps.isfinite()]
        torch.testing.assert_close(steps, torch.full_like(steps, step / (1 + step)))
        assert not (found.unexplained[:, 0][valid] > 1e-6).any()
        home = torch.zeros(2, number, dtype=torch.int64)
        directions = random_directions(32, width)
        assert not tokens_outside(before, after, directions, valid, home).any()


@pytest.mark.parametrize("block", [1, 4, 100])
def test_blocks_are_the_whole(block: int) -> None:
    torch.manual_seed(0)
    query, key, states = torch.randn(2, 4, 9, 3), torch.randn(2, 2, 9, 3), torch.randn(2, 9, 5)
    moved, bias = torch.randn(2, 9, 5), torch.randn(4, 9, 9)
    seen = torch.ones(9, 9).tril().bool()
    blocks = logit_rows(
        query, key, seen.__getitem__, bias=lambda rows: bias[:, rows], softcap=2.0, block=block
    )
    found = hard_attention(blocks, states, moved, torch.full((2, 9), 1e-4), tolerance=1e-5)
    logits = query.double() @ key.double().repeat_interleave(2, 1).mT / 3**0.5 + bias
    logits = (2 * (logits / 2).tanh()).masked_fill(~seen, -torch.inf)
    shares = logits.softmax(-1)
    torch.testing.assert_close(found.largest.double(), shares.amax(-1), rtol=1e-5, atol=1e-6)
    entropy = torch.special.entr(shares).sum(-1)
    torch.testing.assert_close(found.entropy.double(), entropy, rtol=1e-5, atol=1e-6)
    assert torch.equal(found.targets, logits.argmax(-1))
    means = (
        states[:, None]
        .expand(2, 4, 9, 5)
        .gather(2, logits.argmax(-1)[..., None].expand(2, 4, 9, 5))
    )
    torch.testing.assert_close(found.before, (states[:, None] - means).norm(dim=-1))
    torch.testing.assert_close(found.after, (moved[:, None] - means).norm(dim=-1))


def test_means_of_targets_by_either_way() -> None:
    """That of processors and that of other devices; a mean of nothing is no number."""
    torch.manual_seed(0)
    chosen, states = torch.rand(2, 3, 5, 7) < 0.2, torch.randn(2, 7, 4, dtype=torch.float64)
    chosen[0, 0, 0] = False
    targets, ties = chosen.to(torch.uint8).argmax(-1), chosen.sum(-1)
    assert {0, 1, 2} <= set(ties.flatten().tolist())
    expected = torch.full((2, 5, 3, 4), torch.nan, dtype=torch.float64)
    for b, h, r in (ties > 0).nonzero().tolist():
        expected[b, r, h] = states[b, chosen[b, h, r]].mean(0)
    found = [
        means_by_product(chosen, ties, states),
        means_by_look_up(chosen, targets, ties, states),
    ]
    for means in found:
        torch.testing.assert_close(means, expected, equal_nan=True)


def test_ties_are_averaged() -> None:
    """Row 4 of the paper's figure: a token between two corners goes to the middle of their edge."""
    states = torch.tensor([[[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0], [0.5, 0.0]]])
    valid = torch.ones(1, 5, dtype=torch.bool)
    found = simulated(states, states, valid, torch.eye(2))
    assert found.ties[0, 0].tolist() == [1, 1, 1, 1, 2]
    assert found.targets[0, 0].tolist() == [0, 1, 2, 3, 0]
    assert found.alone[0, 0].tolist() == [True] * 4 + [False]
    assert float(found.before[0, 0, 4]) == 0.5
    # Attention at temperature one, of logits 0.5, 0.5, -0.5, -0.5, 0.25.
    weights = np.exp([0.5, 0.5, -0.5, -0.5, 0.25])
    softness = 1 - weights[:2].sum() / weights.sum()
    assert float(found.softness[0, 0, 4]) == pytest.approx(softness, rel=1e-6)


def test_a_query_that_sees_nothing() -> None:
    states = torch.randn(1, 3, 2)
    seen = torch.ones(3, 3).tril(-1).bool()
    blocks = logit_rows(states[:, None], states[:, None], seen.__getitem__)
    found = hard_attention(blocks, states, states, torch.full((1, 3), 1e-3))
    assert found.ties[0, 0].tolist() == [0, 1, 1]
    assert int(found.targets[0, 0, 0]) == 0
    assert not found.alone[0, 0, 0]
    assert found.largest[0, 0].isnan().tolist() == [True, False, False]


def graph(targets: list[int], hidden: list[int] | None = None, **there: list[int]
          ) -> FollowerGraph:  # fmt: skip
    number = len(targets)
    every = torch.ones(1, number, dtype=torch.bool)

    def which(columns: list[int] | None) -> Tensor | None:
        if columns is None:
            return None
        found = torch.zeros(1, number, dtype=torch.bool)
        found[0, columns] = True
        return found

    home = torch.tensor([there.get("home", [0] * number)])
    counted = which(there.get("counted"))
    return follower_graph(
        torch.tensor([[targets]]), every, every if counted is None else counted, home,
        which(hidden),
    )  # fmt: skip


def test_graphs_by_hand() -> None:
    def numbers(found: FollowerGraph, column: int = 0) -> list[float]:
        return [round(float(one[0, 0, column]), 6) for one in found]

    # A chain 4 to 3 to 2 to 1 to 0.
    chain = -(3 * 0.2 * np.log(0.2) + 0.4 * np.log(0.4))
    assert numbers(graph([0, 0, 1, 2, 3])) == [4, 0.4, round(chain, 6), 1, 1, 4]
    # Three on a cycle, and one that leads to it.
    assert numbers(graph([1, 2, 0, 0])) == [3, 0.5, round(1.5 * np.log(2), 6), 1, 1, 1]
    # Without position 0, to which two of the others go: one is left as a target and as an end.
    assert numbers(graph([0, 0, 0, 3], hidden=[0])) == [1, round(1 / 3, 6), 0, 1, 0.333333, 1]
    # All go to position 0: nobody else is followed.
    found = graph([0, 0, 0], hidden=[0])
    assert numbers(found)[:2] == [0, 0]
    assert found.in_degree_entropy[0, 0, 0].isnan()
    assert numbers(found)[3:] == [0, 0, 1]
    # Two contexts in a row; the second's numbers are at its own first column.
    packed = graph([0, 0, 3, 3, 3], home=[0, 0, 2, 2, 2])
    assert numbers(packed) == [1, 1, 0, 1, 1, 1]
    assert numbers(packed, 2) == [2 - 1, 1, 0, 1, 1, 1]
    assert packed.basins[0, 0, 1].isnan()
    # A token that does not count is a target and an end all the same.
    assert numbers(graph([2, 2, 2], counted=[0, 1])) == [1, 1, 0, 1, 1, 1]


def test_homes() -> None:
    segments = torch.tensor([[3, 3, 0, 3, 1, 0], [2, 2, 2, 2, 2, 2]])
    assert homes_of(segments, segments).tolist() == [[0, 0, 2, 0, 4, 2], [0] * 6]


@given(seed=st.integers(0, 2**32), cosine=st.floats(-0.9, 0.99))
def test_covers(seed: int, cosine: float) -> None:
    """Every token is near a beginner, and no two beginners of a context are near each other."""
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(2, 11, 3, generator=generator)
    there = torch.rand(2, 11, generator=generator) < 0.8
    home = torch.tensor([[0] * 5 + [5] * 6, [0] * 11])
    begins = cover_tokens(states, there, home, cosine, rows=4)
    units = states / states.norm(dim=-1, keepdim=True)
    near = (units @ units.mT > cosine) & (home[:, None] == home[..., None])
    apart = ~torch.eye(11, dtype=torch.bool)
    assert not (begins & ~there).any()
    assert not (near & apart & begins[:, None] & begins[..., None]).any()
    earlier = apart.tril()
    assert torch.equal(there & ~(near & earlier & begins[:, None]).any(-1), begins)
