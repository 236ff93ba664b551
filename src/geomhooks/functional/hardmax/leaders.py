r"""Who leads and who follows under hardmax attention.

Token i is a leader where it attends to itself alone, :math:`C_i = \{i\}`: the hyperplane through
:math:`z_i` with the normal :math:`A z_i` has all others strictly on one side. Where A is symmetric
positive definite it then stays where it is and stays a leader; tokens with i in their :math:`C_j`
are its followers. After arXiv 2407.01602; see :mod:`geomhooks.functional.hardmax.dynamics`.

Floating point needs care. Tokens that coincide, as repeated words do, tie with each other and count
as one, by the first of them. And a follower that has come to where its leader is may, by rounding,
have a larger product with itself than with its leader: a new leader counts only where it is farther
from all that are known than a tolerance.

Functions of scores, targets and relations look at no value on the host, and no shape depends on
one. Where tokens are said to be ``valid``, integers as in an attention mask count as bool.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from geomhooks.functional.hardmax.dynamics import attention_scores, form_norm, maximisers
from geomhooks.functional.hardmax.token_arguments import as_states, as_valid, check_tolerance

__all__ = [
    "DepthLeaders",
    "FollowerBasins",
    "TokenClusters",
    "add_leaders",
    "coincident",
    "connected_tokens",
    "first_index_leaders",
    "follower_basins",
    "follower_counts",
    "leaders_over_depth",
    "strict_leaders",
]


class DepthLeaders(NamedTuple):
    """Leaders at each layer of a path."""

    leaders: Tensor
    """(K + 1, ..., n) bool, who is one by then"""
    since: Tensor
    """(..., n) int64 the first layer at which, -1 of tokens that never are"""

    @property
    def counts(self) -> Tensor:
        """(K + 1, ...) how many there are by then."""
        return self.leaders.sum(-1)


class FollowerBasins(NamedTuple):
    """Where following ends: by i, then its target, then the target of that, and so on."""

    roots: Tensor
    """(..., n) int64 the token that it ends at: one that follows itself, or the smallest index of
    a cycle; the token itself where it is not valid"""
    sizes: Tensor
    """(..., n) int64 at a root how many end there, itself among them, elsewhere 0"""
    depth: Tensor
    """(..., n) int64 how many steps it takes to the root, or to the cycle"""
    cycles: Tensor
    """(..., n) int64 at a root how many tokens are on its cycle, 1 where it follows itself,
    elsewhere 0"""


class TokenClusters(NamedTuple):
    """Tokens that hang together."""

    labels: Tensor
    """(..., n) int64 the first token of its cluster; the token itself where it is not valid"""
    number: Tensor
    """(...) int64 of clusters"""


def coincident(
    states: Tensor,
    valid: Tensor | None = None,
    *,
    tolerance: float = 1e-4,
    form: Tensor | None = None,
) -> Tensor:
    """Which tokens are at the same place.

    Args:
        states: (..., n, d).
        valid: (..., n) bool. Others coincide with nobody.
        tolerance: how far apart tokens may be, in the largest norm of a valid token; 0 is exact
            equality.
        form: (d, d) A of the norm, which is not checked; by default the identity.

    Returns:
        (..., n, n) bool, symmetric; True for a valid token with itself.

    Example:
        >>> coincident(torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 0.0]]))
        tensor([[ True, False,  True],
                [False,  True, False],
                [ True, False,  True]])
    """
    check_tolerance(tolerance)
    states = as_states(states)
    valid = as_valid(valid, states.shape[:-1])
    if valid is not None:
        states = states.masked_fill(~valid[..., None], 0)
    if form is not None:
        states = states @ torch.linalg.cholesky_ex(form.to(states)).L
    # Not by products, whose rounding is larger than what is asked for.
    apart = torch.cdist(states, states, compute_mode="donot_use_mm_for_euclid_dist")
    near = apart <= tolerance * form_norm(states).amax(-1)[..., None, None]
    return near if valid is None else near & valid[..., None, :] & valid[..., :, None]


def first_index_leaders(
    scores: Tensor, visible: Tensor | None = None, *, tolerance: float = 0.0
) -> Tensor:
    """Leaders as the published code has them: the first maximiser of a row is the token itself.

    Of tokens that coincide it counts the first, as :func:`strict_leaders` does where it is told of
    them; but a token that ties with a later, different one is counted too.

    Args:
        scores: (..., n, n).
        visible: as :func:`geomhooks.functional.maximisers` takes it.
        tolerance: the same.

    Returns:
        (..., n) bool

    Example:
        >>> first_index_leaders(torch.tensor([[1.0, 1.0], [1.0, 2.0]]))
        tensor([True, True])
    """
    chosen = maximisers(scores, visible, tolerance=tolerance)
    own = torch.arange(scores.shape[-1], device=scores.device)
    return (chosen.to(torch.uint8).argmax(-1) == own) & chosen.any(-1)


def strict_leaders(
    scores: Tensor,
    visible: Tensor | None = None,
    *,
    same: Tensor | None = None,
    tolerance: float = 0.0,
) -> Tensor:
    """Leaders by the definition: a token whose only maximiser is itself.

    Args:
        scores: (..., n, n).
        visible: as :func:`geomhooks.functional.maximisers` takes it.
        same: (..., n, n) bool of :func:`coincident`: tokens whose tie does not count, and of which
            only the first can be a leader. By default all are different.
        tolerance: of a tie.

    Returns:
        (..., n) bool

    Example: the first two coincide.
        >>> states = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.1, 0.1]])
        >>> scores = attention_scores(states)
        >>> strict_leaders(scores), strict_leaders(scores, same=coincident(states))
        (tensor([False, False,  True, False]), tensor([ True, False,  True, False]))
    """
    chosen = maximisers(scores, visible, tolerance=tolerance)
    index = torch.arange(scores.shape[-1], device=scores.device)
    own = index[:, None] == index if same is None else same
    strict = chosen.any(-1) & ~(chosen & ~own).any(-1)
    if same is None:
        return strict
    earlier = index[:, None] > index
    return strict & ~(same & earlier & strict[..., None, :]).any(-1)


def add_leaders(known: Tensor, strict: Tensor, same: Tensor) -> Tensor:
    """Leaders so far and those of another layer, but for those that only came to where one is.

    Args:
        known: (..., n) bool, leaders of the layers before.
        strict: (..., n) bool of :func:`strict_leaders` at this layer.
        same: (..., n, n) bool of :func:`coincident` at this layer.

    Returns:
        (..., n) bool

    Example: the second token has come to where the first is, which leads.
        >>> known, strict = torch.tensor([True, False, False]), torch.tensor([False, True, True])
        >>> same = torch.tensor([[1, 1, 0], [1, 1, 0], [0, 0, 1]]).bool()
        >>> add_leaders(known, strict, same)
        tensor([ True, False,  True])
    """
    return known | (strict & ~(same & known[..., None, :]).any(-1))


def leaders_over_depth(
    path: Tensor,
    *,
    form: Tensor | None = None,
    valid: Tensor | None = None,
    tolerance: float = 1e-4,
    ties: float = 0.0,
) -> DepthLeaders:
    """Leaders by each layer of a path: :func:`strict_leaders` of its layers, added up.

    Args:
        path: (K + 1, ..., n, d) of :func:`geomhooks.functional.hardmax_path`.
        form: (d, d) A, by default the identity.
        valid: (..., n) bool.
        tolerance: how far apart tokens are that count as one, as :func:`coincident` has it.
        ties: relative tolerance of a tie between scores.

    Raises:
        ValueError: the path or ``valid`` is of another shape, or a tolerance is negative.

    Example: a token becomes a leader in the first layer, having followed another.
        >>> from geomhooks.functional import hardmax_path
        >>> states = torch.tensor([[1.0, 1 / 3], [-1 / 12, 1 / 12], [-1.0, -1.0], [0.0, 0.25]])
        >>> leaders_over_depth(hardmax_path(states, 0.5, 30)).since
        tensor([ 0,  1,  0, -1])
    """
    check_tolerance(ties, "ties")
    path = as_states(path, "path", "(K + 1, ..., n, d)")
    valid = as_valid(valid, path.shape[1:-1])
    visible = None if valid is None else valid[..., None, :]
    known = torch.zeros(path.shape[1:-1], dtype=torch.bool, device=path.device)
    found, since = [], torch.full(known.shape, -1, device=path.device)
    for number, states in enumerate(path):
        seen = states if valid is None else states.masked_fill(~valid[..., None], 0)
        same = coincident(seen, valid, tolerance=tolerance, form=form)
        scores = attention_scores(seen, form)
        strict = strict_leaders(scores, visible, same=same, tolerance=ties)
        if valid is not None:
            strict = strict & valid
        after = add_leaders(known, strict, same)
        since = torch.where(after & ~known, number, since)
        known = after
        found.append(known)
    return DepthLeaders(torch.stack(found), since)


def follower_counts(targets: Tensor, valid: Tensor | None = None) -> Tensor:
    """How many tokens attend to each, itself among them.

    Args:
        targets: (..., n) int64 of :func:`geomhooks.functional.hard_targets`.
        valid: (..., n) bool, which tokens count.

    Returns:
        (..., n) int64

    Example:
        >>> follower_counts(torch.tensor([0, 0, 3, 3]))
        tensor([2, 0, 0, 2])
    """
    valid = as_valid(valid, targets.shape)
    counted = torch.ones_like(targets) if valid is None else valid.to(targets.dtype)
    return torch.zeros_like(targets).scatter_add(-1, targets, counted)


def follower_basins(targets: Tensor, valid: Tensor | None = None) -> FollowerBasins:
    """Follow targets to where they end, by pointer doubling: about log2(n) gathers.

    Args:
        targets: (..., n) int64, each of the same n tokens.
        valid: (..., n) bool. Other tokens follow nobody and do not count.

    Example: 0 leads 1, which leads 2; 3 and 4 follow each other.
        >>> found = follower_basins(torch.tensor([0, 0, 1, 4, 3]))
        >>> found.roots, found.sizes, found.depth, found.cycles
        (tensor([0, 0, 0, 3, 3]), tensor([3, 0, 0, 2, 0]), tensor([0, 1, 2, 0, 0]),
         tensor([1, 0, 0, 2, 0]))
    """
    number = targets.shape[-1]
    index = torch.arange(number, device=targets.device).expand_as(targets)
    valid = as_valid(valid, targets.shape)
    counted = torch.ones_like(targets) if valid is None else valid.to(targets.dtype)
    jump = targets if valid is None else torch.where(valid, targets, index)
    doublings = max(1, (number - 1).bit_length())  # 2 to so many is n at least
    smallest, far = index, jump
    for _ in range(doublings):
        smallest = torch.minimum(smallest, smallest.gather(-1, far))
        far = far.gather(-1, far)
    # After n steps every token is on a cycle, and every token of a cycle is where some token is.
    on_cycle = torch.zeros_like(index).scatter(-1, far, 1)
    roots = smallest.gather(-1, far)
    depth = 1 - on_cycle
    ahead = torch.where(on_cycle.bool(), index, jump)
    for _ in range(doublings):
        depth = depth + depth.gather(-1, ahead)
        ahead = ahead.gather(-1, ahead)
    none = torch.zeros_like(index)
    sizes = none.scatter_add(-1, roots, counted)
    cycles = none.scatter_add(-1, roots, on_cycle * counted)
    return FollowerBasins(roots, sizes, depth, cycles)


def connected_tokens(near: Tensor, valid: Tensor | None = None) -> TokenClusters:
    """Clusters of tokens that are near each other, directly or by others in between.

    Args:
        near: (..., n, n) bool, symmetric, such as :func:`coincident` gives, or cosines above
            something.
        valid: (..., n) bool, which tokens count.

    Example:
        >>> near = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 1]]).bool()
        >>> connected_tokens(near)
        TokenClusters(labels=tensor([0, 0, 0, 3]), number=tensor(2))
    """
    number = near.shape[-1]
    index = torch.arange(number, device=near.device)
    valid = as_valid(valid, near.shape[:-1])
    if valid is not None:
        near = near & valid[..., None, :] & valid[..., :, None]
    reached = near | (index[:, None] == index)
    for _ in range((number - 1).bit_length()):
        paths = reached.to(torch.float32)
        reached = (paths @ paths) > 0
    labels = reached.to(torch.uint8).argmax(-1)
    first = labels == index
    return TokenClusters(labels, (first if valid is None else first & valid).sum(-1))
