"""Dictionaries that are learned through hooks: planted ones are found, and text has better ones."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

import geomhooks as gh
from geomhooks.errors import SchemaError, SiteError, UnidentifiedError
from geomhooks.functional import (
    SparseCoder,
    initial_dictionary,
    largest_projections,
    match_dictionaries,
    objective,
    signal_to_noise,
    unit_rows,
)
from geomhooks.statistics import factor_learning
from geomhooks.uniting import Part, unite
from tests.models import minilm
from tests.statistics.without_numbers import update_on_meta

WIDTH, FACTORS, ACTIVE = 16, 32, 3


class Times(nn.Module):
    """A layer whose states are those before it, several times as long."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, hidden: Tensor) -> Tensor:
        return self.factor * hidden


class Planted:
    """States that are sums of three of 32 directions, which may be in the first dimensions only."""

    def __init__(self, seed: int = 1, inside: int = WIDTH) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        dictionary = torch.randn(FACTORS, WIDTH, generator=self.generator)
        dictionary[:, inside:] = 0.0
        self.dictionary = unit_rows(dictionary)

    def states(self, rows: int = 10, length: int = 20) -> Tensor:
        number = rows * length
        chosen = torch.rand(number, FACTORS, generator=self.generator).topk(ACTIVE).indices
        size = 0.5 + torch.rand(number, ACTIVE, generator=self.generator)
        codes = torch.zeros(number, FACTORS).scatter_(1, chosen, size)
        return (codes @ self.dictionary).view(rows, length, WIDTH)


def model() -> nn.Module:
    return nn.Sequential(Times(1.0), Times(3.0))


def watching(statistic: gh.Statistic, of: nn.Module | None = None, **told: Any) -> Any:
    return gh.watch(of or model(), sites=["0", "1"], statistics=[statistic], **told)


def learning(**changes: Any) -> gh.FactorLearning:
    told = {"size": FACTORS, "penalty": 0.05, "iterations": 100, "step": 0.05}
    return gh.FactorLearning(**(told | {"weigh_words": False} | changes))


def learn(
    statistic: gh.Statistic, forwards: int, planted: Planted | None = None
) -> tuple[Any, Planted]:
    planted = planted or Planted()
    with torch.no_grad(), watching(statistic) as watch:
        for _ in range(forwards):
            watch._plan.root(planted.states())
    return watch.geometry().model.factor_learning, planted


def state_of(watch: Any) -> dict[str, Tensor]:
    return {n: t for n, t in watch.state_dict()["tensors"].items() if n.startswith("model/")}


def test_planted_factors_are_found() -> None:
    """Layers whose states are three times as long count alike; nothing tells where factors are."""
    found, planted = learn(learning(), 210)
    match = match_dictionaries(planted.dictionary, found.dictionary)
    assert float(match.cosines.min()) > 0.98
    start = match_dictionaries(planted.dictionary, initial_dictionary(FACTORS, WIDTH))
    assert float(start.cosines.max()) < 0.95
    assert (int(found.updates), int(found.vectors)) == (201, 20_100)
    assert int(found.tokens) == 210 * 2 * 200
    assert int(found.dead) == int(found.revived) == 0
    assert 3 <= float(found.l0) < 6
    torch.testing.assert_close(found.dictionary.norm(dim=1), torch.ones(FACTORS))


def test_the_objective_of_unseen_states_falls() -> None:
    """From the directions that it begins with, and with absolute penalties too."""
    unseen = Planted().states(50).flatten(0, 1)
    for relative, penalty in ((True, 0.05), (False, 0.1)):
        values = []
        for forwards in (0, 15, 40, 120):
            dictionary = initial_dictionary(FACTORS, WIDTH)
            if forwards:
                given = {"relative": relative, "penalty": penalty}
                dictionary = learn(learning(**given), forwards)[0].dictionary
            coder = SparseCoder(dictionary, penalty, relative, tolerance=1e-4)
            one = coder.penalty_of(unseen)
            values.append(float(objective(unseen, dictionary, one, coder(unseen)).mean()))
        assert all(later < 0.95 * earlier for earlier, later in pairwise(values))


