"""Streamed shares of the parts of attention's logits, against whole matrices."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import geomhooks as gh
from geomhooks.accumulators.turns import is_chosen
from geomhooks.anatomy import attention_parts, find_anatomy
from geomhooks.errors import AnatomyError, SchemaError, SiteError
from tests.anatomy.models import gpt2, make, token_ids
from tests.models import tiny_gpt2_lm

B, T = 8, 13


def batch(seed: int, shortest: int = 5) -> dict[str, Tensor]:
    """Rows of different lengths, padded on the right."""
    lengths = torch.linspace(shortest, T, B).long()
    mask = (torch.arange(T) < lengths[:, None]).long()
    return {"input_ids": token_ids(B, T, seed), "attention_mask": mask}


def measure(
    model: nn.Module, batches: list[dict[str, Tensor]], *statistics: gh.Statistic
) -> gh.Geometry:
    chosen = list(statistics) or [gh.PosCtx()]
    with torch.no_grad(), gh.watch(model, sites="blocks", statistics=chosen) as watch:
        for inputs in batches:
            model(**inputs)
    return watch.geometry()


def dense(model: nn.Module, geometry: gh.Geometry, batches: list[dict[str, Tensor]], layer: int,
          within: bool) -> np.ndarray:  # fmt: skip
    """(H, 25, 25) covariance of the parts over all allowed pairs, from whole matrices."""
    columns: list[list[np.ndarray]] = []
    for inputs in batches:
        split = attention_parts(model, geometry, inputs, layer)
        logits = split.logits.double().flatten(0, 1).numpy()
        for row in range(logits.shape[1]):
            for t in range(logits.shape[3]):
                keys = split.allowed[row, 0, t].numpy()
                if keys.any():
                    some = logits[:, row, :, t][..., keys]
                    columns.append(
                        list(
                            (some - some.mean(-1, keepdims=True) if within else some).swapaxes(0, 1)
                        )
                    )
    heads = [np.concatenate(parts, axis=1) for parts in zip(*columns, strict=True)]
    return np.stack([np.cov(head, bias=True) for head in heads])


NAMES = ("gpt2", "llama", "bert", "opt", "gpt_neox", "bloom", "mistral, window",
         "qwen3, windows, biases", "gemma2", "gemma3", "gemma3, both ways")  # fmt: skip


@pytest.mark.parametrize("within", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_streamed_shares(name: str, within: bool) -> None:
    model = make(name)
    batches = [batch(seed) for seed in range(3)]
    geometry = measure(model, batches)
    streamed = measure(model, batches, gh.Attention(geometry), gh.Sphere())
    for layer, attention in enumerate(find_anatomy(model).attention):
        expected = dense(model, geometry, batches, layer, within)
        result = streamed[attention.block].attention
        found = result if within else result.all_logits
        heads = attention.heads
        covariance = found.covariance.reshape(heads, 25, 25).numpy()
        np.testing.assert_allclose(covariance, expected, atol=1e-5 * np.abs(expected).max())
        variance = expected.sum((1, 2))
        np.testing.assert_allclose(found.variance, variance, rtol=1e-4)
        np.testing.assert_allclose(
            found.shares.reshape(heads, 25), expected.sum(2) / variance[:, None], atol=1e-3
        )
        torch.testing.assert_close(found.shares.sum((1, 2)), torch.ones(heads).double())
        assert int(result.left_out) == 0
        mean = found.shares.mean(0)
        if within:
            assert float(result.mean_shares.pos_resid) == pytest.approx(float(mean[1, 3]))
        np.testing.assert_allclose(1 - found.alone.sum((1, 2)), found.cross)


def test_key_only_share_of_weights_alone() -> None:
    """(beta W_Q + b_Q) (x-hat Gamma W_K)^T over the keys, by GPT-2's own weights in float64."""
    model = make("gpt2").double()
    batches = [batch(seed) for seed in range(3)]
    with torch.no_grad():
        states = [model(**inputs, output_hidden_states=True).hidden_states for inputs in batches]
    found = measure(model, batches, gh.Attention(measure(model, batches)))
    for layer, attention in enumerate(find_anatomy(model).attention):
        block = model.get_submodule(attention.block)
        norm, split = block.ln_1, block.attn.c_attn
        (query, key, _), (of_query, of_key, _) = split.weight.split(24, 1), split.bias.split(24)
        within: list[list[Tensor]] = []  # of each query: the key-only term, and the logits
        for inputs, hidden in zip(batches, states, strict=True):
            for row, mask in zip(hidden[layer], inputs["attention_mask"], strict=True):
                row = row[mask.bool()]
                plain = nn.functional.layer_norm(row, (24,), norm.weight, None, norm.eps)
                normed = plain + norm.bias
                asked = (norm.bias @ query + of_query).view(4, 6)
                keys = (plain @ key).view(-1, 4, 6)
                alone = torch.einsum("hk,thk->ht", asked, keys) / 6**0.5
                both = (
                    (normed @ w + b).view(-1, 4, 6) for w, b in ((query, of_query), (key, of_key))
                )
                logits = torch.einsum("shk,thk->hst", *both) / 6**0.5
                for t in range(len(row)):
                    some = alone[:, : t + 1], logits[:, t, : t + 1]
                    within.append([one - one.mean(1, keepdim=True) for one in some])
        alone, logits = (
            torch.cat(parts, 1).square().mean(1) for parts in zip(*within, strict=True)
        )
        share = found[attention.block].attention.key_only
        torch.testing.assert_close(share, (alone / logits).detach(), rtol=1e-8, atol=0)
        assert share.shape == (4,)
        assert (share > 0.01).all()


