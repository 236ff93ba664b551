"""The classifier of pure hardmax attention: layers, switches, and what watches see of it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import geomhooks as gh
from geomhooks.anatomy import attention_logits, block_output, find_anatomy
from geomhooks.functional import attention_scores, hardmax_path, leaders_over_depth, softmax_step
from geomhooks.models import HardmaxClassifier, HardmaxConfig

WORDS = 30


def make(published: bool = False, width: int = 3, **changes: object) -> HardmaxClassifier:
    torch.manual_seed(0)
    kind = HardmaxConfig.published if published else HardmaxConfig
    return HardmaxClassifier(kind(WORDS, width, **changes)).eval()  # type: ignore[arg-type]


def ids(length: int = 9) -> Tensor:
    """Texts of different lengths, filled up with the padding 0."""
    drawn = torch.randint(1, WORDS, (4, length), generator=torch.Generator().manual_seed(1))
    return drawn.masked_fill(torch.arange(length) >= torch.tensor([[length], [6], [2], [5]]), 0)


@pytest.mark.parametrize("published", [False, True])
@torch.no_grad()
def test_evaluation_is_the_simulator_to_the_last_digit(published: bool) -> None:
    model, words = make(published), ids()
    seen: list[Tensor] = []
    for block in model.body.blocks:
        block.register_forward_hook(lambda module, args, out: seen.append(out))
    logits = model(words)
    valid = None if published else words > 0
    path = hardmax_path(model.body.embedding(words), model.alpha, 8, valid=valid)
    assert torch.equal(torch.stack(seen), path[1:])
    assert torch.equal(model.path(words), path)
    assert torch.equal(logits, model.classify(path[-1], words > 0))
    assert (model.alpha > 0).item()


@pytest.mark.parametrize("published", [False, True])
@torch.no_grad()
def test_training_is_softmax(published: bool) -> None:
    model, words = make(published, temperature=0.3, num_hidden_layers=2), ids()
    valid = None if published else words > 0
    states = model.body.embedding(words)
    for _ in range(2):
        states = softmax_step(states, model.alpha, temperature=0.3, valid=valid)
    expected = model.classify(states, words > 0)
    for mode, hard in ((True, "evaluation"), (False, "never"), (True, "never")):
        model.use_hardmax(hard)
        torch.testing.assert_close(model.train(mode)(words), expected)
    model.use_hardmax("always")
    assert torch.equal(model.train()(words), model.eval()(words))
    cold = make(published, temperature=1e-4)
    torch.testing.assert_close(cold.train()(words), cold.eval()(words), rtol=1e-3, atol=1e-4)


def test_padding_takes_no_part_unless_it_is_to() -> None:
    """Longer padding changes nothing; as published it does."""
    short, long = ids(9), torch.cat((ids(9), torch.zeros(4, 5, dtype=torch.int64)), 1)
    model, published = make(), make(published=True)
    torch.testing.assert_close(model(short), model(long))
    torch.testing.assert_close(model(short), model(long, attention_mask=(long > 0).long()))
    assert not torch.allclose(published(short), published(long), atol=1e-3)
    other = torch.where(long > 0, long, 7)  # what is masked may be any word
    torch.testing.assert_close(model(other, attention_mask=long > 0), model(short))
    nothing = model(torch.zeros(1, 4, dtype=torch.int64))
    torch.testing.assert_close(nothing, model.decoder.bias)


def test_each_switch_does_what_it_says() -> None:
    words = ids()
    base = make(published=True)
    for name in ("masked", "pool_padding"):
        changed = make(published=True, **{name: not getattr(base.config, name)})
        changed.load_state_dict(base.state_dict())
        assert not torch.allclose(base(words), changed(words), atol=1e-4), name
    pooled = make(published=True, pool_padding=False)
    pooled.load_state_dict(base.state_dict())
    last = base.path(words)[-1]
    kept = torch.stack([row[real].mean(0) for row, real in zip(last, words > 0, strict=True)])
    torch.testing.assert_close(pooled(words), base.decoder(kept)[:, 0])
    for embedded in (False, True):
        table = make(embed_padding=embedded, masked=False).body.embedding
        assert bool((table.weight[0] != 0).any()) == embedded
    for constrained in (False, True):
        model = make(constrained=constrained)
        assert 0 < float(model.alpha.detach()) < 1
        with torch.no_grad():
            model.body.blocks[3].step.fill_(-0.5)
        assert (float(model.alpha.detach()) > 0) == constrained


@pytest.mark.parametrize("published", [False, True])
def test_gradients(published: bool) -> None:
    """Against differences, of the step and of all that a batch touches."""
    model = make(published, width=2, temperature=0.5, num_hidden_layers=3).double().train()
    words = ids(6)
    step, table = model.body.blocks[0].step, model.body.embedding.weight
    names = ["body.blocks.0.step", "body.embedding.weight"]

    def logits(a: Tensor, rows: Tensor) -> Tensor:
        shared = {f"body.blocks.{layer}.step": a for layer in range(3)}
        told = (words,)
        return torch.func.functional_call(model, {**shared, names[1]: rows}, told)

    free = table.detach().clone().requires_grad_(True)
    if not published:  # the row of padding has no gradient
        model.body.embedding.padding_idx = None
    torch.autograd.gradcheck(logits, (step.detach().clone().requires_grad_(True), free))
    model = make(published).train()
    model(words).sum().backward()
    assert bool((model.body.embedding.weight.grad[0] != 0).any()) == published
    assert float(model.body.blocks[0].step.grad.abs()) > 0


def test_it_learns() -> None:
    """Words 1 to 4 are good, 5 to 8 bad; the others say nothing."""
    generator = torch.Generator().manual_seed(0)
    label = torch.randint(2, (256,), generator=generator)
    words = torch.randint(9, WORDS, (256, 8), generator=generator)
    words[:, 0] = torch.randint(1, 5, (256,), generator=generator) + 4 * (1 - label)
    model = make(width=2).train()
    optimiser = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(60):
        optimiser.zero_grad()
        loss = nn.functional.binary_cross_entropy_with_logits(model(words), label.float())
        loss.backward()
        optimiser.step()
    assert float(((model.eval()(words) > 0) == (label > 0)).float().mean()) > 0.97
    leads = leaders_over_depth(model.path(words), valid=words > 0).leaders[-1]
    assert float(leads[:, 0].float().mean()) > 0.9


def test_parameters_are_shared_and_as_many_as_published() -> None:
    model = make(published=True, width=2)
    assert sum(p.numel() for p in model.parameters()) == WORDS * 2 + 1 + 2 + 1
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.body.blocks[0].step.fill_(2.0)
    assert float(twin.body.blocks[7].step.detach()) == 2
    assert float(model.body.blocks[7].step.detach()) != 2
    loaded = make(published=True, width=2)
    loaded.load_state_dict(twin.state_dict())
    assert float(loaded.alpha.detach()) == 2


@torch.no_grad()
def test_what_the_anatomy_knows() -> None:
    """Scores are those that tokens choose by, and blocks come out as they are."""
    model, words = make(temperature=0.4).train(), ids()
    anatomy = find_anatomy(model)
    assert anatomy.family.name == "hardmax"
    assert [block.site for block in anatomy.blocks[:2]] == ["body.blocks.0@in", "body.blocks.0"]
    states, real = model.body.embedding(words), words > 0
    torch.testing.assert_close(anatomy.stack().embeddings.tokens[words], states)
    scores = attention_logits(anatomy.blocks[0].attention, states)[:, 0]
    torch.testing.assert_close(scores, attention_scores(states) / 0.4)
    for block in anatomy.blocks:
        after = block.module(states, real)
        found = block_output(block, states, real=real)
        torch.testing.assert_close(found[real], after[real])
        states = after


def test_what_a_watch_sees() -> None:
    """Padding is masked without being told, and what attention adds follows a step that learns."""
    model, words = make(), ids()
    real = words > 0
    with gh.watch(model, statistics=[gh.Covariance(), gh.Updates()]) as watch, torch.no_grad():
        for step in (0.0, 1.5):
            model.body.blocks[0].step.fill_(step)
            watch.reset()
            model(words)
            found, path, alpha = watch.geometry(), model.path(words), float(model.alpha)
            means = path[0] + (1 + alpha) / alpha * (path[1] - path[0])
            added = alpha * means[real]
            size = added.norm(dim=-1).mean()
            for layer, site in enumerate(found.sites):
                mean = path[layer][real].mean(0)
                torch.testing.assert_close(found[site].covariance.mean.float(), mean)
            seen = found["body.blocks.0"].updates.attention.norm.mean
            assert float(seen) == pytest.approx(float(size), rel=1e-4)
    assert found.sites == ["body.blocks.0@in", *(f"body.blocks.{n}" for n in range(8))]


def test_a_compiled_model() -> None:
    model, words = make(), ids()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(words), model(words))


def test_what_is_refused() -> None:
    model, published = make(), make(published=True)
    for call, message in (
        (
            lambda: model(ids().float()),
            r"input_ids: integers \(B, T\) are needed, found torch.float32",
        ),
        (
            lambda: model(ids()[0]),
            r"input_ids: integers \(B, T\) are needed, found torch.int64 \(9,\)",
        ),
        (
            lambda: model(ids(), attention_mask=torch.ones(4, 8)),
            r"attention_mask: shape \(4, 9\) as the ids is needed, found \(4, 8\)",
        ),
        (
            lambda: published(ids(), attention_mask=ids() > 0),
            r"attention_mask: padding takes part in this model \(masked=False\)",
        ),
        (lambda: model.use_hardmax("often"), "hard='often': 'evaluation', 'always' or 'never'"),
        (
            lambda: model([[1, 2]]),
            r"input_ids: a tensor of integers \(B, T\) is needed, found list",
        ),
        (lambda: model(ids()[:, :0]), r"texts of one word or more are needed, found \(4, 0\)"),
        (lambda: model(ids(), [[1]]), r"attention_mask: shape \(4, 9\) .* is needed, found list"),
        (lambda: make(temperature=0), "temperature=0: a number above 0 is needed"),
        (lambda: make(temperature="a"), "temperature='a': a number above 0 is needed"),
        (lambda: make(width=0), "hidden_size=0: an integer, 1 or more, is needed"),
        (lambda: make(num_hidden_layers=2.0), "num_hidden_layers=2.0: an integer"),
        (lambda: HardmaxConfig("a"), "vocab_size='a': an integer"),  # type: ignore[arg-type]
        (lambda: HardmaxClassifier(vocab_size=5.5), "vocab_size=5.5: an integer"),
        (lambda: make(pad_token_id=WORDS), "pad_token_id=30: the id of one of 30 words, from 0"),
        (lambda: make(pad_token_id=None), "pad_token_id=None: the id of one of 30 words"),
        (lambda: make(masked="no"), "masked='no': True or False is needed"),
        (lambda: make(pool_padding=1), "pool_padding=1: True or False is needed"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(TypeError, match="takes a HardmaxConfig, or what that takes"):
        HardmaxClassifier()
    with pytest.raises(TypeError, match=r"HardmaxClassifier\(vocab_size=100\); found 5"):
        HardmaxClassifier(5)  # type: ignore[arg-type]
    with torch.no_grad():
        published.body.blocks[0].step.fill_(-0.1)
    with pytest.raises(
        ValueError, match=r"the model has learned a step of -0\.1; hardmax attention"
    ):
        published.path(ids())
