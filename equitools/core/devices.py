"""Which device `auto` means here, and what a record says of device and versions."""

from __future__ import annotations

from importlib.metadata import version

import torch

from equitools.core.errors import UsageError


def pick_device(device: str) -> str:
    """What `auto` means here; UsageError for a GPU that is not there."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UsageError(f"device={device}, but torch sees no GPU here; say device=cpu")
    return device


def platform(device: str) -> dict[str, str]:
    """The device and the versions that a number depends on."""
    name = torch.cuda.get_device_name() if device.startswith("cuda") else device
    found = {package: version(package) for package in ("torch", "torchvision", "timm")}
    return {"device": name, **found}
