"""Leaders of live models, against whole matrices in float64 and the models' own attention."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import geomhooks as gh
from geomhooks.accumulators.turns import is_chosen
from geomhooks.anatomy import (
    attention_logits,
    attention_mask,
    find_anatomy,
    hardmax_facts,
    normed,
    reasons_against,
)
from geomhooks.anatomy.hardmax_conditions import HardmaxFacts
from geomhooks.errors import SchemaError, SiteError, UnidentifiedError
from geomhooks.functional import leaders_over_depth, random_directions
from geomhooks.models import HardmaxClassifier, HardmaxConfig
from geomhooks.statistics.leader_context import Context, score_rows
from tests.anatomy import stacked
from tests.anatomy.models import MODELS, VOCABULARY, gpt2, make, token_ids
from tests.conformance.harness import compare
from tests.leaders_reference import Layer, Options, Text, leaders
from tests.models import minilm, texts, tiny_gpt2_lm
from tests.reference import Numbers

B, T = 4, 11


def batch(seed: int, shortest: int = 5) -> dict[str, Tensor]:
    """Rows of different lengths, padded on the right."""
    lengths = torch.linspace(shortest, T, B).long()
    mask = (torch.arange(T) < lengths[:, None]).long()
    return {"input_ids": token_ids(B, T, seed), "attention_mask": mask}


def measure(
    model: nn.Module, batches: list[dict[str, Tensor]], statistic: gh.Statistic | None = None
) -> gh.Geometry:
    chosen = gh.Leaders() if statistic is None else statistic
    with torch.no_grad(), gh.watch(model, sites="blocks", statistics=[chosen]) as watch:
        for inputs in batches:
            model(**inputs)
    return watch.geometry()


class Scores(gh.Leaders):
    """Keeps whole attention, put together from blocks of rows, of the last forward."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, Tensor] = {}

    def update(self, state: Any, reading: Any) -> None:
        if reading.query_key is not None:
            blocks = score_rows(reading.query_key, Context.of(reading), 3)
            self.found[reading.site.name] = torch.cat([b.logits.softmax(-1) for b in blocks], 2)
        super().update(state, reading)


@pytest.mark.parametrize("name", MODELS)
def test_scores_are_the_models_own(name: str) -> None:
    """In every family: what the model itself says that its attention is."""
    model, inputs, statistic = make(name), batch(0), Scores()
    with torch.no_grad(), gh.watch(model, sites="blocks", statistics=[statistic]):
        expected = model(**inputs, output_attentions=True).attentions
    real = inputs["attention_mask"].bool()
    assert len(statistic.found) == len(expected)
    for found, own in zip(statistic.found.values(), expected, strict=True):
        where = real[:, None, :, None].expand_as(own)
        assert (found - own)[where].abs().max() < 1e-4


@pytest.mark.parametrize("name", stacked.STACKED)
def test_scores_of_models_of_several_stacks(name: str) -> None:
    """With biases of distance, of encoders and decoders, of text, sounds and pixels."""
    model, inputs, statistic = stacked.make(name), stacked.STACKED[name][2](True), Scores()
    with torch.no_grad(), gh.watch(model, sites="blocks", statistics=[statistic]) as watch:
        out = model(**inputs.call, output_attentions=True)
    if "encoder_attentions" in out:
        groups = [(out.encoder_attentions, inputs.source), (out.decoder_attentions, inputs.target)]
    else:
        groups = [(out.attentions, inputs.source)]
    geometry = watch.geometry()
    for site in statistic.found:
        found = geometry[site].scores
        assert int(found.left_out) == 0
        assert found.leaders.count.unique().tolist() == [len(inputs.source)]
        assert (found.basins.min >= 1).all()
    own = [(shares, real) for of_stack, real in groups for shares in of_stack]
    assert len(own) == len(statistic.found)
    for found, (shares, real) in zip(statistic.found.values(), own, strict=True):
        where = real[:, None, :, None].expand_as(shares)
        assert (found - shares)[where].abs().max() < 1e-4


