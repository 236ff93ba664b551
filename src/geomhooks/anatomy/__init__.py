"""Where the parts of a model are, whatever its family calls them.

>>> import torch
>>> from transformers import GPT2Config, GPT2Model
>>> from geomhooks.anatomy import find_anatomy
>>> model = GPT2Model(GPT2Config(n_layer=2, n_embd=8, n_head=2, vocab_size=10))
>>> attention = find_anatomy(model).attention[1]
>>> attention.name, attention.site, attention.heads, attention.query.weight.shape
('h.1.attn', 'h.0', 2, torch.Size([2, 8, 4]))
"""

from geomhooks.anatomy.additions import Addition, Written, add_up, additions_of
from geomhooks.anatomy.describing import Around, Block, linear
from geomhooks.anatomy.families import Anatomy, Family, Stack
from geomhooks.anatomy.finding import families, find_anatomy, register
from geomhooks.anatomy.hardmax_conditions import (
    HardmaxFacts,
    hardmax_facts,
    reasons_against,
)
from geomhooks.anatomy.known.torch_layers import torch_family
from geomhooks.anatomy.logits import SplitLogits, attention_parts
from geomhooks.anatomy.origins import Origins
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
from geomhooks.anatomy.probes import (
    BiasWords,
    HeadWords,
    SingularWords,
    bias_words,
    key_words,
    singular_words,
    value_words,
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
from geomhooks.anatomy.terms import Terms
from geomhooks.anatomy.virtual_matrices import (
    HeadSpectra,
    constants_of_norm,
    head_spectra,
    query_key_form_of,
    standardised,
    value_output_of,
)
from geomhooks.anatomy.word_rankings import (
    RankedWords,
    embedding_distances,
    ranked_words,
)
from geomhooks.anatomy.words import (
    WordRows,
    Words,
    single_tokens,
    word_rows,
)

__all__ = [
    "MLP",
    "Addition",
    "Anatomy",
    "Around",
    "Attention",
    "BiasWords",
    "Block",
    "BlockParts",
    "Embeddings",
    "Family",
    "HardmaxFacts",
    "HeadSpectra",
    "HeadWords",
    "Heads",
    "Linear",
    "Origins",
    "Output",
    "RankedWords",
    "SingularWords",
    "SplitLogits",
    "Stack",
    "Sublayer",
    "Terms",
    "WordRows",
    "Words",
    "Written",
    "add_up",
    "additions_of",
    "attention_logits",
    "attention_mask",
    "attention_output",
    "attention_parts",
    "bias_words",
    "block_output",
    "capped",
    "constants_of_norm",
    "embedding_distances",
    "families",
    "find_anatomy",
    "freeze",
    "hardmax_facts",
    "head_spectra",
    "key_words",
    "linear",
    "mlp_output",
    "normed",
    "query_key_form_of",
    "query_key_of",
    "query_key_parts",
    "ranked_words",
    "reasons_against",
    "register",
    "single_tokens",
    "singular_words",
    "standardised",
    "torch_family",
    "value_output_of",
    "value_words",
    "word_rows",
]
