"""Everything the statistics report, computed the long way: dense, in float64, with NumPy alone.

Nothing here streams and nothing here imports geomhooks. A function takes the hidden states of one
site with the position and the context of every token, and returns the numbers by name, each as an
`Expected`: the value and the scale to which a relative error refers. Where a number is no
cancellation its scale is its own size. Where large parts may cancel to nearly nothing, the scale is
the size of the parts, and the place says so.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Observations(NamedTuple):
    """The tokens of one site that count."""

    states: np.ndarray
    """(N, d) float64"""
    positions: np.ndarray
    """(N,) absolute position of each token"""
    contexts: np.ndarray
    """(N,) id of each token's context"""

    def where(self, kept: np.ndarray) -> Observations:
        return Observations(self.states[kept], self.positions[kept], self.contexts[kept])


class Expected(NamedTuple):
    """A number, or an array of them, and what an error in it is relative to."""

    value: np.ndarray
    scale: np.ndarray
    rtol: float = 1e-5


Numbers = dict[str, Expected]

FLOAT32 = 3e-7  # a few units in the last place
PRODUCT = 1e-6  # and of a product of two such numbers


def exact(value: object) -> Expected:
    return Expected(np.asarray(value), np.asarray(0.0))


def plain(value: object, rtol: float = 1e-5) -> Expected:
    return Expected(np.asarray(value, np.float64), np.abs(np.asarray(value, np.float64)), rtol)


def relative_to(scale: object, value: object, rtol: float = 1e-5) -> Expected:
    return Expected(np.asarray(value, np.float64), np.asarray(scale, np.float64), rtol)


def disagreement(actual: object, expected: Expected) -> str:
    """What is wrong with a number: another shape, NaN elsewhere, its worst entry; or nothing."""
    found, value = np.asarray(actual, np.float64), np.asarray(expected.value, np.float64)
    if found.shape != value.shape:
        return f"has shape {found.shape}, not {value.shape}"
    if (np.isnan(found) != np.isnan(value)).any():
        places = (np.argwhere(np.isnan(array)).tolist() for array in (found, value))
        return "is NaN at {}, not {}".format(*places)
    if value.size == 0:
        return ""
    same = np.isnan(value) | (found == value)
    error = np.abs(np.where(same, 0.0, found) - np.where(same, 0.0, value))
    allowed = np.broadcast_to(expected.rtol * expected.scale, value.shape)
    times = np.where(error > 0, error / np.maximum(allowed, np.finfo(float).tiny), 0.0)
    worst = np.unravel_index(np.argmax(times), times.shape)
    if times[worst] <= 1:
        return ""
    place = [int(index) for index in worst]
    much = f"{times[worst]:.3g} times the error allowed"
    return f"is {found[worst]} for {value[worst]} at {place}, {much}"


# ---------------------------------------------------------------- h = mu + pos + ctx + resid


class Fit(NamedTuple):
    """The two-way least-squares fit, identified by sum_t pos_t = 0 and sum_c ctx_c = 0."""

    mu: np.ndarray
    pos: np.ndarray
    """(T, d), one row for each position that occurs, in ascending order"""
    ctx: np.ndarray
    """(C, d), one row for each context, by ascending id"""
    resid: np.ndarray
    """(N, d)"""


def dummies(labels: np.ndarray) -> np.ndarray:
    """(N, number of different labels), a one where the token has the label."""
    return (labels[:, None] == np.unique(labels)[None, :]).astype(np.float64)


def two_way_fit(seen: Observations) -> Fit:
    """Least squares on the full design matrix, a column for each position and for each context."""
    by_position, by_context = dummies(seen.positions), dummies(seen.contexts)
    design = np.concatenate([by_position, by_context], axis=1)
    centre = seen.states.mean(
        0
    )  # taken out beforehand, so that the solver meets numbers of the size of their spread
    effects = np.linalg.lstsq(design, seen.states - centre, rcond=None)[0]
    return identified(
        effects[: by_position.shape[1]], effects[by_position.shape[1] :], centre, seen
    )


def two_way_fit_of_many(seen: Observations) -> Fit:
    """The same for very many contexts, which are eliminated beforehand (Frisch and Waugh)."""
    centre = seen.states.mean(0)
    states, positions = seen.states - centre, dummies(seen.positions)
    row = np.unique(seen.contexts, return_inverse=True)[1]
    length = np.bincount(row)[:, None]

    def context_mean(values: np.ndarray) -> np.ndarray:
        return np.stack([np.bincount(row, weights=column) for column in values.T], axis=1) / length

    within_states = states - context_mean(states)[row]
    within_positions = positions - context_mean(positions)[row]
    a = np.linalg.lstsq(within_positions, within_states, rcond=None)[0]
    return identified(a, context_mean(states - positions @ a), centre, seen)


def identified(a: np.ndarray, c: np.ndarray, centre: np.ndarray, seen: Observations) -> Fit:
    mu = centre + a.mean(0) + c.mean(0)
    pos, ctx = a - a.mean(0), c - c.mean(0)
    row_t = np.unique(seen.positions, return_inverse=True)[1]
    row_c = np.unique(seen.contexts, return_inverse=True)[1]
    return Fit(mu, pos, ctx, (seen.states - mu) - pos[row_t] - ctx[row_c])


