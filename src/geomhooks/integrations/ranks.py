"""Which processes train together, and where they meet to take their numbers.

To merge the states of all ranks is a collective: were one rank not there, the others would wait, or
take the next collective of the training for this one. So they meet first, at the key-value store of
``torch.distributed``, which no other collective uses, and for a limited time.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from geomhooks.distributed import Failure
from geomhooks.errors import WatchError

__all__ = ["Ranks"]

SECONDS = 600.0  # that ranks wait for each other
SAME_TEXT = ("tp", "tensor_parallel")
OTHER_TEXT = ("dp_replicate", "dp_shard", "data_parallel", "cp", "sp")
_meetings = itertools.count()  # all ranks are at the same places in the same order


class Ranks:
    """The processes whose numbers are taken together.

    Args:
        group: a process group, by default all processes.
        alone: this process is by itself, whatever others there are.
    """

    def __init__(self, group: Any = None, *, alone: bool = False) -> None:
        self.group = group
        self._alone = alone

    @classmethod
    def of_mesh(cls, mesh: Any) -> Ranks:
        """Of a mesh's processes those that read other tokens than this one.

        Those along a tensor parallel dimension read the same texts, and only one of them may count.
        Those along a context or sequence parallel one each have a piece of every text, and count it
        as a context of its own.

        Args:
            mesh: a ``DeviceMesh`` as Accelerate or Lightning makes it, or anything else for none.

        Raises:
            WatchError: there is no process group of just these.
        """
        names = getattr(mesh, "mesh_dim_names", None) or ()
        sizes = {name: mesh[name].size() for name in names}
        if all(sizes.get(name, 1) == 1 for name in SAME_TEXT):
            return cls()
        apart = [name for name in OTHER_TEXT if sizes.get(name, 1) > 1]
        if not apart:
            return cls(alone=True)
        # Under these names Accelerate joins several dimensions.
        joined = apart[0] if len(apart) == 1 else "dp_cp" if "cp" in apart else "dp"
        try:
            return cls(mesh[joined].get_group())
        except (KeyError, RuntimeError) as error:
            raise WatchError(
                f"there is no process group over {' and '.join(apart)} of the mesh "
                f"{tuple(names)}, whose other dimensions have the same tokens; watch the model by "
                "hand, and give such a group: watch.geometry(sync=True, group=...)"
            ) from error

    @property
    def several(self) -> bool:
        """There are other processes to take together with this one."""
        if self._alone or not (dist.is_available() and dist.is_initialized()):
            return False
        return dist.get_world_size(self.group) > 1

    def meet(self, place: str, failure: Failure | None = None) -> None:
        """Wait until all ranks are at a place.

        Args:
            place: words for it, the same on all ranks.
            failure: what has gone wrong on this rank, to be raised on all.

        Raises:
            WatchError: some did not come in time.
            GeomhooksError: what went wrong on another rank.
        """
        size, rank = dist.get_world_size(self.group), dist.get_rank()
        first = dist.get_process_group_ranks(self.group)[0] if self.group is not None else 0
        point = f"geomhooks/{first}/{next(_meetings)}/{place}"
        keys = [f"{point}/{key}" for key in ("here", "all", "failed", "gone")]
        here, everyone, failed, gone = keys
        store = dist.distributed_c10d._get_default_store()
        if failure is not None:
            store.set(failed, json.dumps(vars(failure)))
        if store.add(here, 1) == size:
            store.set(everyone, "")
        try:
            store.wait([everyone], timedelta(seconds=SECONDS))
        except dist.DistStoreError as error:
            raise WatchError(
                f"rank {rank} waited {SECONDS:.0f} s at {place}, where {store.add(here, 0)} of "
                f"{size} ranks came. GeometryCallback takes all ranks together: give it to the "
                "Trainer on every rank, with the same arguments, and train, log and evaluate on "
                "every rank"
            ) from error
        other = json.loads(store.get(failed)) if store.check([failed]) else None
        if store.add(gone, 1) == size:
            for key in keys:
                store.delete_key(key)
        if other is not None and failure is None:
            raise Failure(**other).raised()

    @contextmanager
    def together(self, place: str) -> Iterator[None]:
        """Do something that may fail on some ranks; all get past it, or none.

        Raises:
            WatchError, GeomhooksError: as :meth:`meet`.
        """
        try:
            yield
        except Exception as error:
            if self.several:
                text = str(error) or repr(error)
                self.meet(place, Failure(dist.get_rank(), type(error).__name__, text))
            raise
        if self.several:
            self.meet(place)
