# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""The one door through which images of files and bytes are opened."""

import io
from functools import cache
from pathlib import Path

from PIL import ExifTags, Image, ImageOps

# What pictures come in; not what makes Pillow start other programs (EPS), nor formats that hardly anything reads.
FORMATS = ("JPEG", "MPO", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")


def open_image(given: bytes | str | Path) -> Image.Image:
    """Open a file, or the bytes of one, without decoding its pixels; what its name says does not count.

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
