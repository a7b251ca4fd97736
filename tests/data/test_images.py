"""Pictures: whatever comes is RGB as Pillow gives it, and what is broken is named."""

from __future__ import annotations

import io

import numpy as np
import pytest
from pictures import encoded, photo
from PIL import Image

from equitools.core.errors import DataError
from equitools.data import images


@pytest.mark.parametrize(
    ("kind", "mode"),
    [
        ("JPEG", "RGB"),
        ("JPEG", "L"),
        ("JPEG", "CMYK"),
        ("PNG", "P"),
        ("PNG", "RGBA"),
        ("PNG", "LA"),
        ("PNG", "1"),
        ("WEBP", "RGB"),
        ("BMP", "RGB"),
    ],
)
def test_every_mode_becomes_rgb(kind: str, mode: str) -> None:
    pixels = images.decode(encoded(kind, mode), "x")
    assert (pixels.shape, pixels.dtype) == ((16, 24, 3), np.uint8)
    expected = np.asarray(photo(mode).convert("RGB"), int)
    assert np.abs(pixels - expected).mean() < 12
    pixels[0] = 0  # it may be written to


def test_sixteen_bits_become_their_upper_eight() -> None:
    deep = (np.arange(384, dtype=np.uint16) * 170).reshape(16, 24)
    file = io.BytesIO()
    Image.fromarray(deep).save(file, "PNG")
    assert (images.decode(file.getvalue(), "x")[..., 0] == deep >> 8).all()


def test_the_exif_orientation_is_ignored_and_seen() -> None:
    exif = Image.Exif()
    exif[images.ORIENTATION] = 6
    data = encoded(exif=exif)
    assert images.decode(data, "x").shape == (16, 24, 3)
    assert images.examine(data).rotated
    assert not images.examine(encoded()).rotated


@pytest.mark.parametrize(
    ("data", "broken"),
    [(encoded()[:-200], "truncated"), (b"no image", "corrupt"), (b"", "corrupt")],
)
def test_a_broken_picture_is_an_error_that_names_it(data: bytes, broken: str) -> None:
    assert images.examine(data).broken == broken
    with pytest.raises(DataError, match=r"cannot decode sample 'a/1'"):
        images.decode(data, "sample 'a/1'")


# --- JPEGs, which another decoder takes ------------------------------------------------------

COLOR = {
    "baseline": {},
    "4:4:4": {"subsampling": 0},
    "4:2:2": {"subsampling": 1},
    "progressive": {"progressive": True},
    "restarts": {"restart_marker_blocks": 2},
    "RGB inside": {"keep_rgb": True},
    "coarse": {"quality": 3},
}
SIZES = [(24, 16), (1, 1), (37, 53), (1, 300), (300, 1)]


def pillow(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def jpeg(mode: str = "RGB", size: tuple[int, int] = (24, 16), **options: object) -> bytes:
    file = io.BytesIO()
    photo(mode, size).save(file, "JPEG", **options)
    return file.getvalue()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", COLOR)
def test_a_color_jpeg_has_the_pixels_that_pillow_gives(
    kind: str, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = jpeg(size=size, **COLOR[kind])
    expected = pillow(data)
    monkeypatch.setattr(Image, "open", None)  # it is not asked
    found = images.decode(data, "x")
    assert (found == expected).all()
    assert found.flags.c_contiguous
    assert found.flags.writeable


def test_a_gray_jpeg_has_the_pixels_that_pillow_gives() -> None:
    data = jpeg("L")
    assert images._usual_jpeg(data) is not None
    assert (images.decode(data, "x") == pillow(data)).all()


def test_a_jpeg_of_printing_colors_is_pillow_s() -> None:
    data = jpeg("CMYK")
    assert images._usual_jpeg(data) is None
    assert (images.decode(data, "x") == pillow(data)).all()


def test_a_jpeg_that_the_fast_decoder_warns_about_is_pillow_s() -> None:
    data = jpeg() + b"junk after the end"
    spoiled = data.replace(b"\xff\xd9", b"\x00\xff\xd9")  # an extraneous byte before the end
    assert (images.decode(spoiled, "x") == pillow(spoiled)).all()


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 2}])
def test_a_jpeg_cut_anywhere_is_an_error(options: dict) -> None:
    data = jpeg(**options)
    for end in range(len(data)):
        with pytest.raises(DataError, match="cannot decode cut"):
            images.decode(data[:end], "cut")


@pytest.mark.parametrize("change", [{4: 12}, {1: 0xC3}, {5: 255, 6: 255, 7: 255, 8: 255}])
def test_a_jpeg_that_neither_decoder_knows_is_an_error(change: dict[int, int]) -> None:
    """12 bits, lossless, 65,535 pixels a side: bytes of the frame header."""
    data = bytearray(jpeg(size=(64, 64)))
    frame = data.index(b"\xff\xc0")
    for place, value in change.items():
        data[frame + place] = value
    with pytest.raises(DataError, match="cannot decode odd"):
        images.decode(bytes(data), "odd")


def test_the_shape_is_known_from_the_header() -> None:
    for mode, size in (("RGB", (24, 16)), ("L", (1, 9)), ("CMYK", (9, 1))):
        data = jpeg(mode, size)
        assert images.shape(data, "x") == images.decode(data, "x").shape[:2]
    with pytest.raises(DataError, match="cannot decode x"):
        images.shape(b"nothing", "x")
