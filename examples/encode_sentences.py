"""SentenceTransformer.encode, unmodified, with the geometry of every layer.

    pip install . sentence-transformers
    python examples/encode_sentences.py sentence-transformers/all-MiniLM-L6-v2 texts.txt

encode() sorts the texts by length and pads each batch: padding is left out, whatever the batches.
"""

from __future__ import annotations

import sys
from pathlib import Path

from sentence_transformers import SentenceTransformer

import geomhooks as gh


def main(name: str, file: str) -> None:
    """Encode the lines of a file with a hub name or local folder."""
    model = SentenceTransformer(name)
    lines = Path(file).read_text().splitlines()
    with gh.watch(model) as watch:
        embeddings = model.encode(lines, batch_size=8)
    geometry = watch.geometry()
    print(f"{embeddings.shape[0]} texts, {geometry[geometry.sites[0]].pos_ctx.count} tokens")
    for site in geometry.sites:
        share, cosine = geometry[site].pos_ctx.shares.ctx, geometry[site].sphere.mean_cosine
        print(f"{site:34} share of the texts {share:.3f}, mean cosine {cosine:.3f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