def test_means_of_what_codes_are_like() -> None:
    """Of one mini-batch, they are those of that mini-batch."""
    planted = Planted()
    statistic = learning(batch=40, waiting=40)
    with torch.no_grad(), gh.watch(model(), sites=["0"], statistics=[statistic]) as watch:
        states = planted.states(2, 20)
        watch._plan.root(states)
    found = watch.geometry().model.factor_learning
    rows = states.flatten(0, 1)
    rows = rows * (math.sqrt(WIDTH) / rows.norm(dim=1, keepdim=True))
    start, penalty = initial_dictionary(FACTORS, WIDTH), 0.05 * math.sqrt(WIDTH)
    codes = SparseCoder(start, penalty, iterations=100)(rows)
    assert float(found.snr) == pytest.approx(float(signal_to_noise(rows, codes @ start)), rel=1e-5)
    assert float(found.l0) == pytest.approx(float((codes > 0).sum(1).float().mean()))
    least = objective(rows, start, penalty, codes).mean()
    assert float(found.objective) == pytest.approx(float(least), rel=1e-5)
    torch.testing.assert_close(found.mean_activation, codes.mean(0), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.hessian, codes.square().mean(0) / 300)
    assert torch.equal(found.idle > 0, (codes > 0).sum(0) == 0)


def test_a_resumed_run_goes_on_bit_by_bit(tmp_path: Path) -> None:
    """Also when it is stopped before the first mini-batch, and after a reset."""
    batches = [Planted().states() for _ in range(1)] + [Planted(2).states() for _ in range(30)]
    ids = torch.randint(50, (10, 20), generator=torch.Generator().manual_seed(0))
    statistic = learning(weigh_words=True, revive=True, updates_per_forward=2, batch=50)

    def run(watch: Any, some: list[Tensor]) -> None:
        with torch.no_grad():
            for one in some:
                watch._plan.root(one)

    assert ids.shape == batches[0].shape[:2]
    with watching(statistic) as whole:
        run(whole, batches)
    for stop in (3, 20):
        with watching(statistic) as first:
            run(first, batches[:stop])
            torch.save(first.state_dict(), tmp_path / "state.pt")
            run(first, batches[:5])  # lost
        with watching(statistic) as second:
            run(second, batches[:2])  # forgotten
            second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
            run(second, batches[stop:])
        assert all(torch.equal(a, state_of(second)[n]) for n, a in state_of(whole).items())
    second.reset()
    with second:
        run(second, batches)
    assert all(torch.equal(a, state_of(second)[n]) for n, a in state_of(whole).items())
    second.geometry().save(tmp_path / "file.safetensors")
    loaded = gh.load(tmp_path / "file.safetensors").model.factor_learning
    assert torch.equal(loaded.dictionary, whole.geometry().model.factor_learning.dictionary)


def test_masked_tokens_and_those_that_are_not_finite_never_come_in() -> None:
    planted, states = Planted(), []
    mask = torch.rand(10, 20, generator=torch.Generator().manual_seed(3)) < 0.7
    filled = [planted.states() for _ in range(12)]
    for filler in (math.nan, 1e6):
        with torch.no_grad(), watching(learning(batch=50)) as watch, watch.tokens(mask=mask):
            for one in filled:
                broken = torch.where(mask[..., None], one, filler)
                broken[0, 0], broken[1, 1], broken[2, 2] = math.inf, math.nan, 0.0
                watch._plan.root(broken)
        states.append(state_of(watch))
    assert all(torch.equal(a, states[1][name]) for name, a in states[0].items())
    waiting = states[0]["model/factor_learning/waiting/states"]
    held = states[0]["model/factor_learning/waiting/held"]
    waiting = waiting[held]
    assert 400 < len(waiting) < 500
    torch.testing.assert_close(waiting.norm(dim=1), torch.full_like(waiting[:, 0], 4.0))
    real = torch.cat([one[mask] for one in filled])
    cosines = unit_rows(waiting) @ unit_rows(real).T
    assert float(cosines.max(1).values.min()) > 1 - 1e-5
    finite = mask.sum() - sum(mask[at, at] for at in (0, 1))
    assert int(states[0]["model/factor_learning/learned/tokens"]) == 12 * 2 * int(finite)


