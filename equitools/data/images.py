"""Encoded pictures to RGB arrays, by the one rule that every published pipeline follows.

Gray, palette, CMYK, alpha and 16-bit pictures become 8-bit RGB; EXIF orientation is ignored; a
picture that ends early is an error, never a half-gray sample. Whole JPEGs go through simplejpeg
(libjpeg-turbo, as Pillow's, and the same pixels); whatever it so much as warns about is for Pillow
to decide.
"""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import numpy as np
import simplejpeg
from PIL import Image

from equitools.core.errors import DataError

ORIENTATION = 0x0112  # the EXIF tag
DEEP = ("I;16", "I;16L", "I;16B", "I;16N", "I")
JPEG = b"\xff\xd8\xff"


@dataclass(frozen=True)
class Findings:
    """What `examine` saw. `broken` is None, "truncated" or "corrupt"; `reason` says why."""

    width: int = 0
    height: int = 0
    gray: bool = False
    cmyk: bool = False
    rotated: bool = False
    broken: str | None = None
    reason: str = ""


def decode(data: bytes, where: str) -> np.ndarray:
    """The picture as uint8 (h, w, 3) RGB; a fresh, writable, contiguous array.

    Raises DataError that names `where` (a sample or file) when it cannot be decoded whole.
    """
    pixels = _usual_jpeg(data) if data[:3] == JPEG else None
    if pixels is not None:
        return pixels
    with _opened(data, where) as picture:
        return np.array(_rgb(picture))


@contextmanager
def _opened(data: bytes, where: str) -> Iterator[Image.Image]:
    """A picture without Pillow's warnings; DataError for whatever goes wrong with it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield Image.open(io.BytesIO(data))
    except Exception as error:
        raise DataError(f"cannot decode {where}: {_reason(error)}") from error


def _usual_jpeg(data: bytes) -> np.ndarray | None:
    """The pixels of a whole JPEG in color or gray; None for what Pillow has to decide on."""
    with suppress(ValueError):
        if simplejpeg.decode_jpeg_header(data)[2] in ("YCbCr", "Gray", "RGB"):
            return simplejpeg.decode_jpeg(data, "RGB", strict=True)
    return None


def shape(data: bytes, where: str) -> tuple[int, int]:
    """Height and width of what `decode` will give, by the header alone; DataError as there."""
    with _opened(data, where) as picture:
        return picture.height, picture.width


def examine(data: bytes) -> Findings:
    """Decode a picture once and say what is special about it; never raises."""
    try:
        with _opened(data, "it") as picture:
            rotated = picture.getexif().get(ORIENTATION, 1) not in (0, 1)
            gray = picture.mode in ("1", "L", "LA", "La", "F", *DEEP)
            picture.load()
            return Findings(*picture.size, gray, picture.mode == "CMYK", rotated)
    except DataError as error:
        reason = _reason(error.__cause__)
        kind = "truncated" if "truncated" in reason.lower() else "corrupt"
        return Findings(broken=kind, reason=reason)


def encode_png(pixels: np.ndarray) -> bytes:
    """uint8 (h, w) or (h, w, 3) as a PNG; the same bytes for the same pixels."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=6)
    return file.getvalue()


def _rgb(picture: Image.Image) -> Image.Image:
    if picture.mode in DEEP:  # Pillow would clip what is above 255
        deep = np.asarray(picture).astype(np.int64) >> 8
        picture = Image.fromarray(deep.clip(0, 255).astype(np.uint8))
    if picture.mode == "RGB":
        picture.load()
        return picture
    return picture.convert("RGB")


def _reason(error: BaseException | None) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image that Pillow can read"
    return " ".join(str(error).split()) or type(error).__name__
