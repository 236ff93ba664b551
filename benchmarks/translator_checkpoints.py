"""What a checkpoint of a translator can, and what its decoder's states are made of."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from sacrebleu.metrics import BLEU, CHRF
from small_translators import LENGTH, Batch, Translator, batch_of, padded
from torch import Tensor

import geomhooks as gh
from geomhooks.functional import Indicators

__all__ = ["DECODINGS", "INDICATORS", "TERMS", "Checkpoint", "load_run", "look"]

PARTS = 100  # sentences of a forward
SENTENCES = 4096  # that means are kept of
INDICATORS = Indicators._fields
TERMS = {
    "by_part": ("input", "attention", "source", "feed_forward", "correction"),
    "by_origin": ("tokens", "source", "correction"),
}
DECODINGS = ("generated", "forced")


class ByPart(gh.Components):
    """The first decomposition, which also hands out what it found of every token."""

    last: Tensor | None = None

    def update(self, state: Any, reading: Any) -> None:
        """As ever, and keep the last site's numbers until the forward has ended."""
        moments = Kept(state["moments"])
        super().update({**state, "moments": moments}, reading)
        self.last = moments.values


class ByOrigin(ByPart):
    """The second one. A name of its own lets both be in one watch."""

    def __init__(self) -> None:
        super().__init__(method="oh_schuler", contexts=SENTENCES)


class Kept:
    """Passes numbers on to an accumulator, and keeps those of the tokens that count."""

    def __init__(self, accumulator: Any) -> None:
        self.accumulator = accumulator
        self.values: Tensor | None = None

    def add(self, values: Tensor, at: Tensor, keep: Tensor) -> None:
        """Of (B, T, F) numbers."""
        self.values = values[keep][:, :-1].clone()  # the last is the gap
        self.accumulator.add(values, at, keep)


class Checkpoint(NamedTuple):
    """One checkpoint of a run, as a file has it; G sentences of n tokens."""

    step: int
    quality: dict[str, float]
    """"BLEU", "chrF", and "loss" in nats a piece, of the references"""
    sentence_chrf: np.ndarray
    """(G,)"""
    means: dict[tuple[str, str], np.ndarray]
    """by decoding and method: (layers, terms, indicators) over all tokens, from the input on"""
    deviations: dict[tuple[str, str], np.ndarray]
    """the same, standard deviations"""
    sentences: dict[tuple[str, str], np.ndarray]
    """(G, layers, terms, indicators), means of each sentence"""
    tokens: dict[tuple[str, str], np.ndarray]
    """(n, terms, indicators), of the last layer"""
    owners: dict[str, np.ndarray]
    """by decoding: (n,) which sentence each token is of"""


@torch.inference_mode()
def look(translator: Translator, pairs: Sequence[tuple[str, str]], step: int, path: Path) -> str:
    """Translate, score, and measure a checkpoint; write it down.

    Args:
        translator: in evaluation mode.
        pairs: held-out sentences with their references.
        step: of the checkpoint.
        path: a file to write.

    Returns:
        A line that says how good it is.
    """
    references = [target for _, target in pairs]
    whole = batch_of(translator.pieces, pairs)
    generated = translated(translator, whole.source)
    said = [translator.pieces.decode(row) for row in generated]
    quality = {
        "BLEU": BLEU(effective_order=False).corpus_score(said, [references]).score,
        "chrF": CHRF().corpus_score(said, [references]).score,
    }
    each = [CHRF().sentence_score(one, [r]).score for one, r in zip(said, references, strict=True)]
    made = Batch(whole.source, padded(generated, translator.pad))
    found: dict[str, np.ndarray] = {"sentence_chrf": np.array(each)}
    for decoding, batch in (("generated", made), ("forced", whole)):
        measured, loss = measure(translator, batch)
        if decoding == "forced":
            quality["loss"] = loss
        found |= {f"{name}/{decoding}": values for name, values in measured.items()}
    found |= {f"quality/{name}": np.array(value) for name, value in quality.items()}
    np.savez(path, step=np.array(step), **found)  # type: ignore[arg-type]
    path.with_suffix(".txt").write_text("\n".join(said) + "\n")
    return f"step {step:5d}  " + "  ".join(f"{n} {value:.2f}" for n, value in quality.items())


