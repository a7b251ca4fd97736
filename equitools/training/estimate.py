"""What a recipe would cost: views, steps, parameters, memory measured on two pictures, and cores.

Activations are those that autograd really saves for forward passes of the real model over two and
three samples, carried on to the batch of one process; nothing is trained and no data is read.
"""

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn

from equitools import augment
from equitools.nn import ema
from equitools.training import learner, throughput
from equitools.training.length import asked_epochs, durations, run_length

# Images of the train splits of ILSVRC 2012 and of its hundred-class subset (CMC's list).
KNOWN = {"ImageNet-100": 126_689, "ImageNet-1k": 1_281_167}


def describe(settings: dict[str, Any], document: dict[str, Any]) -> str:
    """The plan of a resolved recipe, for people."""
    model = learner.build(settings)
    plan = augment.plan(settings["views"])
    lines = [f"objective     {settings['objective']['name']}"]
    lines += [f"equivariance  {', '.join(settings['equivariance']) or 'none'}"]
    lines += [f"backbone      {settings['backbone']['name']}, {_millions(model.encoder)}"]
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    lines += [f"trained       {trained / 1e6:.2f} M parameters of encoder and heads"]
    if model.encoder.split is not None:
        rest = model.encoder.dim - model.encoder.split
        lines += [f"split         {model.encoder.dim} = {model.encoder.split} IR + {rest} EF"]
    lines += [_heads(model), _views(plan), *_steps(settings, document)]
    lines += [_memory(settings, model), throughput.describe(settings, document)]
    return "\n".join(lines) + "\n"


def _millions(module: nn.Module) -> str:
    total = sum(parameter.numel() for parameter in module.parameters())
    return f"{total / 1e6:.2f} M parameters"


def _heads(model: learner.Learner) -> str:
    named = [(name, module) for name, module in _head_modules(model)]
    text = "\n              ".join(
        f"{name}: {sum(p.numel() for p in module.parameters() if p.requires_grad):,} trainable"
        for name, module in named
    )
    return f"heads         {text or 'none'}"


def _head_modules(model: learner.Learner) -> list[tuple[str, nn.Module]]:
    """Every head of every term that is trained, by name."""
    heads = []
    for owner, term in model.named_terms("objective").items():
        for name, module in term.named_children():
            if any(parameter.requires_grad for parameter in module.parameters()):
                heads.append((f"{owner}.{name}", module))
    return heads


def _views(plan: augment.Views) -> str:
    whole = Counter((view.group, view.size) for view in plan.views if view.replaces is None)
    text = " + ".join(f"{n} {group} of {size} px" for (group, size), n in whole.items())
    part = Counter((view.group, view.size) for view in plan.views if view.replaces is not None)
    if plan.portion is not None:
        text += "; " + " + ".join(f"{n} {group} of ~{size} px" for (group, size), n in part.items())
        text += f" for {100 * plan.portion:g} % of the batch"
    return f"views         {whole.total()} an image: {text}"


def _steps(settings: dict[str, Any], document: dict[str, Any]) -> list[str]:
    shards = document.get("files", {}).get("shards.train")
    sizes = {"these shards": shards["samples"]} if shards else KNOWN
    lines = []
    for name, samples in sizes.items():
        length = run_length(settings, samples)
        durations(settings, asked_epochs(settings, length))
        prelude = f" after a prelude of {length.prelude:,}" if length.prelude else ""
        lines += [
            f"steps         {length.main:,} of {length.batch_size} images{prelude}"
            f" = {length.epochs:g} epochs of {name} ({samples:,} images)"
        ]
    return lines


def _memory(settings: dict[str, Any], model: learner.Learner) -> str:
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    held = sum(p.numel() for p in model.parameters())
    target = sum(p.numel() for p in model.encoder.parameters()) if model.needs_target else 0
    moments = 2 if settings["optimizer"]["name"] == "adamw" else 1
    state = 4 * (held + target + trained * (1 + moments))
    processes = settings["processes"] or 1
    batch = settings["batch_size"] // (processes * settings["accumulate"])
    fixed, each = activations(model, settings["views"])
    saved = (fixed + each * batch) / (2 if settings["precision"] == "bf16" else 1)
    return (
        f"memory        {state / 2**30:.2f} GiB weights, gradients and moments"
        f" + {saved / 2**30:.2f} GiB activations a process ({batch} images at a time,"
        f" {processes} process{'es' if processes > 1 else ''}, {settings['precision']})"
    )


def activations(model: learner.Learner, views: dict[str, Any]) -> tuple[float, float]:
    """Bytes that autograd keeps beside parameters: whatever the batch is, and for each sample."""
    portion = augment.plan(views).portion
    return throughput.for_each(lambda n, inside: saved_bytes(model, views, n, inside), portion)


def saved_bytes(
    model: learner.Learner, views: dict[str, Any], samples: int, inside: int = 0
) -> float:
    """Bytes that autograd keeps for the views of so many samples (parameters not counted).

    inside: how many of them are in the portion.
    """
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    sizes: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    pictures = throughput.blank(augment.plan(views), samples, inside)
    target = None
    if model.needs_target:
        target = model.target_features(ema.copy(model.encoder), pictures)
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        model(pictures, target, 0.0, 0.0)
    return sum(sizes.values())
