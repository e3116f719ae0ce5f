# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Images that visitors upload: which are taken, and how they are read without much memory."""

from dataclasses import replace
from pathlib import Path
from threading import BoundedSemaphore
from typing import Any

import gradio
from PIL import Image, UnidentifiedImageError

from ..images.decoding import READABLE, UnreadableImageError, open_image, read_image

MOST_BYTES = 10 * 2**20
MOST_PIXELS = 20_000_000  # of a decoded image; a small file can hold very many
UPLOADED = replace(READABLE, max_pixels=MOST_PIXELS)
MOST_AT_ONCE = 2  # images that are decoded
LEAST_SIDE = 1_024  # pixels of the shorter side that are kept; models see a few hundred
# Types of files that are served back. Browsers run scripts in SVG, and what they do not know they guess.
IMAGE_TYPES = frozenset(f"image/{kind}" for kind in ("jpeg", "png", "gif", "webp", "bmp", "tiff", "avif", "jp2"))
_NO_IMAGE = "This file is not an image that can be read here. Try a JPEG, PNG or WebP."
_TOO_LARGE = "This image is too large or too narrow. Make it smaller and try again."
_decoding = BoundedSemaphore(MOST_AT_ONCE)


def upload_field(**options: Any) -> gradio.Image:
    """Return a `gradio.Image` that takes uploaded files alone: by itself it would also fetch addresses that a visitor
    names.

    The sentences of its errors are constant: gradio shows them as HTML, and a file's name is the visitor's.
    """
    field = gradio.Image(**options)
    to_cache, to_cache_later = field.move_resource_to_block_cache, field.async_move_resource_to_block_cache

    def preprocess(payload: Any) -> Image.Image | None:
        if payload is None:
            return None
        if payload.path is None or (payload.url or "").startswith("data:"):
            raise _refusal("Upload the image as a file.")
        try:
            return read_upload(payload.path)
        except RefusedUploadError as error:
            raise _refusal(str(error)) from error

    def move(place: Any) -> str | None:
        _require_file(place)
        return to_cache(place)

    async def move_later(place: Any) -> str | None:
        _require_file(place)
        return await to_cache_later(place)

    # Not by a subclass: gradio writes a stub beside the source of each one that it meets.
    for name, method in (
        ("preprocess", preprocess),
        ("move_resource_to_block_cache", move),
        ("async_move_resource_to_block_cache", move_later),
    ):
        setattr(field, name, method)
    return field


class RefusedUploadError(ValueError):
    """Upload that is not an image, is damaged or has too many pixels; its text is a sentence for the visitor."""


def fault_of_upload(given: str | Path | bytes) -> str:
    """Return why a file, by its path or its bytes, is not taken, by its header alone, or nothing if it is.

    Of large photographs (JPEG) a half, a quarter or an eighth of the side can be decoded; of others, all or nothing.
    """
    try:
        with open_image(given) as image:
            _reduce(image)
            fault = UPLOADED.fault_of(image.size)
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return _NO_IMAGE
    return _TOO_LARGE if fault else ""


def read_upload(given: str | Path | bytes) -> Image.Image:
    """Return the image in a file, by its path or its bytes, right way up; a few at a time, others wait.

    Large ones are made smaller, by averages over squares of pixels, since each look at them costs their size.

    Raises:
        RefusedUploadError: no image, a damaged one, or one of too many pixels.
    """
    if fault := fault_of_upload(given):
        raise RefusedUploadError(fault)
    try:
        with _decoding, open_image(given) as image:
            _reduce(image)
            return _smaller(read_image(image))
    except (UnreadableImageError, OSError) as error:
        raise RefusedUploadError("This image is damaged and cannot be read to its end.") from error


def _reduce(image: Image.Image) -> None:
    """Set the size at which a photograph of too many pixels is decoded: the largest that is allowed."""
    width, height = image.size
    for divisor in (1, 2, 4, 8):
        if width * height <= MOST_PIXELS * divisor**2:
            if divisor > 1:
                image.draft(None, (width // divisor, height // divisor))
            return


def _smaller(image: Image.Image) -> Image.Image:
    """Return an image of `LEAST_SIDE` pixels or more on each side, if it is at least twice as large."""
    factor = min(image.size) // LEAST_SIDE
    if factor < 2:
        return image
    if image.mode not in ("L", "LA", "RGB", "RGBA"):
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    return image.reduce(factor)


def _require_file(place: Any) -> None:
    if "://" in str(place):
        raise _refusal("Upload the image as a file; addresses are not opened.")


def _refusal(sentence: str) -> gradio.Error:
    return gradio.Error(sentence, title="Please try another image", print_exception=False)
