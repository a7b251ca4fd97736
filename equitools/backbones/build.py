"""From a recipe's `backbone`, or from a `config.json` and weights, to an Encoder."""

from __future__ import annotations

import difflib
import logging
import sys
from collections.abc import Callable
from typing import Any, Literal

import timm
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from equitools.backbones.encoder import Encoder
from equitools.backbones.mini import Blueprint
from equitools.backbones.positions import fix
from equitools.backbones.vit import LateClassToken
from equitools.backbones.vmamba import VMamba, checkpoint_filter_fn
from equitools.core.errors import DataError, UsageError
from equitools.manifest import Document, schema

REFUSALS = (TypeError, ValueError, AssertionError, RuntimeError)  # timm's, of wrong arguments


def settings(
    *,
    name: str,
    split: float | None = None,
    rounding: Literal["floor", "round"] = "floor",
    pretrained: bool = False,
    drop_path: float = 0.0,
    freeze_patch_embed: bool = False,
    positions: Literal["learned", "sincos"] = "learned",
    cls_after: int | str | None = None,
    args: dict | None = None,
) -> Document:
    """The knobs of `recipe.backbone`; the signature is the schema.

    name: vit_mini, resnet_mini, vmamba_mini, vmamba_tiny (small, base) or any timm name. split:
    share of the output that is the invariant part; rounding: floor or round. pretrained: let timm
    download weights. drop_path: stochastic depth of the online network. freeze_patch_embed: keep a
    ViT's patch projection as it starts (Chen, Xie & He, 2021); other networks have none.
    positions: of a ViT's patches, learned or fixed sines and cosines. cls_after: the class token of
    a ViT joins after so many blocks, or after a share of them (25%); null is timm's own. args: more
    arguments for timm.
    """
    return {**locals(), "args": dict(args or {})}


def menu() -> dict[str, Callable[[], Blueprint]]:
    """Our own backbones by name; every timm name is possible beside them."""
    namespace = vars(sys.modules["equitools.backbones"])
    return {
        name: member
        for name, member in namespace.items()
        if getattr(member, "__annotations__", {}).get("return") in (Blueprint, "Blueprint")
    }


def resolve(given: Document) -> Document:
    """The backbone's settings with every default written back; UsageError for unknown names."""
    chosen = settings(**schema.knobs(settings, given, "recipe.backbone"))
    _blueprint(chosen["name"])
    return chosen


def create(given: Document) -> Encoder:
    """A fresh Encoder from a recipe's `backbone`; ViTs take any picture size.

    Raises UsageError for an unknown name, for arguments that timm refuses, for a split that
    leaves a part empty, for a class token that cannot join where it is said to.
    """
    chosen = resolve(given)
    plan = _blueprint(chosen["name"])
    architecture, args = plan.architecture, {**plan.args, **chosen["args"]}
    if chosen["cls_after"] is not None:
        architecture, args = _late(chosen, architecture, args)
    training = {"drop_path_rate": chosen["drop_path"]} if chosen["drop_path"] else {}
    try:
        trunk, args = _trunk(architecture, args, pretrained=chosen["pretrained"], **training)
    except REFUSALS as error:
        raise UsageError(f"timm cannot build backbone {chosen['name']}: {error}") from error
    if not chosen["pretrained"]:
        # What is meant for small pictures sees them whole; 224 px are the middle of 256.
        _start_fresh(trunk, crop_pct=1.0 if plan.image_size else 0.875)
    if chosen["freeze_patch_embed"] and isinstance(trunk, VisionTransformer):
        trunk.patch_embed.requires_grad_(False)
    if chosen["positions"] == "sincos":
        if getattr(trunk, "pos_embed", None) is None:
            raise UsageError(f"{chosen['name']} has no positions; say backbone.positions=learned")
        fix(trunk)
    size = plan.image_size or trunk.pretrained_cfg["input_size"][-1]
    return Encoder(trunk, chosen, architecture, args, args.get("img_size", size))


