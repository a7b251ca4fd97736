"""Which encoder is asked about: the document's own, a file, a timm model, or a reference.

Two references belong beside every trained encoder: the same net with random weights, and the raw
pixels themselves.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from equitools import backbones, manifest
from equitools.backbones import checkpoint
from equitools.backbones.encoder import Encoder
from equitools.core.errors import DataError, UsageError
from equitools.core.records import Features

IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


class Pixels(nn.Module):
    """The picture itself as features: b 3 h w → b 3·h·w, averaged down to `size` if larger."""

    depth, split, is_vit = 1, None, False

    def __init__(self, size: int = 32) -> None:
        super().__init__()
        self.size, self.dim = size, 3 * size * size

    def forward(self, image: Tensor) -> Features:
        return Features(adaptive_avg_pool2d(image, self.size).flatten(1))

    def config(self) -> dict[str, Any]:
        """What a config.json would say, as encoders do."""
        picture = {"input_size": [3, self.size, self.size], "crop_pct": 1.0, **IMAGENET}
        return {"architecture": "pixels", "num_features": self.dim, "pretrained_cfg": picture}


def folder(document: dict[str, Any], wanted: str | None, name: str) -> Path:
    """Where scores go: beside the document's own encoder if that is still there, else runs/."""
    entry = document.get("files", {}).get("encoder")
    if wanted is None and entry and (home := Path(entry["path"]).parent).is_dir():
        return home / name
    return Path("runs") / name


def features_folder(document: dict[str, Any], wanted: str | None, out: Path) -> Path:
    """Where features are kept (featurecache): `features/` beside the weights, so that every
    evaluation of them finds it; beside the output where they have no file, or lie in a folder
    that cannot be written."""
    weights = Path(wanted) if wanted is not None and _is_path(wanted) else None
    if wanted is None:
        weights = manifest.locate(document["files"]["encoder"], "encoder")
    home = weights if weights is None or weights.is_dir() else weights.parent
    if home is None or not os.access(home, os.W_OK | os.X_OK):
        home = out.parent
    return home / "features"


def _is_path(wanted: str) -> bool:
    return wanted.endswith(".safetensors") or "/" in wanted or Path(wanted).exists()


def find(
    document: dict[str, Any], wanted: str | None, *, seed: int = 0, pretrained: bool = False
) -> tuple[Encoder, str]:
    """The encoder and its name for people.

    wanted: None is the document's `files.encoder`, whose digest is checked; `pixels`; `random`
    (the recipe's backbone) or `random:NAME` with weights drawn from `seed`; a folder or safetensors
    file; else a timm name, random too unless `pretrained` allows a download. Raises DataError when
    there is no such encoder or its weights do not fit it.
    """
    if wanted is None:
        return _from_document(document)
    if wanted == "pixels":
        return cast(Encoder, Pixels()), "raw pixels"  # it answers as one
    if wanted == "random" or wanted.startswith("random:"):
        return _random(document, wanted.removeprefix("random").removeprefix(":"), seed)
    if _is_path(wanted):
        return checkpoint.load_encoder(Path(wanted), _backbone(document)), wanted
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = backbones.create({"name": wanted, "pretrained": pretrained})
    return encoder, wanted if pretrained else f"{wanted} with random weights, seed {seed}"


def reading(document: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """Which encoder is looked into and how pictures are shown to it: as the settings say, else as
    the document's probe did, else the document's own encoder."""
    probe = document.get("probe") or {}
    keys = ("encoder", "encoder_seed", "pretrained", "size", "crop_pct", "interpolation")
    mine = {key: settings[key] for key in keys}
    if settings["encoder"] is None:
        mine |= {key: probe.get(key, mine[key]) for key in ("encoder_seed", "pretrained")}
    if settings["encoder"] is None and probe:
        mine |= {key: probe.get(key) for key in keys if mine[key] is None}
    return {**mine, "interpolation": mine["interpolation"] or "bicubic"}


def untrained(encoder: Encoder, seed: int) -> Encoder:
    """The same network with random weights drawn from a seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return backbones.create({**encoder.settings, "pretrained": False})


def _from_document(document: dict[str, Any]) -> tuple[Encoder, str]:
    entry = document.get("files", {}).get("encoder")
    if entry is None:
        raise DataError(
            "the document has no files.encoder; pipe in what equi-pretrain prints, or say"
            " encoder=PATH, a timm name, random or pixels"
        )
    path = manifest.verify(entry, "encoder")
    described = _backbone(document)
    name = f"{described.get('name', 'encoder')} {entry.get('digest', '')[:19]}".strip()
    # In a store of files named by digest no config.json is beside it; the recipe says the same.
    return checkpoint.load_encoder(path, described), name


def _backbone(document: dict[str, Any]) -> dict[str, Any]:
    """What the recipe says of the backbone; {} where there is none."""
    return dict((document.get("recipe") or {}).get("backbone") or {})


def _random(document: dict[str, Any], name: str, seed: int) -> tuple[Encoder, str]:
    described = _backbone(document)
    if name and name != described.get("name"):
        described = {"name": name}
    if not described:
        raise UsageError(
            "encoder=random needs a recipe with a backbone, or say encoder=random:NAME"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = backbones.create({**described, "pretrained": False})
    return encoder, f"{described['name']} with random weights, seed {seed}"


def fingerprint(encoder: Encoder) -> str:
    """sha256 of an encoder's configuration and of every tensor of its state."""
    digest = hashlib.sha256(json.dumps(encoder.config(), sort_keys=True, default=str).encode())
    for name, value in sorted(encoder.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return f"sha256:{digest.hexdigest()}"


def freeze(encoder: Encoder, device: str | torch.device) -> None:
    """Evaluation mode (buffers stay as they are), no gradients, on the device."""
    encoder.eval().requires_grad_(False).to(device)
