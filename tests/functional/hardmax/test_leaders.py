"""Leaders, followers and limits: the facts of the theory on random systems, published fixtures."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from geomhooks.functional import (
    attention_scores,
    attraction,
    coincident,
    connected_tokens,
    convergence_rate,
    first_index_leaders,
    follower_basins,
    follower_counts,
    form_norm,
    hard_targets,
    hardmax_path,
    leaders_over_depth,
    limiting_polytope,
    maximisers,
    nearest_limit,
    strict_leaders,
)
from tests.functional.hardmax.systems import CORNERS, EMERGING, square, system, triangle

seeds = st.integers(0, 2**32 - 1)
few = settings(deadline=None, max_examples=40)


@few
@given(seeds)
def test_leaders_stand_still_and_lead_for_ever(seed: int) -> None:
    """The third and fourth facts; the one that is farthest from the origin is among them."""
    states, form, step = system(seed)
    path = hardmax_path(states, step, 20, form=form)
    found = leaders_over_depth(path, form=form)
    first = strict_leaders(attention_scores(states, form))
    assert torch.equal(found.leaders[0], first)
    assert bool(first[form_norm(states, form).argmax()])
    assert (found.counts.diff() >= 0).all()
    for token in found.since.clamp(min=0).nonzero()[:, 0].tolist():
        since = int(found.since[token])
        torch.testing.assert_close(
            path[since:, token], path[since, token].expand(21 - since, -1), rtol=0, atol=0
        )
        assert found.leaders[since:, token].all()
    assert torch.equal(found.leaders[-1], found.since >= 0)


@few
@given(seeds)
def test_followers_of_a_leader_come_nearer_by_the_same_factor(seed: int) -> None:
    """The fifth fact."""
    states, form, step = system(seed)
    path = hardmax_path(states, step, 6, form=form)
    targets = torch.stack([hard_targets(attention_scores(z, form)).targets for z in path])
    leaders = leaders_over_depth(path, form=form).leaders
    fixed = (targets == targets[0]).all(0) & leaders[0][targets[0]] & ~leaders[-1]
    goals = states[targets[0]]
    for layer in range(6):
        found = attraction(path[layer], path[layer + 1], goals)
        if bool(fixed.any()):
            rate = convergence_rate(step)
            torch.testing.assert_close(
                found.ratio[fixed], torch.full_like(found.ratio[fixed], rate), rtol=1e-6, atol=0
            )
            assert float((found.step[fixed] - step).abs().max()) < 1e-6 * step
            assert float(found.unexplained[fixed].max()) < 1e-12
    assert bool(found.gain[leaders[0] & (targets[0] == torch.arange(len(states)))].isnan().all())


def test_new_leaders_are_rare_and_rounding_makes_many() -> None:
    """The seventh fact, and where tokens end, over 240 random systems, each with A = I for it."""
    emerged, naive, latest = 0, 0, 0
    for width, step in ((2, 0.3), (3, 0.7), (4, 1.5), (5, 2.5)):
        systems = [system(seed, width=width) for seed in range(60)]
        valid = torch.zeros(60, 40, dtype=torch.bool)
        states = torch.zeros(60, 40, width, dtype=torch.float64)
        for row, one in enumerate(systems):
            count = len(one.states)
            states[row, :count] = one.states @ torch.linalg.cholesky(one.form)
            valid[row, :count] = True
        path = hardmax_path(states, step, 60, valid=valid)
        found = leaders_over_depth(path, valid=valid)
        assert bool((found.counts[0] > 0).all())
        emerged += int((found.since > 0).any(1).sum())
        latest = max(latest, int(found.since.max()))
        strict = strict_leaders(attention_scores(path), valid[:, None, :]) & valid
        naive += int((strict.any(0) & ~strict[0]).any(1).sum())
        for row in range(60):
            polytope = limiting_polytope(path[-1, row][found.leaders[-1, row]])
            distance = nearest_limit(path[-1, row][valid[row]], polytope).distance
            assert float(distance.max()) < 1e-3 * float(states[row].norm(dim=1).max()), (width, row)
    assert 0 < emerged <= 5
    assert latest <= 4
    assert naive > 4 * emerged


def test_a_leader_that_emerges() -> None:
    """The second row of the published figure, where nothing is random."""
    path = hardmax_path(EMERGING, 0.5, 30)
    targets = hard_targets(attention_scores(path))
    assert targets.targets[0].tolist() == [0, 3, 2, 0, 2, 2, 0, 0]
    assert (targets.ties[:2] == 1).all()
    assert targets.targets[1].tolist() == [0, 1, 2, 0, 2, 2, 0, 0]
    found = leaders_over_depth(path)
    assert found.leaders[0].nonzero()[:, 0].tolist() == [0, 2]
    assert found.since.tolist() == [0, 1, 0, -1, -1, -1, -1, -1]
    place = torch.tensor([-1 / 18, 5 / 36]).double()
    torch.testing.assert_close(path[1, 1], place)
    assert torch.equal(path[1:, 1], path[1, 1].expand(30, 2))
    limits = torch.stack((EMERGING[0], place, EMERGING[2]))
    torch.testing.assert_close(path[-1], limits[[0, 1, 2, 0, 2, 2, 0, 0]], rtol=0, atol=1e-4)
    polytope = limiting_polytope(path[-1][found.leaders[-1]])
    torch.testing.assert_close(polytope.vertices, limits)
    near = nearest_limit(path[-1], polytope)
    assert near.nearest.tolist() == [0, 1, 2, 0, 2, 2, 0, 0]
    clusters = connected_tokens(coincident(path[-1]))
    assert int(clusters.number) == 3
    assert clusters.labels.tolist() == [0, 1, 2, 0, 2, 2, 0, 0]


@few
@given(seeds)
def test_the_triangle_and_the_square(seed: int) -> None:
    """The first and third rows; the corners of both lead, and everything goes to them."""
    for states, corners in ((triangle(seed), 3), (square(seed), 4)):
        path = hardmax_path(states, 0.5, 60)
        found = leaders_over_depth(path)
        assert found.leaders[-1, :corners].all()
        leaders = found.leaders[-1].nonzero()[:, 0]
        near = nearest_limit(path[-1], limiting_polytope(path[-1][leaders]))
        assert (near.nearest < len(leaders)).all()
        assert float(near.distance.max()) < 1e-6
    assert found.counts.tolist() == [4] * 61


@few
@given(seeds)
def test_clusters_that_are_no_leaders(seed: int) -> None:
    """The fourth row: tokens that tie two corners end on the side between them."""
    states = square(seed, (-0.5, 0.0), (0.5, 0.0), inside=4)
    path = hardmax_path(states, 0.5, 80)
    found = leaders_over_depth(path)
    assert found.since.tolist() == [0] * 4 + [-1] * 6
    assert (path[:, 4:6, 1] == 0).all()
    polytope = limiting_polytope(path[-1][:4])
    near = nearest_limit(path[-1], polytope)
    assert (near.nearest[4:6] >= 4).all()
    torch.testing.assert_close(
        polytope.limits[near.nearest[4:6]], torch.tensor([[-1.0, 0.0], [1.0, 0.0]]).double()
    )
    assert float(near.distance.max()) < 1e-9
    assert maximisers(attention_scores(path[-1]))[4:6].sum(1).tolist() == [2, 2]


@few
@given(seeds)
def test_fixed_points_on_faces(seed: int) -> None:
    """The sixth fact, for boxes turned and stretched: a token on the way to a face ends there."""
    draw = np.random.default_rng(seed)
    width = int(draw.integers(2, 5))
    form = system(seed, width=width).form
    turn = torch.linalg.qr(torch.from_numpy(draw.standard_normal((width, width)))).Q
    into = turn @ torch.linalg.inv(torch.linalg.cholesky(form))
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0]).double()] * width)
    sides = torch.from_numpy(draw.uniform(0.5, 2, width))
    vertices = (signs * sides) @ into
    polytope = limiting_polytope(vertices, form)
    # A box has a point on each of its faces, of any dimension but the vertices' and its own.
    assert len(polytope.points) == 3**width - 2**width - 1
    assert torch.equal(polytope.faces.sum(1).sort().values.unique(), 2 ** torch.arange(1, width))
    products = polytope.points @ form @ vertices.T
    own = form_norm(polytope.points, form).square()
    for row, face in enumerate(polytope.faces):
        torch.testing.assert_close(products[row, face], own[row].expand(int(face.sum())))
        assert float(products[row].max()) < float(own[row]) * (1 + 1e-9)
    inside = 0.7 * polytope.points
    path = hardmax_path(torch.cat((vertices, inside)), 2.0, 40, form=form, tolerance=1e-9)
    torch.testing.assert_close(path[-1, len(vertices) :], polytope.points, rtol=1e-9, atol=1e-9)
    near = nearest_limit(path[-1], polytope, form)
    assert near.nearest.tolist() == list(range(len(polytope.limits)))


def test_tokens_that_coincide_count_once() -> None:
    """Repeated words, by exact places or nearly; the first of them leads."""
    states = torch.tensor([[0.1, 0.2], [2.0, 0], [0, 1.0], [2.0, 0], [2.0, 1e-5]]).double()
    same = coincident(states)
    assert same.int().tolist() == [
        [1, 0, 0, 0, 0], [0, 1, 0, 1, 1], [0, 0, 1, 0, 0], [0, 1, 0, 1, 1], [0, 1, 0, 1, 1]
    ]  # fmt: skip
    assert coincident(states, tolerance=0)[1].tolist() == [False, True, False, True, False]
    scores = attention_scores(states)
    assert strict_leaders(scores).tolist() == [False, False, True, False, True]
    assert strict_leaders(scores, same=same).tolist() == [False, True, True, False, False]
    path = hardmax_path(states, 1.0, 20)
    assert leaders_over_depth(path).since.tolist() == [-1, 0, 0, -1, -1]
    # As published, a tie with a later token counts, also where that is a different one.
    tied = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, -1.0], [1.0, 1.0]])
    scores = attention_scores(tied)
    assert first_index_leaders(scores).tolist() == [True, False, True, True]
    assert strict_leaders(scores, same=coincident(tied)).tolist() == [False, False, True, True]


def test_masks_of_leaders() -> None:
    states = EMERGING[None].repeat(2, 1, 1)
    valid = torch.ones(2, 8, dtype=torch.bool)
    valid[1, 0], states[1, 0] = False, float("nan")
    path = hardmax_path(states, 0.5, 10, valid=valid)
    found = leaders_over_depth(path, valid=valid)
    alone = leaders_over_depth(hardmax_path(EMERGING[1:], 0.5, 10))
    assert torch.equal(found.since[0], leaders_over_depth(path[:, 0]).since)
    assert torch.equal(found.since[1, 1:], alone.since)
    assert int(found.since[1, 0]) == -1
    assert found.counts.shape == (11, 2)


def reference_basins(targets: list[int]) -> dict[str, list[int]]:
    """By walking."""
    number = len(targets)
    on_cycle, roots, depth = [], [], []
    for start in range(number):
        at = start
        for _ in range(number):
            at = targets[at]
        cycle = [at]
        while targets[cycle[-1]] != at:
            cycle.append(targets[cycle[-1]])
        at, steps = start, 0
        while at not in cycle:
            at, steps = targets[at], steps + 1
        on_cycle.append(steps == 0)
        roots.append(min(cycle))
        depth.append(steps)
    pairs = list(zip(roots, on_cycle, strict=True))
    return {
        "roots": roots,
        "sizes": [roots.count(index) for index in range(number)],
        "depth": depth,
        "cycles": [sum(on for root, on in pairs if root == index) for index in range(number)],
    }


@settings(deadline=None, max_examples=100)
@given(
    st.integers(1, 40).flatmap(lambda n: st.lists(st.integers(0, n - 1), min_size=n, max_size=n))
)
def test_where_following_ends(targets: list[int]) -> None:
    found = follower_basins(torch.tensor([targets, targets]))
    for name, expected in reference_basins(targets).items():
        assert getattr(found, name).tolist() == [expected, expected], name


def test_where_following_ends_with_padding() -> None:
    """A chain as long as there are tokens, and padding whose targets say nothing."""
    chain = torch.arange(16) - 1
    chain[0] = 0
    valid = torch.arange(16) < 9
    found = follower_basins(torch.where(valid, chain, 0), valid)
    assert found.roots.tolist() == [0] * 9 + list(range(9, 16))
    assert found.sizes.tolist() == [9] + [0] * 15
    assert found.depth.tolist() == [*range(9)] + [0] * 7
    assert found.cycles.tolist() == [1] + [0] * 15
    assert follower_counts(chain, valid).tolist() == [2] + [1] * 7 + [0] * 8


@few
@given(seeds)
def test_following_goes_outward(seed: int) -> None:
    """Under a positive definite form nobody follows in circles, and all roots follow themselves."""
    states, form, _ = system(seed)
    found = follower_basins(hard_targets(attention_scores(states, form)).targets)
    assert set(found.cycles.tolist()) <= {0, 1}
    leaders = strict_leaders(attention_scores(states, form))
    assert torch.equal(found.cycles == 1, leaders)
    assert int(found.sizes.sum()) == len(states)


@few
@given(seeds, st.integers(1, 30))
def test_clusters_are_connected_components(seed: int, number: int) -> None:
    draw = np.random.default_rng(seed)
    near = draw.random((number, number)) < 1 / number
    near = near | near.T | np.eye(number, dtype=bool)
    valid = draw.random(number) < 0.8
    labels = list(range(number))
    for _ in range(number):
        for i, j in zip(*np.nonzero(near), strict=True):
            if valid[i] and valid[j]:
                labels[i] = labels[j] = min(labels[i], labels[j])
    found = connected_tokens(torch.from_numpy(near), torch.from_numpy(valid))
    assert found.labels.tolist() == labels
    assert int(found.number) == len({label for label, ok in zip(labels, valid, strict=True) if ok})


def test_nothing_depends_on_values() -> None:
    """Functions that hooks call go into one graph, without a look at a value."""

    def whole(scores: Tensor, valid: Tensor) -> tuple[Tensor, ...]:
        visible = valid[..., None, :]
        found = hard_targets(scores, visible, tolerance=1e-5)
        same = coincident(scores, valid)
        strict = strict_leaders(scores, visible, same=same)
        clusters = connected_tokens(same, valid)
        return (*found, strict, *follower_basins(found.targets, valid), *clusters)

    scores, valid = torch.randn(2, 7, 7), torch.arange(7) < torch.tensor([[7], [5]])
    compiled = torch.compile(whole, fullgraph=True, backend="eager")
    for a, b in zip(compiled(scores, valid), whole(scores, valid), strict=True):
        assert torch.equal(a, b)


def test_polytopes_that_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"1 of 5, the first of them number 4, do not lead among the others"
    ):
        limiting_polytope(torch.cat((CORNERS, CORNERS[:1] / 2)))
    with pytest.raises(ValueError, match=r"2 of 5, the first of them number 0, do not lead"):
        limiting_polytope(torch.cat((CORNERS, CORNERS[:1])))
    with pytest.raises(ValueError, match=r"vertices: shape \(L, d\) is needed, found \(2,\)"):
        limiting_polytope(torch.ones(2))
    with pytest.raises(ValueError, match=r"50 vertices in 5 dimensions have 2369885 sets"):
        limiting_polytope(torch.nn.functional.normalize(torch.randn(50, 5), dim=1))
    assert limiting_polytope(torch.ones(1, 3)).points.shape == (0, 3)


def test_attraction_of_what_stands_still() -> None:
    found = attraction(torch.zeros(2), torch.zeros(2), torch.ones(2))
    assert (float(found.ratio), float(found.gain), float(found.step)) == (1, 0, 0)
    assert found.unexplained.isnan()
