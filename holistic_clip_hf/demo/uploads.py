# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Images that visitors upload: what is no image, or too large a one, is refused in a sentence."""

from typing import Any

import gradio
from PIL import Image, UnidentifiedImageError

from ..images.decoding import open_image
from ..unreadable import UnreadableImageError, decode_image

MOST_BYTES = 10 * 2**20
MOST_PIXELS = 40_000_000  # of a decoded image; a small file can hold very many
MOST_ELONGATED = 100


def upload_field(**options: Any) -> gradio.Image:
    """A `gradio.Image` that takes uploaded files alone: by itself it would also fetch addresses that a visitor names.

    The sentences of its errors are constant: gradio shows them as HTML, and a file's name is the visitor's.
    """
    field = gradio.Image(**options)
    to_cache, to_cache_later = field.move_resource_to_block_cache, field.async_move_resource_to_block_cache

    def preprocess(payload: Any) -> Image.Image | None:
        if payload is None:
            return None
        if payload.path is None or (payload.url or "").startswith("data:"):
            raise _refusal("Upload the image as a file.")
        return read_upload(payload.path)

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


def read_upload(path: str) -> Image.Image:
    """The image in a file, right way up.

    Raises:
        gradio.Error: no image, a damaged one, or one of too many pixels.
    """
    try:
        with open_image(path) as header:
            width, height = header.size
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise _refusal("This file is no image that can be read here. Try a JPEG, PNG or WebP.") from error
    if width * height > MOST_PIXELS or max(width, height) > MOST_ELONGATED * min(width, height):
        raise _refusal("This image is too large or too narrow. Make it smaller and try again.")
    try:
        return decode_image({"path": path, "bytes": None})
    except UnreadableImageError as error:
        raise _refusal("This image is damaged and cannot be read to its end.") from error


def _require_file(place: Any) -> None:
    if "://" in str(place):
        raise _refusal("Upload the image as a file; addresses are not opened.")


def _refusal(sentence: str) -> gradio.Error:
    return gradio.Error(sentence, title="Please try another image", print_exception=False)
