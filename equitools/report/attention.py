"""What the heads of the last block of each ViT look at."""

from __future__ import annotations

from typing import Literal

from equitools.report.documents import Documents, Where, home
from equitools.report.formats import tables
from equitools.report.formats.tables import Format, with_picture


def attention(
    documents: Documents,
    where: Where,
    *,
    images: int = 2,
    first: int = 0,
    split: str = "val",
    folder: str | None = None,
    masks: str | None = None,
    changes: list[str] = ["original", "rotated", "jittered"],  # noqa: B006
    angle: float = 90.0,
    heads: Literal["each", "mean"] = "each",
    size: int | None = None,
    seed: int = 0,
    device: str = "auto",
    format: Format = "md",
) -> str:
    """Draw attention.png: the class token's attention in the last block of each document's ViT,
    over the same pictures, and print what can be measured of it.

    images, first: so many pictures of the split, from that number on, or of a `folder`; masks: a
    folder with their true foregrounds (ECSSD's gt), to be compared with where heads look. changes:
    original, rotated (by `angle` degrees, counter-clockwise), jittered (seeded). heads: each, or
    their mean. size: side of the pictures in pixels, the encoder's own by default.
    """
    from equitools.report import attention_maps as maps

    index = maps.pictures_of(documents[0], split, folder)
    keys, found = maps.look(
        documents, index, images=images, first=first, changes=changes, angle=angle, size=size,
        seed=seed, device=device, masks=masks,
    )  # fmt: skip
    drawn = where(home(documents[0], "encoder")) / "attention.png"
    maps.draw(keys, found, heads, drawn)
    text = tables.render(maps.columns(found), maps.rows(found), format)
    return with_picture(text, drawn, format)