def load(config: Document, state: dict[str, Tensor]) -> Encoder:
    """An Encoder from the content of `config.json` and the tensors of the weights file.

    Configurations that timm or others wrote are accepted; classifier weights are left out.
    Raises DataError that lists tensors that are missing, unexpected or of another shape.
    """
    if "architecture" not in config:
        raise DataError("config.json names no architecture; timm's and ours do")
    ours = config.get("equitools", {})
    architecture, args = config["architecture"], dict(config.get("model_args") or {})
    chosen = settings(
        name=ours.get("name", architecture),
        split=ours.get("split"),
        rounding=ours.get("rounding", "floor"),
        cls_after=args.get("cls_after"),
        args=args,
    )
    try:
        trunk, args = _trunk(architecture, args)
    except REFUSALS as error:
        raise DataError(f"timm cannot build '{architecture}' of config.json: {error}") from error
    described = config.get("pretrained_cfg", config)
    trunk.pretrained_cfg = {**trunk.pretrained_cfg, **described}
    if isinstance(trunk, VMamba):
        state = checkpoint_filter_fn(state, trunk)
    weights = {key: value for key, value in state.items() if not _classifier(key, trunk)}
    _refuse_mismatch(trunk.state_dict(), weights, chosen["name"])
    trunk.load_state_dict(weights)
    size = ours.get("image_size") or described.get("input_size", [3, 224, 224])[-1]
    return Encoder(trunk, chosen, architecture, args, size)


def _blueprint(name: str) -> Blueprint:
    own = menu()
    if name in own:
        return own[name]()
    if timm.is_model(name.split(".")[0]):
        return Blueprint(name)
    close = difflib.get_close_matches(name, [*own, *timm.list_models()], n=1)
    hint = f"; did you mean '{close[0]}'?" if close else ""
    raise UsageError(f"no backbone '{name}'{hint} (ours: {', '.join(sorted(own))}; or timm's)")


def _late(chosen: Document, architecture: str, args: Document) -> tuple[str, Document]:
    """The architecture and arguments of a ViT whose class token joins late."""
    if chosen["pretrained"]:
        raise UsageError(
            "no pretrained weights have a class token that joins late; say"
            " backbone.cls_after=null, or backbone.pretrained=false"
        )
    base = architecture.split(".")[0]
    return "late_cls", {**args, "base": base, "cls_after": chosen["cls_after"]}


def _trunk(architecture: str, args: Document, **training: Any) -> tuple[Any, Document]:
    """The timm network without a classifier, and the arguments that would build it again."""
    logging.getLogger("timm").setLevel(logging.WARNING)
    if "dynamic_img_size" not in args and _takes_any_size(architecture):
        args = {**args, "dynamic_img_size": True}
    trunk = timm.create_model(architecture, num_classes=0, **args, **training)
    if isinstance(trunk, LateClassToken):
        args = {**args, "cls_after": trunk.cls_after}  # a number, where a share was said
    return trunk, args


def _takes_any_size(architecture: str) -> bool:
    entry = timm.model_entrypoint(architecture.split(".")[0])
    return entry.__module__.split(".")[-1] in ("vision_transformer", "deit", "vit", "eva")


def _start_fresh(trunk: Any, crop_pct: float) -> None:
    """Start the class token as DINO does; pictures are normalized as ImageNet's are."""
    late = isinstance(trunk, LateClassToken)  # its token stays near 0, as SER's
    if isinstance(getattr(trunk, "cls_token", None), Tensor) and not late:
        nn.init.trunc_normal_(trunk.cls_token, std=0.02)
    pictures: Document = {"mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD}
    pictures |= {"crop_pct": crop_pct, "interpolation": "bicubic"}
    trunk.pretrained_cfg = {**trunk.pretrained_cfg, **pictures}


def _classifier(key: str, trunk: Any) -> bool:
    heads = trunk.pretrained_cfg.get("classifier") or ()
    heads = (heads,) if isinstance(heads, str) else heads
    return any(key.startswith(f"{head}.") for head in heads)


def _refuse_mismatch(wanted: dict[str, Tensor], given: dict[str, Tensor], name: str) -> None:
    shapes = {k: (tuple(given[k].shape), tuple(wanted[k].shape)) for k in wanted if k in given}
    problems = {
        "missing": sorted(wanted.keys() - given.keys()),
        "unexpected": sorted(given.keys() - wanted.keys()),
        "of another shape": [f"{k} {a} for {b}" for k, (a, b) in shapes.items() if a != b],
    }
    listed = [f"{len(keys)} {what} ({_few(keys)})" for what, keys in problems.items() if keys]
    if listed:
        raise DataError(f"the weights are not those of {name}: {'; '.join(listed)}")
    broken = [key for key, value in given.items() if not torch.isfinite(value.float()).all()]
    if broken:
        raise DataError(f"the weights of {name} are not finite: {_few(broken)}")


def _few(keys: list[str], count: int = 4) -> str:
    rest = f", … {len(keys) - count} more" if len(keys) > count else ""
    return ", ".join(keys[:count]) + rest
