"""A small encoder-decoder that learns to translate on one core, and can go on where it stopped."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor
from transformers import MarianConfig, MarianMTModel

__all__ = ["Batch", "Translator", "batch_of", "learn_pieces", "new_translator", "train"]

PAD, END = "<pad>", "</s>"
LENGTH = 64  # pieces of a sentence, its end included
WIDTH, HEADS, ENCODER, DECODER, FEED = 128, 4, 2, 3, 256
RATE, WARMUP, SMOOTHING, DROPOUT = 2e-3, 200, 0.1, 0.1
POOL = 40  # batches whose sentences are sorted by length together
NOTHING = -100  # a label that asks for nothing


class Batch(NamedTuple):
    """What a translator reads, and what it is to say."""

    source: Tensor
    """(B, S) int64"""
    target: Tensor
    """(B, T) int64, each row with its end"""

    def call(self, pad: int) -> dict[str, Tensor]:
        """The arguments of a forward that is given the target."""
        # As Marian does, a translation begins with the piece that fills.
        begun = torch.cat([torch.full_like(self.target[:, :1], pad), self.target[:, :-1]], 1)
        real = self.target != pad
        return {
            "input_ids": self.source,
            "attention_mask": (self.source != pad).long(),
            "decoder_input_ids": begun,
            "decoder_attention_mask": real.long(),
        }


class Translator(NamedTuple):
    """A model and its pieces of words."""

    model: Any
    pieces: Tokenizer

    @property
    def pad(self) -> int:
        """The id that fills."""
        return int(self.model.config.pad_token_id)


def learn_pieces(sentences: Sequence[str], vocabulary: int) -> Tokenizer:
    """Byte-pair encoding of both languages together."""
    pieces = Tokenizer(models.BPE())
    pieces.normalizer = normalizers.NFC()
    pieces.pre_tokenizer = pre_tokenizers.Metaspace()
    pieces.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[PAD, END], show_progress=False
    )
    pieces.train_from_iterator(sentences, trainer)
    return pieces


def new_translator(pieces: Tokenizer, seed: int) -> Translator:
    """A Marian of random weights: norms after each sublayer, one table of embeddings."""
    torch.manual_seed(seed)
    pad, end = (pieces.token_to_id(piece) for piece in (PAD, END))
    config = MarianConfig(
        vocab_size=pieces.get_vocab_size(),
        d_model=WIDTH,
        encoder_layers=ENCODER,
        decoder_layers=DECODER,
        encoder_attention_heads=HEADS,
        decoder_attention_heads=HEADS,
        encoder_ffn_dim=FEED,
        decoder_ffn_dim=FEED,
        activation_function="swish",
        dropout=DROPOUT,
        scale_embedding=True,
        max_position_embeddings=LENGTH + 1,
        pad_token_id=pad,
        eos_token_id=end,
        bos_token_id=None,
        decoder_start_token_id=pad,
        forced_eos_token_id=None,
    )
    return Translator(MarianMTModel(config), pieces)


def encoded(pieces: Tokenizer, sentences: Sequence[str]) -> list[list[int]]:
    """Ids of each sentence, cut where it is too long, and its end."""
    end = pieces.token_to_id(END)
    return [[*one.ids[: LENGTH - 1], end] for one in pieces.encode_batch(list(sentences))]


def padded(rows: Sequence[Sequence[int]], pad: int) -> Tensor:
    """(B, T)."""
    length = max(map(len, rows))
    return torch.tensor([[*row, *[pad] * (length - len(row))] for row in rows])


def batch_of(pieces: Tokenizer, pairs: Sequence[tuple[str, str]]) -> Batch:
    """All pairs in one batch, in their order."""
    pad = pieces.token_to_id(PAD)
    sides = [encoded(pieces, side) for side in zip(*pairs, strict=True)]
    return Batch(*(padded(side, pad) for side in sides))


def batches(
    pieces: Tokenizer, pairs: Sequence[tuple[str, str]], size: int, seed: int, skip: int = 0
) -> Iterator[Batch]:
    """Batches without end, of sentences of about one length; the same for the same seed.

    Args:
        pieces: of words.
        pairs: to learn from.
        size: sentences of a batch.
        seed: of the order.
        skip: batches to leave out, with which training has been done.
    """
    pad = pieces.token_to_id(PAD)
    sides = [encoded(pieces, side) for side in zip(*pairs, strict=True)]
    rows = list(zip(*sides, strict=True))
    draw, done = random.Random(seed), 0
    while True:
        order = draw.sample(range(len(rows)), len(rows))
        found: list[list[int]] = []
        for first in range(0, len(order), POOL * size):
            pool = sorted(
                order[first : first + POOL * size], key=lambda at: sum(map(len, rows[at]))
            )
            found += [pool[at : at + size] for at in range(0, len(pool), size)]
        draw.shuffle(found)
        for chosen in found:
            done += 1
            if done > skip:
                yield Batch(*(padded([rows[at][side] for at in chosen], pad) for side in (0, 1)))


def train(
    translator: Translator,
    pairs: Sequence[tuple[str, str]],
    *,
    seed: int,
    size: int,
    at: Sequence[int],
    look: Callable[[int], None],
    folder: Path,
) -> None:
    """Adam with a warm-up and a rate that falls with the root of the steps.

    Args:
        translator: to train, of random weights.
        pairs: to learn from.
        seed: of the order of sentences, and of dropout.
        size: sentences of a batch.
        at: steps, ascending, at which to look.
        look: called with the step, the model in evaluation mode.
        folder: where the newest state is kept, from which a training that was stopped goes on.
    """
    model, pad, kept = translator.model, translator.pad, folder / "state.pt"
    optimizer = torch.optim.Adam(model.parameters(), RATE, betas=(0.9, 0.98), eps=1e-9)
    done = 0
    torch.manual_seed(seed)
    if kept.exists():
        state = torch.load(kept)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["random"])
        done = state["step"]
    stream = batches(translator.pieces, pairs, size, seed, skip=done)
    for step in range(done + 1, at[-1] + 1):
        model.train()
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(step / WARMUP, math.sqrt(WARMUP / step))
        batch = next(stream)
        logits = model(**batch.call(pad), use_cache=False).logits
        labels = batch.target.masked_fill(batch.target == pad, NOTHING)
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), labels.flatten(), label_smoothing=SMOOTHING
        )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step in at:
            model.eval()
            random_state = torch.get_rng_state()
            look(step)
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save(state | {"random": random_state, "step": step}, folder / "new.pt")
            (folder / "new.pt").replace(kept)
            torch.set_rng_state(random_state)
