# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Pictures as they are sent to a server: data URLs of bounded size."""

import base64
import io
from dataclasses import dataclass
from typing import Any

from PIL import Image

from ..processing_holistic_clip import on_background

# From the best on; the last one is kept and the picture made smaller.
_ENCODINGS: dict[str, tuple[dict[str, Any], ...]] = {
    "jpeg": ({"quality": 95, "subsampling": 0}, {"quality": 90}),
    "png": ({"compress_level": 1}, {"compress_level": 6}),
}
IMAGE_FORMATS = tuple(_ENCODINGS)
_TARGET = 0.9  # of the limit, since sizes in bytes do not quite follow those in pixels


@dataclass(frozen=True)
class SentLimits:
    """Limits of a picture that is sent; a larger one is made smaller first.

    Args:
        max_side: pixels of the longer side. OpenAI's models look at no more than 2,048.
        max_bytes: Bytes of the data URL, which has a third more than the encoded picture. Servers and the gateways
            before them refuse what is too large for them.

    Raises:
        ValueError: a limit below what any picture takes.
    """

    max_side: int = 2048
    max_bytes: int = 4_000_000

    def __post_init__(self) -> None:
        for name, least in (("max_side", 1), ("max_bytes", 10_000)):
            if getattr(self, name) < least:
                raise ValueError(f"`{name}` is {getattr(self, name)}; expected {least:,} or more. Raise it.")


def data_url(image: Image.Image, image_format: str, limits: SentLimits) -> str:
    """Encode an image of any mode, made as much smaller as the limits ask for."""
    image = _within(on_background(image), limits.max_side)  # palettes are resized by the nearest pixel
    while True:
        for options in _ENCODINGS[image_format]:
            url = _encode(image, image_format, options)
            if len(url) <= limits.max_bytes:
                return url
        if max(image.size) == 1:
            return url
        smaller = int(max(image.size) * (_TARGET * limits.max_bytes / len(url)) ** 0.5)
        image = _within(image, max(1, min(smaller, max(image.size) - 1)))


def _within(image: Image.Image, side: int) -> Image.Image:
    if max(image.size) <= side:
        return image
    scale = side / max(image.size)
    width, height = (max(1, round(length * scale)) for length in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0)


def _encode(image: Image.Image, image_format: str, options: dict[str, Any]) -> str:
    file = io.BytesIO()
    image.save(file, image_format, **options)
    return f"data:image/{image_format};base64,{base64.b64encode(file.getvalue()).decode()}"
