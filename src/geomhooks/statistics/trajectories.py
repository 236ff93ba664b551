"""The paths of words through depth: the states of some contexts at every layer, in one space."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import index
from typing import Any

import torch

from geomhooks.accumulators import Accumulator
from geomhooks.accumulators.trajectory_states import KeptTokens, Places, TokenStates
from geomhooks.checks import check_needed, check_positive, is_whole
from geomhooks.errors import SiteError
from geomhooks.forwards.token_stream import TokenStream
from geomhooks.results import Unavailable
from geomhooks.statistics.base import Reading, Site, Statistic
from geomhooks.statistics.through_lens import through_lens

__all__ = ["Trajectories"]


class Trajectories(Statistic):
    r"""The hidden states of some contexts, token by token, as the final norm sees them.

    Every layer's state x is taken to the space of the last one, y = norm(x), so that one and the
    same token can be followed through depth and compared with the words of the head (R. Molina,
    "Traveling Words: A Geometric Interpretation of Transformers", arXiv 2309.07315). This is the
    one statistic that keeps states themselves, so it is bounded: K contexts, the first T positions
    of each. It takes 4 K T d bytes at each site, and 12 K T once for a token stream.

    A context that goes on in later forwards, as in generation or in chunks, fills its later
    positions then. Where a token comes several times, its states are averaged.

    Taken where :mod:`geomhooks.anatomy` knows the model.

    Args:
        contexts: how many contexts to keep, K, a uniform sample of all; or the ids of those to
            keep, as ``watch.tokens(contexts=...)`` gives them.
        tokens: how many positions to keep of each, T, from position 0 on.
        max_bytes: refuse a configuration whose state at one site would take more.
        positions: capacity of the token stream; by default the smaller of the model's maximum and
            2048. All statistics of a watch share one capacity.

    Results, over the contexts that were kept, by ascending id, and positions up to the last that
    is filled:

    - ``states`` (K, T, d), float32; NaN where there is no token.
    - ``token_ids`` (K, T), -1 where there is no token or it has no id.
    - ``filled`` (K, T), whether there is a token; ``count``, how many there are.
    - ``contexts`` (K,), their ids.

    ``geometry.stack("trajectories.states")`` is (L, K, T, d), which the functions of
    :mod:`geomhooks.functional` take: ``layer_angles``, ``angles_from_first``, ``sphere_path`` and
    ``path_deviation`` measure the paths, and ``principal_geodesics`` and ``umap_projection`` bring
    them to two or three dimensions. The states have been through the norm, so ``centred=False``.

    Raises:
        ValueError: an argument is not what it has to be.
        SiteError: the state would take more than ``max_bytes``.

    Example:
        >>> import torch, geomhooks as gh
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> config = GPT2Config(n_layer=3, n_embd=8, n_head=2, n_positions=16, vocab_size=10)
        >>> model = GPT2LMHeadModel(config).eval()
        >>> statistic = gh.Trajectories(contexts=2, tokens=6)
        >>> with torch.no_grad(), gh.watch(model, statistics=[statistic]) as watch:
        ...     _ = model(torch.randint(10, (5, 16)))
        >>> states = watch.geometry().stack("trajectories.states")
        >>> states.shape
        torch.Size([4, 2, 6, 8])
        >>> gh.functional.sphere_path(states, centred=False).length.shape  # radians, each token
        torch.Size([2, 6])
        >>> plane = gh.functional.principal_geodesics(states.flatten(0, -2), centred=False)
        >>> plane.transform(states).shape  # in the plane of the leading two directions
        torch.Size([4, 2, 6, 2])
    """

    uses: tuple[str, ...] = ("logit_lens",)

    def __init__(
        self,
        contexts: int | Sequence[int] = 8,
        tokens: int = 64,
        max_bytes: int = 1 << 31,
        positions: int | None = None,
    ) -> None:
        check_positive("Trajectories", positions=positions)
        check_needed("Trajectories", tokens=tokens, max_bytes=max_bytes)
        self.contexts = check_contexts(contexts)
        self.tokens = tokens
        self.max_bytes = max_bytes
        self.positions = positions

    def shared(self, stream: TokenStream) -> dict[str, Accumulator]:
        """Which contexts are kept of the stream, and their tokens."""
        length = min(self.tokens, stream.positions)
        return {KeptTokens.NAME: KeptTokens(self.contexts, length)}

    def accumulators(self, site: Site) -> dict[str, Accumulator]:
        """Their states."""
        number = self.contexts if isinstance(self.contexts, int) else len(self.contexts)
        states = TokenStates(number, min(self.tokens, site.positions), site.width)
        if states.nbytes > self.max_bytes:
            raise SiteError(
                f"the state of Trajectories for site {site.name!r} ({number} contexts, "
                f"{self.tokens} tokens, d = {site.width}) would take {states.nbytes:,} bytes, more "
                f"than max_bytes={self.max_bytes:,}. Keep fewer contexts or tokens, or raise "
                "max_bytes."
            )
        return {"states": states}

    def takes(self, plans: Mapping[str, Any]) -> bool:
        """Leave out forwards of which nothing is kept, where that is known without waiting."""
        places: Places = plans[KeptTokens.NAME]
        return places.any_kept

    def update(self, state: Mapping[str, Any], reading: Reading) -> None:
        """Add one forward."""
        state["states"].add(through_lens(reading), reading.plans[KeptTokens.NAME])

    def compute(self, state: Mapping[str, Any]) -> Mapping[str, Any]:
        """The states, and whose they are."""
        kept: KeptTokens = state[KeptTokens.NAME]
        rows, count = kept.rows(), int((kept["times"][:-1] > 0).sum())
        if not len(rows):
            wanted = "no token"
            if isinstance(self.contexts, tuple):
                wanted += f" of {self.contexts}, ids that watch.tokens(contexts=...) gives,"
            reason = Unavailable(f"{wanted} has been counted at positions below {kept.length}")
            known = {"count": torch.tensor(count, device="cpu")}
            return dict.fromkeys(("states", "token_ids", "filled", "contexts"), reason) | known
        length = int((kept["times"][rows] > 0).any(0).nonzero().max()) + 1
        states: TokenStates = state["states"]
        filled = states["times"][rows, :length] > 0
        return {
            "states": states.mean[rows, :length],
            "token_ids": kept["ids"][rows, :length],
            "filled": filled,
            "contexts": kept["key"][rows],
            "count": filled.sum(),
        }


def check_contexts(contexts: Any) -> int | tuple[int, ...]:
    """A number of contexts, or the ids of some.

    Raises:
        ValueError: it is neither, or the ids are not all different.
    """
    if isinstance(contexts, int) and is_whole(contexts) and contexts > 0:
        return contexts
    try:  # a tensor's or an array's numbers as well
        ids = tuple(index(number) for number in contexts)
    except TypeError:
        ids = ()
    if ids and len(set(ids)) == len(ids):
        return ids
    raise ValueError(
        f"Trajectories(contexts={contexts!r}): a positive integer, or the ids of contexts, whole "
        "numbers that are all different, are needed"
    )
