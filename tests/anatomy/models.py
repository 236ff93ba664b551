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


def decoder(kind: str, text: str = "", **changes: Any) -> nn.Module:
    """Of a class ``<kind>ForCausalLM``, whose config is a ``<kind><text>Config``."""
    import transformers

    options = {"num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 32,
               "pad_token_id": 0} | COMMON | changes  # fmt: skip
    config = getattr(transformers, f"{kind}{text}Config")
    model: nn.Module = getattr(transformers, f"{kind}ForCausalLM")(
        config(attn_implementation="eager", **options)
    )
    return model


def gpt_neox(**changes: Any) -> nn.Module:
    return decoder("GPTNeoX", **changes)


def bloom(**changes: Any) -> nn.Module:
    return decoder("Bloom", **changes)


def grouped(kind: str, **changes: Any) -> nn.Module:
    """Three query heads share each of two key heads."""
    return decoder(kind, **{"num_attention_heads": 6, "num_key_value_heads": 2, **changes})


def gemma(kind: str = "Gemma", text: str = "", **changes: Any) -> nn.Module:
    """Heads wider than d / H; every other block of those with windows has one."""
    told = {"num_key_value_heads": 1, "head_dim": 10, "attention_bias": True}
    if kind != "Gemma":
        windows = {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}
        told |= {"query_pre_attn_scalar": 7, "attn_logit_softcapping": 6.0, **windows}
    return decoder(kind, text, **(told | changes))


def gemma3(**changes: Any) -> nn.Module:
    return gemma("Gemma3", "Text", **changes)


WINDOWS = {"sliding_window": 4, "use_sliding_window": True, "max_window_layers": 1}
LONG = {
    "rope_type": "longrope", "rope_theta": 1e4, "partial_rotary_factor": 0.5, "factor": 4.0,
    "short_factor": [1.0, 1.5], "long_factor": [2.0, 5.0], "original_max_position_embeddings": 8,
}  # fmt: skip


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
    "llama, both ways": ("llama", lambda: llama(is_causal=False)),
    "gpt_neox": ("gpt_neox", gpt_neox),
    "gpt_neox, one after the other": ("gpt_neox", lambda: gpt_neox(use_parallel_residual=False)),
    "gpt_neox, without biases": (
        "gpt_neox",
        lambda: gpt_neox(attention_bias=False, rotary_pct=0.5, tie_word_embeddings=True),
    ),
    "bloom": ("bloom", bloom),
    "bloom, adding to normed states": (
        "bloom",
        lambda: bloom(apply_residual_connection_post_layernorm=True),
    ),
    "bloom, heads of no power of two": (
        "bloom",
        lambda: bloom(num_attention_heads=6, tie_word_embeddings=False),
    ),
    "mistral": ("mistral", lambda: grouped("Mistral", sliding_window=None)),
    "mistral, window": ("mistral", lambda: grouped("Mistral", sliding_window=4, head_dim=10)),
    "mistral, both ways": (
        "mistral",
        lambda: grouped("Mistral", sliding_window=4, is_causal=False),
    ),
    "qwen2": ("qwen2", lambda: grouped("Qwen2")),
    "qwen2, windows, tied": (
        "qwen2",
        lambda: grouped("Qwen2", tie_word_embeddings=True, **WINDOWS),
    ),
    "qwen3": ("qwen3", lambda: grouped("Qwen3", head_dim=10)),
    "qwen3, windows, biases": (
        "qwen3",
        lambda: grouped("Qwen3", head_dim=4, attention_bias=True, **WINDOWS),
    ),
    "phi3": ("phi3", lambda: decoder("Phi3")),
    "phi3, window": (
        "phi3",
        lambda: grouped("Phi3", sliding_window=4, hidden_size=48, partial_rotary_factor=0.5),
    ),
    "phi3, long": ("phi3", lambda: decoder("Phi3", rope_parameters=dict(LONG))),
    "gemma": ("gemma", gemma),
    "gemma, grouped": ("gemma", lambda: grouped("Gemma", head_dim=4, tie_word_embeddings=False)),
    "gemma2": ("gemma2", lambda: gemma("Gemma2")),
    "gemma2, not capped": (
        "gemma2",
        lambda: gemma(
            "Gemma2",
            attn_logit_softcapping=None,
            final_logit_softcapping=None,
            attention_bias=False,
            sliding_window=7,
        ),
    ),
    "gemma3": ("gemma3_text", lambda: gemma3(final_logit_softcapping=9.0)),
    "gemma3, more blocks": (
        "gemma3_text",
        lambda: gemma3(
            num_hidden_layers=3,
            layer_types=None,
            sliding_window_pattern=3,
            num_attention_heads=6,
            num_key_value_heads=2,
            attention_bias=False,
        ),
    ),
    "gemma3, both ways": ("gemma3_text", lambda: gemma3(use_bidirectional_attention=True)),
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
    "gpt_neox": {"attention": "attention.dense", "mlp": "mlp.dense_4h_to_h"},
    "bloom": {"attention": "self_attention.dense", "mlp": "mlp.dense_4h_to_h"},
    **{
        family: {"attention": "self_attn.o_proj", "mlp": "mlp.down_proj"}
        for family in ("mistral", "qwen2", "qwen3", "phi3", "gemma", "gemma2", "gemma3_text")
    },
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
    """The logits, before cap and mask, of every call of the family's own eager attention."""
    folder = family.removesuffix("_text")
    source = importlib.import_module(f"transformers.models.{folder}.modeling_{folder}")
    with pytest.MonkeyPatch.context() as patch:
        if family == "bloom":
            yield record_bloom(source, patch)
        else:
            yield record_eager(source, patch)


def record_eager(source: Any, patch: pytest.MonkeyPatch) -> list[Tensor]:
    """Of a family whose eager attention is a function."""
    own = source.eager_attention_forward
    logits: list[Tensor] = []

    def record(module: nn.Module, query: Tensor, key: Tensor, *args: Any, **kwargs: Any) -> Any:
        repeated = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
        scaling = kwargs.get("scaling")
        scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        logits.append(query @ repeated.mT * scaling)
        return own(module, query, key, *args, **kwargs)

    patch.setattr(source, "eager_attention_forward", record)
    return logits


def record_bloom(source: Any, patch: pytest.MonkeyPatch) -> list[Tensor]:
    """Of BLOOM, which has them with what ALiBi adds, but for the same at all keys of a query."""
    own = torch.Tensor.baddbmm
    logits: list[Tensor] = []

    def record(alibi: Tensor, **kwargs: Any) -> Tensor:
        found = own(alibi, **kwargs)
        slopes = alibi[:, 0].diff().amax(-1)  # each head has one of its own
        heads = len(slopes.round(decimals=4).unique())
        logits.append((found - alibi.mT).unflatten(0, (-1, heads)))
        return found

    patch.setattr(torch.Tensor, "baddbmm", record)
    return logits
