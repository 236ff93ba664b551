"""A forward on the meta device, which holds no numbers, and so shows that nothing asks for any."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import torch

import geomhooks as gh
from geomhooks.forwards.token_stream import TokenStream
from geomhooks.forwards.tokens import Tokens
from geomhooks.functional.attention.query_key import freeze_norm
from geomhooks.functional.sphere.logit_lens import LogitLens
from geomhooks.statistics import Reading, Site, Statistic

__all__ = ["update_on_meta"]


def update_on_meta(statistic: Statistic, *, packed: bool) -> dict[str, gh.Accumulator]:
    """Two forwards of 3 rows of 5 tokens; the statistic's state, with that of the stream."""
    site = Site("block", 8, 16)
    shared = statistic.shared(TokenStream("", 16, 4, 0))
    state = statistic.accumulators(site)
    for accumulator in (*shared.values(), *state.values()):
        accumulator.allocate("meta")
    with torch.device("meta"):
        for _ in range(2):
            grid = torch.zeros(3, 5, dtype=torch.int64)
            keys = torch.zeros(4 if packed else 3, dtype=torch.int64)
            tokens = Tokens(grid == 0, grid, None if packed else 0, keys, keys, capacity=16)
            tokens.ids, tokens.segments = grid, grid if packed else None
            tokens.first = tokens.real
            gain, hidden = torch.ones(8), torch.zeros(3, 5, 8)
            freeze = partial(freeze_norm, gain=gain, bias=gain, eps=1e-5)
            lens = LogitLens(torch.zeros(11, 8), torch.zeros(11), freeze, 30.0)
            plans = {name: a.observe(tokens) for name, a in shared.items()}
            kept = SimpleNamespace(keep=tokens.real)
            carry: dict[Any, Any] = {}
            reading = Reading(site, {"out": hidden}, tokens, kept, gain, plans, carry, lens=lens)
            assert statistic.takes(plans)
            statistic.update(state, reading)
            statistic.finish(carry)
    return {**shared, **state}