def dense(model: nn.Module, batches: list[dict[str, Tensor]]) -> tuple[list[Numbers], float]:
    """Numbers of whole matrices, each text alone, of the model's own states in float64."""
    anatomy, width = find_anatomy(model), model.config.hidden_size
    stack = anatomy.stack()
    found = []
    for inputs in batches:
        for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True):
            ids = ids[mask.bool()]
            states = states_of(model, ids)
            layers = []
            for block, before, after in zip(stack.blocks, states, states[1:], strict=False):
                attention = block.attention
                logits = attention_logits(attention, before[None])[0]
                logits = logits.masked_fill(~attention_mask(attention, len(ids)), -torch.inf)
                seen = [normed(one, attention.norm) for one in (before, after)]
                lengths = torch.stack(seen).norm(dim=-1)[:, None].expand(2, attention.heads, -1)
                given = logits, before, after, *seen, lengths
                layers.append(Layer(*(one.numpy() for one in given)))
            first = np.arange(len(ids)) == 0
            found.append(Text(states[0].numpy(), layers, first, ids.numpy()))
    directions = random_directions(64, width).double().numpy()
    vocabulary = 0 if stack.embeddings is None else len(stack.embeddings.tokens)
    return leaders(found, Options(directions, vocabulary))


def states_of(model: nn.Module, ids: Tensor) -> list[Tensor]:
    """What comes into the first block, and what each leaves, (T, d) in float64."""
    blocks = find_anatomy(model).stack().blocks
    states: list[Tensor] = []

    def keep(_: Any, __: Any, out: Any) -> None:
        states.append((out if isinstance(out, Tensor) else out[0]).double()[0])

    def begin(_: Any, args: Any, kwargs: Any) -> None:
        states.append((args[0] if args else kwargs["hidden_states"]).double()[0])

    handles = [b.module.register_forward_hook(keep) for b in blocks]
    handles.append(blocks[0].module.register_forward_pre_hook(begin, with_kwargs=True))
    with torch.no_grad():
        model(input_ids=ids[None])
    for handle in handles:
        handle.remove()
    return states


@pytest.mark.parametrize("name", ["bert", "llama", "gemma2"])
def test_every_number(name: str) -> None:
    """An encoder, a decoder of rotary embeddings and shared keys, one of windows and capped."""
    model = make(name)
    batches = [batch(seed) for seed in range(2)]
    expected, margin = dense(model, batches)
    assert margin > 1e-7
    geometry = measure(model, batches)
    for site, numbers in zip(geometry.sites, expected, strict=True):
        compare(geometry[site].leaders, numbers, site)


def test_blocks_of_rows_change_nothing() -> None:
    model, batches = make("mistral, window"), [batch(0)]
    whole = measure(model, batches)
    for rows in (1, 4):
        parts = measure(model, batches, gh.Leaders(rows=rows))
        assert parts.scalars() == pytest.approx(whole.scalars(), rel=1e-5, nan_ok=True)


class Sizes(TorchDispatchMode):
    """Notes the shapes of all tensors that are made."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.shapes |= {tuple(one.shape) for one in tree_leaves(out) if isinstance(one, Tensor)}
        return out


class Sized(gh.Leaders):
    """Notes the shapes of all tensors that it makes."""

    def __init__(self) -> None:
        super().__init__(rows=16)
        self.sizes = Sizes()

    def update(self, state: Any, reading: Any) -> None:
        with self.sizes:
            super().update(state, reading)


@pytest.mark.parametrize("name", ["gpt2", "mpnet"])
def test_no_matrix_of_all_pairs_is_made(name: str) -> None:
    """Not of scores, nor of masks, of biases of distance or of places."""
    length, statistic = 200, Sized()
    model = gpt2(n_positions=length, n_layer=2) if name == "gpt2" else stacked.encoder(
        "MPNet", max_position_embeddings=length + 2
    )  # fmt: skip
    ids = token_ids(2, length)
    mask = torch.ones_like(ids)
    mask[1, -3:] = 0
    with torch.no_grad(), gh.watch(model.eval(), statistics=[statistic]):
        model(input_ids=ids, attention_mask=mask)
    shapes = statistic.sizes.shapes
    assert any(shape[-2:] == (16, length) for shape in shapes)
    assert not [shape for shape in shapes if shape[-2:] == (length, length)]


def test_tokens_generated_with_a_cache_are_left_out() -> None:
    """Only the prompts' attention is whole."""
    model = tiny_gpt2_lm()
    prompts = torch.randint(1, 50, (3, 7), generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), gh.watch(model, statistics=[gh.Leaders()]) as watch:
        model.generate(
            prompts, max_new_tokens=4, do_sample=False, pad_token_id=0, eos_token_id=None
        )
    found = watch.geometry()["transformer.h.1"].leaders
    assert int(found.left_out) == int(found.without_first.left_out) == 3 * 3
    whole = measure(model, [{"input_ids": prompts}])["transformer.h.1"].leaders
    for name in ("leaders", "sink", "basins", "step", "overlap"):
        torch.testing.assert_close(found[name].mean, whole[name].mean)
        assert torch.equal(found[name].count, whole[name].count)


