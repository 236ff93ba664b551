"""Terms of hidden states, in every family: they add up, and closed forms are what they are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from geomhooks.anatomy import Written, additions_of, attention_mask, find_anatomy
from geomhooks.anatomy.additions import Addition
from geomhooks.anatomy.families import Stack
from geomhooks.anatomy.origins import Origins, tangent
from geomhooks.anatomy.parts import Attention, BlockParts
from geomhooks.anatomy.terms import TERMS, Terms
from geomhooks.errors import AnatomyError
from geomhooks.functional.components.indicators import indicators
from tests.anatomy import stacked
from tests.anatomy.models import MODELS, gpt2, make, token_ids
from tests.anatomy.test_rebuilding import recorded

B, T = 3, 9
EVERY = [*MODELS, *(name for name in stacked.STACKED if name not in MODELS)]
# Whose own code takes norms after a sublayer, or the weights of attention, in float32 whatever
# comes in: their states are what they are to float32 only.
SINGLE_NORMS = ("gemma2", "gemma3")
DOUBLE_ATTENTION = ("bert", "roberta", "distilbert", "mpnet", "xlm-roberta", "bart", "marian",
                    "whisper")  # fmt: skip
WINDOWS = ("mistral", "qwen2, w", "qwen3, w", "phi3, w", "gemma2", "gemma3")


def tolerance(name: str, origins: bool = False) -> float:
    single = not name.startswith(DOUBLE_ATTENTION) if origins else name.startswith(SINGLE_NORMS)
    return 1e-6 if single else 1e-10


def masked_call(name: str) -> tuple[dict[str, Any], list[Tensor]]:
    """What a model is called with, in float64, and which tokens of its stacks are real."""
    if name in MODELS:
        # Where a window leaves a token that is not there no key, it has NaN and hands it on.
        shorter = 0 if name.startswith(WINDOWS) else 3
        real = torch.arange(T) < T - shorter * torch.arange(B)[:, None]
        return {"input_ids": token_ids(B, T), "attention_mask": real.long()}, [real]
    inputs = stacked.STACKED[name][2](True)
    call = {n: v.double() if v.is_floating_point() else v for n, v in inputs.call.items()}
    return call, [inputs.source] if inputs.target is None else [inputs.source, inputs.target]


class Seen:
    """A model in float64, what went in and out of its parts in one forward, and its masks."""

    def __init__(self, name: str) -> None:
        self.model = (make(name) if name in MODELS else stacked.make(name)).double()
        call, self.real = masked_call(name)
        anatomy = find_anatomy(self.model)
        self.stacks = list(anatomy.stacks.values())
        if len(self.stacks) < len(self.real):
            self.real = self.real[-1:]
        with torch.no_grad(), recorded(dict(self._modules())) as found:
            self.model(**call)
        self.found = found

    def _modules(self) -> Iterator[tuple[str, nn.Module]]:
        for stack in self.stacks:
            if stack.embeddings is not None and stack.embeddings.norm is not None:
                yield f"{stack.name} embeddings", stack.embeddings.norm.module
            for block in stack.blocks:
                yield block.name, block.module
                for index, sublayer in enumerate(block.sublayers):
                    assert sublayer.module is not None
                    yield f"{block.name} {index}", sublayer.module
                    if isinstance(sublayer.part, Attention) and sublayer.after is not None:
                        assert sublayer.part.output.module is not None
                        yield f"{block.name} {index} heads", sublayer.part.output.module

    def begin(self, stack: Stack, kind: Any, **options: Any) -> Any:
        """The terms at the first block's input."""
        norm = None if stack.embeddings is None else stack.embeddings.norm
        of_norm = f"{stack.name} embeddings"
        embedded = self.found[stack.blocks[0].name if norm is None else of_norm][0]
        decodes = any(s.kind == "cross_attention" for s in stack.blocks[0].sublayers)
        return kind.begin(embedded, norm, source=decodes, **options)

    def followed(self, running: Any, block: BlockParts, real: Tensor) -> Any:
        """The terms after a block."""
        if isinstance(running, Terms):
            running.add_block(block, self.additions(block))
            return running

        def allowed(attention: Attention) -> Tensor:
            return attention_mask(attention, real.shape[1], real)

        positions, hidden = torch.arange(real.shape[1]), self.found[block.name][0]
        running.add_block(block, hidden, self.additions(block), positions, allowed)
        return running

    def additions(self, block: BlockParts) -> tuple[Addition, ...]:
        hidden, written = self.found[block.name][0], []
        for index, sublayer in enumerate(block.sublayers):
            seen = self.found.get(f"{block.name} {index}")
            if seen is None:
                written.append(None)
                continue
            entered, out = (s.reshape(*hidden.shape[:2], -1) for s in seen)
            if sublayer.after is not None:
                mixed = self.found.get(f"{block.name} {index} heads")
                written.append(Written(out, entered, None if mixed is None else mixed[0]))
            else:
                mixed = entered if sublayer.kind != "mlp" else None
                written.append(Written(out, None, mixed))
        return additions_of(block, hidden, written)


