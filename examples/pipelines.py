"""Hugging Face pipelines, unmodified, with the geometry of what they read and write.

    pip install '.[transformers]'
    python examples/pipelines.py sentence-transformers/all-MiniLM-L6-v2 HuggingFaceTB/SmolLM2-135M

Padding is left out, and a text that is being generated stays one context. Rows that have ended go
on with padding that generate() calls real: exclude_token_ids leaves it out.
"""

from __future__ import annotations

import sys

from transformers import pipeline

import geomhooks as gh

TEXTS = [
    "The lighthouse keeper wrote down the weather every evening.",
    "Bread needs flour, water, salt and time.",
    "No train runs on Sundays.",
]


def main(encoder: str, generator: str) -> None:
    """Run two pipelines by hub name or local folder."""
    embed = pipeline("feature-extraction", model=encoder)
    with gh.watch(embed.model) as watch:
        embed(TEXTS, batch_size=2)
    show("reading", watch.geometry())

    write = pipeline("text-generation", model=generator)
    write.tokenizer.pad_token, write.tokenizer.padding_side = write.tokenizer.eos_token, "left"
    with gh.watch(write.model, exclude_token_ids=[write.tokenizer.pad_token_id]) as watch:
        write(TEXTS, batch_size=3, max_new_tokens=8, do_sample=False)
    show("writing", watch.geometry())


def show(title: str, geometry: gh.Geometry) -> None:
    """Tokens, contexts and mean norm at every site."""
    for site in geometry.sites:
        found, norm = geometry[site].pos_ctx, geometry[site].sphere.norm.mean
        print(f"{title} {site:28} {found.count} tokens, {found.contexts} contexts, norm {norm:.2f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
