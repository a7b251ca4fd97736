"""Checkpoints: the encoder alone under bare timm names, and one file from which a run resumes.

`model.safetensors` + `config.json` hold the encoder; `timm.create_model("local-dir:DIR",
pretrained=True)` loads them. `resume.safetensors` holds everything else that a run needs to go on.
Every file is written to a temporary name, synced, and renamed; nothing is pickled.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from equitools.core.errors import DataError, UsageError
from equitools.core.files import atomic

CURSOR = "cursor"


def save_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write tensors to a safetensors file, atomically; the metadata is exactly {format: pt}."""
    owned = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    with atomic(path) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode  # the library's own files are for their owner alone
        try:
            save_file(owned, temporary, metadata={"format": "pt"})
        except SafetensorError as error:  # the library hides the errno of a full disk here
            raise OSError(f"cannot write {path}: {error}") from error
        temporary.chmod(mode)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file; DataError when it is missing, cut short or not safetensors."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise DataError(f"no file {path}") from None
    except SafetensorError as error:
        raise DataError(f"{path} is not a whole safetensors file: {error}") from None


def pack(cursor: dict[str, Any], **states: dict[str, Tensor]) -> dict[str, Tensor]:
    """One flat mapping of tensors from named states, and a JSON cursor as bytes."""
    flat = {f"{part}/{name}": t for part, state in states.items() for name, t in state.items()}
    text = json.dumps(cursor).encode()
    flat[CURSOR] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    return flat


def unpack(flat: dict[str, Tensor]) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]]:
    """The inverse of `pack`: the cursor, and the states by name."""
    if CURSOR not in flat:
        raise DataError("the resume file has no cursor; it was not written by equi-pretrain")
    cursor = json.loads(bytes(flat.pop(CURSOR).tolist()))
    states: dict[str, dict[str, Tensor]] = {}
    for key, tensor in flat.items():
        part, name = key.split("/", 1)
        states.setdefault(part, {})[name] = tensor
    return cursor, states


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimizer's moments as tensors named `index.moment`, in the order of its parameters."""
    tensors = {}
    for index, parameter in enumerate(_parameters(optimizer)):
        for name, value in optimizer.state.get(parameter, {}).items():
            if value is not None:
                tensors[f"{index}.{name}"] = torch.as_tensor(value)
    return tensors


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put moments back; UsageError when they belong to other parameters."""
    parameters = _parameters(optimizer)
    fused = any(group.get("fused") for group in optimizer.param_groups)
    for key, tensor in tensors.items():
        index, name = key.split(".", 1)
        if int(index) >= len(parameters):
            raise UsageError("the saved optimizer has more parameters than this recipe's")
        parameter = parameters[int(index)]
        # Moments lie in memory as their parameter does; step counters on the CPU unless fused.
        like = tensor.to(parameter.device) if fused else tensor
        like = parameter if tensor.ndim else like
        optimizer.state[parameter][name] = torch.empty_like(like, dtype=tensor.dtype).copy_(tensor)


def _parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
