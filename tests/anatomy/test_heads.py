"""The heads of models, rebuilt from what is found, to the model's own logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from geomhooks.anatomy import find_anatomy, normed
from tests.anatomy.models import VOCABULARY, token_ids, vary
from tests.anatomy.test_rebuilding import assert_close, recorded

SIZES = {"num_hidden_layers": 2, "num_attention_heads": 3, "hidden_size": 24,
         "intermediate_size": 32, "vocab_size": VOCABULARY,
         "max_position_embeddings": 32}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "BertForMaskedLM": SIZES,
    "BertLMHeadModel": SIZES | {"is_decoder": True},
    "BertForPreTraining": SIZES,
    "RobertaForMaskedLM": SIZES,
    "XLMRobertaForMaskedLM": SIZES,
    "MPNetForMaskedLM": SIZES,
    "DistilBertForMaskedLM": {"n_layers": 2, "n_heads": 3, "dim": 24, "hidden_dim": 32,
                              "vocab_size": VOCABULARY, "max_position_embeddings": 32},
    "Gemma2ForCausalLM": SIZES | {"head_dim": 8, "num_key_value_heads": 1, "pad_token_id": 0},
    "GPT2LMHeadModel": {"n_layer": 2, "n_head": 3, "n_embd": 24, "vocab_size": VOCABULARY},
}  # fmt: skip


def make(kind: str) -> nn.Module:
    import transformers

    torch.manual_seed(0)
    found = getattr(transformers, kind)
    model: nn.Module = found(found.config_class(attn_implementation="eager", **KINDS[kind])).eval()
    vary(model)
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_logits(kind: str) -> None:
    model, ids = make(kind), token_ids(2, 7)
    anatomy = find_anatomy(model)
    stack = anatomy.stack()
    with torch.no_grad(), recorded({"last": stack.blocks[-1].module}) as found:
        out = model(input_ids=ids)
    logits = out.prediction_logits if kind == "BertForPreTraining" else out.logits
    assert anatomy.head is not None
    with torch.no_grad():
        assert_close(anatomy.head(normed(found["last"][1], stack.final_norm)), logits)


def test_models_without_a_head() -> None:
    assert find_anatomy(make("BertForMaskedLM").bert).head is None
    assert find_anatomy(make("GPT2LMHeadModel").transformer).head is None
