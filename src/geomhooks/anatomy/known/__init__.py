"""The families that are known, a file for those that are alike."""

from geomhooks.anatomy.families import Family
from geomhooks.anatomy.known import bart, bert, gemma, gpt, hardmax, llama, t5, torch_layers, vit

__all__ = ["FAMILIES"]

FAMILIES: tuple[Family, ...] = (
    *gpt.FAMILIES,
    *llama.FAMILIES,
    *gemma.FAMILIES,
    *bert.FAMILIES,
    *t5.FAMILIES,
    *bart.FAMILIES,
    *vit.FAMILIES,
    *torch_layers.FAMILIES,
    *hardmax.FAMILIES,
)
