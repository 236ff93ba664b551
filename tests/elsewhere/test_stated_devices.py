"""Every tensor that the library makes says where, whatever ``torch.set_default_device`` says."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import geomhooks as gh

MAKING = {
    "arange", "empty", "eye", "full", "linspace", "logspace", "ones", "rand", "randint", "randn",
    "randperm", "tensor", "tril_indices", "triu_indices", "zeros",
}  # fmt: skip
MODELS = "models"  # are where users make them


def calls_without_device(path: Path) -> Iterator[str]:
    """Places at which a tensor is made that is given no device."""
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Call(func=ast.Attribute(value=ast.Name(id="torch"), attr=name)) if (
                name in MAKING and all(k.arg not in ("device", None) for k in node.keywords)
            ):
                yield f"{path}:{node.lineno}: {ast.unparse(node)}"


def test_every_tensor_says_where_it_is_made() -> None:
    root = Path(gh.__file__).parent
    paths = [path for path in root.rglob("*.py") if MODELS not in path.relative_to(root).parts[:1]]
    assert len(paths) > 200
    assert not [place for path in paths for place in calls_without_device(path)]
