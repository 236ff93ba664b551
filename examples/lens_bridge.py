"""TransformerLens's bridge: run_with_cache for one text, and the geometry of all of them.

    pip install . transformer-lens
    python examples/lens_bridge.py gpt2 texts.txt

The sites have the bridge's names; "blocks.3" is what its cache calls blocks.3.hook_out. A cache of
many texts does not fit into memory; the running sums of the watch always do.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from transformer_lens.model_bridge import TransformerBridge

import geomhooks as gh


@torch.no_grad()
def main(name: str, file: str) -> None:
    """Run a hub name or local folder over the lines of a file."""
    model = TransformerBridge.boot_transformers(name, device="cpu").eval()
    lines = Path(file).read_text().splitlines()
    with gh.watch(model) as watch:
        for line in lines[1:]:
            model(line)
        _, cache = model.run_with_cache(lines[0])
    geometry = watch.geometry()
    for layer, site in enumerate(geometry.sites[1:]):
        all_texts = geometry[site].sphere.norm.mean
        one_text = cache[f"blocks.{layer}.hook_out"].norm(dim=-1).mean()
        print(f"{site:10} mean norm {all_texts:.3f} over all texts, {one_text:.3f} in the first")


if __name__ == "__main__":
    main(*sys.argv[1:])
