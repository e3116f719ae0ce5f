# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Decoding of images: the one door through which files and bytes are opened, and the bytes that a corpus keeps.

- Kept as they came: whatever decodes and needs nothing of the following. Transparency, palettes and grey stay.
- Turned upright, if a camera noted how it was held, since many readers do not look at that note.
- Animations and files of several pages: the first picture.
- Colours of print (CMYK) become RGB, by Pillow's plain formula. Their colour profile is not applied.

What had to change is stored without loss, photographs (JPEG) at quality 95.
"""

import io
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any, TypeVar

from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from ..storage import require_count
from .files import read_named

# What pictures come in; not what makes Pillow start other programs (EPS), nor formats that hardly anything reads.
FORMATS = ("JPEG", "MPO", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")


def open_image(given: bytes | str | Path | IO[bytes]) -> Image.Image:
    """Open a file, by its path or open already, or the bytes of one, without decoding its pixels.

    What its name says does not count.

    Raises:
        PIL.UnidentifiedImageError: not an image of one of `FORMATS`.
        OSError: the file cannot be read.
    """
    return Image.open(io.BytesIO(given) if isinstance(given, bytes) else given, formats=known_formats())


def upright(image: Image.Image) -> Image.Image:
    """Turn an image as its camera noted; many readers do not look at that note."""
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        return ImageOps.exif_transpose(image)
    return image


@cache
def known_formats() -> tuple[str, ...]:
    """Return those of `FORMATS` that this build of Pillow reads."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


_ENDINGS = {"JPEG": "jpg", "MPO": "jpg", "TIFF": "tif", "JPEG2000": "jp2"}
_QUALITY = 95
_MODES_OF_PNG = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")


@dataclass(frozen=True)
class ImageLimits:
    """Limits of an image; one beyond them is left out.

    Args:
        min_side: Pixels of the shorter side. Below 8, no patch of a vision tower is filled.
        max_side: Pixels of the longer side, at most.
        max_pixels: Limit of width times height; Pillow's own limit against decompression bombs is the default.
        max_bytes: Bytes of the file, at most.
    """

    min_side: int = 8
    max_side: int = 20_000
    max_pixels: int = 89_478_485
    max_bytes: int = 100_000_000

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            require_count(name, value)
        if self.max_side < self.min_side:
            raise ValueError(
                f"`max_side` is {self.max_side}; expected `min_side`, {self.min_side}, or more. Raise it."
            )


def verify_image(data: bytes, limits: ImageLimits = ImageLimits()) -> tuple[bytes, str]:
    """Return the bytes to store and the ending that fits them; see the head of this module.

    Raises:
        UnreadableImageError: no image, a damaged one, or one beyond the limits; its text is the reason.
    """
    if len(data) > limits.max_bytes:
        raise UnreadableImageError(f"file too large: {len(data):,} bytes")
    image = _open(data)
    _require_size(image.size, limits)
    file_format = image.format or ""
    try:
        changed = _changed(decode_image(image))
    except UnreadableImageError as error:
        raise UnreadableImageError(f"does not decode: {error}") from error
    except Exception as error:  # decoders raise whatever a damaged file leads them to
        raise UnreadableImageError(f"does not decode: {type(error).__name__}, {error}") from error
    if changed is None:
        return data, _ENDINGS.get(file_format, file_format.casefold())
    return _encode(changed, "JPEG" if file_format in ("JPEG", "MPO") else "PNG")


def _open(data: bytes) -> Image.Image:
    try:
        return open_image(data)
    except UnidentifiedImageError as error:
        raise UnreadableImageError("no image" if data else "0 bytes") from error
    except Image.DecompressionBombError as error:
        raise UnreadableImageError(f"too many pixels: {error}") from error
    except Exception as error:  # as above
        raise UnreadableImageError(f"does not decode: {type(error).__name__}, {error}") from error


def _require_size(size: tuple[int, int], limits: ImageLimits) -> None:
    width, height = size
    said = f"{width:,} x {height:,} pixels"
    if min(size) < limits.min_side:
        raise UnreadableImageError(f"too small: {said}")
    if max(size) > limits.max_side or width * height > limits.max_pixels:
        raise UnreadableImageError(f"too many pixels: {said}")


