# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Whether bytes are an image that a model can be trained on, and the bytes that a corpus holds of it.

- Kept as they came: whatever decodes and needs nothing of the following. Transparency, palettes and grey stay.
- Turned upright, where a camera noted how it was held; many readers do not look at that note.
- Animations and files of several pages: the first picture.
- Colours of print (CMYK) become RGB, by Pillow's plain formula; their colour profile is not applied.

What had to change is stored without loss, photographs (JPEG) at quality 95.
"""

import io
from dataclasses import dataclass

from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from ..images.decoding import open_image
from ..unreadable import UnreadableImageError, decode_image

_ENDINGS = {"JPEG": "jpg", "MPO": "jpg", "TIFF": "tif", "JPEG2000": "jp2"}
_QUALITY = 95
_MODES_OF_PNG = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")


@dataclass(frozen=True)
class ImageLimits:
    """What an image may have; an image beyond is left out.

    Args:
        min_side: pixels of the shorter side. Below 8, no patch of a vision tower is filled.
        max_side: pixels of the longer side.
        max_pixels: of width times height; Pillow's own limit against decompression bombs is the default.
        max_bytes: of the file.
    """

    min_side: int = 8
    max_side: int = 20_000
    max_pixels: int = 89_478_485
    max_bytes: int = 100_000_000

    def __post_init__(self) -> None:
        if min(self.min_side, self.max_side, self.max_pixels, self.max_bytes) < 1 or self.max_side < self.min_side:
            raise ValueError(f"Got {self}; expected limits of 1 or more, and `max_side` not below `min_side`.")


def verify_image(data: bytes, limits: ImageLimits = ImageLimits()) -> tuple[bytes, str]:
    """The bytes to store and the ending that fits them; see the head of this module.

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
        raise UnreadableImageError(f"does not decode: {type(error).__name__}: {error}") from error
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
        raise UnreadableImageError(f"does not decode: {type(error).__name__}: {error}") from error


def _require_size(size: tuple[int, int], limits: ImageLimits) -> None:
    width, height = size
    said = f"{width:,} x {height:,} pixels"
    if min(size) < limits.min_side:
        raise UnreadableImageError(f"too small: {said}")
    if max(size) > limits.max_side or width * height > limits.max_pixels:
        raise UnreadableImageError(f"too many pixels: {said}")


def _changed(image: Image.Image) -> Image.Image | None:
    """The first picture, upright and not in CMYK; `None` where the image is that already."""
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
