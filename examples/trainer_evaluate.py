"""Trainer.evaluate, unmodified, with the geometry of the evaluation set.

pip install '.[transformers]' accelerate
python examples/trainer_evaluate.py HuggingFaceTB/SmolLM2-135M evaluation.txt

Each line of the file is a text and a context; the padding of the batches is left out.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    Trainer,
    TrainingArguments,
)

import geomhooks as gh


def main(name: str, file: str) -> None:
    """Evaluate a hub name or local folder on the lines of a text."""
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(name),
        AutoTokenizer.from_pretrained(name),
    )
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    rows = [dict(tokenizer(line)) for line in Path(file).read_text().splitlines()]
    trainer = Trainer(
        model,
        TrainingArguments(tempfile.mkdtemp(), per_device_eval_batch_size=4, report_to=[]),
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
        eval_dataset=rows,
    )
    with gh.watch(model) as watch:
        print(f"loss {trainer.evaluate()['eval_loss']:.3f}")
    for name, number in watch.geometry().scalars().items():
        if name.endswith(("pos_ctx/shares/pos", "pos_ctx/shares/ctx", "sphere/norm/mean")):
            print(f"{name} {number:.4f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
