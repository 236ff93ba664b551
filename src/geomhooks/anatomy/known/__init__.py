"""The families that are known, a file for those that are alike."""

from geomhooks.anatomy.families import Family
from geomhooks.anatomy.known import bert, gemma, gpt, llama

__all__ = ["FAMILIES"]

FAMILIES: tuple[Family, ...] = (
    *gpt.FAMILIES,
    *llama.FAMILIES,
    *gemma.FAMILIES,
    *bert.FAMILIES,
)
