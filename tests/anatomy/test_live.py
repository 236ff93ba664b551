"""The parts of a model that statistics are handed in a forward, in every family."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import geomhooks as gh
from geomhooks.errors import AnatomyError, SiteError
from geomhooks.functional.sphere.logit_lens import LogitLens
from tests.anatomy.models import MODELS, VOCABULARY, bert, gpt2, make, opt, token_ids
from tests.anatomy.test_rebuilding import assert_close

B, T = 3, 11


class Lens(gh.Statistic):
    """The logits of all words at the last site, as this statistic sees them."""

    uses = ("logit_lens",)

    def __init__(self) -> None:
        self.latest: dict[str, Any] = {}

    def accumulators(self, site: Any) -> dict[str, Any]:
        return {"count": gh.Sum(dtype=torch.int64)}

    def update(self, state: Any, reading: Any) -> None:
        state["count"].add(reading.tokens.real)
        lens: LogitLens = reading.lens
        states = lens.states(reading.taps["out"])[..., None, :]
        everything = lens.words(torch.arange(len(lens.rows)))
        self.latest |= {"logits": lens.logits(states, everything), "ids": reading.tokens.ids}

    def compute(self, state: Any) -> dict[str, Any]:
        return {"count": state["count"].value}


def looked_at(model: nn.Module, ids: Tensor, **told: Any) -> tuple[dict[str, Any], Any]:
    statistic = Lens()
    with torch.no_grad(), gh.watch(model, statistics=[statistic]):
        out = model(ids, **told)
    return statistic.latest, out


@pytest.mark.parametrize("name", MODELS)
def test_the_lens_at_the_last_block_gives_the_models_logits(name: str) -> None:
    model, ids = make(name), token_ids(B, T)
    seen, out = looked_at(model, ids)
    assert torch.equal(seen["ids"], ids)
    if "logits" in out:
        assert_close(seen["logits"], out.logits)
    else:
        assert_close(seen["logits"], out.last_hidden_state @ model.get_input_embeddings().weight.T)


def test_a_model_that_is_changed_while_it_is_watched() -> None:
    model, ids, statistic = make("llama"), token_ids(B, T), Lens()
    with torch.no_grad(), gh.watch(model, statistics=[statistic]):
        model(ids)
        model.lm_head.weight = nn.Parameter(torch.randn(VOCABULARY, 24))
        model.model.norm.weight.mul_(2)
        out = model(ids)
    assert_close(statistic.latest["logits"], out.logits)


def test_tokens_without_ids() -> None:
    model = gpt2().eval()
    statistic = Lens()
    with torch.no_grad(), gh.watch(model, statistics=[statistic]):
        model(inputs_embeds=torch.randn(B, T, 24))
    assert statistic.latest["ids"] is None


def test_biases_of_the_head() -> None:
    lens = LogitLens(torch.eye(2), torch.tensor([1.0, -1.0]), softcap=2.0)
    found = lens.logits(torch.tensor([[0.5, 1.0]]), lens.words(torch.tensor([1])))
    assert torch.equal(found, torch.zeros(1))


def test_errors() -> None:
    with pytest.raises(AnatomyError, match=r"Linear has no config.model_type; known are"):
        gh.watch(nn.Linear(2, 2), sites="*", statistics=[Lens()])
    with pytest.raises(AnatomyError, match=r"the unembedding reads 16 entries and hidden states"):
        gh.watch(_narrow(), statistics=[Lens()])
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2)
    with pytest.raises(AnatomyError, match=r"there is neither a head nor a table of tokens"):
        gh.watch(encoder, statistics=[Lens()])

    class Wrong(Lens):
        uses = ("tea_leaves",)

    with pytest.raises(SiteError, match=r"wrong: uses 'tea_leaves'; there are query_key, logit"):
        gh.watch(bert(), statistics=[Wrong()])


def _narrow() -> nn.Module:
    from transformers import OPTForCausalLM

    return OPTForCausalLM(opt(word_embed_proj_dim=16).config)


def test_states_that_are_normed_already() -> None:
    with pytest.raises(SiteError, match=r"those of 'ln_f' have been through a norm; give it"):
        gh.watch(gpt2(), sites="ln_f", statistics=[Lens()])
    gh.watch(gpt2(), sites="ln_f@in", statistics=[Lens()])
