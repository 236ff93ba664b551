"""Where the parts of a model are, whatever its family calls them.

>>> import torch
>>> from transformers import GPT2Config, GPT2Model
>>> from geomhooks.anatomy import find_anatomy
>>> model = GPT2Model(GPT2Config(n_layer=2, n_embd=8, n_head=2, vocab_size=10))
>>> attention = find_anatomy(model).attention[1]
>>> attention.name, attention.site, attention.heads, attention.query.weight.shape
('h.1.attn', 'h.0', 2, torch.Size([2, 8, 4]))
"""

from geomhooks.anatomy.describing import Attention, Block, Heads, Linear, Output, linear
from geomhooks.anatomy.families import Anatomy, Family, families, find_anatomy, register
from geomhooks.anatomy.logits import SplitLogits, attention_parts
from geomhooks.anatomy.query_key import freeze, query_key_of, query_key_parts

__all__ = [
    "Anatomy",
    "Attention",
    "Block",
    "Family",
    "Heads",
    "Linear",
    "Output",
    "SplitLogits",
    "attention_parts",
    "families",
    "find_anatomy",
    "freeze",
    "linear",
    "query_key_of",
    "query_key_parts",
    "register",
]
