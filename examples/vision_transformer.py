"""A Hugging Face vision transformer: its patches are tokens, an image is a context.

pip install '.[transformers]'
python examples/vision_transformer.py google/vit-base-patch16-224

"blocks" are what the model calls hidden_states, before its final norm.
"""

from __future__ import annotations

import sys

import torch
from transformers import AutoModel

import geomhooks as gh


@torch.no_grad()
def main(name: str) -> None:
    """Watch a hub name or local folder look at noise; put your own loader in its place."""
    model = AutoModel.from_pretrained(name).eval()
    size = model.config.image_size
    with gh.watch(model) as watch:
        for _ in range(4):
            model(pixel_values=torch.randn(8, 3, size, size))
    geometry = watch.geometry()
    for site in geometry.sites:
        found = geometry[site].pos_ctx
        pos, ctx, resid = found.shares.pos, found.shares.ctx, found.shares.resid
        print(f"{site:20} place {pos:.3f}  image {ctx:.3f}  rest {resid:.3f}")
    strongest = found.pos.norm(dim=-1).argmax()
    print(f"at {site} the place with the largest effect is {strongest} of {len(found.pos)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