def translated(translator: Translator, source: Tensor) -> list[list[int]]:
    """Greedy translations, each with its end, or cut where none comes."""
    end, pad = translator.model.config.eos_token_id, translator.pad
    found = []
    for part in source.split(PARTS):
        longest = int((part != pad).sum(1).max())
        out = translator.model.generate(
            input_ids=part[:, :longest],
            attention_mask=(part[:, :longest] != pad).long(),
            max_new_tokens=min(LENGTH, longest + longest // 2 + 5),
            do_sample=False,
            num_beams=1,
            suppress_tokens=[pad],
        )
        found += [
            [*row[: row.index(end)], end] if end in row else row for row in out[:, 1:].tolist()
        ]
    return found


def measure(translator: Translator, batch: Batch) -> tuple[dict[str, np.ndarray], float]:
    """Both decompositions of the decoder's states in one forward of each part; and the loss."""
    model, pad = translator.model, translator.pad
    statistics = [ByPart(contexts=SENTENCES), ByOrigin()]
    layers = [f"model.decoder.layers.{n}" for n in range(model.config.decoder_layers)]
    tokens: dict[str, list[Tensor]] = {statistic.name: [] for statistic in statistics}
    loss = torch.zeros((), dtype=torch.float64)
    with gh.watch(
        model, sites=[f"{layers[0]}@in", *layers], statistics=statistics, positions=LENGTH
    ) as watch:
        for first in range(0, len(batch.source), PARTS):
            part = Batch(*(side[first : first + PARTS] for side in batch))
            contexts = torch.arange(first, first + len(part.source))
            with watch.tokens(contexts=contexts):
                logits = model(**part.call(pad), use_cache=False).logits
            for statistic in statistics:
                assert statistic.last is not None
                tokens[statistic.name].append(statistic.last)
            labels = part.target.masked_fill(part.target == pad, -100).flatten()
            loss += torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), labels, reduction="sum"
            ).double()
    real = batch.target != pad
    geometry = watch.geometry()
    found = {"owners": real.nonzero()[:, 0].numpy()}
    for statistic in statistics:
        terms = len(TERMS[statistic.name])
        rows = [geometry[site][statistic.name] for site in geometry.sites]
        moments = [[[row[what][term] for what in INDICATORS] for term in TERMS[statistic.name]]
                   for row in rows]  # fmt: skip
        found[f"means/{statistic.name}"] = of(moments, lambda one: one.mean)
        found[f"deviations/{statistic.name}"] = of(moments, lambda one: one.variance.sqrt())
        by_sentence = [
            torch.stack([row.by_context[what] for what in INDICATORS], -1) for row in rows
        ]
        found[f"sentences/{statistic.name}"] = torch.stack(by_sentence, 1).float().numpy()
        last = torch.cat(tokens[statistic.name]).view(-1, len(INDICATORS), terms).transpose(1, 2)
        found[f"tokens/{statistic.name}"] = last.float().numpy()
        largest = max(float(row.gap.max) for row in rows)
        if largest > 1e-3:
            raise RuntimeError(f"{statistic.name}: terms are {largest} off the hidden states")
    return found, float(loss / real.sum())


def of(moments: Any, number: Any) -> np.ndarray:
    """(layers, terms, indicators) of one number of each."""
    return np.array([[[float(number(m)) for m in term] for term in row] for row in moments])


def load_run(folder: Path) -> list[Checkpoint]:
    """All checkpoints of a run by step."""
    found = []
    for path in sorted(folder.glob("checkpoint-*.npz")):
        with np.load(path) as file:
            kinds: dict[str, dict[tuple[str, str], np.ndarray]] = {
                kind: {
                    (decoding, method): file[f"{kind}/{method}/{decoding}"]
                    for decoding in DECODINGS
                    for method in TERMS
                }
                for kind in ("means", "deviations", "sentences", "tokens")
            }
            quality = {name: float(file[f"quality/{name}"]) for name in ("BLEU", "chrF", "loss")}
            owners = {decoding: file[f"owners/{decoding}"] for decoding in DECODINGS}
            chrf, step = file["sentence_chrf"], int(file["step"])
        found.append(Checkpoint(step, quality, chrf, **kinds, owners=owners))
    return found