def close(found: Tensor, expected: Tensor, real: Tensor, to: float = 1e-10) -> None:
    assert found.dtype == torch.float64
    gap, size = ((v[real]).abs().max() for v in (found - expected, expected))
    assert gap <= to * size


@pytest.mark.parametrize("name", EVERY)
def test_terms_add_up_to_the_hidden_state(name: str) -> None:
    seen = Seen(name)
    for stack, real in zip(seen.stacks, seen.real, strict=True):
        terms = seen.begin(stack, Terms)
        layers = seen.begin(stack, Terms, split="layer")
        for number, block in enumerate(stack.blocks, 1):
            hidden, left = seen.found[block.name]
            close(terms.total, hidden, real, tolerance(name))
            terms.add_block(block, seen.additions(block))
            layers.add_block(block, seen.additions(block))
            close(terms.total, left, real, tolerance(name))
            for term, rows in layers.rows.items():
                close(rows.sum(0)[None], terms.rows[term], real[None])
            assert len(layers.rows["feed_forward"]) == number
            assert len(layers.rows["correction"]) == number + 1
        assert terms.names == tuple(n for n in TERMS if n != "source" or "source" in terms.rows)
        parts = indicators(terms.summed)
        one = parts.importance.sum(0)[real]
        assert torch.allclose(one, torch.ones_like(one), rtol=0, atol=1e-10)


@pytest.mark.parametrize("own_means", [True, False])
@pytest.mark.parametrize("name", EVERY)
def test_origins_add_up_to_the_hidden_state(name: str, own_means: bool) -> None:
    seen = Seen(name)
    for stack, real in zip(seen.stacks, seen.real, strict=True):
        origins = seen.begin(stack, Origins, own_means=own_means)
        for block in stack.blocks:
            origins = seen.followed(origins, block, real)
            close(origins.total, seen.found[block.name][1], real, tolerance(name, origins=True))


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert", "gemma3", "bloom", "opt"])
def test_heads_add_up_to_attention(name: str) -> None:
    seen = Seen(name)
    (stack,), (real,) = seen.stacks, seen.real
    terms, heads = seen.begin(stack, Terms), seen.begin(stack, Terms, split="head")
    for number, block in enumerate(stack.blocks, 1):
        additions = seen.additions(block)
        terms.add_block(block, additions)
        heads.add_block(block, additions)
        assert len(heads.rows["attention"]) == number * block.attention.heads
        close(heads.rows["attention"].sum(0), terms.rows["attention"][0], real, tolerance(name))


def test_heads_that_are_not_seen() -> None:
    seen = Seen("gpt2")
    (stack,) = seen.stacks
    heads = seen.begin(stack, Terms, split="head")
    additions = [a._replace(mixed=None) for a in seen.additions(stack.blocks[0])]
    with pytest.raises(AnatomyError, match=r"h.0.attn does not show what goes into its last proj"):
        heads.add_block(stack.blocks[0], additions)


