"""Small models of each family with random weights, and what their own attention computes."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

VOCABULARY = 60
COMMON = {"vocab_size": VOCABULARY, "max_position_embeddings": 32, "hidden_size": 24}


def gpt2(**changes: Any) -> nn.Module:
    from transformers import GPT2Config, GPT2Model

    options = {"n_layer": 3, "n_embd": 24, "n_head": 4, "n_positions": 32} | changes
    return GPT2Model(GPT2Config(vocab_size=VOCABULARY, attn_implementation="eager", **options))


def llama(**changes: Any) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    options = {"num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 2,
               "intermediate_size": 32, "attention_bias": True} | COMMON | changes  # fmt: skip
    return LlamaForCausalLM(LlamaConfig(attn_implementation="eager", **options))


def bert(**changes: Any) -> nn.Module:
    from transformers import BertConfig, BertModel

    options = {"num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 32}
    return BertModel(BertConfig(attn_implementation="eager", **(options | COMMON | changes)))


def roberta(**changes: Any) -> nn.Module:
    from transformers import RobertaConfig, RobertaModel

    options = {"num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 32}
    return RobertaModel(RobertaConfig(attn_implementation="eager", **(options | COMMON | changes)))


def distilbert(**changes: Any) -> nn.Module:
    from transformers import DistilBertConfig, DistilBertModel

    options = {"n_layers": 2, "n_heads": 3, "hidden_dim": 32, "dim": 24, "vocab_size": VOCABULARY,
               "max_position_embeddings": 32} | changes  # fmt: skip
    return DistilBertModel(DistilBertConfig(attn_implementation="eager", **options))


def opt(**changes: Any) -> nn.Module:
    from transformers import OPTConfig, OPTModel

    options = {"num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 32,
               "word_embed_proj_dim": 24} | COMMON | changes  # fmt: skip
    return OPTModel(OPTConfig(attn_implementation="eager", **options))


MODELS: dict[str, tuple[str, Callable[[], nn.Module]]] = {
    "gpt2": ("gpt2", gpt2),
    "gpt2, scaled by depth": ("gpt2", lambda: gpt2(scale_attn_by_inverse_layer_idx=True)),
    "gpt2, not scaled": ("gpt2", lambda: gpt2(scale_attn_weights=False)),
    "llama": ("llama", llama),
    "llama, one key head": ("llama", lambda: llama(num_key_value_heads=1, attention_bias=False)),
    "llama, wide heads": ("llama", lambda: llama(head_dim=10)),
    "bert": ("bert", bert),
    "bert, causal": ("bert", lambda: bert(is_decoder=True)),
    "roberta": ("roberta", roberta),
    "roberta, causal": ("roberta", lambda: roberta(is_decoder=True, pad_token_id=0)),
    "distilbert": ("distilbert", distilbert),
    "distilbert, sinusoidal": (
        "distilbert",
        lambda: distilbert(sinusoidal_pos_embds=True, n_heads=4, activation="relu"),
    ),
    "opt": ("opt", opt),
    "opt, norm after": ("opt", lambda: opt(do_layer_norm_before=False)),
    "opt, without biases": ("opt", lambda: opt(enable_bias=False)),
}

# The last projections of a block's attention and of its feed-forward layer, by family.
OUTPUTS = {
    "gpt2": {"attention": "attn.c_proj", "mlp": "mlp.c_proj"},
    "llama": {"attention": "self_attn.o_proj", "mlp": "mlp.down_proj"},
    "bert": {"attention": "attention.output.dense", "mlp": "output.dense"},
    "roberta": {"attention": "attention.output.dense", "mlp": "output.dense"},
    "distilbert": {"attention": "attention.out_lin", "mlp": "ffn.lin2"},
    "opt": {"attention": "self_attn.out_proj", "mlp": "fc2"},
}


def make(name: str, seed: int = 0) -> nn.Module:
    """The model, with biases and gains that a mistake would show in."""
    torch.manual_seed(seed)
    model = MODELS[name][1]().eval()
    vary(model)
    return model


def vary(model: nn.Module) -> None:
    """Give a model weights of some size, and biases and gains that a mistake would show in."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.5 * torch.randn_like(parameter))
            else:
                parameter.mul_(0.3 / parameter.std())


def token_ids(batch: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(
        3, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed)
    )


@contextmanager
def recorded_logits(family: str) -> Iterator[list[Tensor]]:
    """The logits, before the mask, of every call of the family's own eager attention."""
    source = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    own = source.eager_attention_forward
    logits: list[Tensor] = []

    def record(module: nn.Module, query: Tensor, key: Tensor, *args: Any, **kwargs: Any) -> Any:
        repeated = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
        scaling = kwargs.get("scaling")
        scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        logits.append(query @ repeated.mT * scaling)
        return own(module, query, key, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(source, "eager_attention_forward", record)
        yield logits
