"""The ways to do the job that hand out all hidden states first: tools, an option, and a dump."""

from __future__ import annotations

import math
import tempfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from job import Numbers, Sums
from rivals import (
    PLAIN,
    Base,
    Geomhooks,
    NaiveFloat32,
    NaiveFloat64,
    Peer,
    TrimmedHooks,
    tensor_of,
)
from subjects import LENGTH
from torch import Tensor, nn

__all__ = ["PEERS"]


class Collector(Base):
    """Gathers all hidden states of a forward; the numbers are taken after it, in float32."""

    def set_up(self) -> None:
        """Begin the sums."""
        self.sums = Sums(self.sites, torch.float32)
        self.take = self.clock.timing(self.sums.add_all)

    def numbers(self) -> Numbers:
        """Divide."""
        return self.sums.numbers()


class OutputHiddenStates(Collector):
    """Transformers' own option; the last state that it gives is after the final norm."""

    name = "output_hidden_states"

    def set_up(self) -> None:
        """Have the last block's output by a hook, since the option does not show it."""
        super().set_up()
        self.last: list[Tensor] = []
        self.blocks[-1].register_forward_hook(
            lambda _, __, output: self.last.append(tensor_of(output))
        )

    def forward(self, ids: Tensor) -> None:
        """Run it with the option."""
        out = self.model(input_ids=ids, output_hidden_states=True, **PLAIN)
        self.take([*out.hidden_states[:-1], self.last.pop()])


class TransformerLens(Collector):
    """Its bridge around the model, and run_with_cache for the residual stream."""

    name = "TransformerLens"

    @staticmethod
    def prepare(model: nn.Module) -> None:
        """Import it."""
        import transformer_lens.model_bridge  # noqa: F401

    def set_up(self) -> None:
        """Wrap the model."""
        super().set_up()
        from transformer_lens.model_bridge import TransformerBridge

        self.bridge = TransformerBridge.boot_transformers(
            str(self.folder), hf_model=self.model, device="cpu"
        ).eval()
        self.names = ["blocks.0.hook_in"]
        self.names += [f"blocks.{i}.hook_out" for i in range(len(self.blocks))]

    def forward(self, ids: Tensor) -> None:
        """Run the bridge."""
        _, cache = self.bridge.run_with_cache(
            ids, names_filter=self.names, return_cache_object=False, **PLAIN
        )
        self.take([cache[name] for name in self.names])


class NNsight(Collector):
    """A trace that saves every block's output."""

    name = "nnsight"

    @staticmethod
    def prepare(model: nn.Module) -> None:
        """Import it."""
        import nnsight  # noqa: F401

    def set_up(self) -> None:
        """Wrap the model."""
        super().set_up()
        from nnsight import NNsight

        self.wrapped = NNsight(self.model)
        self.layers = self.wrapped.get(self.path)

    def forward(self, ids: Tensor) -> None:
        """Trace."""
        with self.wrapped.trace(input_ids=ids, **PLAIN):
            first = self.layers[0].input.save()
            found = [layer.output.save() for layer in self.layers].save()
        self.take([first, *map(tensor_of, found)])


class Trace(OrderedDict[str, Tensor]):
    """Hooks that retain the outputs of modules by name, as baukit's TraceDict does."""

    def __init__(self, model: nn.Module, names: list[str], first: str) -> None:
        super().__init__()
        self.handles = [
            model.get_submodule(name).register_forward_hook(
                lambda _, __, output, name=name: self.__setitem__(name, tensor_of(output))
            )
            for name in names
        ]
        self.handles.append(
            model.get_submodule(first).register_forward_pre_hook(
                lambda _, args: self.__setitem__("", args[0])
            )
        )

    def __enter__(self) -> Trace:
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()


class Baukit(Collector):
    """The outputs of all blocks retained; baukit itself is in no package registry."""

    name = "baukit-style tracing"

    def forward(self, ids: Tensor) -> None:
        """Trace, and look at what was retained."""
        names = [f"{self.path}.{index}" for index in range(len(self.blocks))]
        with Trace(self.model, names, names[0]) as trace:
            super().forward(ids)
        self.take([trace[""], *(trace[name] for name in names)])


class Dump(Base):
    """Every hidden state to a file for each site, and the numbers from the files in the end."""

    name = "full dump"

    def set_up(self) -> None:
        """Choose where the files go, in a folder that its owner removes."""
        self.seen = 0
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        self.files = [folder / f"{site}.f32" for site in range(self.sites)]
        self.hook_sites(self.write)

    def write(self, site: int, h: Tensor, y: Tensor | None) -> None:
        """Append a hidden state."""
        with self.files[site].open("ab") as file:
            h.numpy().tofile(file)

    def forward(self, ids: Tensor) -> None:
        """Run the model, and count its contexts."""
        super().forward(ids)
        self.seen += len(ids)

    def numbers(self) -> Numbers:
        """Read eight contexts of all sites at a time."""
        sums, width = Sums(self.sites, torch.float32), self.model.config.hidden_size
        for first in range(0, self.seen, 8):
            shape = min(8, self.seen - first), LENGTH, width
            where = {"count": math.prod(shape), "offset": first * LENGTH * width * 4}
            read = (np.fromfile(file, np.float32, **where) for file in self.files)
            sums.add_all([torch.from_numpy(one).view(shape) for one in read])
        return sums.numbers()


PEERS: dict[str, type[Peer]] = {
    peer.name: peer
    for peer in (
        Geomhooks,
        TrimmedHooks,
        NaiveFloat32,
        NaiveFloat64,
        OutputHiddenStates,
        Baukit,
        NNsight,
        TransformerLens,
        Dump,
    )
}
