"""The state of a run as tensors: saved whole in one atomic file, put back bit for bit.

Random numbers are not part of it: every step seeds the generator from (seed, step, rank), so a
step does the same whatever happened before it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from equitools import checkpoint
from equitools.errors import DataError, UsageError

RESUME = "resume.safetensors"


def save(
    folder: Path,
    cursor: dict[str, Any],
    learner: nn.Module,
    slow: nn.Module | None,
    optimizer: torch.optim.Optimizer,
) -> None:
    """Write `resume.safetensors`: learner, slow encoder, moments and the cursor."""
    states = {
        "learner": learner.state_dict(),
        "slow": slow.state_dict() if slow is not None else {},
        "optimizer": checkpoint.optimizer_tensors(optimizer),
    }
    checkpoint.save_tensors(folder / RESUME, checkpoint.pack(cursor, **states))


def restore(
    folder: Path,
    identity: str,
    learner: nn.Module,
    slow: nn.Module | None,
) -> tuple[dict[str, Any], dict[str, torch.Tensor]] | None:
    """Put the last saved state into the modules; returns (cursor, moments), or None if none is.

    Raises UsageError when the folder holds another run, DataError when the state does not fit.
    """
    path = folder / RESUME
    if not path.exists():
        return None
    cursor, states = checkpoint.unpack(checkpoint.load_tensors(path))
    if cursor["identity"] != identity:
        raise UsageError(
            f"{folder} holds another run ({cursor['identity'][:12]}, not {identity[:12]}): its"
            " recipe or data differ; choose another folder with -o, or remove it"
        )
    try:
        learner.load_state_dict(states["learner"])
        if slow is not None:
            slow.load_state_dict(states["slow"])
    except RuntimeError as error:
        raise DataError(f"{path} does not fit this recipe: {error}") from None
    return cursor, states.get("optimizer", {})


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed torch for one step of one rank (drop path is all that draws from it)."""
    torch.manual_seed(((seed * 1_000_003 + step) * 65_537 + rank) % 2**63)


def heads(learner: nn.Module) -> dict[str, torch.Tensor]:
    """Every tensor of the terms (heads, slow heads, centers), for `heads.safetensors`."""
    state = learner.state_dict()
    return {name: tensor for name, tensor in state.items() if not name.startswith("encoder.")}