def residual_of_one_way(states: np.ndarray, labels: np.ndarray) -> float:
    """Sum of squares left after the mean of every label is taken out."""
    row = np.unique(labels, return_inverse=True)[1]
    centred = states - states.mean(0)
    means = (
        np.stack([np.bincount(row, weights=column) for column in centred.T], axis=1)
        / np.bincount(row)[:, None]
    )
    return float(((centred - means[row]) ** 2).sum())


def ratio(above: float, below: float) -> float:
    return above / below if below > 0 else float("nan")


def at_all_positions(rows: np.ndarray, positions: np.ndarray, unseen: float = np.nan) -> np.ndarray:
    """Rows of the positions that occur, spread over positions 0..last."""
    occurring = np.unique(positions)
    table = np.full((occurring[-1] + 1, *rows.shape[1:]), unseen, rows.dtype)
    table[occurring] = rows
    return table


def pos_ctx(
    seen: Observations,
    second_moment: bool = False,
    many_contexts: bool = False,
    label_of: Callable[[np.ndarray], np.ndarray] = lambda ids: np.full_like(ids, -1),
) -> Numbers:
    """What PosCtx reports, `label_of` saying which group contexts are of.

    Scales. Of mu and of the plain position means: the root mean square of the dimension. Of pos and
    ctx: the standard deviation of the dimension. Of a variance component: the mean square from
    which the noise is subtracted. Of an entry of a covariance: the product of the two standard
    deviations; what is left of it in resid is right to 1e-6 of the whole.
    """
    states, positions, contexts = seen
    count = len(states)
    fit = (two_way_fit_of_many if many_contexts else two_way_fit)(seen)
    occurring, row_t, n_t = np.unique(positions, return_inverse=True, return_counts=True)
    ids, row_c, n_c = np.unique(contexts, return_inverse=True, return_counts=True)
    T, C = len(occurring), len(ids)

    rms = np.sqrt((states**2).mean(0))
    spread = states.std(0)
    spread = np.maximum(spread, 1e-8 * rms + 1e-12 * spread.max())

    ss_pos = float((n_t[:, None] * fit.pos**2).sum())
    ss_ctx = float((n_c[:, None] * fit.ctx**2).sum())
    ss_resid = float((fit.resid**2).sum())
    total = ss_pos + ss_ctx + ss_resid
    shares = {"pos": ss_pos / total, "ctx": ss_ctx / total, "resid": ss_resid / total}
    cross = 2 * float((fit.pos[row_t] * fit.ctx[row_c]).sum()) / total

    gained_by_pos = residual_of_one_way(states, contexts) - ss_resid
    gained_by_ctx = residual_of_one_way(states, positions) - ss_resid
    weights = np.zeros((C, T)) if not many_contexts else None
    if weights is not None:
        np.add.at(weights, (row_c, row_t), 1.0)
        M = np.diag(n_t.astype(float)) - weights.T @ (weights / n_c[:, None])
    else:
        M = np.diag(n_t.astype(float)) - gram_of_many(row_c, row_t, n_c, T)
    s2_resid = ratio(ss_resid, count - T - C + 1)
    s2_pos = ratio(gained_by_pos - (T - 1) * s2_resid, np.trace(M) if T > 1 else 0)
    s2_ctx = ratio(gained_by_ctx - (C - 1) * s2_resid, count - T if C > 1 else 0)
    least = FLOAT32 / 1e-5  # what is left of the whole is right to FLOAT32 of the whole
    scale_pos = max(abs(s2_pos), ratio(max(gained_by_pos, least * total), np.trace(M)))
    scale_ctx = max(abs(s2_ctx), ratio(max(gained_by_ctx, least * total), count - T))
    scale_resid = max(abs(s2_resid), s2_resid * least * total / ss_resid if ss_resid > 0 else 0)
    inverse = np.linalg.pinv(M, rcond=1e-9, hermitian=True)
    standard_error = at_all_positions(np.sqrt(s2_resid * np.diag(inverse)), positions)
    clipped = {"pos": max(s2_pos, 0.0), "ctx": max(s2_ctx, 0.0), "resid": max(s2_resid, 0.0)}
    whole = sum(clipped.values())

    position_mean = np.stack([states[row_t == t].mean(0) for t in range(T)])
    numbers: Numbers = {
        "mean": relative_to(rms, fit.mu, rtol=1e-6),
        "position_mean": relative_to(rms, at_all_positions(position_mean, positions), rtol=1e-6),
        "pos": relative_to(spread, at_all_positions(fit.pos, positions)),
        "ctx": relative_to(spread, fit.ctx),
        "context_id": exact(ids),
        "context_length": exact(n_c),
        "context_group": exact(label_of(ids)),
        "position_count": exact(at_all_positions(n_t, positions, unseen=0)),
        "count": exact(count),
        "contexts": exact(C),
        "exact": exact(True),
        "cross_share": relative_to(
            max(abs(cross), np.sqrt(shares["pos"] * shares["ctx"]), 1e-6), cross
        ),
        "pos_standard_error": relative_to(
            standard_error * max(1, scale_resid / s2_resid), standard_error
        ),
        "components.pos": relative_to(scale_pos, s2_pos),
        "components.ctx": relative_to(scale_ctx, s2_ctx),
        "components.resid": relative_to(scale_resid, s2_resid),
    }
    for name, share in shares.items():
        numbers[f"shares.{name}"] = relative_to(max(share, least), share)
        numbers[f"corrected_shares.{name}"] = relative_to(
            max(scale_pos, scale_ctx, scale_resid) / whole, clipped[name] / whole
        )
    numbers |= derived(fit, C) | similarity(fit.ctx, label_of(ids))
    if second_moment:
        numbers |= relative_norms(fit.pos[row_t], states)
        centred = states - states.mean(0)
        left = np.maximum(fit.resid.std(0), np.sqrt(PRODUCT / 1e-5) * spread)
        numbers["covariance_count"] = exact(count)
        numbers["covariance"] = relative_to(np.outer(spread, spread), centred.T @ centred / count)
        numbers["resid_covariance"] = relative_to(
            np.outer(left, left), fit.resid.T @ fit.resid / count
        )
    return numbers