@pytest.mark.parametrize("name", ["bloom", "mistral, window", "gemma3"])
def test_padding_on_the_left(name: str) -> None:
    """Windows and biases are of the distance between tokens, wherever in the row these stand."""
    model, right = make(name), batch(0)
    lengths = right["attention_mask"].sum(1).tolist()
    left = {
        kind: torch.stack([row.roll(T - n) for row, n in zip(rows, lengths, strict=True)])
        for kind, rows in right.items()
    }
    geometry = measure(model, [right, {"input_ids": token_ids(B, T, 1)}])
    found, other = (measure(model, [one], gh.Attention(geometry)) for one in (right, left))
    for attention in find_anatomy(model).attention:
        expected, moved = found[attention.block].attention, other[attention.block].attention
        assert int(moved.pairs) == int(expected.pairs)
        torch.testing.assert_close(moved.variance, expected.variance, rtol=1e-4, atol=0)
        torch.testing.assert_close(
            moved.all_logits.variance, expected.all_logits.variance, rtol=1e-4, atol=0
        )


def test_a_model_that_knows_positions_only() -> None:
    """Planted: without token embeddings a state is mean and pos, and the logits theirs."""
    model = make("gpt2")
    with torch.no_grad():
        model.get_submodule("wte").weight.zero_()
    ids = [{"input_ids": token_ids(B, T)}]
    found = measure(model, ids, gh.Attention(measure(model, ids)))
    for layer in range(3):
        shares = found[f"h.{layer}"].attention.shares
        assert shares[:, 2:4].abs().max() < 1e-5
        assert shares[:, :, 2:4].abs().max() < 1e-5
        # What all keys share acts on no query; the mean does, for the norm scales every key anew.
        assert shares[:, :, 4].abs().max() < 1e-12
        assert torch.allclose(shares[:, :, :2].sum((1, 2)), torch.ones(4).double(), atol=1e-5)


def test_tokens_whose_pos_is_not_known_are_counted() -> None:
    model = make("bert")
    short = {name: tensor[:, : T - 3] for name, tensor in batch(0, T - 3).items()}
    statistic = gh.Attention(measure(model, [short]))
    geometry = measure(model, [{"input_ids": token_ids(B, T)}], statistic)
    assert geometry.sites == ["encoder.layer.0", "encoder.layer.1"]
    for site in geometry.sites:
        found = geometry[site].attention
        assert int(found.left_out) == 3 * B
        assert int(found.pairs) == B * (T - 3) ** 2
        assert torch.isfinite(found.covariance).all()


def test_a_fraction_of_the_forwards() -> None:
    model, batches = make("gpt2"), [batch(seed) for seed in range(8)]
    geometry = measure(model, batches)
    some = measure(model, batches, gh.Attention(geometry, fraction=0.25))
    chosen = [batches[i] for i in range(8) if is_chosen(i, 0.25)]
    whole = measure(model, chosen, gh.Attention(geometry))
    assert torch.equal(some["h.1"].attention.shares, whole["h.1"].attention.shares)


def test_tokens_generated_with_a_cache_are_left_out() -> None:
    """Only the prompts' logits are whole."""
    model = tiny_gpt2_lm()
    prompts = torch.randint(1, 50, (3, 7), generator=torch.Generator().manual_seed(0))
    geometry = measure(model, [{"input_ids": prompts}])
    statistic = gh.Attention(geometry)
    with torch.no_grad(), gh.watch(model, statistics=[statistic]) as watch:
        model.generate(
            prompts, max_new_tokens=4, do_sample=False, pad_token_id=0, eos_token_id=None
        )
    found = watch.geometry()["transformer.h.1"].attention
    assert int(found.left_out) == 3 * 3
    whole = measure(model, [{"input_ids": prompts}], gh.Attention(geometry))
    torch.testing.assert_close(found.covariance, whole["transformer.h.1"].attention.covariance)


