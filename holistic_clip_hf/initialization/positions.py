# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Positions of text towers, stretched to longer texts as in Long-CLIP."""

from typing import cast

import torch
from torch import Tensor, nn
from transformers import CLIPTextConfig

from ..modeling_holistic_clip import HolisticCLIPModel

LONG_CLIP_KEPT = 20  # positions that Long-CLIP found well trained (https://arxiv.org/abs/2403.15378, section 3.2)


def stretch_positions(weight: Tensor, length: int, *, kept: int = LONG_CLIP_KEPT) -> Tensor:
    """Stretch position embeddings (L, E) to (length, E), the first `kept` as they are, the rest interpolated.

    Long-CLIP's knowledge-preserved stretching (https://arxiv.org/abs/2403.15378, section 3.2) for any length. New
    position `kept + x` is old position `kept + x / ratio`, ratio = (length - kept) / (L - kept), linear between
    neighbours. Past the last old position the line through the last two goes on. 77 to 248 is Long-CLIP itself.

    Raises:
        ValueError: shorter than before (cut the texts instead), or fewer than two positions behind `kept`.
    """
    size = len(weight)
    if length < size:
        raise ValueError(f"{size} positions cannot be stretched to {length}. Shorten the texts with the tokenizer.")
    if not 0 <= kept <= size - 2:
        raise ValueError(
            f"`kept` is {kept}. Valid for {size} positions: 0 to {size - 2}, two are interpolated between."
        )
    steps = torch.arange(length - kept, device=weight.device) * (size - kept)  # in units of 1 / (length - kept)
    left = (steps // (length - kept)).clamp(max=size - kept - 2)
    share = (steps - left * (length - kept)) / (length - kept)
    tail = weight[kept:].to(torch.promote_types(weight.dtype, torch.float32))
    stretched = torch.lerp(tail[left], tail[left + 1], share[:, None].to(tail.dtype))
    return torch.cat([weight[:kept], stretched.to(weight.dtype)])


@torch.no_grad()
def stretch_text_positions(model: HolisticCLIPModel, length: int, *, kept: int = LONG_CLIP_KEPT) -> None:
    """Apply `stretch_positions` to a model's text tower, in place, configuration included.

    Set the tokenizer's `model_max_length` too, and make the optimizer afterwards: the parameter is a new one.

    Raises:
        ValueError: as `stretch_positions`.
    """
    embeddings = model.text_model.embeddings
    old = embeddings.position_embedding.weight
    new = stretch_positions(old, length, kept=kept)
    embeddings.position_embedding = nn.Embedding.from_pretrained(new, freeze=not old.requires_grad)
    embeddings.position_ids = torch.arange(length, device=old.device).expand((1, -1))
    for config in (cast(CLIPTextConfig, model.config.text_config), model.text_model.config):
        config.max_position_embeddings = length
