"""Which device `auto` means here, and what a record says of device and versions."""

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


def pick_precision(precision: str, device: str) -> str:
    """What `auto` means on a device: bf16 on a GPU that computes in it, else fp32."""
    if precision == "auto":
        return "bf16" if device != "cpu" and torch.cuda.is_bf16_supported() else "fp32"
    return precision


def platform(device: str) -> dict[str, str]:
    """The device and the versions that a number depends on."""
    name = torch.cuda.get_device_name() if device.startswith("cuda") else device
    packages = {package: version(package) for package in ("torchvision", "timm")}
    return {"device": name, "torch": str(torch.__version__)} | packages  # with its CUDA build