def test_weights_are_those_of_the_forward() -> None:
    """Trained in place, and replaced by others elsewhere."""
    model, inputs = make("llama"), batch(0)
    geometry = measure(model, [inputs])
    site = "model.layers.1"
    for change in ("in place", "replaced"):
        with torch.no_grad(), gh.watch(model, statistics=[gh.Attention(geometry)]) as watch:
            model(**inputs)
            watch.reset()
            projection = model.get_submodule(f"{site}.self_attn.q_proj")
            if change == "in place":
                projection.weight.mul_(2)
            else:
                projection.weight.data = projection.weight.data * 3
            model(**inputs)
        found = watch.geometry()[site].attention
        fresh = measure(model, [inputs], gh.Attention(geometry))[site].attention
        torch.testing.assert_close(found.covariance, fresh.covariance)


def test_states_that_are_not_finite_are_left_out() -> None:
    model, inputs = make("gpt2"), batch(0)
    geometry = measure(model, [inputs])
    with torch.no_grad():
        embedded = model.get_submodule("wte")(inputs["input_ids"])
        embedded[2, 3] = float("nan")
        told = {"inputs_embeds": embedded, "attention_mask": inputs["attention_mask"]}
        with gh.watch(model, sites="h.0", statistics=[gh.Attention(geometry)]) as watch:
            model(**told)
    found = watch.geometry()["h.0"].attention
    assert int(found.left_out) == 1
    assert torch.isfinite(found.covariance).all()


def test_files_know_the_geometry_by_its_digest(tmp_path: Path) -> None:
    model, batches = make("gpt2"), [batch(seed) for seed in range(2)]
    geometry = measure(model, batches)
    whole = measure(model, batches, gh.Attention(geometry))
    for number, inputs in enumerate(batches):
        measure(model, [inputs], gh.Attention(geometry)).save(tmp_path / f"{number}.safetensors")
    loaded = [gh.load(tmp_path / f"{number}.safetensors") for number in range(2)]
    merged = gh.merge(loaded)["h.2"].attention
    torch.testing.assert_close(merged.covariance, whole["h.2"].attention.covariance)
    assert int(merged.pairs) == int(whole["h.2"].attention.pairs)
    other = measure(model, batches[:1])
    with pytest.raises(SchemaError, match=r"attention.geometry differs"):
        gh.load(tmp_path / "0.safetensors", statistics=[gh.Attention(other)])
    statistic = gh.Attention(gh.Attention(geometry).geometry)
    with pytest.raises(SiteError, match=r"knows its geometry by its digest alone; give"):
        measure(model, batches, statistic)


def test_nothing_counted_says_why() -> None:
    model = make("gpt2")
    short = {name: tensor[:, :4] for name, tensor in batch(0, T).items()}
    statistic = gh.Attention(measure(model, [short]))
    inputs = {"input_ids": token_ids(B, 3), "position_ids": torch.arange(10, 13)[None]}
    found = measure(model, [inputs], statistic)["h.0"].attention
    with pytest.raises(gh.errors.UnidentifiedError, match=r"no logit has been counted.*24 real"):
        _ = found.shares


def test_errors() -> None:
    model, inputs = make("gpt2"), batch(0)
    geometry = measure(model, [inputs])
    with pytest.raises(ValueError, match=r"Attention\(geometry=int\): a geometry with pos_ctx"):
        gh.Attention(3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"no site of the geometry has pos_ctx"):
        gh.Attention(measure(model, [inputs], gh.Covariance()))
    with pytest.raises(ValueError, match=r"Attention\(fraction=0\): a number above 0"):
        gh.Attention(geometry, fraction=0)
    with pytest.raises(ValueError, match=r"Attention\(positions=0\): a positive integer"):
        gh.Attention(geometry, positions=0)
    with pytest.raises(SiteError, match=r"reads the attention of blocks, and 'h.0.attn' is none"):
        gh.watch(model, sites="h.0.attn", statistics=[gh.Attention(geometry)])
    plain = nn.Sequential(nn.Linear(24, 24), nn.Linear(24, 24))
    with pytest.raises(AnatomyError, match=r"Sequential has no config.model_type; known are"):
        gh.watch(plain, statistics=[gh.Attention(geometry)])
    with torch.no_grad(), gh.watch(model, sites="h.2", statistics=[gh.PosCtx()]) as watch:
        model(**inputs)
    with pytest.raises(SiteError, match=r"needs pos_ctx at 'h.0@in'.*the geometry has it at h.2"):
        measure(model, [inputs], gh.Attention(watch.geometry()))
    wide = measure(gpt2(n_embd=32).eval(), [inputs])
    with (
        pytest.warns(UserWarning, match=r"the geometry of GPT2Model unnamed \(.*and this is GPT2"),
        pytest.raises(SiteError, match=r"of width 24, and those of the geometry of width 32"),
    ):
        measure(model, [inputs], gh.Attention(wide))