def derived(fit: Fit, C: int) -> Numbers:
    """What follows from pos and ctx alone."""
    T = len(fit.pos)
    nan = float("nan")
    singular = np.linalg.svd(fit.pos, compute_uv=False)
    part = singular / singular.sum() if T > 1 else np.full(1, nan)
    numbers = {
        "singular_values": relative_to(singular[0], singular),
        "stable_rank": plain(ratio((singular**2).sum(), singular[0] ** 2)),
        "effective_rank": plain(np.exp(-(part * np.log(np.maximum(part, 1e-300))).sum())),
    }
    steps, share, cosine = np.full(1, nan), nan, np.full(1, nan)
    gram = spectrum = np.full((1, 1), nan)
    if T > 1:
        direction = unit(fit.pos)
        steps = (np.diff(direction, axis=0) ** 2).sum(1)
        angle = np.pi * np.outer(2 * np.arange(T) + 1, np.arange(T)) / (2 * T)
        basis = np.cos(angle) * np.sqrt(np.where(np.arange(T) > 0, 2, 1) / T)
        gram = direction @ direction.T
        spectrum = basis.T @ gram @ basis
        share = np.diag(spectrum)[:10].sum() / T
        if C > 1:
            cosine = np.abs(direction @ unit(fit.ctx).T)
    numbers |= {
        "smoothness.gram": relative_to(1, gram),
        "smoothness.spectrum": relative_to(T, spectrum),
        "smoothness.low_frequency_share": plain(share),
        "smoothness.mean_difference": plain(steps.mean()),
        "smoothness.largest_difference": plain(steps.max()),
        "incoherence.mean": plain(cosine.mean()),
        "incoherence.max": plain(cosine.max()),
    }
    return numbers


def similarity(ctx: np.ndarray, labels: np.ndarray) -> Numbers:
    """Mean cosines of pairs of contexts of one group and of two, relative to mean absolute ones."""
    ctx, labels = ctx[labels >= 0], labels[labels >= 0]
    if len(set(labels.tolist())) < 2:
        return {}
    directions = unit(ctx)
    cosine, same = directions @ directions.T, labels[:, None] == labels
    pairs = {
        "inter": cosine[~same],
        "intra": cosine[same & ~np.eye(len(ctx), dtype=bool)],
        "published_inter": np.abs(cosine[~same]),
        "published_intra": np.abs(cosine[same]),
    }
    return {
        f"similarity.{name}": relative_to(np.abs(found).mean(), found.mean())
        if found.size
        else plain(np.nan)
        for name, found in pairs.items()
    }


def relative_norms(pos: np.ndarray, states: np.ndarray) -> Numbers:
    """Song & Zhong's, with a row of pos for each token."""
    above = np.linalg.norm(pos, 2)
    return {
        "relative_norm.centred": plain(above / np.linalg.norm(states - states.mean(0), 2)),
        "relative_norm.uncentred": plain(above / np.linalg.norm(states, 2)),
    }


def gram_of_many(row_c: np.ndarray, row_t: np.ndarray, n_c: np.ndarray, T: int) -> np.ndarray:
    """sum_c W_c W_c^T / n_c, by going through the positions of one context after the other."""
    gram = np.zeros((T, T))
    order = np.argsort(row_c, kind="stable")
    for places in np.split(row_t[order], np.cumsum(n_c)[:-1]):
        gram[np.ix_(places, places)] += 1.0 / len(places)
    return gram


# ---------------------------------------------------------------- the covariance


