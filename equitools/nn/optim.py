"""Optimizers, parameter groups and schedules as functions of how much of the run is done.

Learning rate: linear warm-up from 0, then half a cosine to `min_lr`; weight decay: half a cosine
from `weight_decay` to `weight_decay_end` (Caron et al., 2021, "DINO", appendix; Chen & He, 2021,
"SimSiam", keep the predictor's rate constant). The base rate is stated per `lr_reference` images:

    lr = base · batch / lr_reference
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from equitools.core.errors import UsageError
from equitools.nn.schedules import half_cosine, warmup_cosine


def optimizer_settings(
    *,
    name: str = "adamw",
    lr: float = 5e-4,
    lr_reference: int = 256,
    bias_lr: float | None = None,
    min_lr: float = 1e-6,
    weight_decay: float = 0.04,
    weight_decay_end: float | None = None,
    momentum: float = 0.9,
    decay_bias: bool = False,
    clip: float = 0.0,
    clip_per: str = "tensor",
) -> dict[str, Any]:
    """The knobs of `recipe.optimizer`; the signature is the schema.

    name: adamw, sgd or lars (timm's). lr per `lr_reference` images of the global batch; bias_lr
    the same of what is not decayed, biases and norms (Barlow Twins); None is lr.
    weight_decay_end: None keeps the decay constant. decay_bias: decay 1-D parameters and biases
    too. clip: largest L2 norm of a gradient, of each tensor or of all (`clip_per`); 0 is off.
    """
    if name not in ("adamw", "sgd", "lars"):
        raise UsageError(f"optimizer.name is '{name}'; it is one of adamw, sgd, lars")
    if clip_per not in ("tensor", "global"):
        raise UsageError(f"optimizer.clip_per is '{clip_per}'; it is tensor or global")
    return dict(locals())


def parameter_groups(
    named: Iterable[tuple[str, nn.Parameter]],
    *,
    decay_bias: bool,
    constant_rate: Iterable[nn.Parameter] = (),
) -> list[dict[str, Any]]:
    """Split trainable parameters by (decayed or not) × (scheduled or constant rate).

    Biases and 1-D tensors (norms) are not decayed unless `decay_bias`.
    """
    constant = {id(parameter) for parameter in constant_rate}
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in named:
        if parameter.requires_grad:
            decayed = decay_bias or not (parameter.ndim == 1 or name.endswith(".bias"))
            groups.setdefault((decayed, id(parameter) in constant), []).append(parameter)
    return [
        {"params": parameters, "decayed": decayed, "constant": fixed}
        for (decayed, fixed), parameters in groups.items()
    ]


def create(settings: dict[str, Any], groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """Build the optimizer that the recipe names over the parameter groups, where they live."""
    name = settings["name"]
    knobs = {"lr": settings["lr"], "weight_decay": settings["weight_decay"]}
    # One kernel for a whole update, where there is one: five times as fast as foreach on a CPU.
    fused = all(p.device.type in ("cpu", "cuda") for group in groups for p in group["params"])
    if name == "adamw":
        return torch.optim.AdamW(groups, **knobs, fused=fused)
    knobs["momentum"] = settings["momentum"]
    if name == "sgd":
        return torch.optim.SGD(groups, **knobs, fused=fused)
    from timm.optim import Lars

    # Weights are adapted whatever their decay; biases and norms, which have none, are not.
    adapted = [group | {"always_adapt": group["decayed"]} for group in groups]
    return Lars(adapted, **knobs)


def own_share(settings: dict[str, Any], group: dict[str, Any]) -> float:
    """A group's rate as a share of the recipe's: another one for what is not decayed, if said."""
    if group["decayed"] or settings["bias_lr"] is None:
        return 1.0
    return settings["bias_lr"] / settings["lr"]


def set_rates(
    optimizer: torch.optim.Optimizer,
    settings: dict[str, Any],
    *,
    batch_size: int,
    done: float,
    warmup: float,
) -> float:
    """Write this step's learning rates and weight decays into the optimizer; returns the rate."""
    base = settings["lr"] * batch_size / settings["lr_reference"]
    rate = warmup_cosine(base, min(settings["min_lr"], base), done, warmup)
    end = settings["weight_decay_end"]
    start = settings["weight_decay"]
    decay = start if end is None else half_cosine(start, end, done)
    for group in optimizer.param_groups:
        group["lr"] = own_share(settings, group) * (base if group["constant"] else rate)
        group["weight_decay"] = decay if group["decayed"] else 0.0
    return rate


def clip_gradients(parameters: Iterable[nn.Parameter], limit: float, per: str) -> None:
    """Scale gradients whose L2 norm exceeds `limit`: each tensor by itself, or all together.

    DINO clips each tensor by itself. No value leaves the device.
    """
    gradients: list[Tensor] = [p.grad for p in parameters if p.grad is not None]
    if limit <= 0 or not gradients:
        return
    norms = torch.stack(torch._foreach_norm(gradients))
    if per == "global":
        norms = torch.linalg.vector_norm(norms)
    scales = torch.clamp(limit / (norms + 1e-6), max=1.0)
    torch._foreach_mul_(gradients, scales if per == "global" else list(scales))
