"""One adapter over timm: any of its networks, seen as pictures in and Features out.

A ViT's pooled feature is the class token after the final norm, a CNN's the pooled map; a share
of it may be set apart as the invariant part:

    IR = pooled[:⌊ρ d⌋],  EF = the rest        (Song et al., 2024, "CLeVER"; DDCL rounds instead)
"""

from __future__ import annotations

from typing import Any

import torch
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from equitools.backbones import narrow_conv
from equitools.core.errors import UsageError
from equitools.core.records import Features
from equitools.manifest import Document


def split_width(dim: int, ratio: float, rounding: str) -> int:
    """The width of the invariant part: ratio · dim, cut (floor) or rounded (round).

    Raises UsageError when either part would be empty.
    """
    if rounding not in ("floor", "round"):
        raise UsageError(f"backbone.rounding is '{rounding}'; it is floor or round")
    width = int(ratio * dim) if rounding == "floor" else round(ratio * dim)
    if not 0 < width < dim:
        raise UsageError(
            f"backbone.split={ratio:g} leaves a part of the {dim} dimensions empty; it is a share"
            " between 0 and 1, or null"
        )
    return width


class Encoder(nn.Module):
    """A timm network (`trunk`, under its bare timm names) that returns Features.

    dim: width of the pooled feature. split: width of its invariant part, or None. depth: number
    of blocks (ViT) or of stages that maps can be asked of (CNN). cls_depth: how many of a ViT's
    last blocks have a class token. settings: what built it.
    """

    def __init__(
        self, trunk: Any, settings: Document, architecture: str, args: Document, image_size: int
    ) -> None:
        super().__init__()
        self.trunk = trunk
        self.settings, self.architecture, self.args = settings, architecture, args
        self.image_size = image_size
        self.is_vit = isinstance(trunk, VisionTransformer)
        self.has_keys = self.is_vit or isinstance(trunk, Eva)  # DINOv3 and EVA are ViTs, too
        if not self.is_vit:  # convolutions are faster on it, 1.3 times in fp32 on a CPU
            trunk.to(memory_format=torch.channels_last)
            narrow_conv.mend(trunk)
        self.dim = int(getattr(trunk, "head_hidden_size", None) or trunk.num_features)
        blocks = trunk.blocks if self.is_vit else getattr(trunk, "feature_info", ())
        self.depth = len(blocks)
        self.cls_depth = self.depth - getattr(trunk, "cls_after", 0) if self.is_vit else 0
        ratio = settings["split"]
        self.split = None if ratio is None else split_width(self.dim, ratio, settings["rounding"])

    @property
    def patch_size(self) -> int | None:
        """The side of a ViT's patch in pixels; None for a CNN."""
        return int(self.trunk.patch_embed.patch_size[0]) if self.is_vit else None

    @property
    def num_heads(self) -> int | None:
        """Attention heads of a ViT's last block; None for a CNN."""
        return int(self.trunk.blocks[-1].attn.num_heads) if self.is_vit else None

    def forward(
        self,
        image: Tensor,
        mask: Tensor | None = None,
        *,
        cls: int = 0,
        maps: tuple[int, ...] = (),
        attention: bool = False,
        keys: bool = False,
    ) -> Features:
        """Features of b 3 h w pictures.

        cls: class tokens of the last n blocks after the final norm (the pooled feature, under the
        last stage's number, of a CNN). maps: blocks or stages whose b d h w outputs are wanted;
        negative numbers count from the end. attention: the last block's b heads n n weights. keys:
        the patches' keys in the last block before norm and rotation, all heads, b d h w; the last
        stage's map of what has none. Raises UsageError for what this network does not have.
        """
        self._check(image, mask, attention)
        wanted = {self._block(i) for i in maps} | set(self._last(cls))
        if keys and not self.has_keys:
            self.channels(self.depth)  # refuses a network without maps
            wanted.add(self.depth - 1)
        blocks = sorted(wanted)
        with _Listener(self._attention(attention or (keys and self.has_keys))) as listener:
            if blocks:
                prefix = {"return_prefix_tokens": True} if self.is_vit else {}
                last, inner = self.trunk.forward_intermediates(image, indices=blocks, **prefix)
            else:
                last, inner = self.trunk.forward_features(image), []
        outputs = dict(zip(blocks, inner, strict=True))  # of a ViT: maps and prefix tokens
        features = Features(self.trunk.forward_head(last, pre_logits=True), self.split)
        inside = {i: outputs[self._block(i)] for i in maps}
        features.maps = {i: one[0] if self.is_vit else one for i, one in inside.items()}
        features.cls = {i: self.trunk.norm(outputs[i][1])[:, 0] for i in self._last(cls)}
        if cls and not self.is_vit:
            features.cls = {self.depth - 1: features.pooled}
        features.attention = listener.weights() if attention else None
        if keys:
            last_map = outputs.get(self.depth - 1)
            features.keys = self._keys(image, listener) if self.has_keys else last_map
        return features

    def channels(self, layer: int) -> int:
        """The width of the map of a block (ViT) or stage (CNN), counted from 1.

        Raises UsageError for a network without maps, and for a layer that it does not have.
        """
        name = self.settings["name"]
        if not self.depth or not hasattr(self.trunk, "forward_intermediates"):
            raise UsageError(f"{name} gives one vector and no maps; a ViT or a CNN has some")
        if not 1 <= layer <= self.depth:
            what = "blocks" if self.is_vit else "stages with maps"
            raise UsageError(
                f"layer {layer} of {name}, which has {self.depth} {what}; say 1 to {self.depth}"
            )
        return int(self.trunk.feature_info[layer - 1]["num_chs"])

    def config(self) -> Document:
        """What `config.json` says: enough for plain timm, and our own part under `equitools`."""
        cfg, side = dict(self.trunk.pretrained_cfg), self.image_size
        copied = ("interpolation", "crop_pct", "mean", "std", "first_conv", "classifier")
        pictures = {key: _plain(cfg[key]) for key in copied if key in cfg}
        pictures |= {"input_size": [3, side, side], "fixed_input_size": False, "num_classes": 0}
        ours = {key: self.settings[key] for key in ("name", "split", "rounding")}
        ours |= {"num_heads": self.num_heads, "image_size": side, "patch_size": self.patch_size}
        return {
            "architecture": self.architecture,
            "num_classes": 0,
            "num_features": self.dim,
            "model_args": self.args,
            "pretrained_cfg": pictures,
            "equitools": ours,
        }

    def _last(self, count: int) -> list[int]:
        if not self.is_vit or count == 0:
            return []
        if not 0 < count <= self.cls_depth:
            raise UsageError(f"cls={count}, but {self.cls_depth} blocks have class tokens")
        return list(range(self.depth - count, self.depth))

    def _block(self, index: int) -> int:
        if not -self.depth <= index < self.depth:
            raise UsageError(f"no block {index}; {self.settings['name']} has {self.depth}")
        return index % self.depth

    def _attention(self, wanted: bool) -> nn.Module | None:
        """The last block's attention, or None where nobody asks for it."""
        layer = getattr(self.trunk.blocks[-1], "attn", None) if wanted else None
        if wanted and not (hasattr(layer, "qkv") or hasattr(layer, "k_proj")):
            name = self.settings["name"]
            raise UsageError(f"{name} has another kind of attention, whose keys are not to be had")
        return layer

    def _keys(self, image: Tensor, listener: _Listener) -> Tensor:
        """The keys of the patches, b d h w, without class token and registers."""
        grid = self.trunk.patch_embed.dynamic_feat_size(image.shape[-2:])
        return listener.keys()[:, self.trunk.num_prefix_tokens :].mT.unflatten(2, grid)

    def _check(self, image: Tensor, mask: Tensor | None, attention: bool) -> None:
        name, patch = self.settings["name"], self.patch_size
        if mask is not None:
            raise UsageError(f"{name} takes no mask")
        if attention and not self.is_vit:
            raise UsageError(f"{name} has no attention to show; it is not a ViT")
        if patch and (image.shape[-1] % patch or image.shape[-2] % patch):
            size = f"{image.shape[-2]}×{image.shape[-1]}"
            raise UsageError(
                f"{name} cuts pictures into {patch}-px patches; {size} px does not fit"
            )


