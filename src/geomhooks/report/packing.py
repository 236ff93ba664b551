"""Figures as they stand in a page, in little room; the page's script unpacks them."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np

__all__ = ["figure_json", "json_text"]

FEWEST = 1024  # entries of a matrix, from which it is packed
LARGEST = 32767
NOTHING = -32768  # for NaN


def figure_json(figure: dict[str, Any]) -> str:
    """A figure's data and layout as JSON.

    Symmetric matrices, such as those of cosines, are kept as one half of them, in sixteen bits, to
    three parts in 100,000 of the largest entry; names that several traces have are kept once.
    """
    first: dict[str, Any] = {}
    traces = []
    for trace in figure["data"]:
        packed = dict(trace)
        if "y" in trace and _same(trace.get("x"), trace["y"]):
            packed["y"] = {"as": "x"}
        if "x" in trace and _same(first.get("x"), trace["x"]) and _is_names(trace["x"]):
            packed["x"] = {"as": "first"}
        z = _matrix(trace.get("z"))
        if z is not None and z.size >= FEWEST and _symmetric(z):
            packed["z"] = _half(z)
        first = first or trace
        traces.append(packed)
    return json_text(figure | {"data": traces})


def json_text(value: Any) -> str:
    """JSON that can stand in a script element: no markup begins in it."""
    from plotly.utils import PlotlyJSONEncoder

    text = json.dumps(value, cls=PlotlyJSONEncoder, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _matrix(values: Any) -> np.ndarray | None:
    """A matrix as plotly has it in a dictionary; None where it is none."""
    if not isinstance(values, dict) or "," not in str(values.get("shape", "")):
        return None
    shape = tuple(int(number) for number in values["shape"].split(","))
    flat = np.frombuffer(base64.b64decode(values["bdata"]), dtype=values["dtype"])
    return flat.reshape(shape) if len(shape) == 2 else None


def _half(z: np.ndarray) -> dict[str, Any]:
    """The lower triangle, row by row, as integers of sixteen bits."""
    rows, columns = np.tril_indices(len(z))
    half = z[rows, columns].astype(np.float64)
    largest = float(np.nanmax(np.abs(half), initial=0.0)) or 1.0
    whole = np.where(np.isnan(half), NOTHING, np.rint(np.nan_to_num(half) / largest * LARGEST))
    data = base64.b64encode(whole.astype("<i2").tobytes()).decode()
    return {"half": data, "rows": len(z), "scale": largest / LARGEST}


def _symmetric(z: np.ndarray) -> bool:
    return z.shape[0] == z.shape[1] and bool(np.allclose(z, z.T, atol=1e-6, equal_nan=True))


def _same(one: Any, other: Any) -> bool:
    if not isinstance(one, list | tuple) or not isinstance(other, list | tuple):
        return False
    return list(one) == list(other)


def _is_names(values: Any) -> bool:
    return all(isinstance(value, str) for value in values)