def covariance(seen: Observations) -> Numbers:
    """What Covariance reports, `forwards` aside, which is a matter of batches.

    Scales. Of an entry of the covariance: the product of the two standard deviations; of the second
    moment: that of the two root mean squares. Of an eigenvalue: itself, but of small ones a tenth
    of the largest, of whose directions the entries are made as well.
    """
    states = seen.states
    count, width = states.shape
    mean = states.mean(0)
    rms = np.sqrt((states**2).mean(0))
    spread = states.std(0)
    centred = states - mean
    singular = np.linalg.svd(centred, compute_uv=False)
    eigenvalues = np.zeros(width)
    eigenvalues[: len(singular)] = singular**2 / count
    eigenvalues[max(count - 1, 0) :] = 0.0
    shares = eigenvalues[eigenvalues > 0] / eigenvalues.sum()
    return {
        "mean": relative_to(rms, mean, rtol=1e-6),
        "count": exact(count),
        "covariance": relative_to(np.outer(spread, spread), centred.T @ centred / count),
        "second_moment": relative_to(np.outer(rms, rms), states.T @ states / count),
        "eigenvalues": relative_to(np.maximum(eigenvalues, 0.1 * eigenvalues[0]), eigenvalues),
        "trace": plain(spread @ spread),
        "effective_rank": plain(np.exp(-(shares * np.log(shares)).sum())),
        "participation_ratio": plain(1 / (shares**2).sum()),
        "leading_share": plain(shares.max()),
    }


# ---------------------------------------------------------------- groups


PAIRS = [f"{q}_{k}" for q in ("mean", "pos", "ctx", "resid", "bias")
         for k in ("mean", "pos", "ctx", "resid", "bias")]  # fmt: skip


