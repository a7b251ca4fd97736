"""What the heads of the last block of each ViT look at."""

from typing import Literal

from equitools.report.documents import Documents, Where, home, required
from equitools.report.formats.tables import Format, render, with_picture


def attention(
    documents: Documents,
    where: Where,
    *,
    images: int = 2,
    first: int = 0,
    split: str = "val",
    folder: str | None = None,
    masks: str | None = None,
    changes: tuple[str, ...] = ("original", "rotated", "jittered"),
    angle: float = 90.0,
    heads: Literal["each", "mean"] = "each",
    size: int | None = None,
    seed: int = 0,
    device: str = "auto",
    format: Format = "md",
) -> str:
    """What the heads of the last block of each ViT look at, as a picture and in numbers.

    The class token's attention in the last block, over the same pictures for every document.
    images, first: so many pictures of the split, from that number on, or of a `folder`; masks: a
    folder with their true foregrounds (ECSSD's gt), to be compared with where heads look. changes:
    original, rotated (by `angle` degrees, counter-clockwise), jittered (seeded). heads: each, or
    their mean. size: side of the pictures in pixels, the encoder's own by default.
    """
    from equitools.report import attention_maps

    options = attention_maps.Options(
        images, first, split, folder, changes, angle, size, seed, device
    )
    index = attention_maps.open_pictures(required(documents)[0], options)
    keys, maps = attention_maps.measure(documents, index, options, masks)
    picture = where(home(documents[0], "encoder")) / "attention.png"
    attention_maps.draw(keys, maps, heads, picture)
    text = render(attention_maps.columns(maps), attention_maps.rows(maps), format)
    return with_picture(text, picture, format)
