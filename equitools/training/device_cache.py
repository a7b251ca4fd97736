"""Decoded pictures of a small data set on the device, and crops taken of them there.

Loader processes then draw parameters and send no pixels: at 32 to 112 px nothing else keeps a GPU
busy. Pictures of different sizes stand in the top left corner of the largest one's frame.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from equitools import augment
from equitools.augment.engines import bicubic
from equitools.augment.operations import crop
from equitools.core.errors import UsageError
from equitools.data import cache
from equitools.data.shards.index import ShardIndex


class Resident:
    """All pictures of an index (`image(i)`, `where(i)`), n 3 H W uint8 on a device.

    shapes: their heights and widths, n 2. batches: of a plan, whose crops `fill` takes.

    Raises UsageError when they would take more than half of its free memory, DataError for what is
    not a picture.
    """

    def __init__(
        self,
        index: ShardIndex,
        shapes: np.ndarray,
        device: torch.device,
        batches: dict[str, augment.ViewBatch],
    ) -> None:
        self.batches = batches
        frame = shapes.max(axis=0).tolist()
        _refuse_more(3 * len(shapes) * frame[0] * frame[1], frame, device)
        self.shapes = torch.from_numpy(shapes.astype(np.float64))
        self.pixels = torch.zeros(len(shapes), 3, *frame, dtype=torch.uint8, device=device)
        for i, (height, width) in enumerate(shapes.tolist()):
            picture = torch.from_numpy(cache.picture(index, i, (height, width)))
            self.pixels[i, :, :height, :width] = picture.permute(2, 0, 1)

    def fill(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Add the crops to a batch that has parameters and `samples` only."""
        samples: Tensor = batch.pop("samples")
        pictures = self.pixels[samples.to(self.pixels.device)]
        sides = self.shapes[samples]
        for name, own in self.batches.items():
            drawn, here, there = batch[name], pictures, sides
            if "rows" in drawn:
                here, there = pictures[drawn["rows"].to(pictures.device)], sides[drawn["rows"]]
            views = drawn["parameters"]["crop"].view(len(own.members), len(there), 4)
            windows = crop.in_pixels(views[:: own.shared], there)
            crops = [bicubic.resample(here, view, own.size) for view in windows]
            drawn["crops"] = torch.stack(crops)
        return batch


def _refuse_more(wanted: int, frame: list[int], device: torch.device) -> None:
    cuda = device.type == "cuda"
    free = torch.cuda.mem_get_info(device)[0] if cuda else cache.free_memory()
    if wanted > cache.SHARE * free:
        raise UsageError(
            f"cache=device would keep {wanted / 1e9:.2f} GB of pictures of up to"
            f" {frame[1]}×{frame[0]} px; it may take half of the {free / 1e9:.2f} GB that are free"
            f" on {device}: say cache=memory or cache=none"
        )
