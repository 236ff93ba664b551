"""What Factors does beyond the conformance suite: encoders, files, what is left out."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import DynamicCache

import geomhooks as gh
from geomhooks.errors import SchemaError, SiteError
from geomhooks.functional import SparseAutoencoder, SparseCoder
from geomhooks.statistics.digests import digest_of
from tests.models import tiny_gpt2, tiny_gpt2_lm
from tests.statistics.without_numbers import update_on_meta

WIDTH, FACTORS = 16, 24
PENALTY = 0.003  # states of such a model are short


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def dictionary() -> Tensor:
    return nn.functional.normalize(randn(FACTORS, WIDTH), dim=1)


class Autoencoder(nn.Module):
    """As those of SAELens are: weights of these names, ``encode`` and ``decode``."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        decoder = dictionary().to(dtype)
        self.W_dec = nn.Parameter(decoder)
        self.W_enc = nn.Parameter(decoder.T.clone())
        self.b_enc = nn.Parameter(torch.full((FACTORS,), -0.005, dtype=dtype))
        self.b_dec = nn.Parameter(0.005 * torch.ones(WIDTH, dtype=dtype))

    def encode(self, x: Tensor) -> Tensor:
        return torch.relu((x - self.b_dec) @ self.W_enc + self.b_enc)

    def decode(self, codes: Tensor) -> Tensor:
        return codes @ self.W_dec + self.b_dec

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x))


@dataclass
class Settings:
    """What is no weight of an autoencoder."""

    k: int


@torch.no_grad()
def measure(statistic: gh.Statistic, *texts: Tensor) -> gh.Geometry:
    model = tiny_gpt2()
    with gh.watch(model, statistics=[statistic]) as watch:
        for number, ids in enumerate(texts):
            with watch.tokens(contexts=torch.arange(len(ids)) + 100 * number):
                model(ids)
    return watch.geometry()


