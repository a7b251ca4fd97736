"""VMamba: pictures read by a state space model along four paths, in stages of blocks.

    stem: a pixel for each 4×4,   stage: blocks (vss_block.py), then half as many pixels,
    pooled = mean over the pixels of norm(last map)

(Liu et al., 2024, "VMamba: Visual State Space Model", section 4.) This is the family s1l of the
official release: state size 1, no expansion, no gate. Names and shapes of the parameters are the
release's, so its checkpoints fit; nothing is downloaded.
"""

from collections.abc import Sequence
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import calculate_drop_path_rates
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from equitools.backbones.vss_block import Block, planes, start
from equitools.core.errors import UsageError


class VMamba(nn.Module):
    """The network: pictures b 3 h w to a pooled b d, or to logits when num_classes > 0.

    depths, dims: blocks and channels of each stage; the first stage sees one pixel for 4×4, each
    other halves the map. Maps are b d h w outside and lie in memory channels last, whatever the
    pictures do. Parameters start as the release's do. Raises UsageError for pictures whose last
    stage would be less than a pixel.
    """

    def __init__(
        self,
        depths: Sequence[int] = (2, 2, 8, 2),
        dims: Sequence[int] = (96, 192, 384, 768),
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        if len(depths) != len(dims):
            raise ValueError(f"{len(depths)} depths for {len(dims)} dims; each stage has one each")
        self.patch_embed = _embed(in_chans, dims[0])
        rates: Any = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)
        wider = [*dims[1:], None]
        stages = [Stage(dim, rate, w) for dim, rate, w in zip(dims, rates, wider, strict=True)]
        self.layers: Any = nn.ModuleList(stages)
        self.num_features = self.head_hidden_size = dims[-1]
        self.feature_info = [
            {"num_chs": dim, "reduction": 4 * 2**i, "module": f"layers.{i}.blocks"}
            for i, dim in enumerate(dims)
        ]
        self.smallest = self.feature_info[-1]["reduction"]
        self.classifier = nn.ModuleDict({"norm": nn.LayerNorm(dims[-1]), "head": nn.Identity()})
        self.grad_checkpointing, self.global_pool = False, global_pool
        self.reset_classifier(num_classes)
        self.apply(start)

    def forward(self, x: Tensor) -> Tensor:
        """Pooled features b d, or logits b c."""
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """The last stage's map after the final norm, b d h w."""
        return self._final(self._outputs(x)[-1])

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool a normed map b d h w, and classify it unless `pre_logits`."""
        if self.global_pool:
            x = x.mean((2, 3))
        return x if pre_logits else self.classifier["head"](x)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """The final map and maps of stages, as timm's networks give them: before they are halved.

        norm: apply the final norm to the last stage's map too.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt is {output_fmt}; it is NCHW")
        wanted, last = feature_take_indices(len(self.layers), indices)
        outputs = self._outputs(x, last + 1 if stop_early else len(self.layers))
        whole = len(outputs) == len(self.layers)
        final = self._final(outputs[-1]) if whole else planes(outputs[-1])
        maps = [planes(output) for i, output in enumerate(outputs) if i in wanted]
        if norm and whole and len(self.layers) - 1 in wanted:
            maps[-1] = final
        return maps if intermediates_only else (final, maps)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop what maps of these stages do not need; returns their numbers."""
        wanted, last = feature_take_indices(len(self.layers), indices)
        if last < len(self.layers) - 1:
            self.layers = self.layers[: last + 1]
            self.layers[-1].downsample = nn.Identity()
            self.num_features = self.head_hidden_size = self.feature_info[last]["num_chs"]
            self.smallest = self.feature_info[last]["reduction"]
            prune_norm = prune_head = True
        if prune_norm:
            self.classifier["norm"] = nn.Identity()
        if prune_head:
            self.reset_classifier(0, "")
        return wanted

    def get_classifier(self) -> nn.Module:
        """The layer from pooled features to logits."""
        return self.classifier["head"]

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new classifier, or none; pooling avg or none ("")."""
        self.num_classes = num_classes
        self.global_pool = self.global_pool if global_pool is None else global_pool
        if self.global_pool not in ("avg", ""):
            raise ValueError(f"global_pool is '{self.global_pool}'; it is avg, or empty for maps")
        head = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        self.classifier["head"] = head.apply(start).to(next(self.parameters()).device)

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep only what goes into each block, and work out the rest again going backward."""
        self.grad_checkpointing = enable

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Parameters of the recurrence whose zero means nothing, and Ds, which starts at one."""
        recurrence = ("A_logs", "Ds", "dt_projs_bias")
        return {name for name, _ in self.named_parameters() if name.endswith(recurrence)}

    def _outputs(self, x: Tensor, stages: int | None = None) -> list[Tensor]:
        """What the first stages (None: all) make of pictures b 3 h w, b h w d each."""
        (height, width), side = x.shape[-2:], self.smallest
        if min(height, width) < side:
            raise UsageError(
                f"a picture of {height}×{width} px leaves the last of {len(self.layers)} stages"
                f" less than a pixel; it takes {side}×{side} px or more"
            )
        again = self.grad_checkpointing and torch.is_grad_enabled()
        x, outputs = self.patch_embed(x.contiguous(memory_format=torch.channels_last)), []
        for i, stage in enumerate(self.layers[:stages]):
            x = self.layers[i - 1].downsample(x) if i else x
            for block in stage.blocks:
                x = checkpoint(block, x, use_reentrant=False) if again else block(x)
            outputs.append(x)
        return outputs

    def _final(self, x: Tensor) -> Tensor:
        return planes(self.classifier["norm"](x))


