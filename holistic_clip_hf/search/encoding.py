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
from ..loss_holistic_clip import prefix_of


def embed_images(
    model: DualEncoder, processor: Any, images: Sequence[Image.Image], *, fused: bool, width: int | None = None
) -> np.ndarray:
    """Embed images as (N, H, D) of unit length or, `fused`, (N, 1, D); float32.

    Args:
        model, processor: Parts of the checkpoint.
        images: Images, right way up.
        fused: True for one vector of all branches.
        width: Number of leading dimensions to keep, in place of D. Default: all.

    Raises:
        ValueError: as the processor.
    """
    return _embed(model, processor(images=list(images), return_tensors="pt"), fused, width)


def _embed(model: DualEncoder, pixels: Mapping[str, Tensor], fused: bool, width: int | None) -> np.ndarray:
    with evaluation_mode(model):
        output = model.get_image_features(**on_device(pixels, model.device))
        if width is None or width == model.config.projection_dim:
            found: Tensor = output.pooler_output[:, None] if fused else output.branch_embeds
        else:  # branches are cut first, as in training
            branches = prefix_of(output.branch_embeds, width)
            found = model.branch_fusion.single_vectors(branches)[:, None] if fused else branches
    return found.to("cpu", torch.float32).numpy()


def embed_each(
    model: DualEncoder, processor: Any, images: Sequence[Image.Image], *, fused: bool, width: int | None = None
) -> list[np.ndarray | str]:
    """Return for each image its vectors (H, D), or the reason why it has none; arguments as of `embed_images`."""
    read = readable_pixels(processor, images)
    pixels = [each for each in read if not isinstance(each, str)]
    vectors = iter(_embed(model, stack_pixels(pixels), fused, width) if pixels else ())
    found = [each if isinstance(each, str) else next(vectors) for each in read]
    return [
        "the model gave vectors that are not finite" if isinstance(each, np.ndarray) and not _finite(each) else each
        for each in found
    ]


def _finite(values: np.ndarray) -> bool:
    return bool(np.isfinite(values).all())
