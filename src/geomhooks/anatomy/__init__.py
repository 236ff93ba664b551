"""Where the parts of a model are, whatever its family calls them.

>>> import torch
>>> from transformers import GPT2Config, GPT2Model
>>> from geomhooks.anatomy import find_anatomy
>>> model = GPT2Model(GPT2Config(n_layer=2, n_embd=8, n_head=2, vocab_size=10))
>>> attention = find_anatomy(model).attention[1]
>>> attention.name, attention.site, attention.heads, attention.query.weight.shape
('h.1.attn', 'h.0', 2, torch.Size([2, 8, 4]))
"""

from geomhooks.anatomy.describing import Around, Block, linear
from geomhooks.anatomy.families import (
    Anatomy,
    Family,
    Stack,
    families,
    find_anatomy,
    register,
)
from geomhooks.anatomy.known.torch_layers import torch_family
from geomhooks.anatomy.logits import SplitLogits, attention_parts
from geomhooks.anatomy.parts import (
    MLP,
    Attention,
    BlockParts,
    Embeddings,
    Heads,
    Linear,
    Output,
    Sublayer,
)
from geomhooks.anatomy.query_key import freeze, query_key_of, query_key_parts
from geomhooks.anatomy.rebuilding import (
    attention_logits,
    attention_mask,
    attention_output,
    block_output,
    capped,
    mlp_output,
    normed,
)

__all__ = [
    "MLP",
    "Anatomy",
    "Around",
    "Attention",
    "Block",
    "BlockParts",
    "Embeddings",
    "Family",
    "Heads",
    "Linear",
    "Output",
    "SplitLogits",
    "Stack",
    "Sublayer",
    "attention_logits",
    "attention_mask",
    "attention_output",
    "attention_parts",
    "block_output",
    "capped",
    "families",
    "find_anatomy",
    "freeze",
    "linear",
    "mlp_output",
    "normed",
    "query_key_of",
    "query_key_parts",
    "register",
    "torch_family",
]