def test_states_that_are_not_finite_are_left_out_and_not_looked_at() -> None:
    model, ids = make("bert"), token_ids(2, T)
    with torch.no_grad():
        embedded = model.get_submodule("embeddings.word_embeddings")(ids)
        embedded[1, 3] = float("nan")
        with gh.watch(model, sites="blocks", statistics=[gh.Leaders()]) as watch:
            model(inputs_embeds=embedded)
    found = watch.geometry()["encoder.layer.0"].leaders
    # Attention spreads it over its text: the other has what it has.
    assert int(found.left_out) == T
    assert int(found.ties.count[0]) == T
    assert torch.isfinite(found.entropy.mean).all()


def test_leaders_of_embeddings_without_ids_are_no_words() -> None:
    model, ids = make("bert"), token_ids(2, T)
    embedded = model.get_submodule("embeddings.word_embeddings")(ids).detach()
    with torch.no_grad(), gh.watch(model, statistics=[gh.Leaders()]) as watch:
        model(inputs_embeds=embedded)
    assert int(watch.geometry()["encoder.layer.0"].leaders.words.total) == 0


def test_words_of_leaders_that_a_probe_finds() -> None:
    model, inputs = make("bert"), [batch(0), batch(1)]
    weight = torch.randn(24, generator=torch.Generator().manual_seed(1))
    everything = measure(model, inputs)["encoder.layer.1"].leaders.words
    some = gh.Leaders(probe=(weight, 0.5), threshold=3.0, words=100)
    chosen = measure(model, inputs, some)["encoder.layer.1"].leaders.words
    counts = torch.zeros(VOCABULARY, dtype=torch.int64)
    for told in inputs:
        for ids, mask in zip(told["input_ids"], told["attention_mask"], strict=True):
            ids = ids[mask.bool()]
            states = states_of(model, ids)
            attention = find_anatomy(model).stack().blocks[1].attention
            top = attention_logits(attention, states[1][None])[0].argmax(-1)
            leads = (top == torch.arange(len(ids))).sum(0)
            score = (states[1] @ weight.double() + 0.5).abs()
            counts.index_add_(0, ids, torch.where(score > 3, leads, 0))
    assert 0 < int(counts.sum()) < int(everything.total)
    assert int(chosen.total) == int(counts.sum())
    assert torch.equal(chosen.counts, counts[chosen.ids])
    assert (chosen.counts.diff() <= 0).all()


def test_words_beyond_the_vocabulary_are_counted(tmp_path: Path) -> None:
    """Of all words the counts are known; of fewer, how many are missing, in merged files too."""
    model, batches = make("gpt2"), [batch(0), batch(1)]
    everything = measure(model, batches, gh.Leaders(words=VOCABULARY))
    statistic, few = gh.Leaders(vocabulary=3), []
    for number, inputs in enumerate(batches):
        measure(model, [inputs], statistic).save(tmp_path / f"{number}.safetensors")
        few.append(gh.load(tmp_path / f"{number}.safetensors"))
    for geometry in (measure(model, batches, statistic), gh.merge(few)):
        for site in geometry.sites[1:]:
            for found, whole in (
                (geometry[site].leaders.words, everything[site].leaders.words),
                (
                    geometry[site].leaders.without_first.words,
                    everything[site].leaders.without_first.words,
                ),
            ):
                inside = whole.ids < 3
                assert int(whole.beyond) == 0
                assert torch.equal(found.ids, whole.ids[inside])
                assert torch.equal(found.counts, whole.counts[inside])
                assert int(found.total) == int(whole.counts[inside].sum())
                assert int(found.beyond) == int(whole.counts[~inside].sum()) > 0