def _changed(image: Image.Image) -> Image.Image | None:
    """Return the first picture, upright and not in CMYK; `None` where the image is that already."""
    # A picture of a phone (MPO) holds others beside the first, which is the one that was taken.
    is_changed = image.format != "MPO" and getattr(image, "n_frames", 1) > 1
    if is_changed:
        image.seek(0)
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        image, is_changed = ImageOps.exif_transpose(image), True
    if image.mode == "CMYK":
        image, is_changed = image.convert("RGB"), True
        image.info.pop("icc_profile", None)  # of the colours that it had
    return image if is_changed else None


def _encode(image: Image.Image, file_format: str) -> tuple[bytes, str]:
    file = io.BytesIO()
    if file_format == "JPEG":
        image.save(file, "JPEG", quality=_QUALITY, icc_profile=image.info.get("icc_profile"))
        return file.getvalue(), "jpg"
    (image if image.mode in _MODES_OF_PNG else image.convert("RGB")).save(file, "PNG")
    return file.getvalue(), "png"


_ADDRESS = re.compile(r" <[^<>]* at 0x[0-9a-fA-F]+>")


class UnreadableImageError(ValueError):
    """An image that does not decode; its text is the reason."""


def decode_image(image: Any, roots: Sequence[str | Path] = ()) -> Image.Image:
    """Return the image of a row: one with `decode=False`, of which there are `bytes` or a `path`, or one that is
    decoded.

    Args:
        image: Value of the column.
        roots: Folders below which a path may lie; see `files.read_named`. Rows of strangers name any file.

    Raises:
        UnreadableImageError: truncated, not an image, more pixels than Pillow allows, no pixels, no such file, or one
            that may not be read. Any other error of reading a file is raised as it is: next time the file may be
            readable.
    """
    if isinstance(image, str):
        image = {"bytes": None, "path": image}
    if isinstance(image, Mapping):
        image = _read(image, roots)
    if image is None:
        raise UnreadableImageError("the row has no image")
    try:
        decoded = open_image(image) if isinstance(image, bytes) else image
        if isinstance(decoded, Image.Image):
            decoded.load()
        if isinstance(image, bytes):
            decoded = upright(decoded)  # as `datasets` does
    except Exception as error:  # decoders raise whatever a damaged file leads them to
        # Where the bytes lay in memory is another place in every run.
        reason = _ADDRESS.sub("", f"{type(error).__name__}: {error}")
        raise UnreadableImageError(reason.replace("\n", " ")) from error
    if isinstance(decoded, Image.Image) and 0 in decoded.size:
        raise UnreadableImageError(f"{decoded.width} x {decoded.height} pixels")
    if not isinstance(decoded, Image.Image) and not hasattr(decoded, "shape"):  # an array, of whatever library
        raise UnreadableImageError(f"it is {type(decoded).__name__}, not an image")
    return decoded


def _read(image: Mapping[str, Any], roots: Sequence[str | Path]) -> bytes:
    if image.get("bytes") is not None:
        return image["bytes"]
    if image.get("path") is None:
        raise UnreadableImageError("the row has neither bytes nor a path")
    try:
        return read_named(image["path"], roots)
    except FileNotFoundError as error:
        raise UnreadableImageError(f"no such file: {image['path']}") from error
    except OSError as error:
        if error.errno is None:  # not of the system: refused, not a regular file, or too large
            raise UnreadableImageError(str(error)) from error
        raise


MOST_ELONGATED = 100  # longer side by shorter; resizing the shorter side blows the longer one up


def decode(contents: bytes) -> Image.Image:
    """Return the image in a file.

    Raises:
        UnreadableImageError: as `decode_image`; an image too elongated to be resized.
    """
    image = decode_image({"bytes": contents, "path": None})
    longer, shorter = max(image.size), min(image.size)
    if longer > MOST_ELONGATED * shorter:
        raise UnreadableImageError(
            f"{image.width} x {image.height} pixels; one side is over {MOST_ELONGATED} times the other"
        )
    return image


Given = TypeVar("Given")
Made = TypeVar("Made")


def map_ahead(
    pool: ThreadPoolExecutor, most: int, make: Callable[[Given], Made], given: Iterable[Given]
) -> Iterator[Made]:
    """Map in threads, in order, with at most `most` waiting or at work; `given` is read in the calling thread."""
    waiting: deque[Future[Made]] = deque()
    for each in given:
        waiting.append(pool.submit(make, each))
        if len(waiting) == most:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