TEXTS = torch.randint(1, 50, (6, 20), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def states(ids: Tensor = TEXTS) -> Tensor:
    """Hidden states (B, T, d) of the second block's output, in float64."""
    found: list[Tensor] = []
    model = tiny_gpt2()
    model.h[1].register_forward_hook(lambda module, args, out: found.append(out))
    model(ids)
    return found[0].double()


def test_a_dictionary_against_dense_codes() -> None:
    """Codes of the whole in float64, and a full sort of them."""
    found = measure(gh.Factors(dictionary(), PENALTY, top=7, window=3), TEXTS[:2], TEXTS[2:])
    found = found["h.1"].factors
    x = states()
    codes = gh.functional.sparse_codes(x, dictionary().double(), PENALTY).flatten(0, 1)
    close = {"rtol": 1e-4, "atol": 1e-6}
    np.testing.assert_allclose(found.mean, codes.mean(0), **close)
    np.testing.assert_allclose(found.mean_square, codes.square().mean(0), **close)
    largest = codes.sort(0, descending=True).values[:7]
    np.testing.assert_allclose(found.importance, largest.mean(0), **close)
    left = x.flatten(0, 1) - codes @ dictionary().double()
    assert float(found.snr) == pytest.approx(
        float(x.square().sum() / left.square().sum()), rel=1e-4
    )
    # Activations that are zero but for rounding are not counted on.
    assert float(found.l0) == pytest.approx(float((codes > 1e-6).sum(1).double().mean()), abs=0.05)
    assert int(found.count) == TEXTS.numel()
    best = codes.argmax(0)
    row, column = best // 20, best % 20
    active = codes.amax(0) > 1e-3
    assert active.sum() > 20
    assert torch.equal(found.top.position[active, 0], column[active])
    contexts = torch.cat([torch.arange(2), torch.arange(4) + 100])
    assert torch.equal(found.top.context[active, 0], contexts[row[active]])
    assert torch.equal(found.top.token_id[active, 0], TEXTS[row, column][active])
    padded = nn.functional.pad(TEXTS, (3, 3), value=-1).unfold(1, 7, 1)
    assert torch.equal(found.top.window[active, 0], padded[row, column][active])


def test_encoders_of_all_kinds_are_one() -> None:
    """A module, the same in plain tensors, its bound method, and functions."""
    module = Autoencoder()
    weights = {name: p.detach() for name, p in module.named_parameters()}
    plain = SparseAutoencoder(
        weights["W_enc"], weights["W_dec"], weights["b_enc"], weights["b_dec"]
    )
    given: list[dict[str, Any]] = [
        {"encoder": module},
        {"encoder": plain},
        {"encoder": module.encode, "decoder": module.decode, "factors": FACTORS},
        {"encoder": lambda x: module.encode(x), "factors": FACTORS, "decoder": module.decode},
    ]
    results = [measure(gh.Factors(**kind, top=5), TEXTS)["h.0"].factors for kind in given]
    codes = module.encode(states_of_first()).detach()
    np.testing.assert_allclose(results[0].mean, codes.double().mean(0), rtol=1e-5)
    for other in results[1:]:
        for name in ("mean", "importance", "snr", "firing_rate"):
            torch.testing.assert_close(results[0][name], other[name])
        assert torch.equal(results[0].top.window, other.top.window)
    without = measure(gh.Factors(encoder=module.encode, factors=FACTORS), TEXTS)["h.0"].factors
    assert "snr" not in without
    half = measure(gh.Factors(encoder=Autoencoder(torch.bfloat16), top=5), TEXTS)["h.0"].factors
    torch.testing.assert_close(half.mean, results[0].mean, rtol=0.05, atol=0.01)


@torch.no_grad()
def states_of_first() -> Tensor:
    found: list[Tensor] = []
    model = tiny_gpt2()
    model.h[0].register_forward_hook(lambda module, args, out: found.append(out))
    model(TEXTS)
    return found[0].flatten(0, 1)


def test_variants_of_sparse_autoencoders() -> None:
    """Thresholds of their own, the k largest, and states that are encoded as they are."""
    x, encoder = randn(50, 4, seed=1), randn(4, 9, seed=2)
    before = x @ encoder
    threshold = torch.linspace(0, 1, 9)
    jump = SparseAutoencoder(encoder, encoder.T, threshold=threshold)(x)
    assert torch.equal(jump, torch.where(before > threshold, before, 0.0))
    most = SparseAutoencoder(encoder, encoder.T, largest=2)(x)
    assert ((most > 0).sum(1) <= 2).all()
    assert torch.equal(most.amax(1), before.amax(1).clamp(min=0))
    bias = randn(4, seed=3)
    apart = SparseAutoencoder(encoder, encoder.T, bias=bias, centred=False)
    torch.testing.assert_close(apart(x), before.relu())
    torch.testing.assert_close(apart.decode(most), most @ encoder.T + bias)
    with pytest.raises(ValueError, match=r"encoder: shape \(4, 9\) is needed beside a dictionary"):
        SparseAutoencoder(encoder.T, encoder.T)
    with pytest.raises(ValueError, match="largest=10: from 1 to the 9 factors"):
        SparseAutoencoder(encoder, encoder.T, largest=10)


def test_products_of_activations_and_tokens_at_once() -> None:
    module = Autoencoder()
    how: dict[str, Any] = {"encoder": module, "coactivation": "products", "top": 3}
    found = measure(gh.Factors(**how), TEXTS)["h.0"].factors
    codes = module.encode(states_of_first()).detach().double()
    np.testing.assert_allclose(found.coactivation, codes.T @ codes / len(codes), rtol=1e-5)
    few = measure(gh.Factors(**how, tokens_at_once=11), TEXTS)["h.0"].factors
    torch.testing.assert_close(few.coactivation, found.coactivation)
    assert torch.equal(few.top.context, found.top.context)


def test_a_file_knows_its_encoder_by_a_digest(tmp_path: Path) -> None:
    coder = SparseCoder(dictionary(), 0.2)
    geometry = measure(gh.Factors(encoder=coder, top=3), TEXTS[:3])
    geometry.save(tmp_path / "a.safetensors")
    loaded = gh.load(tmp_path / "a.safetensors")
    for name in ("mean", "importance", "snr"):
        assert torch.equal(loaded["h.0"].factors[name], geometry["h.0"].factors[name])
    assert torch.equal(loaded["h.0"].factors.top.window, geometry["h.0"].factors.top.window)
    same = measure(gh.Factors(dictionary(), 0.2, top=3), TEXTS[3:])
    assert int(gh.merge([loaded, same])["h.0"].factors.count) == TEXTS.numel()
    for other in (
        gh.Factors(dictionary(), 0.3, top=3),
        gh.Factors(dictionary().flip(0), 0.2, top=3),
        gh.Factors(dictionary(), 0.2, top=3, iterations=100),
    ):
        with pytest.raises(SchemaError, match=r"factors\.(encoder|penalty) differs"):
            gh.merge([loaded, measure(other, TEXTS[3:])])
    modules = Autoencoder(), Autoencoder(), Autoencoder()
    for module, largest in zip(modules, (3, 3, 4), strict=True):
        module.cfg = Settings(largest)
    digests = [gh.Factors(encoder=module).encoder for module in modules]
    assert digests[0] == digests[1] != digests[2]
    digest = gh.Factors(dictionary(), 0.2).encoder
    with pytest.raises(SiteError, match="knows its encoder by its digest alone; give the diction"):
        measure(gh.Factors(encoder=digest, factors=FACTORS), TEXTS)


def test_what_is_not_finite_is_counted_and_left_out() -> None:
    """Codes that are not finite, though the states are."""
    module = Autoencoder()
    limit = states_of_first()[:, 0].median()

    def encode(x: Tensor) -> Tensor:
        return torch.where(x[:, :1] > limit, torch.nan, module.encode(x))

    found = measure(gh.Factors(encoder=encode, factors=FACTORS, top=3), TEXTS)["h.0"].factors
    x = states_of_first()
    kept = module.encode(x[x[:, 0] <= limit]).detach().double()
    assert (int(found.count), int(found.not_finite)) == (len(kept), len(x) - len(kept))
    np.testing.assert_allclose(found.mean, kept.mean(0), rtol=1e-5)


def test_generated_tokens_have_only_themselves_around_them() -> None:
    """A prompt's windows are whole; what comes one by one has none of what went before."""
    model, ids = tiny_gpt2_lm(), TEXTS[:1, :8]
    statistic = gh.Factors(encoder=Autoencoder(), top=8, window=2)
    with torch.no_grad(), gh.watch(model, statistics=[statistic]) as watch:
        cache = DynamicCache()
        for piece in (ids[:, :5], ids[:, 5:6], ids[:, 6:7]):
            model(piece, past_key_values=cache, use_cache=True)
    top = watch.geometry()["transformer.h.0"].factors.top
    assert len(top.context[top.position >= 0].unique()) == 1
    for position, window in zip(top.position[0].tolist(), top.window[0].tolist(), strict=True):
        if position >= 5:
            assert window == [-1, -1, int(ids[0, position]), -1, -1]
        elif position >= 0:
            around = range(position - 2, position + 3)
            assert window == [int(ids[0, p]) if 0 <= p < 5 else -1 for p in around]
    assert "generation" not in statistic.laws
    assert "generation" in gh.Factors(encoder=Autoencoder(), window=0).laws


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("one_per_text", [False, True])
def test_nothing_waits_for_the_device(packed: bool, one_per_text: bool) -> None:
    coder = SparseAutoencoder(torch.zeros(8, 6), torch.zeros(6, 8))  # goes where states are
    how: dict[str, Any] = {"one_per_text": one_per_text, "tokens_at_once": 4}
    statistic = gh.Factors(encoder=coder, top=3, window=1, coactivation="counts", **how)
    update_on_meta(statistic, packed=packed)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "Factors needs either a dictionary .* or an encoder; found neither"),
        ({"dictionary": torch.eye(2), "encoder": abs}, "found both"),
        ({"dictionary": torch.eye(2)}, "give the penalty of its codes, penalty="),
        ({"dictionary": torch.ones(3), "penalty": 1}, r"shape \(F, d\) is needed, found \(3,\)"),
        ({"encoder": torch.relu}, "it does not say how many factors it has; give .* factors="),
        ({"dictionary": [[1.0]], "penalty": 1}, r"a tensor \(F, d\) is needed, found list"),
        ({"dictionary": torch.eye(2), "penalty": "a"}, "penalty='a': a number of at least 0"),
        ({"dictionary": torch.eye(2), "penalty": True}, "penalty=True: a number of at least 0"),
        ({"dictionary": torch.eye(2), "penalty": torch.tensor(-1.0)}, "at least 0 .* found -1"),
        ({"dictionary": torch.eye(2) / 0, "penalty": 1}, "finite numbers are needed, found inf"),
        ({"dictionary": torch.eye(2), "penalty": 1, "relative": None}, "relative=None.: True or"),
        ({"encoder": SparseCoder(torch.eye(2), 1), "penalty": 1}, "encoder makes codes its own"),
        ({"encoder": abs, "factors": 2, "decoder": 3}, r"decoder=3\): None or a callable"),
        ({"encoder": abs, "factors": 2, "max_bytes": None}, "max_bytes=None.: a positive integ"),
        ({"encoder": 3}, r"Factors\(encoder=int\): a callable .* is needed"),
        ({"encoder": "blake2b:0"}, "with a digest alone give factors="),
        ({"encoder": Autoencoder(), "factors": 3}, "the encoder Autoencoder has 24 factors"),
        ({"encoder": abs, "factors": 2, "top": 0}, r"Factors\(top=0\): a positive integer"),
        ({"encoder": abs, "factors": 2, "window": -1}, "an integer of at least 0 is needed"),
        ({"encoder": abs, "factors": 2, "coactivation": "all"}, "None, 'counts' or 'products'"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gh.Factors(**arguments)


def test_what_does_not_fit() -> None:
    with pytest.raises(SiteError, match=r"'h.0@in': hidden states are of width 16, and the factor"):
        measure(gh.Factors(torch.eye(8), 0.1), TEXTS)
    with pytest.raises(SiteError, match=r"24 factors, top=100, .* would take .* max_bytes=1,000"):
        measure(gh.Factors(dictionary(), 0.1, max_bytes=1000), TEXTS)
    with pytest.raises(SiteError, match=r"made \(120, 16\) of hidden .* codes \(120, 5\) are need"):
        measure(gh.Factors(encoder=torch.relu, factors=5), TEXTS)


class Holder:
    """Neither module nor dataclass, and its weights in a private attribute and in a slot."""

    __slots__ = ("__dict__", "_scale")

    def __init__(self, weight: Tensor, scale: float = 1.0) -> None:
        self._linear = nn.Linear(WIDTH, FACTORS, bias=False)
        self._linear.weight.data = weight.clone()
        self._scale = scale

    def __call__(self, x: Tensor) -> Tensor:
        return self._linear(x).relu() * self._scale


def project(weight: Tensor, x: Tensor, *, scale: float = 1.0) -> Tensor:
    return (x @ weight.T).relu() * scale


def closed(weight: Tensor) -> Any:
    return lambda x: (x @ weight.T).relu()


def test_digests_cover_what_encoders_hold() -> None:
    """Encoders of equal content are one, of other content they are not, and do not merge."""
    first, other = dictionary(), dictionary().flip(0)
    kinds: list[Any] = [
        Holder,
        lambda weight: Holder(weight).__call__,
        lambda weight: partial(project, weight),
        closed,
        lambda weight: Module(weight),
    ]
    for make in kinds:
        made = [gh.Factors(encoder=make(w.clone()), factors=FACTORS) for w in (first, first, other)]
        assert made[0].encoder == made[1].encoder != made[2].encoder
    with pytest.raises(SchemaError, match=r"factors\.encoder differs"):
        gh.merge(
            [
                measure(gh.Factors(encoder=Holder(w), factors=FACTORS, top=2), TEXTS)
                for w in (first, other)
            ]
        )
    several = {
        digest_of(each)
        for each in (
            *(Holder(first), Holder(first, 2.0), partial(project, first)),
            *(partial(project, first, scale=2.0), torch.relu, torch.tanh),
            *(lambda x: x.relu(), lambda x: x.tanh(), {"a": [1, 2]}, {"a": [2, 1]}),
        )
    }
    assert len(several) == 10
    assert digest_of(torch.relu, torch.neg) != digest_of(torch.relu)
    assert digest_of({"a": 1, "b": 2}) == digest_of({"b": 2, "a": 1})
    circle: list[Any] = [1]
    circle.append(circle)
    assert digest_of(circle) != digest_of([1, [1]])


class Module(nn.Module):
    """Weights that are no parameters."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.held = [weight]

    def forward(self, x: Tensor) -> Tensor:
        return (x @ self.held[0].T).relu()


def test_decoders_are_checked_and_may_work_in_place() -> None:
    def encode(x: Tensor) -> Tensor:
        return x.relu_()

    found = measure(gh.Factors(encoder=encode, decoder=lambda c: c.mul_(1), factors=WIDTH), TEXTS)
    x = states_of_first()
    expected = x.square().sum() / (x - x.relu()).square().sum()
    assert float(found["h.0"].factors.snr) == pytest.approx(float(expected), rel=1e-4)
    wrong = gh.Factors(encoder=encode, decoder=lambda c: c[:, :1], factors=WIDTH)
    with pytest.raises(SiteError, match=r"made \(120, 1\) of codes .* hidden states \(120, 16\) a"):
        measure(wrong, TEXTS)