def test_merged_files_are_one_stream(tmp_path: Path) -> None:
    model, batches = make("llama"), [batch(0), batch(1)]
    statistic = gh.Leaders(probe=(torch.ones(24), 0.0))
    whole = measure(model, batches, statistic)
    for number, inputs in enumerate(batches):
        measure(model, [inputs], statistic).save(tmp_path / f"{number}.safetensors")
    loaded = [gh.load(tmp_path / f"{number}.safetensors") for number in range(2)]
    merged = gh.merge(loaded)
    assert merged.scalars() == pytest.approx(whole.scalars(), rel=1e-9, nan_ok=True)
    site = merged.sites[-1]
    assert torch.equal(merged[site].leaders.words.ids, whole[site].leaders.words.ids)
    assert merged[site].leaders.conditions.reasons == whole[site].leaders.conditions.reasons
    with pytest.raises(SchemaError, match=r"leaders.probe differs"):
        gh.load(tmp_path / "0.safetensors", statistics=[gh.Leaders(probe=(torch.ones(24), 1.0))])
    with pytest.raises(SiteError, match=r"knows its probe by its digest alone; give the probe"):
        measure(model, batches, gh.Leaders(probe=statistic.probe))


def test_a_fraction_of_the_forwards() -> None:
    model, batches = make("gpt2"), [batch(seed) for seed in range(8)]
    some = measure(model, batches, gh.Leaders(fraction=0.25))
    chosen = [batches[i] for i in range(8) if is_chosen(i, 0.25)]
    assert some.scalars() == pytest.approx(measure(model, chosen).scalars(), nan_ok=True)


def identity_head(width: int = 4) -> nn.Module:
    """A GPT-2 whose one head looks by the identity and adds twice of what it looks at."""
    model = gpt2(n_layer=1, n_embd=width, n_head=1)
    with torch.no_grad():
        block = model.get_submodule("h.0")
        block.attn.c_attn.weight.copy_(torch.cat([torch.eye(width)] * 3, 1))
        block.attn.c_attn.bias.zero_()
        block.attn.c_proj.weight.copy_(2 * torch.eye(width))
    return model.eval()


def test_conditions_of_weights() -> None:
    model = identity_head()
    block = find_anatomy(model).stack().blocks[0]
    facts = HardmaxFacts.of(hardmax_facts(block))
    expected = {"symmetric_share": 1, "positive": 4, "negative": 0, "value_identity_share": 1,
                "value_step": 2, "causal": 1, "biased": 0, "other_sublayers": 1}  # fmt: skip
    assert {name: float(facts[name]) for name in expected} == pytest.approx(expected)
    assert [reason.split()[0:3] for reason in reasons_against(facts, 4)] == [
        ["the", "mask", "is"],
        ["there", "are", "norms"],
        ["there", "are", "other"],
    ]
    found = measure(model, [{"input_ids": token_ids(2, T)}])["h.0"].leaders
    assert not bool(found.conditions.hold)
    assert found.seen.own_form.tolist() == [True]
    # By dense matrices, of heads that meet none of them.
    model = make("llama")
    block = find_anatomy(model).stack().blocks[1]
    facts = HardmaxFacts.of(hardmax_facts(block))
    part = block.attention
    gain = part.norm.affine(torch.empty(24))[0].detach().double()
    for head in range(part.heads):
        key = head // 3
        form = (gain[:, None] * part.query.weight[head].double()) @ (
            gain[:, None] * part.key.weight[key].double()
        ).T
        symmetric = (form + form.T) / 2
        values = torch.linalg.eigvalsh(symmetric)
        share = symmetric.square().sum() / form.square().sum()
        assert float(facts["symmetric_share"][head]) == pytest.approx(float(share))
        assert int(facts["positive"][head]) == int((values > 1e-6).sum())
        assert int(facts["negative"][head]) == int((values < -1e-6).sum())
        value = (gain[:, None] * part.value.weight[key].double()) @ part.output.weight[
            head
        ].double()
        assert float(facts["value_step"][head]) == pytest.approx(float(value.trace() / 24))
        share = value.trace() ** 2 / (24 * value.square().sum())
        assert float(facts["value_identity_share"][head]) == pytest.approx(float(share))


def test_lengths_in_the_heads_own_form() -> None:
    """A form that is the identity measures as plain lengths do; one that is not, otherwise."""
    ids = [{"input_ids": token_ids(4, T)}]
    model = identity_head()
    with torch.no_grad():
        stretched = torch.diag(torch.tensor([9.0, 1.0, 1.0, 0.01]))
        model.get_submodule("h.0.attn.c_attn").weight[:, :4] = stretched
    found = measure(model, ids)["h.0"].leaders.seen.norm_decreased
    states = [states_of(model, row) for row in ids[0]["input_ids"]]
    norm = find_anatomy(model).attention[0].norm
    lengths = [
        [(normed(one, norm) ** 2 @ stretched.diag().double()).sqrt() for one in pair]
        for pair in states
    ]
    expected = torch.cat([new < old * (1 - 1e-5) for old, new in lengths]).double().mean()
    assert float(found.mean) == pytest.approx(float(expected))
    assert 0 < float(expected) < 1


