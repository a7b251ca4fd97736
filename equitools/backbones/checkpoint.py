"""An encoder out to `model.safetensors` and `config.json`, and in again."""

import json
import os
from pathlib import Path
from typing import Any

from equitools import backbones
from equitools.backbones.encoder import Encoder
from equitools.core.errors import DataError
from equitools.core.files import write_atomic
from equitools.manifest import Document, entry
from equitools.nn.serialization import load_tensors, save_tensors


def save_encoder(folder: Path, encoder: Any) -> Document:
    """Write `model.safetensors` and `config.json` of an encoder; returns the manifest's entry."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / "config.json", json.dumps(encoder.config(), indent=2) + "\n")
    path = folder / "model.safetensors"
    save_tensors(path, encoder.trunk.state_dict())
    return entry(path)


def load_encoder(where: str | Path, backbone: Document | None = None) -> Encoder:
    """An encoder from a folder, a safetensors file, or (a text without slashes) a timm name.

    backbone: what the weights are of, in a recipe's words, where no config.json beside them says
    it. A timm name gives random weights; nothing is downloaded. Raises DataError with a list of
    what is missing, unexpected or mis-shaped.
    """
    path = Path(where)
    weights = path / "model.safetensors" if path.is_dir() else path
    if not weights.exists():
        if path.is_dir():
            raise DataError(f"{path} holds no model.safetensors; name the file itself")
        if isinstance(where, Path) or os.sep in where or path.suffix == ".safetensors":
            raise DataError(f"no encoder at {where}: no such file")
        return backbones.create({"name": where})
    config = weights.with_name("config.json")
    if not config.exists() and backbone:
        plain = backbones.create({**backbone, "pretrained": False})
        return backbones.load(plain.config(), load_tensors(weights))
    if not config.exists():
        raise DataError(
            f"{weights} has no config.json beside it to say which backbone it is; add a layer that"
            ' does (resnet50, backbone.name=…), or write one: {"architecture": "resnet50"}'
        )
    try:
        described = json.loads(config.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise DataError(f"{config} is not JSON: {error}") from None
    return backbones.load(described, load_tensors(weights))
