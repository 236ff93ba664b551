"""What goes through the suite: the library's statistics, and small ones for the whole contract."""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from hypothesis import assume

import geomhooks as gh
from geomhooks.anatomy import (
    MLP,
    Around,
    Attention,
    Block,
    BlockParts,
    Embeddings,
    Family,
    Heads,
    Linear,
    Output,
    register,
)
from geomhooks.forwards.frames import unwrap_transforms
from geomhooks.functional import random_directions
from geomhooks.norms import NormModule
from tests.conformance.harness import (
    GROUPS,
    POSITIONS,
    VOCABULARY,
    WIDTH,
    Case,
    Seen,
    Together,
    label_of,
    label_of_tokens,
    plant,
    render,
    word_of,
)
from tests.leaders_reference import Layer, Options, Text, leaders
from tests.models import Stack
from tests.reference import (
    Lens,
    Numbers,
    Observations,
    attention,
    components,
    covariance,
    exact,
    factors,
    group_means,
    next_word,
    plain,
    pos_ctx,
    sphere,
    trajectories,
    updates,
)


class LargestEntry(gh.Statistic):
    """Largest |h_i| at each position, shape (T,): the example of the documentation."""

    def accumulators(self, site: Any) -> dict[str, Any]:
        return {"largest": gh.Max((site.positions,))}

    def update(self, state: Any, reading: Any) -> None:
        largest = reading.taps["out"].abs().amax(-1)
        state["largest"].add(largest, at=reading.tokens.positions, where=reading.tokens.real)

    def compute(self, state: Any) -> dict[str, Any]:
        return {"largest": state["largest"].value}


class BlockUpdate(gh.Statistic):
    """Mean square of what a block adds: reads two tensors of one block."""

    taps = ("in", "out")

    def accumulators(self, site: Any) -> dict[str, Any]:
        return {"square": gh.Sum(), "count": gh.Sum(dtype=torch.int64)}

    def update(self, state: Any, reading: Any) -> None:
        update = reading.taps["out"].double() - reading.taps["in"].double()
        state["square"].add(update.square().sum(-1), where=reading.tokens.real)
        state["count"].add(reading.tokens.real)

    def compute(self, state: Any) -> dict[str, Any]:
        return {"mean_square": state["square"].value / state["count"].value}


class Drift(gh.Statistic):
    """Mean distance from the first block's state: carries a tensor from block to block."""

    def accumulators(self, site: Any) -> dict[str, Any]:
        return {"distance": gh.Sum(), "count": gh.Sum(dtype=torch.int64)}

    def update(self, state: Any, reading: Any) -> None:
        out = reading.taps["out"].double()
        first = reading.carry.setdefault("first", out)
        state["distance"].add((out - first).norm(dim=-1), where=reading.tokens.real)
        state["count"].add(reading.tokens.real)

    def compute(self, state: Any) -> dict[str, Any]:
        return {"distance": state["distance"].value / state["count"].value}


class Extent(gh.Statistic):
    """Largest norm, and how many readings: one state for all sites that `scope` takes together."""

    def __init__(self, scope: str) -> None:
        super().__init__()
        self.scope = scope

    def accumulators(self, site: Any) -> dict[str, Any]:
        return {"norm": gh.Max(), "readings": gh.Sum(dtype=torch.int64)}

    def update(self, state: Any, reading: Any) -> None:
        state["norm"].add(reading.taps["out"].double().norm(dim=-1), where=reading.tokens.real)
        state["readings"].add(reading.tokens.real)

    def compute(self, state: Any) -> dict[str, Any]:
        return {"norm": state["norm"].value, "readings": state["readings"].value}


HEADS, KEY_HEADS, HEAD_WIDTH, SCALE = 4, 2, 3, 0.3


@cache
def head_weights(index: int) -> dict[str, np.ndarray]:
    """Weights and biases of the queries and keys that blocks are said to have."""
    rng = np.random.default_rng(index)
    shapes = {"query": (HEADS, WIDTH, HEAD_WIDTH), "key": (KEY_HEADS, WIDTH, HEAD_WIDTH)}
    made = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    return made | {f"{n}_bias": rng.standard_normal((len(w), HEAD_WIDTH)) for n, w in made.items()}


SUBLAYERS = ("attention", "mlp")


