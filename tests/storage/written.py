"""Files as bytes, taken apart and put together without the library that they are written with."""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch

import geomhooks as gh
from geomhooks.storage.files import KEY
from tests.conformance.cases import autoencoder
from tests.conformance.harness import WIDTH
from tests.models import Stack
from tests.report import geometries

TYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "I64": np.int64,
    "I32": np.int32,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
NAMES = {np.dtype(kind): name for name, kind in TYPES.items()}


@dataclass
class Written:
    """A safetensors file: its JSON, its tensors, and what else its header says."""

    document: dict[str, Any]
    tensors: dict[str, np.ndarray]

    @classmethod
    def of(cls, data: bytes) -> Written:
        length = int.from_bytes(data[:8], "little")
        header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
        document = json.loads(header.pop("__metadata__")[KEY])
        del document["checksum"]  # what is changed is to be read for what it says
        tensors = {}
        for name, entry in header.items():
            first, last = entry["data_offsets"]
            array = np.frombuffer(body[first:last], TYPES[entry["dtype"]])
            tensors[name] = array.reshape(entry["shape"])
        return cls(document, tensors)

    def copy(self) -> Written:
        return replace(
            self, document=json.loads(json.dumps(self.document)), tensors={**self.tensors}
        )

    def rename(self, prefix: str, old: str, new: str) -> None:
        """Another text wherever this one stands; with "site/" or "stream/" also of its tensors."""

        def renamed(value: Any) -> Any:
            if isinstance(value, dict):
                return {renamed(key): renamed(part) for key, part in value.items()}
            if isinstance(value, list):
                return [renamed(part) for part in value]
            return new if value == old else value

        self.document = renamed(self.document)
        start = f"{prefix}{old}/"
        if prefix:
            self.tensors = {
                name.replace(start, f"{prefix}{new}/", 1) if name.startswith(start) else name: held
                for name, held in self.tensors.items()
            }

    def header(self) -> tuple[dict[str, Any], bytes]:
        """The header as JSON, and the bytes of the tensors."""
        header: dict[str, Any] = {"__metadata__": {KEY: json.dumps(self.document)}}
        body = b""
        for name, array in self.tensors.items():
            first, body = len(body), body + array.tobytes()
            header[name] = {
                "dtype": NAMES[array.dtype],
                "shape": list(array.shape),
                "data_offsets": [first, len(body)],
            }
        return header, body

    def checksum(self) -> str:
        """Of the tensors as they are."""
        body = b"".join(self.tensors[name].tobytes() for name in sorted(self.tensors))
        return f"{zlib.crc32(body):08x}"

    def bytes(self) -> bytes:
        header, body = self.header()
        return joined(json.dumps(header).encode(), body)


def joined(header: bytes, body: bytes, length: int | None = None) -> bytes:
    """A file of these; its first eight bytes may say another length of the header."""
    length = len(header) if length is None else length
    return (length % (1 << 64)).to_bytes(8, "little") + header + body


class Kind(NamedTuple):
    """A valid file, and how it is read."""

    name: str
    load: Any
    made: Any


@cache
def others() -> gh.Geometry:
    """The statistics, and the ways to make them, that the reports' geometries do not have."""
    statistics = [
        gh.PosCtx(contexts=4, positions=5, second_moment=True, open_contexts=3),
        gh.Covariance(fraction=0.5),
        gh.GroupMeans(2, names=("a", "b")),
        gh.Factors(
            encoder=autoencoder(), top=4, window=0, one_per_text=True, coactivation="counts"
        ),
        gh.Trajectories(contexts=[1, 3], tokens=4),
    ]
    generator = torch.Generator().manual_seed(0)
    model = Stack(WIDTH)
    ids = torch.arange(6)
    with (
        torch.no_grad(),
        gh.watch(model, statistics=statistics) as watch,
        watch.tokens(groups=ids % 2, contexts=ids),
    ):
        model(inputs_embeds=torch.randn(6, 5, WIDTH, generator=generator))
    return watch.geometry()


@cache
def learning() -> gh.Geometry:
    """A statistic of a whole model, and one that does not merge."""
    generator = torch.Generator().manual_seed(0)
    model = Stack(WIDTH)
    statistics = [gh.FactorLearning(5, 0.1, batch=4, iterations=20, vocabulary=9)]
    with torch.no_grad(), gh.watch(model, statistics=statistics) as watch:
        model(inputs_embeds=torch.randn(6, 5, WIDTH, generator=generator))
    return watch.geometry()


@cache
def history() -> gh.History:
    """Two steps, and the geometry of the second."""
    kept = gh.History(snapshots=2)
    generator = torch.Generator().manual_seed(0)
    model = Stack(4)
    statistics = [gh.PosCtx(positions=5), gh.Sphere()]
    with torch.no_grad(), gh.watch(model, sites="blocks.1", statistics=statistics) as watch:
        for step in (0, 10):
            model(inputs_embeds=torch.randn(6, 5, 4, generator=generator))
            kept.append(step, watch.geometry())
    return kept


@cache
def valid(name: str) -> Written:
    """A file that is as it should be."""
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        if name == "dictionary":
            gh.save_dictionary(path, torch.eye(4)[:3], penalty=0.1, relative=True)
        else:
            MADE[name]().save(path)
        written = Written.of(path.read_bytes())
        written.document["notes"] = {"settings": {"model": "folder/none"}, "words": ["a", 1.5]}
        return written


MADE: dict[str, Any] = {
    "everything": geometries.everything,
    "attention": geometries.attention,
    "leaders_and_factors": geometries.leaders_and_factors,
    "others": others,
    "learning": learning,
    "history": history,
}