def test_conditions_are_those_of_the_window_that_was_measured() -> None:
    """Trained weights are looked at anew after a reset."""
    model, inputs = make("gpt2"), batch(0)
    statistic = gh.Leaders()
    with torch.no_grad(), gh.watch(model, statistics=[statistic]) as watch:
        model(**inputs)
        before = watch.geometry()["h.0"].leaders.conditions.symmetric_share
        model.get_submodule("h.0.attn.c_attn").weight[:, :24] += 1
        model(**inputs)
        assert torch.equal(watch.geometry()["h.0"].leaders.conditions.symmetric_share, before)
        watch.reset()
        model(**inputs)
        after = watch.geometry()["h.0"].leaders.conditions.symmetric_share
    facts = hardmax_facts(find_anatomy(model).stack().blocks[0])
    assert torch.equal(after, HardmaxFacts.of(facts)["symmetric_share"])
    assert not torch.equal(before, after)


def test_a_stack_without_a_table_of_tokens() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    states = torch.randn(2, 5, 8)
    with torch.no_grad(), gh.watch(model, statistics=[gh.Leaders()]) as watch:
        model(states)
    found = watch.geometry()["layers.1"].leaders
    assert int(found.leaders.count[0]) == 2
    with pytest.raises(UnidentifiedError, match=r"no table of tokens; say how many ids there are"):
        _ = found.words


def test_memory_is_known_beforehand() -> None:
    """16 bytes for each word at each block, and little else."""
    model = make("bert")
    sizes = []
    for vocabulary in (None, 10**6):
        statistic = gh.Leaders(vocabulary=vocabulary)
        with torch.no_grad(), gh.watch(model, statistics=[statistic]) as watch:
            sizes.append(watch.nbytes)
            model(**batch(0))
            assert watch.nbytes == sizes[-1]
    assert sizes[1] - sizes[0] == 2 * 16 * (10**6 - VOCABULARY)


def test_errors() -> None:
    for arguments, message in (
        ({"tolerance": -1}, r"Leaders\(tolerance=-1\): a number from 0 to 1"),
        ({"radius": 0}, r"Leaders\(radius=0\): a number from 1e-06 to 1"),
        ({"cosine": 2}, r"Leaders\(cosine=2\): a number from -1 to 1"),
        ({"words": 0}, r"Leaders\(words=0\): a positive integer"),
        ({"directions": 1.5}, r"Leaders\(directions=1.5\): a positive integer"),
        ({"vocabulary": True}, r"Leaders\(vocabulary=True\): a positive integer"),
        ({"words": None}, r"Leaders\(words=None\): a positive integer"),
        ({"directions": None}, r"Leaders\(directions=None\): a positive integer"),
        (
            {"fraction": 0},
            r"Leaders\(fraction=0\): a number above 0 .* the share of forwards that are looked at",
        ),
        ({"tolerance": float("nan")}, r"Leaders\(tolerance=nan\): a number from 0 to 1"),
        ({"probe": torch.ones(3)}, r"Leaders\(probe\): a vector \(d,\) and a number.*found Tensor"),
        (
            {"probe": (torch.tensor([1.0, float("nan"), float("inf")]), 0.0)},
            r"Leaders\(probe\): finite numbers .* 2 of 3 entries of w would leave no word",
        ),
        ({"probe": (torch.ones(3), float("nan"))}, r"finite numbers .* b=nan would leave no word"),
        ({"probe": (torch.ones(3), "a")}, r"a number b of \(w, b\) is needed, found 'a'"),
    ):
        with pytest.raises(ValueError, match=message):
            gh.Leaders(**arguments)
    model = make("gpt2")
    with pytest.raises(SiteError, match=r"of width 24, and the probe of width 3"):
        measure(model, [batch(0)], gh.Leaders(probe=(torch.ones(3), 0.0)))
    with pytest.raises(SiteError, match=r"goes on from the sites before it, of which 'h.0@in' is"):
        gh.watch(model, sites="h.1", statistics=[gh.Leaders()])