def test_tokens_come_in_once_and_alike_from_all_layers() -> None:
    """A layer's states are told apart by their sign here, and tokens by their first entry."""
    statistic, drawn = learning(batch=50, relative=False, penalty=1e6), []
    net = nn.Sequential(Times(1.0), Times(-1.0))
    take = factor_learning.WaitingTokens.take

    def noted(self: Any, ready: Tensor, places: Tensor) -> Any:
        found = take(self, ready, places)
        drawn.append(found[0][:, 0])
        return found

    with (
        mock.patch.object(factor_learning.WaitingTokens, "take", noted),
        torch.no_grad(),
        watching(statistic, net) as watch,
    ):
        for number in range(100):
            first = 1 + number * 60 + torch.arange(60.0).view(3, 20)
            net(first[..., None].expand(-1, -1, WIDTH))
    entries = torch.cat(drawn)
    assert (
        len(entries)
        == len(entries.unique())
        == 50 * int(watch.geometry().model.factor_learning.updates)
    )
    assert 0.45 < float((entries > 0).float().mean()) < 0.55
    # Columns of a row are alike, too.
    columns = (entries.abs() - 1) % 20
    assert float(columns.mean()) == pytest.approx(9.5, abs=0.5)
    # And mini-batches have tokens of many forwards.
    forwards = torch.stack([((one.abs() - 1) // 60).unique().new_tensor(len(
        ((one.abs() - 1) // 60).unique())) for one in drawn[5:]])  # fmt: skip
    assert float(forwards.mean()) > 5


def test_a_forward_makes_no_more_mini_batches_than_it_may() -> None:
    statistic = learning(batch=20, updates_per_forward=3, iterations=7)
    coders: list[Any] = []

    made = SparseCoder.trusted

    def noted(*given: Any, **told: Any) -> Any:
        coders.append(told)
        return made(*given, **told)

    planted = Planted()
    with (
        mock.patch.object(SparseCoder, "trusted", noted),
        torch.no_grad(),
        watching(statistic) as watch,
    ):
        numbers = []
        for _ in range(30):
            before = len(coders)
            watch._plan.root(planted.states(40))
            numbers.append(len(coders) - before)
    assert numbers == [0] * 9 + [3] * 21  # room for 600 states, 60 a forward
    assert all(told == {"iterations": 7} for told in coders)
    assert int(watch.geometry().model.factor_learning.updates) == 63


def test_what_is_not_ready_changes_nothing() -> None:
    """As on a device, where nobody waits to see whether there is enough to learn from."""
    planted = Planted()
    with torch.no_grad(), watching(learning(revive=True)) as watch:
        for _ in range(12):
            watch._plan.root(planted.states())
        state = watch._plan.state.whole["factor_learning"]
        state["learned"]["idle"].fill_(1000)
        before = state_of(watch)
        statistic = watch._plan.state.statistics["factor_learning"]
        statistic._learn(state, torch.tensor(False))
        assert all(torch.equal(a, state_of(watch)[n]) for n, a in before.items())
        statistic._learn(state, torch.tensor(True))
        assert not torch.equal(state["learned"]["dictionary"], before[
            "model/factor_learning/learned/dictionary"])  # fmt: skip


def test_nothing_waits_for_the_device() -> None:
    """A tensor without numbers raises where one is asked for."""
    for packed in (False, True):
        state = update_on_meta(
            gh.FactorLearning(12, batch=5, waiting=10, updates_per_forward=2, revive=True),
            packed=packed,
        )
        assert state["learned"]["dictionary"].shape == (12, 8)


def test_dead_factors_are_counted_and_revived() -> None:
    """Factors at right angles to all states are of no use, and stay so until they are turned."""
    start = Planted(inside=12).dictionary.clone()
    start[:5] = torch.eye(WIDTH)[[12, 13, 14, 15, 12]]
    told = {"start": start, "waiting": 50, "iterations": 60, "batch": 50, "length": 30}
    left, _ = learn(learning(**told), 61, Planted(inside=12))
    assert (left.idle >= 30).nonzero()[:, 0].tolist() == [0, 1, 2, 3, 4]
    assert int(left.dead) == 5
    torch.testing.assert_close(left.dictionary[:5], start[:5])
    found, planted = learn(learning(**told, revive=True), 400, Planted(inside=12))
    assert int(found.revived) == 5
    assert int(found.dead) == 0
    turned, stuck = (
        match_dictionaries(planted.dictionary, one.dictionary).cosines for one in (found, left)
    )
    assert int((stuck > 0.9).sum()) <= FACTORS - 5 < int((turned > 0.9).sum())


def test_words_are_counted_and_weigh_by_their_number() -> None:
    """Frequent words by less: against a step by hand."""
    from transformers import GPT2Config, GPT2Model

    config = GPT2Config(n_layer=1, n_embd=WIDTH, n_head=2, vocab_size=9, bos_token_id=0,
                        eos_token_id=0)  # fmt: skip
    torch.manual_seed(0)
    net = GPT2Model(config).eval()
    ids = torch.tensor([[1, 1, 1, 1, 2, 8, 1, 2]])
    seen: list[Any] = []

    def noted(*given: Any, **told: Any) -> Any:
        seen.append(given[4])
        return gh.functional.dictionary_step(*given, **told)

    with mock.patch.object(factor_learning, "dictionary_step", noted), torch.no_grad():
        for vocabulary, counts in ((100, [5, 2, 1]), (8, [5, 2, 1]), (7, [6, 2, 6])):
            statistic = gh.FactorLearning(
                12, batch=8, waiting=8, iterations=5, vocabulary=vocabulary
            )
            with gh.watch(net, sites=["h.0"], statistics=[statistic]) as watch:
                net(input_ids=ids)
            words = watch._plan.state.whole["factor_learning"]["words"].value
            number = dict(zip((1, 2, 8), counts, strict=True))
            assert [int(words[i % vocabulary]) for i in number] == counts
            drawn = watch._plan.state.whole["factor_learning"]["waiting"]["ids"]
            weights = torch.tensor([number[int(i)] for i in drawn.sort().values]).rsqrt()
            expected = (weights / weights.mean()).sort().values
            torch.testing.assert_close(seen.pop().sort().values, expected)
        # Without ids, all count alike.
        with gh.watch(net, sites=["h.0"], statistics=[learning(batch=8, waiting=8,
                      weigh_words=True)]):  # fmt: skip
            net(inputs_embeds=torch.randn(1, 8, WIDTH))
        torch.testing.assert_close(seen.pop(), torch.ones(8))


def test_it_begins_with_a_dictionary_that_is_given() -> None:
    planted = Planted()
    found, _ = learn(learning(start=planted.dictionary), 40)
    cosines = (found.dictionary * planted.dictionary).sum(1)
    assert float(cosines.min()) > 0.99  # the first steps are no longer than the others
    assert float(found.l0) < 5


def test_text_has_better_factors_than_chance_and_than_principal_directions() -> None:
    """On held-out text, with as many activations for each token."""
    from pydoc_data.topics import topics

    net, tokenizer = minilm()
    pages = sorted(topics.values(), key=len)[-40:]
    told = tokenizer(pages, return_tensors="pt", truncation=True, max_length=64)
    batches = told["input_ids"].split(8)
    sites = ["encoder.layer.0@in", "encoder.layer.2"]
    told = {
        "batch": 100,
        "updates_per_forward": 3,
        "waiting": 300,
        "iterations": 40,
        "step": 0.05,
        "length": 30,
    }
    statistics = [gh.FactorLearning(400, 0.1, **told), gh.Covariance()]
    with torch.no_grad(), gh.watch(net, sites=sites, statistics=statistics) as watch:
        for batch in batches[:-1] * 6:
            net(input_ids=batch)
        unseen = net(input_ids=batches[-1], output_hidden_states=True).hidden_states
    hidden = torch.cat([unseen[layer][:, 1:].flatten(0, 1) for layer in (0, 3)])
    geometry, snr, number = watch.geometry(), {}, {}
    learned = geometry.model.factor_learning.dictionary
    for name, dictionary in {"learned": learned, "chance": initial_dictionary(400, 384)}.items():
        coder = SparseCoder(dictionary, 0.1, relative=True, iterations=100)
        codes = coder(hidden)
        number[name] = (codes > 0).sum(1)
        snr[name] = float(signal_to_noise(hidden, coder.decode(codes)))
    mean, covariance = geometry.stack("covariance.mean"), geometry.stack("covariance.covariance")
    moment = (covariance + mean[:, :, None] * mean[:, None]).mean(0)
    basis = torch.linalg.eigh(moment)[1].T.float()
    principal = largest_projections(hidden, basis, number["learned"])
    snr["principal"] = float(signal_to_noise(hidden, principal))
    assert number["learned"].sum() < number["chance"].sum()
    assert snr["learned"] > 1.1 * snr["principal"] > 1.1 * snr["chance"]


def test_several_do_not_merge() -> None:
    geometries = []
    for seed in (1, 2):
        with torch.no_grad(), watching(learning()) as watch:
            watch._plan.root(Planted(seed).states())
        geometries.append(watch.geometry())
    message = "factor_learning does not merge: what it holds depends on the order in which"
    for unite_them in (False, True):
        with pytest.raises(SchemaError, match=message):
            gh.merge(geometries, unite=unite_them)
    parts = [Part.of(geometry._state) for geometry in geometries]
    with pytest.raises(SchemaError, match=message):
        unite(parts, "rank")
    assert gh.merge(geometries[:1]).sites == ["0", "1"]
    with torch.no_grad(), watching(learning()) as watch:
        watch._plan.root(Planted().states())
    assert watch.geometry(sync=True).sites == ["0", "1"]  # one process is alone
    state = watch._plan.state.whole["factor_learning"]
    for accumulator in (state["learned"], state["waiting"]):
        with pytest.raises(SchemaError, match="depends on the order of tokens and cannot merge"):
            accumulator.merge(accumulator.clone())


def test_errors() -> None:
    for name in ("size", "batch", "updates_per_forward", "iterations", "length", "waiting"):
        with pytest.raises(ValueError, match=rf"FactorLearning\({name}=0\): a positive integer"):
            gh.FactorLearning(**{name: 0})
    for name in ("step", "damping"):
        with pytest.raises(ValueError, match=rf"FactorLearning\({name}=nan\): a positive number"):
            gh.FactorLearning(**{name: math.nan})
    with pytest.raises(ValueError, match="a number of at least 0 is needed"):
        gh.FactorLearning(penalty=-1)
    wrong: dict[str, Any] = {"size": None, "batch": None, "penalty": None, "step": "a"}
    wrong |= {"relative": None, "start": "x"}
    for name, value in (*wrong.items(), ("seed", "a"), ("seed", 1.5), ("seed", 2**70)):
        with pytest.raises(ValueError, match=f"{name}.* needed"):
            gh.FactorLearning(**{name: value})
    with pytest.raises(ValueError, match="room for at least the 200 states that a forward gives"):
        gh.FactorLearning(updates_per_forward=2, waiting=199)
    with pytest.raises(ValueError, match=r"start: shape \(F, d\) is needed"):
        gh.FactorLearning(start=torch.ones(3))
    with pytest.raises(ValueError, match=r"size=2000\): start has 3 factors; give their number"):
        gh.FactorLearning(start=torch.eye(3))
    with pytest.raises(ValueError, match="rows of length 1 are needed, and 3 of 3 are not"):
        gh.FactorLearning(3, start=2 * torch.eye(3))
    watch = watching(gh.FactorLearning(3, start=torch.eye(3)))
    with pytest.raises(SiteError, match=r"factors of width 3, and site '0' has hidden states of"):
        watch.__enter__()._plan.root(torch.ones(1, 2, WIDTH))
    watch.detach()
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 5))
    with (
        pytest.raises(
            SiteError, match=r"site '1' has hidden states of width 5, and the dictionary"
        ),
        watching(learning(), net),
    ):
        net(torch.ones(1, 2, 4))
    with torch.no_grad(), watching(learning()) as watch:
        watch._plan.root(Planted().states())
    found = watch.geometry().model.factor_learning
    assert int(found.updates) == 0
    for name in ("dictionary", "snr", "dead"):
        with pytest.raises(UnidentifiedError, match="100 states wait, and learning begins at 1000"):
            found[name]
