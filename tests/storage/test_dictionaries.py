"""Dictionaries in files, and what is said of files that hold none."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import geomhooks as gh
from geomhooks.errors import FileFormatError
from geomhooks.functional import initial_dictionary

GOOD = {"schema": 1, "kind": "dictionary", "penalty": 0.1, "relative": True, "notes": {}}


def write(path: Path, document: Any, **tensors: Tensor) -> Path:
    save_file(tensors, path, metadata={"geomhooks": json.dumps(document)})
    return path


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    dictionary, path = initial_dictionary(7, 4), tmp_path / "factors.safetensors"
    gh.save_dictionary(path, dictionary, penalty=0.25, relative=False, notes={"text": "Brown"})
    found = gh.load_dictionary(path)
    assert torch.equal(found.dictionary, dictionary)
    assert (found.penalty, found.relative, found.notes) == (0.25, False, {"text": "Brown"})
    coder = found.coder(iterations=50)
    assert (coder.penalty, coder.relative, coder.iterations) == (0.25, False, 50)
    hidden = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    expected = gh.functional.sparse_codes(hidden, dictionary, 0.25, iterations=50)
    torch.testing.assert_close(coder(hidden), expected)
    with pytest.raises(FileFormatError, match=r"holds a dictionary, not a geometry: read it with "
                       r"gh.load_dictionary"):  # fmt: skip
        gh.load(path)


def test_files_that_hold_no_dictionary(tmp_path: Path) -> None:
    path, unit = tmp_path / "file.safetensors", initial_dictionary(4, 3)
    zero, nan, long = unit.clone(), unit.clone(), unit.clone()
    zero[2], nan[1, 1], long[3] = 0.0, math.nan, 2 * unit[3]
    wrong: dict[str, tuple[Any, dict[str, Tensor]]] = {
        "one tensor 'dictionary' is needed, found none": (GOOD, {}),
        r"found \['dictionary', 'more'\]": (GOOD, {"dictionary": unit, "more": unit.clone()}),
        r"floating numbers \(F, d\) are needed, found torch.int64": (
            GOOD, {"dictionary": torch.eye(3, dtype=torch.int64)}),
        r"are needed, found torch.float32 \(3,\)": (GOOD, {"dictionary": unit[:, 0][:3].clone()}),
        r"are needed, found torch.float32 \(0, 3\)": (GOOD, {"dictionary": unit[:0].clone()}),
        "1 of 4 are not, the first of them row 2 with length 0;": (GOOD, {"dictionary": zero}),
        "the first of them row 1 with length nan;": (GOOD, {"dictionary": nan}),
        "the first of them row 3 with length 2;": (GOOD, {"dictionary": long}),
        "penalty: a number of at least 0 is needed, found -1": (
            GOOD | {"penalty": -1}, {"dictionary": unit}),
        "penalty: a number of at least 0 is needed, found 'x'": (
            GOOD | {"penalty": "x"}, {"dictionary": unit}),
        "relative: true or false is needed, found None": (
            {k: v for k, v in GOOD.items() if k != "relative"}, {"dictionary": unit}),
        r"notes: a JSON object is needed, found \[\]": (
            GOOD | {"notes": []}, {"dictionary": unit}),
        "has schema 2; this version reads 1": (GOOD | {"schema": 2}, {"dictionary": unit}),
        "holds a geometry, not a dictionary: read it with gh.load": (
            GOOD | {"kind": "geometry"}, {"dictionary": unit}),
        "its metadata are no JSON object": ([1], {"dictionary": unit}),
    }  # fmt: skip
    for message, (document, tensors) in wrong.items():
        with pytest.raises(FileFormatError, match=message):
            gh.load_dictionary(write(path, document, **tensors))
    save_file({"dictionary": unit}, path)
    with pytest.raises(FileFormatError, match="is a safetensors file, but not geomhooks'"):
        gh.load_dictionary(path)
    save_file({"dictionary": unit}, path, metadata={"geomhooks": "[" * 100_000})
    for load in (gh.load, gh.load_dictionary):
        with pytest.raises(FileFormatError, match="nested deeper than 64 times"):
            load(path)
    path.write_bytes(write(path, GOOD, dictionary=unit).read_bytes()[:-9])
    with pytest.raises(FileFormatError, match="is truncated, damaged, or no dictionary file"):
        gh.load_dictionary(path)
    with pytest.raises(FileNotFoundError, match="no such file"):
        gh.load_dictionary(tmp_path / "none")


def test_what_is_no_dictionary_is_not_saved(tmp_path: Path) -> None:
    path, unit = tmp_path / "file.safetensors", initial_dictionary(4, 3)
    told = {"penalty": 0.1, "relative": True}
    for message, dictionary, given in (
        (r"shape \(F, d\) is needed", unit[0], told),
        ("rows of length 1 are needed, and 4 of 4 are not", 2 * unit, told),
        (
            "penalty: a number of at least 0 is needed, found nan",
            unit,
            told | {"penalty": math.nan},
        ),
        (r"a tensor \(F, d\) is needed, found ndarray", unit.numpy(), told),
        (r"notes: a mapping is needed, found \[1\]", unit, told | {"notes": [1]}),
        ("relative: true or false is needed, found 1", unit, told | {"relative": 1}),
    ):
        with pytest.raises(ValueError, match=message):
            gh.save_dictionary(path, dictionary, **given)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())