def test_closed_form_after_norms() -> None:
    """R_n, m_n, s_n of the paper's closed form, written out for one block of BERT."""
    seen = Seen("bert")
    (stack,) = seen.stacks
    block = stack.blocks[0]
    (attention, mlp), x = block.sublayers, seen.found[f"{stack.name} embeddings"][0]
    norms = [stack.embeddings.norm, attention.closing, mlp.closing]  # type: ignore[union-attr]
    a, f = seen.found[f"{block.name} 0"][1], seen.found[f"{block.name} 1"][1]

    def facts(norm: Any, state: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        gain, bias = norm.module.weight.detach(), norm.module.bias.detach()
        mean = state.mean(-1, keepdim=True)
        s = (state.var(-1, correction=0, keepdim=True) + norm.eps).sqrt()
        return gain / s, mean, bias, s, gain * (state - mean) / s + bias

    r0, m0, b0, _, y0 = facts(norms[0], x)
    r1, m1, b1, _, y1 = facts(norms[1], y0 + a)
    r2, m2, b2, _, y2 = facts(norms[2], y1 + f)
    own = block.attention
    beta_a = own.output.bias + own.value.bias.reshape(-1) @ own.output.weight.reshape(-1, 24)
    beta_f = block.mlp.down.bias
    expected = {
        "input": r0 * r1 * r2 * x,
        "attention": r1 * r2 * (a - beta_a),
        "feed_forward": r2 * (f - beta_f),
        "correction": r1 * r2 * beta_a + r2 * beta_f
        + (r1 * r2 * b0 - m0 * r0 * r1 * r2) + (r2 * b1 - m1 * r1 * r2) + (b2 - m2 * r2),
    }  # fmt: skip
    terms = seen.begin(stack, Terms)
    terms.add_block(block, seen.additions(block))
    for name, value in expected.items():
        close(terms.rows[name][0], value, seen.real[0])
    close(terms.total, y2, seen.real[0])


def test_before_the_final_norm_norms_do_not_appear() -> None:
    seen = Seen("gpt2")
    (stack,) = seen.stacks
    terms, made = seen.begin(stack, Terms), torch.zeros(())
    for block in stack.blocks:
        terms.add_block(block, seen.additions(block))
        made = made + seen.found[f"{block.name} 1"][1] - block.mlp.down.bias
    close(terms.rows["feed_forward"][0], made, seen.real[0])
    close(terms.rows["input"][0], seen.found[stack.blocks[0].name][0], seen.real[0])
    last, norm = seen.found[stack.blocks[-1].name][1], stack.final_norm
    assert norm is not None
    through = terms.copy()
    through.pass_norm(norm, last)
    close(through.total, norm.module(last).detach(), seen.real[0])
    close(terms.total, last, seen.real[0])


@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu", "silu", "tanh"])
def test_tangents(activation: str) -> None:
    from transformers.activations import ACT2FN

    at = torch.linspace(-3, 3, 7, dtype=torch.float64) + 0.01
    slope, intercept = tangent(ACT2FN[activation], at)
    step = 1e-5
    rise = (ACT2FN[activation](at + step) - ACT2FN[activation](at - step)) / (2 * step)
    assert torch.allclose(slope, rise, atol=1e-8)
    assert torch.allclose(slope * at + intercept, ACT2FN[activation](at), atol=1e-12)


def test_tangents_in_inference_mode() -> None:
    with torch.inference_mode():
        slope, _ = tangent(torch.square, torch.tensor([2.0]))
    assert torch.equal(slope, torch.tensor([4.0]))


def test_origins_without_own_means_keep_them_in_the_correction() -> None:
    """A norm: once each term loses its own mean, once the correction loses that of all."""
    norm = find_anatomy(gpt2()).stack().final_norm
    assert norm is not None
    state = torch.randn(1, 2, 24, dtype=torch.float64) + 1
    own, other = Origins.begin(state), Origins.begin(state, own_means=False)
    own.pass_norm(norm, state)
    other.pass_norm(norm, state)
    factor = (
        norm.module.weight.detach() / (state.var(-1, correction=0)[..., None] + norm.eps).sqrt()
    )  # type: ignore[operator]
    close(other.rows["tokens"], state * factor, torch.ones(1, 2, dtype=torch.bool))
    close(own.rows["tokens"], (state - state.mean(-1, keepdim=True)) * factor,
          torch.ones(1, 2, dtype=torch.bool))  # fmt: skip
    close(own.total, other.total, torch.ones(1, 2, dtype=torch.bool))