class Led(gh.Leaders):
    """Keeps who led so far at each block of the last forward."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.found: list[Tensor] = []

    def _carry(self, reading: Any, begun: Any, leading: Any) -> None:
        self.found.append(leading.so_far[:, 0] & reading.tokens.real)
        super()._carry(reading, begun, leading)


@pytest.mark.parametrize("published", [False, True])
@pytest.mark.parametrize("tolerance", [0.0, 1e-5])
def test_leaders_of_a_hardmax_classifier_are_the_simulators(
    published: bool, tolerance: float
) -> None:
    """Layer by layer, with words that come twice, and padding that is masked or is a word."""
    torch.manual_seed(0)
    options: dict[str, Any] = {"vocab_size": 30, "hidden_size": 3, "num_hidden_layers": 8}
    config = HardmaxConfig.published(**options) if published else HardmaxConfig(**options)
    model = HardmaxClassifier(config).eval()
    ids = torch.randint(1, 30, (6, 20), generator=torch.Generator().manual_seed(1))
    ids = ids.masked_fill(torch.arange(20) >= torch.linspace(9, 20, 6)[:, None], 0)
    valid = torch.ones(6, 20, dtype=torch.bool) if published else ids != 0
    statistic = Led(tolerance=tolerance, words=30)
    with torch.no_grad(), gh.watch(model, statistics=[statistic]) as watch:
        model(ids)
    geometry, alpha = watch.geometry(), float(model.alpha.detach())
    expected = leaders_over_depth(model.path(ids), valid=valid, ties=tolerance)
    assert len(statistic.found) == 8
    for layer, found in enumerate(statistic.found):
        assert torch.equal(found, expected.leaders[layer])
        result = geometry[geometry.sites[layer + 1]].led
        number = expected.leaders[layer].sum(-1).double()
        assert float(result.leaders_so_far.mean) == pytest.approx(float(number.mean()))
        assert float(result.leaders_so_far.max) == float(number.max())
        share = expected.leaders[0].sum(-1) / number
        assert float(result.initial_fraction.mean) == pytest.approx(float(share.mean()), rel=1e-6)
        assert float(result.step.mean) == pytest.approx(alpha / (1 + alpha), rel=1e-4)
        assert float(result.ratio.mean) == pytest.approx(1 / (1 + alpha), rel=1e-4)
        assert float(result.unexplained.max) < 1e-4
        assert float(result.outside.max) == float(result.norm_decreased.max) == 0
        assert float(result.seen.norm_decreased.max) == 0
        assert bool(result.conditions.hold)
        assert result.conditions.reasons == ()
        assert float(result.conditions.value_step) == pytest.approx(alpha)
        counts = torch.bincount(ids[expected.leaders[layer]], minlength=30)
        assert torch.equal(counts[result.words.ids], result.words.counts)
        assert int(result.words.total) == int(counts.sum())


def test_minilm() -> None:
    """A trained encoder: its sharpest head, and what the theorem asks and it has not."""
    model, tokenizer = minilm()
    inputs = tokenizer(texts(6, 200), return_tensors="pt", padding=True)
    statistic = Scores()
    with torch.no_grad(), gh.watch(model, statistics=[statistic]) as watch:
        model(**inputs)
    geometry = watch.geometry()
    real = inputs["attention_mask"].bool()
    ids = inputs["input_ids"]
    for site, shares in statistic.found.items():
        found = geometry[site].scores
        rows = shares.transpose(1, 2)[real]  # (N, H, T)
        torch.testing.assert_close(found.largest.mean.float(), rows.amax(-1).mean(0))
        targets = shares.argmax(-1)
        sink = (targets == 0).transpose(1, 2)[real].float().mean(0)
        torch.testing.assert_close(found.sink.mean.float(), sink)
        leads = (targets == torch.arange(ids.shape[1])) & real[:, None]
        torch.testing.assert_close(found.leaders.mean, leads.sum(-1).double().mean(0))
        assert int(found.left_out) == 0
        assert not bool(found.conditions.hold)
        assert (found.conditions.positive <= 32).all()
        assert found.conditions.reasons[0] == "it has 12 heads, not one"
    # Clusters of wide reach become fewer with depth.
    with torch.no_grad(), gh.watch(model, statistics=[gh.Leaders(cosine=0.3)]) as watch:
        model(**inputs)
    clusters = watch.geometry().stack("leaders.cluster_count.mean")
    assert clusters.shape == (7,)
    assert (clusters.diff() < 0).all()
    assert clusters[-1] < clusters[0] / 2