def describe(block: Block) -> BlockParts:
    """Blocks of two sublayers that are said to be attention and a feed-forward layer.

    The attention has queries and keys that the blocks have not, with heads that share keys and see
    the past only; its projection is what turns the states, which it does to each entry alone.
    """
    device = block.find("turn").scale.device
    weights = {n: torch.from_numpy(w).to(device) for n, w in head_weights(block.index).items()}
    query, key = (Heads(weights[n], weights[f"{n}_bias"]) for n in ("query", "key"))
    value = Heads(torch.zeros(HEADS, WIDTH, WIDTH // HEADS, device=device), None)
    turn, push = block.find("turn"), block.find("push")
    scale = unwrap_transforms(turn.scale, block.name).detach()
    output = Output(torch.diag(scale).flip(0).view(HEADS, -1, WIDTH), None, turn)
    attention = Attention(
        block.name, block.name, block.module, block.site, HEADS, KEY_HEADS, SCALE, True, None,
        None, query, key, value, output,
    )  # fmt: skip
    down = Linear(torch.zeros(1, WIDTH, device=device), None, push)
    up = Linear(torch.zeros(WIDTH, 1, device=device), None)
    return block.parts(attention, MLP(block.name, push, None, up, None, torch.relu, down))


@cache
def lens() -> Lens:
    """A final norm and rows of words, which the model is said to have."""
    rng = np.random.default_rng(9)
    gain, shift = 1 + 0.3 * rng.standard_normal(WIDTH), rng.standard_normal(WIDTH)
    return Lens(rng.standard_normal((VOCABULARY, WIDTH)), gain, shift, 1e-3)


def final_norm(around: Around) -> NormModule:
    norm = torch.nn.LayerNorm(WIDTH, lens().eps, dtype=torch.float64)
    norm.weight.data, norm.bias.data = map(torch.from_numpy, (lens().gain, lens().shift))
    return NormModule(norm.to(device_of(around)), norm.eps, True, 0.0)


def embeddings(around: Around) -> Embeddings:
    return Embeddings(torch.from_numpy(lens().rows).to(device_of(around)))


def device_of(around: Around) -> torch.device:
    return next(around.model.parameters()).device


register(Family("Stack", describe, embeddings, final_norm))


@cache
def autoencoder() -> gh.functional.SparseAutoencoder:
    """Factors that are one entry each, which rounds nothing, and one that is never active.

    So rankings are exact, and states in half precision are active alike at many tokens.
    """
    encoder = torch.zeros(WIDTH, 6)
    for factor, scale in enumerate((1.0, -1.0, 2.0, -0.5, 1.0)):
        encoder[factor, factor] = scale
    decoder = torch.from_numpy(np.random.default_rng(3).standard_normal((6, WIDTH)))
    return gh.functional.SparseAutoencoder(encoder, decoder.float())


@cache
def known_geometry() -> gh.Geometry:
    """Some mean and pos of such blocks, not those of the contexts that are streamed."""
    contexts = plant(seed=5, ragged=False)
    batch = render([[context] for context in contexts], torch.float32)
    model, statistic = Stack(WIDTH), gh.PosCtx(positions=POSITIONS)
    with torch.no_grad(), gh.watch(model, statistics=[statistic]) as watch:
        model(inputs_embeds=batch.embeddings)
    return watch.geometry()


Dense = dict[str, Observations]


def largest_entry(dense: Dense) -> dict[str, Numbers]:
    numbers = {}
    for site, (states, positions, _) in dense.items():
        largest = np.full(POSITIONS, -np.inf)
        np.maximum.at(largest, positions, np.abs(states).max(-1))
        numbers[site] = {"largest": plain(largest)}
    return numbers


def block_update(dense: Dense) -> dict[str, Numbers]:
    sites = list(dense)
    return {
        after: {
            "mean_square": plain(((dense[after].states - dense[before].states) ** 2).sum(-1).mean())
        }
        for before, after in pairwise(sites)
    }


def drift(dense: Dense) -> dict[str, Numbers]:
    first = next(iter(dense.values())).states
    return {
        site: {"distance": plain(np.linalg.norm(seen.states - first, axis=-1).mean())}
        for site, seen in dense.items()
    }


def attention_of_blocks(dense: Dense) -> dict[str, Numbers]:
    numbers = {}
    for index, (before, after) in enumerate(pairwise(dense)):
        known = known_geometry()[before].pos_ctx
        numbers[after] = attention(
            dense[before], known.mean.numpy(), known.pos.numpy(), head_weights(index), SCALE
        )
    return numbers


def updates_of_blocks(dense: Dense) -> dict[str, Numbers]:
    """Of the blocks, whose heads each turn some entries."""
    assert isinstance(dense, Seen)
    numbers = {}
    for site, added in dense.added.items():
        turned = added[:, 0, 1]
        heads = []
        for head in np.arange(WIDTH).reshape(HEADS, -1):
            own = np.isin(np.arange(WIDTH), WIDTH - 1 - head)
            heads.append(np.where(own, turned, 0.0))
        numbers[site] = updates(added, dense[site].positions, SUBLAYERS, {"attention": heads})
    return numbers


def components_of_blocks(dense: Dense) -> dict[str, Numbers]:
    """Of all sites: the blocks have no biases, and nothing but their sublayers."""
    assert isinstance(dense, Seen)
    numbers, terms = {}, {}
    for site, seen in dense.items():
        if site not in dense.added:
            nothing = np.zeros_like(seen.states)
            terms = {"input": seen.states, "attention": nothing, "feed_forward": nothing}
            terms["correction"] = nothing
        else:
            turned, pushed = dense.added[site][:, 0, 1], dense.added[site][:, 1, 1]
            terms = terms | {"attention": terms["attention"] + turned}
            terms = terms | {"feed_forward": terms["feed_forward"] + pushed}
        numbers[site] = components(terms, seen)
    return numbers


def factors_of(dense: Dense, one_per_text: bool) -> dict[str, Numbers]:
    coder, numbers = autoencoder(), {}
    for site, seen in dense.items():
        codes = np.maximum(seen.states @ coder.encoder.double().numpy(), 0)
        decoded = codes @ coder.dictionary.double().numpy()
        words = word_of(seen.contexts, seen.positions)
        how = {"top": 4, "window": 2, "one_per_text": one_per_text}
        numbers[site] = factors(seen, words, codes, decoded, **how)
    return numbers


DIRECTIONS = 8
COUNTED = VOCABULARY - 2  # ids of which leaders' words are counted each
CLEAR = 1e-6  # of a comparison, whose outcome then does not depend on rounding


def leaders_of_blocks(dense: Dense) -> dict[str, Numbers]:
    """Of all sites, the first being what comes in."""
    sites = list(dense)
    texts = []
    for context in np.unique(dense[sites[0]].contexts):
        at = dense[sites[0]].contexts == context
        positions = dense[sites[0]].positions[at]
        layers = []
        for index, (before, after) in enumerate(pairwise(sites)):
            old, new = dense[before].states[at], dense[after].states[at]
            lengths = np.linalg.norm([old, new], axis=-1)[:, None].repeat(HEADS, 1)
            layers.append(Layer(head_scores(old, index), old, new, old, new, lengths))
        words = word_of(np.full(len(positions), context), positions)
        texts.append(Text(dense[sites[0]].states[at], layers, positions == 0, words))
    directions = random_directions(DIRECTIONS, WIDTH).double().numpy()
    numbers, margin = leaders(texts, Options(directions, COUNTED))
    assume(margin > CLEAR)
    return dict(zip(sites, numbers, strict=True))


def head_scores(states: np.ndarray, index: int) -> np.ndarray:
    """(H, T, T) of what blocks are said to have, with weights as float32 has them."""
    weights = {name: w.astype(np.float32).astype(float) for name, w in head_weights(index).items()}
    query, key = (
        np.einsum("td,hdk->htk", states, weights[name]) + weights[f"{name}_bias"][:, None]
        for name in ("query", "key")
    )
    scores = SCALE * query @ key.repeat(HEADS // KEY_HEADS, 0).swapaxes(1, 2)
    past = np.tri(len(states), dtype=bool)
    found: np.ndarray = np.where(past, scores, -np.inf)
    return found


def extent(dense: Dense) -> dict[str, Numbers]:
    norms = [np.linalg.norm(seen.states, axis=-1) for seen in dense.values()]
    return {
        "all": {
            "norm": plain(max(norm.max() for norm in norms)),
            "readings": exact(sum(map(len, norms))),
        }
    }


CASES = {
    case.name: case
    for case in (
        Case(
            "pos_ctx",
            lambda: gh.PosCtx(contexts=64, positions=POSITIONS, second_moment=True),
            lambda dense: {
                site: pos_ctx(seen, second_moment=True, label_of=label_of)
                for site, seen in dense.items()
            },
            lambda geometry, site: geometry[site].pos_ctx,
        ),
        Case(
            "covariance",
            gh.Covariance,
            lambda dense: {site: covariance(seen) for site, seen in dense.items()},
            lambda geometry, site: geometry[site].covariance,
        ),
        Case(
            "group_means",
            lambda: gh.GroupMeans(GROUPS),
            lambda dense: {
                site: group_means(seen, label_of(seen.contexts), GROUPS)
                for site, seen in dense.items()
            },
            lambda geometry, site: geometry[site].group_means,
        ),
        Case(
            "group_means of tokens",
            lambda: gh.GroupMeans(GROUPS, by="token"),
            lambda dense: {
                site: group_means(seen, label_of_tokens(seen.contexts, seen.positions), GROUPS)
                for site, seen in dense.items()
            },
            lambda geometry, site: geometry[site].group_means,
            label_of_tokens,
        ),
        Case(
            "attention",
            lambda: gh.Attention(known_geometry(), positions=POSITIONS),
            attention_of_blocks,
            lambda geometry, site: geometry[site].attention,
        ),
        Case(
            "updates",
            lambda: gh.Updates(heads=True),
            updates_of_blocks,
            lambda geometry, site: geometry[site].updates,
        ),
        Case(
            "components",
            lambda: gh.Components(contexts=64),
            components_of_blocks,
            lambda geometry, site: geometry[site].components,
        ),
        Case(
            "leaders",
            lambda: gh.Leaders(directions=DIRECTIONS, vocabulary=COUNTED),
            leaders_of_blocks,
            lambda geometry, site: geometry[site].leaders,
        ),
        Case(
            "sphere",
            gh.Sphere,
            lambda dense: dict(zip(dense, sphere(list(dense.values())), strict=True)),
            lambda geometry, site: geometry[site].sphere,
        ),
        Case(
            "next_word",
            gh.NextWord,
            lambda dense: {
                site: next_word(seen, word_of(seen.contexts, seen.positions), lens())
                for site, seen in dense.items()
            },
            lambda geometry, site: geometry[site].next_word,
        ),
        Case(
            "trajectories",
            lambda: gh.Trajectories(contexts=64, tokens=5),
            lambda dense: {
                site: trajectories(seen, word_of(seen.contexts, seen.positions), lens(), 5)
                for site, seen in dense.items()
            },
            lambda geometry, site: geometry[site].trajectories,
        ),
        Case(
            "factors",
            lambda: gh.Factors(encoder=autoencoder(), top=4, window=2, coactivation="counts"),
            lambda dense: factors_of(dense, one_per_text=False),
            lambda geometry, site: geometry[site].factors,
        ),
        Case(
            "factors of texts",
            lambda: gh.Factors(
                encoder=autoencoder(),
                top=4,
                window=2,
                one_per_text=True,
                coactivation="counts",
                tokens_at_once=7,
            ),
            lambda dense: factors_of(dense, one_per_text=True),
            lambda geometry, site: geometry[site].factors,
        ),
        Case(
            "largest_entry",
            LargestEntry,
            largest_entry,
            lambda geometry, site: geometry[site].largest_entry,
        ),
        Case(
            "block_update",
            BlockUpdate,
            block_update,
            lambda geometry, site: geometry[site].block_update,
        ),
        Case("drift", Drift, drift, lambda geometry, site: geometry[site].drift),
        Case("model", lambda: Extent("model"), extent, lambda geometry, _: geometry.model.extent),
        Case(
            "stream",
            lambda: Extent("stream"),
            extent,
            lambda geometry, _: geometry.model[""].extent,
        ),
    )
}

# Statistics of one name cannot be in one watch.
SECOND = ("group_means of tokens", "factors of texts", "stream")
TOGETHER = {
    "all": Together(tuple(case for name, case in CASES.items() if name not in SECOND)),
    "second": Together(tuple(CASES[name] for name in SECOND)),
}

# What depends on the order of batches has no dense numbers: it goes through each way to run the
# same forwards, and has to come out the same.
ORDERED = {
    "factor_learning": Case(
        "factor_learning",
        lambda: gh.FactorLearning(
            12, 0.1, batch=10, waiting=20, updates_per_forward=2, iterations=20, revive=True
        ),
        lambda dense: {},
        lambda geometry, _: geometry.model.factor_learning,
    )
}
