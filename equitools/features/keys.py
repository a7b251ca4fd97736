"""What a network's last layer says of every patch of a picture of any shape.

A ViT's keys in its last block, or a CNN's last map. A picture is stretched to whole patches of p
pixels (Wang et al., 2022, "TokenCut"):

    h × w → round(h/p) p × round(w/p) p      (Lanczos, on 8-bit values)

after it has been made smaller, where it would have more patches than are allowed. Keys are kept on
disk by weights, settings and pixels, so that they are computed once.
"""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from equitools.augment.normalize import normalize
from equitools.backbones.encoder import Encoder
from equitools.core.errors import UsageError
from equitools.features import encoders, maps
from equitools.features.cache import Single

LEAST = 2  # patches that a picture's sides have at least

Keys = Callable[[np.ndarray], Tensor]  # uint8 h w 3 → d gh gw


@dataclass(frozen=True)
class KeyReader:
    """How pictures are shown: short side (None: their own), most patches, on which device, and the
    folder below which keys are kept (None: nowhere), a file for each picture."""

    size: int | None
    tokens: int
    device: str
    cache: Path | None = None

    def grid(self, height: int, width: int, patch: int) -> tuple[int, int]:
        """How many patches a picture of so many pixels becomes."""
        scale = self.size / min(height, width) if self.size else 1.0
        cells = [max(LEAST, round(side * scale / patch)) for side in (height, width)]
        if math.prod(cells) <= self.tokens:
            return cells[0], cells[1]
        scale = math.sqrt(self.tokens * patch * patch / (height * width))
        short = max(LEAST, int(min(height, width) * scale / patch))
        long = min(self.tokens // short, max(LEAST, int(max(height, width) * scale / patch)))
        return (short, long) if height <= width else (long, short)

    def keys(self, encoder: Encoder) -> Keys:
        """A function from pictures uint8 h w 3 to the encoder's keys d gh gw, fp32."""
        own = encoder.config()["pretrained_cfg"]
        patch = side_of_patch(encoder)
        encoders.freeze(encoder, self.device)

        @torch.no_grad()
        def keys(image: np.ndarray) -> Tensor:
            tall, wide = self.grid(image.shape[0], image.shape[1], patch)
            picture = Image.fromarray(image)
            picture = picture.resize((wide * patch, tall * patch), Image.Resampling.LANCZOS)
            pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].to(self.device)
            cells = encoder(normalize(pixels, own["mean"], own["std"]), keys=True).keys
            return cells[0].float().cpu()

        return keys if self.cache is None else self._kept(keys, encoder, self.cache)

    def _kept(self, compute: Keys, encoder: Encoder, cache: Path) -> Keys:
        """The same, from a file where the keys of a picture have been computed before."""
        cache_key = [encoders.fingerprint(encoder), self.size, self.tokens]
        store = Single(cache, cache_key, "keys")

        def keys(image: np.ndarray) -> Tensor:
            content = hashlib.sha256(repr(image.shape).encode() + image.tobytes()).hexdigest()
            return store(content[:32], lambda: compute(image))

        return keys


def side_of_patch(encoder: Encoder) -> int:
    """Pixels of the side of what one key stands for: a ViT's patch, a CNN's stride."""
    return int(encoder.patch_size or encoder.trunk.feature_info[-1]["reduction"])


def refuse(encoder: Encoder, reader: KeyReader) -> None:
    """UsageError for a network without keys or maps, or that takes pictures of one shape only."""
    if not hasattr(encoder, "channels"):
        raise UsageError("raw pixels have no keys; name an encoder that has maps")
    encoder.channels(encoder.depth)
    encoders.freeze(encoder, reader.device)
    patch = side_of_patch(encoder)
    why = maps.refuses_other_shapes(
        lambda image: {0: encoder(image, keys=True).keys}, 4 * patch, patch, reader.device
    )
    if why:
        name = encoder.settings["name"]
        raise UsageError(
            f"saliency shows pictures in their own shape, and {name} takes one alone ({why}); no"
            " size= helps, another network does"
        )