class _Listener:
    """Remembers what an attention layer is given while it runs; None is never heard."""

    def __init__(self, layer: Any) -> None:
        self.layer, self.handle = layer, None
        self.tokens = torch.empty(0)

    def __enter__(self) -> _Listener:
        if self.layer is not None:
            self.handle = self.layer.register_forward_pre_hook(self._hear)
        return self

    def __exit__(self, *_: object) -> None:
        if self.handle is not None:
            self.handle.remove()

    def _hear(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.tokens = inputs[0]

    def keys(self) -> Tensor:
        """Every token's keys of all heads, as the layer makes them: b n d."""
        layer = self.layer
        if getattr(layer, "qkv", None) is None:
            return layer.k_proj(self.tokens)
        bias = getattr(layer, "k_bias", None)  # EVA keeps those of queries, keys and values apart
        if bias is None and layer.qkv.bias is not None:
            bias = layer.qkv.bias.chunk(3)[1]
        return F.linear(self.tokens, layer.qkv.weight.chunk(3)[1], bias)

    def weights(self) -> Tensor:
        """softmax(q kᵀ / √d), b heads n n; fused attention never forms it."""
        layer, shape = self.layer, (*self.tokens.shape[:2], 3, self.layer.num_heads, -1)
        q, k, _ = layer.qkv(self.tokens).reshape(shape).permute(2, 0, 3, 1, 4).unbind(0)
        q, k = layer.q_norm(q), layer.k_norm(k)
        return torch.softmax(q * layer.scale @ k.transpose(-2, -1), dim=-1)


def _plain(value: object) -> object:
    """A JSON value: tuples become lists."""
    return [_plain(one) for one in value] if isinstance(value, tuple | list) else value