class Stage(nn.Module):
    """Blocks of one width, then half as many pixels of `wider` channels (None: as they are)."""

    def __init__(self, dim: int, rates: Sequence[float], wider: int | None) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(Block(dim, rate) for rate in rates))
        self.downsample = nn.Identity() if wider is None else _halve(dim, wider)


class Order(nn.Module):
    """Dimensions in another order, where the release has a module without parameters."""

    def __init__(self, *order: int) -> None:
        super().__init__()
        self.order = order

    def forward(self, x: Tensor) -> Tensor:
        """The same numbers; nothing is copied."""
        return x.permute(self.order)


def checkpoint_filter_fn(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Tensors of a checkpoint of the official release under the names and shapes of today's.

    Early checkpoints call some parts otherwise, and keep 1×1 convolutions where linear layers are.
    """
    wanted = model.state_dict()
    renamed = {}
    for name, value in state.items():
        for old, new in LEGACY.items():
            name = new + name.removeprefix(old) if name.startswith(old) else name
        name = name.replace(".ln_1.", ".norm.").replace(".self_attention.", ".op.")
        flat = value.ndim == 4 and name in wanted and wanted[name].ndim == 2
        renamed[name] = value.flatten(1) if flat else value
    return renamed


LEGACY = {
    "patch_embed.proj.": "patch_embed.0.",
    "patch_embed.norm.": "patch_embed.2.",
    "norm.": "classifier.norm.",
    "head.": "classifier.head.",
}


def _halving(inside: int, outside: int) -> nn.Conv2d:
    return nn.Conv2d(inside, outside, 3, stride=2, padding=1)


def _embed(channels: int, dim: int) -> nn.Sequential:
    """A pixel for each 4×4: two convolutions that halve, each with its norm; b c h w → b h w d."""
    inner, norm, last = _halving(channels, dim // 2), nn.LayerNorm(dim // 2), nn.LayerNorm(dim)
    in_, out = Order(0, 2, 3, 1), Order(0, 3, 1, 2)
    return nn.Sequential(inner, in_, norm, out, nn.GELU(), _halving(dim // 2, dim), in_, last)


def _halve(dim: int, wider: int) -> nn.Sequential:
    """b h w d → b ⌈h/2⌉ ⌈w/2⌉ wider, normed."""
    out, in_ = Order(0, 3, 1, 2), Order(0, 2, 3, 1)
    return nn.Sequential(out, _halving(dim, wider), in_, nn.LayerNorm(wider))


_PICTURES: dict[str, Any] = {"mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD}
_PICTURES |= {"input_size": (3, 224, 224), "crop_pct": 0.875, "interpolation": "bicubic"}
_PICTURES |= {"pool_size": (7, 7), "num_classes": 1000}
_PICTURES |= {"first_conv": "patch_embed.0", "classifier": "classifier.head"}
default_cfgs = generate_default_cfgs(
    dict.fromkeys(("vmamba_tiny", "vmamba_small", "vmamba_base"), _PICTURES)
)


def _build(variant: str, pretrained: bool, given: dict[str, Any], **shape: Any) -> VMamba:
    maps = {"out_indices": (0, 1, 2, 3), "feature_cls": "getter"}  # timm changes it
    args = {"pretrained_filter_fn": checkpoint_filter_fn, "feature_cfg": maps, **shape, **given}
    return build_model_with_cfg(VMamba, variant, pretrained, **args)


@register_model
def vmamba_tiny(pretrained: bool = False, **given: Any) -> VMamba:
    """VMamba-T of 29.5 M parameters: blocks 2/2/8/2 of 96 to 768 channels."""
    return _build("vmamba_tiny", pretrained, given)


@register_model
def vmamba_small(pretrained: bool = False, **given: Any) -> VMamba:
    """VMamba-S of 48.2 M parameters: blocks 2/2/20/2 of 96 to 768 channels."""
    return _build("vmamba_small", pretrained, given, depths=(2, 2, 20, 2))


@register_model
def vmamba_base(pretrained: bool = False, **given: Any) -> VMamba:
    """VMamba-B of 85.6 M parameters: blocks 2/2/20/2 of 128 to 1024 channels."""
    dims = (128, 256, 512, 1024)
    return _build("vmamba_base", pretrained, given, depths=(2, 2, 20, 2), dims=dims)
