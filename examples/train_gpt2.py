"""Watch the geometry of a small language model move while it is trained.

A GPT-2 of random weights learns to predict the bytes of Python's own documentation. At some steps
it is evaluated on text that it does not train on, and only these forwards are measured.

    pip install 'geomhooks[transformers]'
    python examples/train_gpt2.py --steps 300
"""

from __future__ import annotations

import argparse
import math
from pydoc_data.topics import topics

import torch
from transformers import GPT2Config, GPT2LMHeadModel

import geomhooks as gh

LENGTH, BATCH, HELD_OUT = 64, 32, 256


def main() -> None:
    """Train, print a line for each evaluation, and save the history."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--measure-every", type=int, default=30, metavar="N")
    parser.add_argument("--out", default="train_gpt2.safetensors")
    chosen = parser.parse_args()

    torch.manual_seed(0)
    held_out, contexts = read_text()
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=256,
            n_positions=LENGTH,
            n_embd=64,
            n_layer=4,
            n_head=4,
            bos_token_id=None,
            eos_token_id=None,
            loss_type="ForCausalLMLoss",
        )
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

    # The scalars of every snapshot as curves, and the whole geometry of at most eight.
    history = gh.History(snapshots=8, notes={"script": "train_gpt2.py"})
    # Forwards in training mode pass by uncounted.
    with gh.watch(model, when="eval", statistics=[gh.PosCtx(contexts=256), gh.Sphere()]) as watch:
        for step in range(chosen.steps + 1):
            if step % chosen.measure_every == 0 or step == chosen.steps:
                model.eval()
                with torch.no_grad():
                    loss = sum(float(loss_of(model, part)) * len(part) for part in held_out)
                geometry = watch.geometry()
                watch.reset()  # the next evaluation is a window of its own
                history.append(step, geometry)
                history.save(chosen.out)  # now, so that nothing is lost if training is broken off
                print(line(step, loss / HELD_OUT, geometry), flush=True)
                model.train()
            if step < chosen.steps:
                loss_of(model, contexts[torch.randint(len(contexts), (BATCH,))]).backward()
                optimizer.step()
                optimizer.zero_grad()

    last = geometry.sites[-1]
    steps, ranks = history.curve(f"{last}/pos_ctx/stable_rank")
    print(f"\nstable rank of pos after the last block, from step {steps[0]} to {steps[-1]}:")
    print(" ".join(f"{rank:.2f}" for rank in ranks.tolist()))
    print(f"wrote {chosen.out}: gh.History.load({chosen.out!r})")


def read_text() -> tuple[list[torch.Tensor], torch.Tensor]:
    """Batches to evaluate on and contexts to train on, (N, 64); a token is a byte."""
    text = "\n\n".join(text for _, text in sorted(topics.items())).encode()
    tokens = torch.tensor(list(text))
    contexts = tokens[: len(tokens) // LENGTH * LENGTH].view(-1, LENGTH)
    contexts = contexts[torch.randperm(len(contexts))]
    return list(contexts[:HELD_OUT].split(BATCH)), contexts[HELD_OUT:]


def loss_of(model: GPT2LMHeadModel, ids: torch.Tensor) -> torch.Tensor:
    """Mean loss of the next byte, in nats."""
    return model(input_ids=ids, labels=ids).loss


def line(step: int, loss: float, geometry: gh.Geometry) -> str:
    """Shares and rank of pos after the last block, and the step angles of all blocks."""
    last = geometry[geometry.sites[-1]].pos_ctx
    angles = geometry.stack("sphere.step_angle.mean")
    return (
        f"step {step:4d}  loss {loss:.3f}  pos {float(last.shares.pos):.3f}  "
        f"ctx {float(last.shares.ctx):.3f}  rank {float(last.stable_rank):5.2f}  step angles "
        + " ".join(f"{math.degrees(angle):.1f}°" for angle in angles.tolist())
    )


if __name__ == "__main__":
    main()
