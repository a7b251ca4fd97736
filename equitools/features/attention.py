"""Where the last block of a ViT looks: the class token's attention on the patches, head by head.

    a(p) = softmax_p(q_cls · k_p / √d),  over patches alone, so that each head's map sums to 1

As Caron et al. (2021, "DINO") show it, with the smallest set of patches that holds 60 % of a head's
attention. What is compared between pictures and networks are numbers:

    entropy  -Σ a log a / log n: 1 looks everywhere alike, 0 at one patch
    overlap  |A ∩ B| / |A ∪ B| of the 60 % masks of a picture and of its changed copy, turned back
    jaccard  |A ∩ G| / |A ∪ G| of a head's 60 % mask and the true foreground, as DINO's table
"""

import torch
from torch import Tensor

from equitools.augment.operations import rotation
from equitools.backbones.encoder import Encoder
from equitools.core.errors import UsageError

SHARE = 0.6


@torch.no_grad()
def maps(encoder: Encoder, image: Tensor) -> tuple[Tensor, Tensor]:
    """Maps b heads h w of normalized pictures b 3 (p·h) (p·w), each head's sum 1; and b heads, the
    share of attention that stays with the class token and registers, left out of them.

    Raises UsageError for a network without attention or without a class token.
    """
    name = encoder.config()["architecture"]
    if not encoder.is_vit:
        raise UsageError(f"{name} has no attention to show; it is not a ViT")
    first = encoder.trunk.num_prefix_tokens
    if encoder.trunk.cls_token is None:
        raise UsageError(f"{name} has no class token whose attention could be shown")
    weights = encoder(image, attention=True).attention.float()[:, :, 0]
    patches = weights[..., first:]
    total = patches.sum(-1, keepdim=True)
    size = [side // int(encoder.patch_size or 1) for side in image.shape[-2:]]
    return (patches / total.clamp(min=1e-30)).unflatten(-1, size), 1 - total[..., 0]


def entropy(maps: Tensor) -> Tensor:
    """Entropy of maps … h w as a share of the largest possible, in [0, 1]."""
    flat = maps.flatten(-2)
    if flat.shape[-1] == 1:
        return torch.zeros(flat.shape[:-1])
    most = torch.log(torch.tensor(float(flat.shape[-1])))
    return torch.special.entr(flat).sum(-1) / most


def mass_mask(maps: Tensor, share: float = SHARE) -> Tensor:
    """The smallest set of cells of maps … h w that holds `share` of each map; booleans … h w.

    Of equal cells the first ones are taken.
    """
    flat = maps.flatten(-2)
    values, order = flat.sort(dim=-1, descending=True, stable=True)
    before = values.cumsum(-1) - values
    kept = before < share * flat.sum(-1, keepdim=True) - 1e-6
    return torch.zeros_like(kept).scatter(-1, order, kept).unflatten(-1, maps.shape[-2:])


def overlap(first: Tensor, second: Tensor, angle: float = 0.0) -> Tensor:
    """Intersection over union of masks b heads h h, the second one turned back by `angle`.

    Cells that the turn takes out of the picture do not count. 1 where both are empty.
    """
    inside = torch.ones(1, 1, *first.shape[-2:])
    if angle % 360:
        inside = turned(turned(inside, angle), -angle)
        second = turned(second.float(), -angle) > 0.5
    keep = inside > 0.5
    both, either = (first & second & keep), ((first | second) & keep)
    union = either.flatten(-2).sum(-1)
    return torch.where(union > 0, both.flatten(-2).sum(-1) / union.clamp(min=1), 1.0)


def jaccard(masks: Tensor, truth: Tensor) -> Tensor:
    """Intersection over union of masks b heads h w, each cell so many pixels, with the true
    foreground b H W, booleans; b heads, 0 where both are empty."""
    large = torch.nn.functional.interpolate(masks.float(), truth.shape[-2:], mode="nearest") > 0.5
    both, either = (large & truth[:, None]), (large | truth[:, None])
    return both.flatten(2).sum(-1) / either.flatten(2).sum(-1).clamp(min=1)


def turned(image: Tensor, angle: float) -> Tensor:
    """Pictures or maps b c h h turned counter-clockwise by degrees; exact at right angles."""
    return rotation.apply(image, torch.full((len(image), 1), float(angle), dtype=torch.float64))
