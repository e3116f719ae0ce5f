# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Encoding for the index: single images to vectors.

An image that cannot be encoded is told apart, with the reason, and never ends a run.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..evaluation.encoding import DualEncoder, evaluation_mode, on_device, readable_pixels, stack_pixels


def embed_images(model: DualEncoder, processor: Any, images: Sequence[Image.Image], *, fused: bool) -> np.ndarray:
    """Embed images as (N, H, D) of unit length or, `fused`, (N, 1, D); float32.

    Raises:
        ValueError: as the processor.
    """
    return _embed(model, processor(images=list(images), return_tensors="pt"), fused)


def _embed(model: DualEncoder, pixels: Mapping[str, Tensor], fused: bool) -> np.ndarray:
    with evaluation_mode(model):
        output = model.get_image_features(**on_device(pixels, model.device))
        found: Tensor = output.pooler_output[:, None] if fused else output.branch_embeds
    return found.to("cpu", torch.float32).numpy()


def embed_each(
    model: DualEncoder, processor: Any, images: Sequence[Image.Image], *, fused: bool
) -> list[np.ndarray | str]:
    """Return for each image its vectors (H, D), or the reason why it has none."""
    read = readable_pixels(processor, images)
    pixels = [each for each in read if not isinstance(each, str)]
    vectors = iter(_embed(model, stack_pixels(pixels), fused) if pixels else ())
    found = [each if isinstance(each, str) else next(vectors) for each in read]
    return [
        "the model gave vectors that are not finite" if isinstance(each, np.ndarray) and not _finite(each) else each
        for each in found
    ]


def _finite(values: np.ndarray) -> bool:
    return bool(np.isfinite(values).all())
