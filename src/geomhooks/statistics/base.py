"""What a statistic is: accumulators, one update, one computation; no modules, no hooks."""

from __future__ import annotations

import inspect
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from geomhooks.accumulators import Accumulator
from geomhooks.forwards.token_stream import TokenStream
from geomhooks.forwards.tokens import Tokens

if TYPE_CHECKING:
    from geomhooks.accumulators.second_moment import SecondMoment
    from geomhooks.accumulators.two_way import TwoWay
    from geomhooks.anatomy.additions import Addition
    from geomhooks.anatomy.families import Stack
    from geomhooks.anatomy.parts import BlockParts
    from geomhooks.functional.attention.query_key import QueryKey
    from geomhooks.functional.sphere.logit_lens import LogitLens
    from geomhooks.reductions import Reduced

__all__ = ["LAWS", "Reading", "Site", "Statistic"]

LAWS = frozenset(
    {
        "reference",  # streamed == dense float64 reference
        "batching",  # any batching == one batch
        "merge",  # merge of shards == one stream
        "order",  # any order of batches
        "resume",  # save, load, go on == uninterrupted
        "mask",  # masked entries may hold NaN without effect
        "padding",  # left padding == right padding == none, given the same position_ids
        "packing",  # packed == padded
        "generation",  # generation with a KV cache == one full forward
    }
)


@dataclass(frozen=True)
class Site:
    """A place in a model where a statistic is taken; all that a statistic may know of it.

    Attributes:
        name: canonical module name, with ``@in`` for an input.
        width: d.
        positions: capacity T of its token stream.
        kind: "block", "norm", "attention", "mlp", "embeddings" or "other".
        has_input: a hidden state of the same shape comes in, so that there is a tap "in".
        stack: name of the stack of blocks that it belongs to, or "".
        first: the first block of its stack, or the input of it.
        last: the last block of its stack.
        whole_stack: all blocks of its stack are watched.
        norm_eps: epsilon of a norm module, else None.
        norm_centred: the norm module subtracts the mean of the entries.
        heads: query heads of the block's attention, where a statistic reads it, else 0.
        source: of such a block, the site where the hidden states that come in are watched.
        sublayers: of a block, where a statistic uses its additions, the names of its sublayers in
            order, and how many heads each has, 0 for none.
        depth: where a statistic uses the stack, how many of its blocks have run, this one included.
        reads_source: of such a stack, its blocks have attention to another one.
        vocabulary: of such a stack, how many tokens its embeddings have rows for, 0 if none.
    """

    name: str
    width: int
    positions: int
    kind: str = "other"
    has_input: bool = False
    stack: str = ""
    first: bool = False
    last: bool = False
    whole_stack: bool = False
    norm_eps: float | None = None
    norm_centred: bool = False
    heads: int = 0
    source: str = ""
    sublayers: Mapping[str, int] = field(default_factory=dict)
    depth: int = 0
    reads_source: bool = False
    vocabulary: int = 0


@dataclass(slots=True)
class Reading:
    """One forward at one site, as a statistic sees it.

    Attributes:
        site: where.
        taps: the tensors by name, (B, T, d): "out", and "in" where there is one; at norm modules
            also "gain" and "bias" (d,). At a norm of the k entries of each head they are
            (H B, T, k), a row for each head, and so are the tokens.
        tokens: which entries are real, their positions and contexts.
        reductions: the shared reductions that statistics asked for in ``needs``.
        shift: (d,) the site's fixed shift, about which some reductions are taken.
        plans: what each shared accumulator of the stream said of this forward.
        carry: this statistic's scratch for this forward; dropped at its end or on an exception.
        query_key: what makes the attention's logits of the tap "in", at blocks where a statistic
            ``uses`` it, else None.
        lens: what makes the head's logits of the tap "out", where a statistic ``uses`` it, else
            None.
        head: from states (..., d) after the final norm to the model's logits (..., V), the same.
        additions: what each sublayer of a block adds to the tap "in", in order, where a statistic
            ``uses`` it, else empty; with these, or with "query_key",
        block: the parts of that block.
        stack: the stack that the site is in, where a statistic ``uses`` it, else None.
    """

    site: Site
    taps: dict[str, Tensor]
    tokens: Tokens
    reductions: Reduced
    shift: Tensor
    plans: dict[str, Any]
    carry: dict[Any, Any]
    query_key: QueryKey | None = None
    lens: LogitLens | None = None
    head: Callable[[Tensor], Tensor] | None = None
    additions: tuple[Addition, ...] = ()
    block: BlockParts | None = None
    stack: Stack | None = None


