# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Single images to vectors: what cannot be one is told apart, with the reason, and never ends a run."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..evaluation.encoding import DualEncoder, evaluation_mode
from ..unreadable import UnreadableImageError, decode_image

_ADDRESS = re.compile(r" <[^>]* at 0x[0-9a-fA-F]+>")
MOST_ELONGATED = 100  # longer side by shorter; resizing the shorter side blows the longer one up


def decode(contents: bytes) -> Image.Image:
    """The image in a file.

    Raises:
        UnreadableImageError: as `decode_image`; an image too elongated to be resized.
    """
    try:
        image = decode_image({"bytes": contents, "path": None})
    except UnreadableImageError as error:
        # Where the bytes lay in memory is another place in every run.
        raise UnreadableImageError(_ADDRESS.sub("", str(error))) from error
    longer, shorter = max(image.size), min(image.size)
    if longer > MOST_ELONGATED * shorter:
        raise UnreadableImageError(
            f"{image.width} x {image.height} pixels; one side is over {MOST_ELONGATED} times the other"
        )
    return image


def embed_images(model: DualEncoder, processor: Any, images: Sequence[Image.Image], *, fused: bool) -> np.ndarray:
    """Images to (N, H, D) of unit length or, `fused`, (N, 1, D); float32.

    Raises:
        ValueError: as the processor.
    """
    pixel_values = processor(images=list(images), return_tensors="pt")["pixel_values"]
    with evaluation_mode(model):
        output = model.get_image_features(pixel_values=pixel_values.to(model.device))
        found: Tensor = output.pooler_output[:, None] if fused else output.branch_embeds
    return found.to("cpu", torch.float32).numpy()


def embed_each(
    model: DualEncoder, processor: Any, images: Sequence[Image.Image], *, fused: bool
) -> list[np.ndarray | str]:
    """For each image its vectors (H, D), or the reason why it has none."""
    try:
        found: list[np.ndarray | str] = list(embed_images(model, processor, images, fused=fused))
    except ValueError as error:
        if len(images) == 1:
            return [f"the processor refuses it: {error}"]
        found = [embed_each(model, processor, [image], fused=fused)[0] for image in images]
    return [
        "the model gave vectors that are not finite" if isinstance(each, np.ndarray) and not _finite(each) else each
        for each in found
    ]


def _finite(values: np.ndarray) -> bool:
    return bool(np.isfinite(values).all())
