"""Forms and maps of heads against the logits and outputs of the models themselves."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from geomhooks.anatomy import (
    Attention,
    attention_logits,
    attention_output,
    constants_of_norm,
    find_anatomy,
    head_spectra,
    normed,
    query_key_form_of,
    standardised,
    value_output_of,
)
from geomhooks.errors import AnatomyError
from geomhooks.functional import effective_rank, norm_residuals, query_key_weight, sphere_ratio
from tests.anatomy.models import MODELS, OUTPUTS, llama, make, recorded_logits, token_ids

B, T = 2, 9


def assert_close(found: Tensor, expected: Tensor) -> None:
    """To 1e-4 of the largest."""
    assert found.shape == expected.shape
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()


def logits_by_forms(attention: Attention, states: Tensor, whole: bool = True, **how: Any) -> Tensor:
    """(B, H, T, S), of one form, or of one for each distance where distance matters."""
    if attention.rotary is None and attention.distance is None:
        return query_key_form_of(attention, **how).terms(states).total
    length = states.shape[1]
    last = length - 1 if whole else None
    logits = states.new_zeros(len(states), attention.heads, length, length)
    columns = torch.arange(length)
    for distance in range(1 - length, length):
        total = query_key_form_of(attention, distance, last=last, **how).terms(states).total
        at = columns[:, None] - columns == distance
        logits[..., at] = total[..., at]
    return logits


@pytest.mark.parametrize("name", MODELS)
def test_terms_add_up_to_the_models_own_logits(name: str) -> None:
    model = make(name)
    with torch.no_grad(), recorded_logits(MODELS[name][0]) as logits:
        hidden = model(input_ids=token_ids(B, T), output_hidden_states=True).hidden_states
    attentions = find_anatomy(model).attention
    assert len(attentions) == len(logits) >= 2
    for attention, states, own in zip(attentions, hidden, logits, strict=False):
        if attention.query_norm is not None:
            with pytest.raises(AnatomyError, match="norms its queries or keys"):
                query_key_form_of(attention)
            continue
        before = standardised(states, attention.norm)
        assert_close(logits_by_forms(attention, before), own)
        if attention.norm is not None and attention.norm.centred:
            assert_close(logits_by_forms(attention, before, centred=True), own)
        # Unfolded, it is a form of what the norm gives out.
        after = normed(states, attention.norm)
        assert_close(logits_by_forms(attention, after, folded=False), own)


@pytest.mark.parametrize("name", MODELS)
def test_updates_add_up_to_the_models_own_output(name: str) -> None:
    model = make(name)
    found: dict[str, Tensor] = {}

    def keep(block: str) -> Any:
        def hook(_: nn.Module, __: Any, out: Tensor) -> None:
            found[block] = out.detach().reshape(B, T, -1)

        return hook

    anatomy = find_anatomy(model)
    path = OUTPUTS[MODELS[name][0]]["attention"]
    for block in anatomy.blocks:
        block.module.get_submodule(path).register_forward_hook(keep(block.name))
    with torch.no_grad():
        out = model(input_ids=token_ids(B, T), output_hidden_states=True, output_attentions=True)
    for attention, states, shares in zip(
        anatomy.attention, out.hidden_states, out.attentions, strict=False
    ):
        updates = value_output_of(attention).updates(standardised(states, attention.norm))
        whole = (shares @ updates).sum(1)
        if attention.output.bias is not None:
            whole = whole + attention.output.bias
        assert_close(whole, found[attention.block])


def test_frequencies_that_depend_on_the_length_of_the_text() -> None:
    angles = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
    torch.manual_seed(0)
    model = llama(max_position_embeddings=T - 3, rope_parameters=angles)
    attention = find_anatomy(model).at(0)
    states = 3 * torch.randn(B, T, 24)
    own = attention_logits(attention, states)
    before = standardised(states, attention.norm)
    assert_close(logits_by_forms(attention, before), own)
    short = logits_by_forms(attention, before, whole=False)
    assert (short - own).abs().max() > 1e-3 * own.abs().max()


def with_distance(queries: Tensor, keys: Tensor) -> Tensor:
    apart = queries[:, None] - keys
    return torch.stack([-apart.abs() * slope for slope in (0.5, 0.1, 0.3, 1.0)]).float()


def test_a_bias_for_distance_is_in_the_constant() -> None:
    attention = replace(find_anatomy(make("gpt2")).at(0), distance=with_distance)
    states = torch.randn(B, T, 24, generator=torch.Generator().manual_seed(0))
    found = logits_by_forms(attention, standardised(states, attention.norm))
    assert_close(found, attention_logits(attention, states))


def test_keys_and_values_of_cross_attention_are_not_normed() -> None:
    attention = replace(find_anatomy(make("gpt2")).at(0), cross=True, causal=False)
    states, source = torch.randn(2, B, T, 24, generator=torch.Generator().manual_seed(0))
    source = source[:, :5] + 1
    queries = standardised(states, attention.norm)
    logits = query_key_form_of(attention).terms(queries, source).total
    assert_close(logits, attention_logits(attention, states, source=source))
    updates = logits.softmax(-1) @ value_output_of(attention).updates(source)
    assert attention.output.bias is not None
    assert_close(
        updates.sum(1) + attention.output.bias,
        attention_output(attention, states, source=source),
    )


def test_spectra_are_those_of_the_whole_matrices() -> None:
    for name in ("gpt2", "llama", "opt, norm after"):
        attention = find_anatomy(make(name)).at(1)
        group = attention.heads // attention.key_heads
        key = attention.key.weight.repeat_interleave(group, 0)
        value = attention.value.weight.repeat_interleave(group, 0)
        plain = head_spectra(attention, folded=False)
        dense = query_key_weight(attention.query.weight, key, attention.scale).double()
        k = key.shape[-1]
        for spectra, matrix in (
            (plain, dense),
            (
                head_spectra(attention, "value_output", folded=False),
                (value @ attention.output.weight).double(),
            ),
        ):
            own = torch.linalg.svdvals(matrix)[:, :k]
            torch.testing.assert_close(spectra.values.double(), own, rtol=1e-4, atol=1e-5)
            apart = (matrix - matrix.mT).square().sum((1, 2)) / 4 / matrix.square().sum((1, 2))
            torch.testing.assert_close(
                spectra.antisymmetric_share.double(), apart, rtol=1e-4, atol=1e-6
            )
            eigenvalues = torch.linalg.eigvalsh((matrix + matrix.mT) / 2)
            least = 1e-4 * eigenvalues.abs().amax(1, keepdim=True)
            assert torch.equal(spectra.positive, (eigenvalues > least).sum(1))
            assert torch.equal(spectra.negative, (eigenvalues < -least).sum(1))
            rows = spectra.table()
            assert [row["head"] for row in rows] == list(range(attention.heads))
            for row, singular in zip(rows, own, strict=True):
                assert row["effective_rank"] == pytest.approx(float(effective_rank(singular)), 1e-3)
                covered = singular.cumsum(0) / singular.sum()
                assert row["coverage_index"] == int((covered > 0.99).nonzero()[0])
                assert row["largest"] == pytest.approx(float(singular[0]), 1e-4)
                assert row["attention"] == attention.name
        if attention.norm is not None:
            gain = attention.norm.affine(torch.empty(24))[0].double()
            folded = gain[:, None] * dense * gain
            torch.testing.assert_close(
                head_spectra(attention).values.double(),
                torch.linalg.svdvals(folded)[:, :k],
                rtol=1e-4,
                atol=1e-4,
            )


def test_distance_turns_the_form() -> None:
    attention = find_anatomy(make("llama")).at(0)
    spectra = [head_spectra(attention, distance=d).values for d in (0, 1, 7)]
    assert (spectra[0] - spectra[1]).abs().max() > 1e-2 * spectra[0].max()
    assert (spectra[1] - spectra[2]).abs().max() > 1e-2 * spectra[0].max()


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_outputs_of_norms_are_on_their_ellipsoid(name: str) -> None:
    """Hooked outputs of the norms of a model that runs."""
    model = make(name)
    kept: list[tuple[Tensor, Tensor]] = []
    norms = [a.norm for a in find_anatomy(model).attention if a.norm is not None]
    for norm in norms:
        norm.module.register_forward_hook(lambda _, args, out: kept.append((args[0], out)))
    with torch.no_grad():
        model(input_ids=token_ids(B, T))
    assert len(kept) == len(norms) >= 2
    for norm, (states, outputs) in zip(norms, kept, strict=True):
        gain, shift = norm.affine(states)
        radius = sphere_ratio(states, norm.eps, centred=norm.centred)
        found = norm_residuals(
            outputs, gain, shift, centred=norm.centred, radius=radius, least=1e-3
        )
        assert float(found.ellipsoid.abs().max()) < 1e-3
        constants = constants_of_norm(norm, states.shape[-1])
        assert (constants.plane_normal is not None) == norm.centred
        if found.plane is not None:
            assert float(found.plane.max()) < 1e-3
            assert constants.plane_normal is not None
            away = outputs @ constants.plane_normal - constants.plane_distance
            assert float(away.abs().max()) < 1e-4
        torch.testing.assert_close(constants.largest_axis, 24**0.5 * gain.abs().max())


def test_errors() -> None:
    attention = find_anatomy(make("gpt2")).at(0)
    normed_queries = replace(attention, query_norm=attention.norm)
    with pytest.raises(AnatomyError, match=r"h.0.attn norms its queries or keys.*no bilinear form"):
        query_key_form_of(normed_queries)
    with pytest.raises(ValueError, match="of='keys': 'query_key' or 'value_output' is needed"):
        head_spectra(attention, "keys")  # type: ignore[arg-type]