class Statistic(ABC):
    """Mathematics of one statistic, streamed.

    A subclass says which tensors it reads (``taps``, and ``optional_taps`` that not every site
    has), which shared reductions it ``needs``, for what one state is kept (``scope``: "site",
    "stream" for all sites of one token stream, or "model"), and which of the laws
    (:data:`geomhooks.statistics.LAWS`) it obeys: by default all, which you can have tested by the
    conformance suite. Its state is a dictionary of accumulators (``gh.Sum``, ``Min``, ``Max``,
    ``Moments``, ``Table``); batches, shards, ranks, files and windows are theirs to handle.

    ``accumulators`` is given the :class:`geomhooks.statistics.Site`: ``name``, ``width`` d,
    ``positions`` T, ``kind``. For the scopes "stream" and "model" it is asked once, with the first
    site that runs, and ``update`` still runs at every site, on the one state. ``update`` is given a
    :class:`geomhooks.statistics.Reading`:

    - ``reading.taps``: "out" and, where there is one, "in": the (B, T, d) hidden states. They are
      the model's own tensors: read them, never write to them.
    - ``reading.tokens``: ``real`` (B, T), the tokens that count; ``positions`` (B, T); ``at``, the
      rows of an accumulator with a row for each position; ``keys`` (M,), the forward's contexts;
      ``ids`` and ``labels`` (B, T) of the tokens, or None.
    - ``reading.reductions``: what ``needs`` names, of "squared_norm", "ones", "norm", "radius",
      "shifted_squared_norm", "position_sum", "context_sum", "directions", "step" ("radial",
      "tangential", "outward"), "shifted"; each is described at
      :class:`geomhooks.reductions.Reduced`.
    - ``reading.carry``: a dictionary for what one site leaves to the next in the same forward.

    And of models that :mod:`geomhooks.anatomy` knows, what it says in ``uses``:

    - "query_key", at blocks: ``reading.query_key``, the weights of the block's attention, with
      which its queries and keys can be made. ``reading.block`` has the block's parts.
    - "logit_lens", where the model says of what stack of blocks a site is: ``reading.lens``, the
      final norm and the head, or the embeddings of a model without one.
    - "head", at the same sites: ``reading.head``, what makes logits of states after the final norm,
      also where that is more than a projection.
    - "additions", at blocks: ``reading.additions``, a :class:`geomhooks.anatomy.Addition` of each
      sublayer that ran: what it adds, and to what. In training that is before dropout. With "heads"
      also what the heads mix, before their projection. ``reading.block``, as well.
    - "stack", at the input of the first block of a stack and at all its blocks: ``reading.stack``,
      what is around them; and where a norm of embeddings comes before the first block, at its input
      the tap "embedded", what went into that norm.

    Sums of products x x^T of the states are had by :meth:`second_moment_target`, and a statistic
    that looks at some forwards only says at which by :meth:`takes`.

    Example:
        >>> import torch, geomhooks as gh
        >>> class LargestEntry(gh.Statistic):
        ...     '''Largest |h_i| at each position, shape (T,).'''
        ...
        ...     def accumulators(self, site):
        ...         return {"largest": gh.Max((site.positions,))}
        ...
        ...     def update(self, state, reading):
        ...         entry = reading.taps["out"].abs().amax(-1)
        ...         state["largest"].add(entry, at=reading.tokens.at, where=reading.tokens.real)
        ...
        ...     def compute(self, state):
        ...         return {"largest": state["largest"].value}
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
        >>> with gh.watch(model, statistics=[LargestEntry()], positions=3) as watch:
        ...     _ = model(torch.ones(1, 3, 2))
        >>> watch.geometry()["0@in"].largest_entry.largest
        tensor([1., 1., 1.], dtype=torch.float64)
    """

    taps: ClassVar[tuple[str, ...]] = ("out",)
    optional_taps: ClassVar[tuple[str, ...]] = ()
    needs: ClassVar[tuple[str, ...]] = ()
    scope: ClassVar[str] = "site"
    follows_blocks: ClassVar[bool] = False  # it carries states through a whole stack of blocks
    laws: frozenset[str] = LAWS
    name: ClassVar[str] = ""
    uses: tuple[str, ...] = ()
    positions: int | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if not cls.__dict__.get("name"):
            cls.name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", cls.__name__).lower()

    @property
    def parameters(self) -> dict[str, Any]:
        """The constructor's arguments, by which two states are known to be alike."""
        names = inspect.signature(type(self)).parameters
        return {name: getattr(self, name) for name in names if hasattr(self, name)}

    def needs_at(self, site: Site) -> tuple[str, ...]:
        """The shared reductions it needs at one site; ``needs`` unless overridden."""
        return self.needs

    def two_way(self, state: Mapping[str, Any]) -> TwoWay | None:
        """The sums by position and context that are all there is to :meth:`update`, if so.

        The pass over a site's hidden states may then add to them straight: its sums by position,
        which it does not hand out then (``reading.reductions.position_sum`` is None), or all that
        there is, and then ``update`` is not called.
        """
        return None

    def only_notes(self, site: Site) -> bool:
        """Whether :meth:`update` at a site does no more than :meth:`note` with the reductions.

        Then ``note`` may be called in its place, which saves making the reading.
        """
        return False

    def note(
        self,
        state: Mapping[str, Any],
        site: Site,
        tokens: Tokens,
        reductions: Reduced,
        shift: Tensor,
        carry: dict[Any, Any],
    ) -> None:
        """Put reductions down in the carry, for :meth:`finish`; no tensor is worked on here."""
        raise NotImplementedError

    def takes(self, plans: Mapping[str, Any]) -> bool:
        """Whether it looks at a forward at all; where not, ``update`` is not called.

        Decided on the host, from what the stream's shared accumulators said of the forward. True,
        unless overridden.
        """
        return True

    @property
    def has_products(self) -> bool:
        """Whether :meth:`second_moment_target` is worth asking."""
        return type(self).second_moment_target is not Statistic.second_moment_target

    def second_moment_target(
        self, state: Mapping[str, Any], plans: Mapping[str, Any]
    ) -> SecondMoment | None:
        """An accumulator of the state that sums of products x x^T are added to, or None.

        One matrix product serves all statistics of the site; it is added before ``update``. None
        unless overridden, which may also decide for each forward, as :meth:`takes` does.
        """
        return None

    def shared(self, stream: TokenStream) -> dict[str, Accumulator]:
        """Accumulators over tokens alone, kept once per stream; ``observe(tokens)`` feeds them."""
        return {}

    @abstractmethod
    def accumulators(self, site: Site) -> dict[str, Accumulator]:
        """The state at one site, not yet allocated."""

    @abstractmethod
    def update(self, state: Mapping[str, Any], reading: Reading) -> None:
        """Add one forward: on the device, without a branch on data or a growing allocation."""

    def finish(self, carry: dict[Any, Any]) -> None:  # noqa: B027 - most leave nothing
        """Take up what ``update`` left in ``reading.carry``, when the forward has ended well.

        For work on small tensors, which costs less once for all sites than at every site.
        """

    @abstractmethod
    def compute(self, state: Mapping[str, Any]) -> Mapping[str, Any]:
        """Turn a finished state into named results.

        ``state`` also holds the stream's shared accumulators, and "site" and "shift".
        """