def attention(
    seen: Observations,
    mean: np.ndarray,
    pos: np.ndarray,
    weights: dict[str, np.ndarray],
    scale: float,
) -> Numbers:
    """Shares of 25 parts in causal logits, from whole matrices of each context.

    Args:
        seen: what comes into the attention; a context's tokens by ascending position.
        mean: (d,).
        pos: (T, d).
        weights: query (H, d, k), key (G, d, k), query_bias (H, k), key_bias (G, k).
        scale: of the products.
    """
    heads, width = weights["query"].shape[0], weights["query"].shape[2]
    group = heads // len(weights["key"])
    within, raw = ([[] for _ in range(heads)] for _ in range(2))
    for context in np.unique(seen.contexts):
        h, positions, _ = seen.where(seen.contexts == context)
        ctx = (h - mean - pos[positions]).mean(0)
        parts = [np.broadcast_to(mean, h.shape), pos[positions], np.broadcast_to(ctx, h.shape)]
        parts.append(h - sum(parts))
        for head in range(heads):
            sides = []
            for name, index in (("query", head), ("key", head // group)):
                side = [part @ weights[name][index] for part in parts]
                side.append(np.broadcast_to(weights[f"{name}_bias"][index], (len(h), width)))
                sides.append(np.stack(side))
            logits = scale * np.einsum("atk,bsk->abts", *sides).reshape(25, len(h), len(h))
            for t in range(len(h)):
                some = logits[:, t, : t + 1]
                raw[head].append(some)
                within[head].append(some - some.mean(1, keepdims=True))
    numbers = {}
    for prefix, found in (("", within), ("all_logits.", raw)):
        covariance = np.stack([np.cov(np.concatenate(f, 1), bias=True) for f in found])
        variance = covariance.sum((1, 2))
        shares = covariance.sum(2) / variance[:, None]
        alone = covariance.diagonal(axis1=1, axis2=2) / variance[:, None]
        five, most = (heads, 5, 5), np.abs(covariance).max()
        size = most / variance.min()
        # Parts that cancel leave a variance of few digits, by which ratios are divided.
        size = size * max(1.0, size * FLOAT32 / 1e-5)
        numbers |= {
            f"{prefix}shares": relative_to(size, shares.reshape(five)),
            f"{prefix}alone": relative_to(size, alone.reshape(five)),
            f"{prefix}cross": relative_to(size, 1 - alone.sum(1)),
            f"{prefix}variance": relative_to(most, variance),
            f"{prefix}covariance": relative_to(most, covariance.reshape(*five, 5, 5)),
        }
        if not prefix:
            # What the query's biases make of the four parts of a key's state.
            of_state = covariance.reshape(*five, 5, 5)[:, 4, :4, 4, :4].sum((1, 2))
            numbers["key_only"] = relative_to(size, of_state / variance)
            averages = zip(PAIRS, shares.mean(0), strict=True)
            numbers |= {f"mean_shares.{pair}": relative_to(size, v) for pair, v in averages}
    pairs = sum(piece.shape[1] for piece in raw[0])
    return numbers | {"pairs": exact(pairs), "left_out": exact(0)}


def group_means(seen: Observations, labels: np.ndarray, groups: int) -> Numbers:
    """What GroupMeans reports of tokens with `labels` (N,), as one writes it down for each group.

    Scales. Of a mean: the root mean square of the dimension. Of what is squared: the largest of its
    kind, for a group of equal states has nothing left.
    """
    states, nan = seen.states, float("nan")
    width = states.shape[1]
    members = [states[labels == g] for g in range(groups)]
    inside = np.concatenate(members)
    count = np.array([len(own) for own in members])
    mean, scatter = np.full((groups, width), nan), np.full((groups, width), nan)
    error = np.full((groups, width), nan)
    for g, own in enumerate(members):
        if len(own):
            mean[g], scatter[g] = own.mean(0), ((own - own.mean(0)) ** 2).sum(0)
        if len(own) > 1:
            error[g] = own.std(0, ddof=1) / np.sqrt(len(own))
    noise = np.zeros((groups, groups))
    distance = np.zeros((groups, groups))
    for a in range(groups):
        for b in range(groups):
            both = (error[a] ** 2 + error[b] ** 2).sum()
            noise[a, b] = both if a != b else 0 * both
            distance[a, b] = ((mean[a] - mean[b]) ** 2).sum() - noise[a, b]
    with np.errstate(all="ignore"):
        variance = scatter / count[:, None]
        between = count * ((mean - inside.mean(0)) ** 2).sum(1)
        chance = (1 - count / count.sum()) * count * (error**2).sum(1)
    whole = ((inside - inside.mean(0)) ** 2).sum()
    noisy = chance[count > 0].sum() / whole if whole > 0 else nan
    rms, spread = np.sqrt((states**2).mean(0)), states.var(0)
    return {
        "count": exact(count),
        "unlabelled": exact((labels < 0).sum()),
        "outside": exact((labels >= groups).sum()),
        "mean": relative_to(rms, mean, rtol=1e-6),
        "variance": relative_to(np.maximum(variance, spread), variance),
        "trace": relative_to(spread.sum(), variance.sum(1)),
        "scatter": relative_to(count[:, None] * spread, scatter),
        "standard_error": relative_to(np.sqrt(spread), error),
        "squared_distance": relative_to(spread.sum(), distance),
        "distance_noise": relative_to(spread.sum(), noise),
        "between_share": plain(np.nansum(between) / whole if whole > 0 else nan),
        "between_noise_share": plain(noisy),
    }


# ---------------------------------------------------------------- the sphere


def centred(states: np.ndarray) -> np.ndarray:
    return states - states.mean(-1, keepdims=True)


def unit(states: np.ndarray) -> np.ndarray:
    return states / np.linalg.norm(states, axis=-1, keepdims=True)


def angle(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Angle between the rows of a and of b, exact for small ones too."""
    u = unit(a)
    along = (b * u).sum(-1)
    return np.arctan2(np.linalg.norm(b - along[:, None] * u, axis=-1), along)


class PerToken(NamedTuple):
    """One number for each token, and the size of its parts."""

    value: np.ndarray
    scale: np.ndarray


def shape_of_state(states: np.ndarray) -> dict[str, PerToken]:
    """Norm, ones component, centred radius. The ones component may cancel: relative to the norm."""
    d = states.shape[-1]
    norm = np.linalg.norm(states, axis=-1)
    ones = states.sum(-1) / np.sqrt(d)
    radius = np.linalg.norm(centred(states), axis=-1)
    return {
        "norm": PerToken(norm, norm),
        "ones": PerToken(ones, norm),
        "ones_share": PerToken(ones**2 / norm**2, np.abs(ones) / norm),
        "radius": PerToken(radius, radius),
        "radius_ratio": PerToken(radius / np.sqrt(d), radius / np.sqrt(d)),
    }


def step(inputs: np.ndarray, outputs: np.ndarray) -> dict[str, PerToken]:
    """Step angle, radial and tangential part of a block; the parts relative to the update."""
    u = unit(centred(inputs))
    update = centred(outputs - inputs)
    length = np.linalg.norm(update, axis=-1)
    radial = (update * u).sum(-1)
    theta = angle(centred(inputs), centred(outputs))
    return {
        "step_angle": PerToken(theta, theta),
        "radial": PerToken(radial, length),
        "tangential": PerToken(np.linalg.norm(update - radial[:, None] * u, axis=-1), length),
    }


def moments(numbers: PerToken) -> Numbers:
    """Mean, population variance, least and greatest.

    A variance is relative to itself, or, where the values hardly differ, to what it loses when
    every value is only right to 3e-7, a few units in the last place of float32: 2 std 3e-7 size.
    """
    value, scale = numbers
    size = np.sqrt((scale**2).mean())
    variance = value.var()
    lost = 2 * np.sqrt(variance) * FLOAT32 * size + (FLOAT32 * size) ** 2
    return {
        "mean": relative_to(np.abs(scale).mean(), value.mean()),
        "variance": relative_to(max(variance, lost / 1e-5), variance),
        "min": relative_to(np.abs(scale).max(), value.min()),
        "max": relative_to(np.abs(scale).max(), value.max()),
        "count": exact(len(value)),
    }


def moments_at_position(numbers: PerToken, positions: np.ndarray, first: int = 0) -> Numbers:
    """The same at each position from the first to the last that occurs."""
    rows = []
    for t in range(first, positions.max() + 1):
        here = positions == t
        rows.append(
            moments(PerToken(numbers.value[here], numbers.scale[here])) if here.any() else None
        )
    gathered: Numbers = {}
    for name in ("mean", "variance", "min", "max", "count"):
        unseen = 0 if name == "count" else np.nan
        gathered[name] = Expected(
            np.array([unseen if row is None else row[name].value for row in rows]),
            np.array([0.0 if row is None else row[name].scale for row in rows]),
        )
    return gathered


def directions(states: np.ndarray) -> Numbers:
    """Numbers of the whole cloud. A mean cosine is relative to at least 1/n, what it subtracts.

    The concentration is that of a resultant length which is right to 3e-7.
    """
    n, d = states.shape
    R = float(np.linalg.norm(unit(centred(states)).mean(0)))
    p = d - 1
    kappa = R * (p - R**2) / (1 - R**2)

    def mean_cosine(length: float) -> Expected:
        cosine = ratio(n * length**2 - 1, n - 1)
        return relative_to(max(abs(cosine), 1 / n), cosine)

    return {
        "resultant_length": plain(R),
        "mean_cosine": mean_cosine(R),
        "concentration": relative_to(kappa * max(1, 2 * FLOAT32 / 1e-5 / (1 - R**2)), kappa),
        "anisotropy": mean_cosine(float(np.linalg.norm(unit(states).mean(0)))),
    }


def sphere(stack: list[Observations]) -> list[Numbers]:
    """What Sphere reports at the input of a stack's first block and at every block's output."""
    everything: list[Numbers] = []
    path = np.zeros(len(stack[0].states))
    for depth, seen in enumerate(stack):
        numbers = shape_of_state(seen.states)
        if depth > 0:
            numbers |= step(stack[depth - 1].states, seen.states)
            path = path + numbers["step_angle"].value
            numbers["path_length"] = PerToken(path, path)
        if depth > 0 and depth == len(stack) - 1:
            chord = angle(centred(stack[0].states), centred(seen.states))
            numbers["chord"] = PerToken(chord, chord)
            numbers["tortuosity"] = PerToken(path / chord, path / chord)
        everything.append(sphere_numbers(seen, numbers))
    return everything


def sphere_numbers(seen: Observations, numbers: dict[str, PerToken]) -> Numbers:
    """Gather the numbers of all tokens, position by position, and again without position 0."""
    later = seen.positions > 0
    flat: Numbers = {"non_finite": exact(0), "without_first.non_finite": exact(0)}
    flat |= directions(seen.states)
    flat |= prefixed("without_first.", directions(seen.states[later]))
    for name, per_token in numbers.items():
        without = PerToken(per_token.value[later], per_token.scale[later])
        flat |= prefixed(f"{name}.", moments(per_token))
        flat |= prefixed(f"{name}.at_position.", moments_at_position(per_token, seen.positions))
        flat |= prefixed(f"without_first.{name}.", moments(without))
        flat |= prefixed(
            f"without_first.{name}.at_position.",
            moments_at_position(without, seen.positions[later], 1),
        )
    return flat


def update(state: np.ndarray, added: np.ndarray) -> dict[str, PerToken]:
    """What an update is to a state: relative to the state's centred radius, but for its norm."""
    r, norm = (np.linalg.norm(v, axis=-1) for v in (centred(state), added))
    moved = step(state, state + added)
    length = moved["radial"].scale
    relative = {n: PerToken(moved[n].value / r, length / r) for n in ("radial", "tangential")}
    cosine = moved["radial"].value / length
    return relative | {
        "norm": PerToken(norm, norm),
        "radial_share": PerToken(cosine**2, np.abs(cosine)),
        "step_angle": moved["step_angle"],
    }


def updates(
    seen: np.ndarray,
    all_positions: np.ndarray,
    names: tuple[str, ...],
    heads: dict[str, list[np.ndarray]],
) -> Numbers:
    """What Updates reports of a block.

    Args:
        seen: (N, S, 2, d) of each sublayer the state that it adds to, and what it adds.
        all_positions: (N,)
        names: of the sublayers.
        heads: of the sublayers that have some, what each of them adds, (N, d).
    """
    flat: Numbers = {}
    for first, start in ((0, ""), (1, "without_first.")):
        kept = all_positions >= first
        positions, number = all_positions[kept], int(kept.sum())
        found = {"gap": PerToken(np.zeros(number), np.ones(number))}
        for index, name in enumerate(names):
            state, added = seen[kept, index, 0], seen[kept, index, 1]
            found |= {f"{name}.{n}": numbers for n, numbers in update(state, added).items()}
            flat[f"{start}{name}.non_finite"] = exact(0)
            each = [written(state, head[kept]) for head in heads.get(name, [])]
            for feature in each[0] if each else ():
                of_heads = [moments(head[feature]) for head in each]
                flat |= prefixed(f"{start}{name}.heads.{feature}.", stacked(of_heads))
        for name, numbers in found.items():
            flat |= prefixed(f"{start}{name}.", moments(numbers))
            flat |= prefixed(
                f"{start}{name}.at_position.", moments_at_position(numbers, positions, first)
            )
    return flat


def components(terms: dict[str, np.ndarray], seen: Observations) -> Numbers:
    """What Components reports of a site.

    Args:
        terms: (N, d) of each, by name.
        seen: the states, which half precision rounds.
    """
    state, positions, contexts = seen.states, seen.positions, seen.contexts
    length, number = np.linalg.norm(state, axis=-1), len(state)
    flat: Numbers = {}
    means: dict[str, list[np.ndarray]] = {}
    ids, of_context = np.unique(contexts, return_inverse=True)
    for name, term in terms.items():
        size = np.linalg.norm(term, axis=-1)
        with np.errstate(invalid="ignore"):
            found = {
                "importance": PerToken((term * state).sum(-1) / length**2, size / length),
                "cosine": PerToken((term * state).sum(-1) / (size * length), np.ones(number)),
                "l2": PerToken(np.linalg.norm(term - state, axis=-1), size + length),
                "norm_ratio": PerToken(size / length, size / length),
            }
        for what, numbers in found.items():
            rows = [numbers.value[of_context == c].mean() for c in range(len(ids))]
            means.setdefault(what, []).append(np.array(rows))
            by_token = moments(numbers), moments_at_position(numbers, positions)
            if np.isnan(numbers.value).any():  # the cosine of a term that is nothing
                by_token = nothing_of(by_token[0]), nothing_of(by_token[1])
            flat |= prefixed(f"{what}.{name}.", by_token[0])
            flat |= prefixed(f"{what}.{name}.at_position.", by_token[1])
    for what, columns in means.items():
        table = np.stack(columns, 1)
        size = np.nanmax(np.abs(table), initial=1.0)
        flat[f"by_context.{what}"] = relative_to(np.full(table.shape, size), table)
    flat |= {"by_context.context_id": exact(ids), "left_out": exact(0)}
    flat["by_context.tokens"] = exact(np.bincount(of_context))
    missing = np.linalg.norm(np.sum(list(terms.values()), 0) - state, axis=-1)
    gap = PerToken(missing / length, np.ones(number))
    flat |= prefixed("gap.at_position.", moments_at_position(gap, positions))
    return flat | prefixed("gap.", moments(gap))


def nothing_of(numbers: Numbers) -> Numbers:
    """What is reported where nothing was counted."""
    return {
        name: exact(np.full(np.shape(one.value), 0 if name == "count" else np.nan))
        for name, one in numbers.items()
    }


def written(state: np.ndarray, head: np.ndarray) -> dict[str, PerToken]:
    """What one head adds to a state, relative to the state's centred radius."""
    size = np.linalg.norm(head, axis=-1) / np.linalg.norm(centred(state), axis=-1)
    parts = update(state, head)
    shown = {name: PerToken(parts[name].value, size) for name in ("radial", "tangential")}
    return {"size": PerToken(size, size)} | shown


def stacked(rows: list[Numbers]) -> Numbers:
    """Numbers of several things, one after the other in an array."""
    return {
        name: Expected(
            np.stack([row[name].value for row in rows]), np.stack([row[name].scale for row in rows])
        )
        for name in rows[0]
    }


def prefixed(prefix: str, numbers: Numbers) -> Numbers:
    return {prefix + name: number for name, number in numbers.items()}


def log_radius(states: np.ndarray) -> np.ndarray:
    return np.log(np.linalg.norm(centred(states), axis=-1))


def histogram_fits(counts: np.ndarray, edges: np.ndarray, values: np.ndarray) -> bool:
    """Whether counts are those of values between the edges, the outer bins being open.

    A value within 1e-5 of an edge may go either way.
    """
    below = np.cumsum(counts)[:-1]
    surely, perhaps = ((values[None, :] < edges[:, None] + shift).sum(1) for shift in (-1e-5, 1e-5))
    return bool(
        counts.sum() == len(values) and (surely <= below).all() and (below <= perhaps).all()
    )


# ---------------------------------------------------------------- words, through the final norm


class Lens(NamedTuple):
    """A LayerNorm, and the rows of words that states are compared with after it."""

    rows: np.ndarray
    """(V, d)"""
    gain: np.ndarray
    shift: np.ndarray
    eps: float
    offsets: np.ndarray | None = None
    """(V,)"""
    softcap: float | None = None

    def states(self, hidden: np.ndarray) -> np.ndarray:
        c = centred(hidden)
        return c / np.sqrt((c**2).mean(-1, keepdims=True) + self.eps) * self.gain + self.shift

    def log_probabilities(self, states: np.ndarray) -> np.ndarray:
        """Of all words, (N, V), as a head and a softmax make them."""
        logits = states @ self.rows.T
        if self.offsets is not None:
            logits = logits + self.offsets
        if self.softcap is not None:
            logits = self.softcap * np.tanh(logits / self.softcap)
        logits = logits - logits.max(-1, keepdims=True)
        return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def next_word(seen: Observations, words: np.ndarray, lens: Lens) -> Numbers:
    """What NextWord reports of tokens with ids `words` (N,), each context's one after the other.

    A difference of logits is relative to the lengths of what it is the product of, and a cosine to
    two, for it is a product over two lengths.
    """
    paired = np.append(seen.contexts[1:] == seen.contexts[:-1], False)
    states, token = lens.states(seen.states)[paired], np.arange(paired.sum())
    own, following = words[paired], np.roll(words, -1)[paired]
    logs = lens.log_probabilities(states)
    length = np.linalg.norm(states, axis=1)
    rows = [lens.rows[some] for some in (following, own)]
    lengths = [np.linalg.norm(some, axis=1) for some in rows]
    cosines = [(r * states).sum(1) / (n * length) for r, n in zip(rows, lengths, strict=True)]
    two = np.full(len(states), 2.0)
    numbers = {
        "pull": PerToken(logs[token, following] - logs[token, own], length * sum(lengths)),
        "next_cosine": PerToken(cosines[0], two),
        "own_cosine": PerToken(cosines[1], two),
    }
    positions, alone = seen.positions[paired], seen.positions[~paired]
    flat: Numbers = {}
    for first, prefix in ((0, ""), (1, "without_first.")):
        kept = positions >= first
        for name, (value, scale) in numbers.items():
            part = PerToken(value[kept], scale[kept])
            found = moments(part) if kept.any() else NOTHING
            flat |= prefixed(f"{prefix}{name}.", found)
            at = moments_at_position(part, positions[kept], first) if kept.any() else NOWHERE
            flat |= prefixed(f"{prefix}{name}.at_position.", at)
        flat[f"{prefix}without_next"] = exact((alone >= first).sum())
    return flat


NOTHING = {n: plain(np.nan) for n in ("mean", "variance", "min", "max")} | {"count": exact(0)}
NOWHERE = {name: exact(np.zeros(0)) for name in NOTHING}


def trajectories(seen: Observations, words: np.ndarray, lens: Lens, length: int) -> Numbers:
    """What Trajectories reports of all contexts, tokens that come several times alike."""
    inside = seen.positions < length
    contexts, row = np.unique(seen.contexts[inside], return_inverse=True)
    positions, states = seen.positions[inside], lens.states(seen.states[inside])
    shape = len(contexts), positions.max() + 1
    kept, ids = np.full((*shape, states.shape[1]), np.nan), np.full(shape, -1)
    kept[row, positions], ids[row, positions] = states, words[inside]
    return {
        "states": relative_to(np.abs(states).max(), kept),
        "token_ids": exact(ids),
        "filled": exact(ids >= 0),
        "contexts": exact(contexts),
        "count": exact((ids >= 0).sum()),
    }


def factors(
    seen: Observations, words: np.ndarray, codes: np.ndarray, decoded: np.ndarray, **how: int
) -> Numbers:
    """What Factors reports of tokens with ids `words` (N,), codes (N, F) and states made of these.

    `how` has top, window, and one_per_text. The tokens of a context come one after the other, and
    a window has those whose positions are next to each other without a gap.
    """
    count, number = codes.shape
    top, window = how["top"], how["window"]
    at = {(c, p): w for c, p, w in zip(seen.contexts, seen.positions, words, strict=True)}
    shape = number, top
    listed = {
        "activation": np.full(shape, np.nan),
        "context": np.full(shape, -1),
        "position": np.full(shape, -1),
        "token_id": np.full(shape, -1),
        "window": np.full((*shape, 2 * window + 1), -1),
    }
    for factor in range(number):
        active = [token for token in range(count) if codes[token, factor] > 0]
        active.sort(key=lambda n: (-codes[n, factor], seen.contexts[n], seen.positions[n]))
        if how["one_per_text"]:
            first = dict.fromkeys(seen.contexts[active].tolist())
            active = [next(n for n in active if seen.contexts[n] == context) for context in first]
        for place, token in enumerate(active[:top]):
            context, position = seen.contexts[token], seen.positions[token]
            listed["activation"][factor, place] = codes[token, factor]
            listed["context"][factor, place] = context
            listed["position"][factor, place] = position
            listed["token_id"][factor, place] = words[token]
            listed["window"][factor, place] = [
                at.get((context, position + step), -1) for step in range(-window, window + 1)
            ]
    largest = -np.sort(-codes, axis=0)[:top]
    active = codes > 0
    energy, left = (seen.states**2).sum(), ((seen.states - decoded) ** 2).sum()
    together = active.astype(float).T @ active
    return {
        "firing_rate": plain(active.mean(0)),
        "mean": plain(codes.mean(0)),
        "mean_square": plain((codes**2).mean(0)),
        "importance": plain(largest.mean(0)),
        "l0": plain(active.sum(1).mean()),
        "inactive": exact((~active.any(0)).sum()),
        "snr": plain(energy / left),
        "count": exact(count),
        "not_finite": exact(0),
        "coactivation": exact(together),
        **{f"top.{name}": exact(values) for name, values in listed.items()},
        "top.activation": plain(listed["activation"], FLOAT32),
    }
