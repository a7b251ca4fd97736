"""Pictures and toy networks as evaluations of maps see them."""

import torch

from equitools.features.maps import FrozenMaps


def smooth(count, size=16, seed=0):
    """Pictures without structure finer than a few pixels, uint8, no two sides alike."""
    draw = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 4, 4, generator=draw)
    fine = torch.nn.functional.interpolate(coarse, (size, size), mode="bicubic")
    return (255 * fine.clamp(0, 1)).round().to(torch.uint8)


def source(maps, pictures, *, val=None, layers=(1,), cell=4, **facts):
    """FrozenMaps of toy maps ({layer: b d h w} of pictures in [0, 1]) over given pictures."""
    splits = {"train": pictures, "val": pictures if val is None else val}

    def batches(split, limit, size, order=None):
        chosen = list(range(len(splits[split][:limit]))) if order is None else list(order)
        for start in range(0, len(chosen), size):
            rows = chosen[start : start + size]
            yield splits[split][rows], [f"{split}{i}" for i in rows]

    def of(image):
        return maps(image.float() / 255 if image.dtype == torch.uint8 else image)

    facts.setdefault("untrained", lambda: of)
    return FrozenMaps(batches, of, layers=list(layers), cell=cell, **facts)


def patch_means(image):
    """The mean of every 4 × 4 patch: it moves exactly as the picture does."""
    return {1: torch.nn.functional.avg_pool2d(image, 4)}
