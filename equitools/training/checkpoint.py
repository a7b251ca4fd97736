"""The state of a run as tensors: saved whole in one atomic file, put back bit for bit.

Random numbers are not part of it: every step seeds the generator from (seed, step, rank), so a
step does the same whatever happened before it.
"""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from equitools import augment, manifest
from equitools.backbones import Encoder, checkpoint
from equitools.core import devices, distributed
from equitools.core.errors import DataError, UsageError
from equitools.nn import serialization
from equitools.training.learner import Learner

RESUME = "resume.safetensors"


def save(
    folder: Path,
    cursor: dict[str, Any],
    learner: nn.Module,
    target: nn.Module | None,
    optimizer: torch.optim.Optimizer,
) -> None:
    """Write `resume.safetensors`: learner, target network, moments and the cursor."""
    states = {
        "learner": learner.state_dict(),
        "target": target.state_dict() if target is not None else {},
        "optimizer": serialization.optimizer_tensors(optimizer),
    }
    serialization.save_tensors(folder / RESUME, serialization.pack(cursor, **states))


def restore(
    folder: Path, identity: str, learner: nn.Module, target: nn.Module | None
) -> tuple[dict[str, Any], dict[str, torch.Tensor]] | None:
    """Put the last saved state into the modules; returns (cursor, moments), or None if none is.

    Raises UsageError when the folder holds another run, DataError when the state does not fit.
    """
    path = folder / RESUME
    if not path.exists():
        return None
    cursor, states = serialization.unpack(serialization.load_tensors(path))
    if cursor["identity"] != identity:
        raise UsageError(
            f"{folder} holds another run ({cursor['identity'][:12]}, not {identity[:12]}): recipe,"
            " data or version of equitools differ; choose another folder with -o, or remove it"
        )
    try:
        learner.load_state_dict(states["learner"])
        if target is not None:
            target.load_state_dict(states["target"])
    except RuntimeError as error:
        raise DataError(f"{path} does not fit this recipe: {error}") from None
    return cursor, states.get("optimizer", {})


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed torch for one step of one rank (drop path is all that draws from it)."""
    torch.manual_seed(((seed * 1_000_003 + step) * 65_537 + rank) % 2**63)


def heads(learner: nn.Module) -> dict[str, torch.Tensor]:
    """Every tensor of the terms (heads, target heads, centers), for `heads.safetensors`."""
    state = learner.state_dict()
    return {name: tensor for name, tensor in state.items() if not name.startswith("encoder.")}


def exported(
    settings: dict[str, Any], model: Learner, target: Encoder | None
) -> tuple[str, Encoder]:
    """Which encoder the checkpoint holds: the recipe's choice, else the objective's."""
    choice = settings["export"] or model.objective.exports
    if choice == "slow" and target is None:
        name = settings["objective"]["name"]
        raise UsageError(f"export=slow, but {name} keeps no target network; say export=online")
    return choice, target if choice == "slow" and target is not None else model.encoder


def write_outputs(
    settings: dict[str, Any], model: Learner, target: Encoder | None, out: Path
) -> dict[str, Any]:
    """Write the encoder and the heads; returns the manifest's entries by name."""
    _, encoder = exported(settings, model, target)
    files = {"encoder": checkpoint.save_encoder(out, encoder)}
    serialization.save_tensors(out / "heads.safetensors", heads(model))
    files["heads"] = manifest.entry(out / "heads.safetensors")
    files["metrics"] = manifest.entry(out / "metrics.jsonl")
    return files


def platform(settings: dict[str, Any]) -> dict[str, Any]:
    """Where the run ran: versions, device and processes, for the history."""
    return {
        **devices.platform(settings["device"]),
        "processes": distributed.world_size(),
        "threads": torch.get_num_threads(),
        "precision": settings["precision"],
        "augmentation": augment.engine(settings["device"]),
    }
