"""A ViT whose class token joins late: patches alone go through the first ℓ blocks.

    f = f2 ∘ f1,    f1(x): ℓ blocks on patches + positions,    f2: the others on [CLS] ++ f1(x)

so that the maps of f1 are made from the picture's grid and from nothing else ("Soft Equivariance
Regularization", §3.1). The class token has no position. Under the name `late_cls` timm builds the
same network, with the tensors' names and semantics of its own VisionTransformer.
"""

from collections.abc import Iterator
from typing import Any

import timm
import torch
from timm.layers import resample_abs_pos_embed
from timm.models import register_model
from timm.models._features import feature_take_indices
from timm.models._manipulate import checkpoint
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from equitools.core.errors import UsageError

PLAIN = ("timm.models.vision_transformer", "timm.models.deit")  # where timm builds its own ViTs


class LateClassToken(VisionTransformer):
    """timm's VisionTransformer, whose class token (and registers) join after `cls_after` blocks."""

    cls_after: int

    def forward_features(
        self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        """All tokens after the final norm, b (1 + n) d, of b 3 h w pictures."""
        _refuse_mask(attn_mask, is_causal)
        for tokens in self._outputs(x):
            x = tokens
        return self.norm(x)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        output_dict: bool = False,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Any:
        """What timm's gives; blocks before the class token joins have b 0 d prefix tokens."""
        _refuse_mask(attn_mask, is_causal)
        taken, last = feature_take_indices(len(self.blocks), indices)
        height, width = self.patch_embed.dynamic_feat_size(x.shape[-2:])
        maps, prefixes, tokens = [], [], x
        for block, tokens in enumerate(self._outputs(x)):
            if block in taken:
                first = self.num_prefix_tokens if block >= self.cls_after else 0
                output = self.norm(tokens) if norm else tokens
                prefixes.append(output[:, :first])
                maps.append(output[:, first:])
            if stop_early and block == last:
                break
        if output_fmt == "NCHW":
            maps = [m.mT.unflatten(2, (height, width)).contiguous() for m in maps]
        if output_dict:
            named: dict[str, Any] = {"image_intermediates": maps}
            named |= {"image_intermediates_prefix": prefixes} if return_prefix_tokens else {}
            return named if intermediates_only else named | {"image_features": self.norm(tokens)}
        inner = list(zip(maps, prefixes, strict=True)) if return_prefix_tokens else maps
        return inner if intermediates_only else (self.norm(tokens), inner)

    def _outputs(self, image: Tensor) -> Iterator[Tensor]:
        """The tokens that leave each block, in turn."""
        x = self.patch_embed(image)
        x = self.norm_pre(self.patch_drop(self._pos_embed(x)))
        for number, block in enumerate(self.blocks):
            if number == self.cls_after:
                x = self._join(x)
            x = checkpoint(block, x) if self.grad_checkpointing else block(x)
            yield x

    def _pos_embed(self, x: Tensor) -> Tensor:
        """Patches with their positions, b n d; positions are resized to a grid of any shape."""
        if self.pos_embed is None:
            return x.reshape(len(x), -1, x.shape[-1])
        positions = self.pos_embed
        if self.dynamic_img_size:
            size, old = list(x.shape[1:3]), self.patch_embed.grid_size
            positions = resample_abs_pos_embed(positions, size, old, num_prefix_tokens=0)
        return self.pos_drop(x.reshape(len(x), -1, x.shape[-1]) + positions)

    def _join(self, x: Tensor) -> Tensor:
        """The class token and the registers before the patches, b n d → b (1 + n) d."""
        given = (self.cls_token, self.reg_token)
        prefix = [token.expand(len(x), -1, -1) for token in given if token is not None]
        return torch.cat([*prefix, x], dim=1)


@register_model
def late_cls(
    pretrained: bool = False,
    *,
    base: str = "vit_small_patch16_224",
    cls_after: int | str = 3,
    **args: Any,
) -> LateClassToken:
    """The timm ViT called `base`, with a class token that joins after `cls_after` blocks.

    cls_after: a number of blocks, or a share of them ("25%"). args: as for `base`. Its position
    embedding has no slot for the class token. Raises UsageError for a base that is no plain ViT
    with a class token, and for a number of blocks that leaves the class token none, or is below 0.
    """
    if not timm.is_model(base):
        raise UsageError(f"timm knows no '{base}'; late_cls needs the name of a ViT")
    made = None
    if timm.model_entrypoint(base).__module__ in PLAIN:
        made = timm.model_entrypoint(base)(pretrained=pretrained, no_embed_class=True, **args)
    if type(made) is not VisionTransformer or made.cls_token is None:
        raise UsageError(
            f"{base} is no ViT with a class token that could join late; say backbone.cls_after=null"
        )
    joined = _after(cls_after, len(made.blocks))
    if hasattr(made.patch_drop, "num_prefix_tokens"):
        made.patch_drop.num_prefix_tokens = 0
    # A timm name stands for arguments that only its entry point knows: it builds, this adopts.
    late: Any = made
    late.__class__ = LateClassToken
    late.cls_after = joined
    return late


def _after(cls_after: int | str, depth: int) -> int:
    """A number of blocks, or a share of them, as a number that leaves the class token a block."""
    given = cls_after
    try:
        if isinstance(given, str):
            given = round(float(given.removesuffix("%")) / 100 * depth) if "%" in given else -1
    except ValueError:
        given = -1
    if not 0 <= given < depth:
        raise UsageError(
            f"backbone.cls_after is {cls_after}, but this ViT has {depth} blocks, and the class"
            f" token needs one to see patches in; say 0 to {depth - 1}, or a share such as 25%"
        )
    return given


def _refuse_mask(attn_mask: Tensor | None, is_causal: bool) -> None:
    if attn_mask is not None or is_causal:
        raise UsageError("a ViT whose class token joins late takes no attention mask")
