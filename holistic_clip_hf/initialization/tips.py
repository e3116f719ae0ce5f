# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""TIPSv2 as a Holistic CLIP of two branches, its class tokens of web texts and of synthetic captions."""

import math
from os import PathLike
from typing import Any

from transformers import PreTrainedModel, Tipsv2Model

from ..modeling_holistic_clip import HolisticCLIPModel
from .assembly import load_whole, name_of, type_of
from .backbone import from_backbone

NAMES = ("web", "synthetic")  # what each class token was trained on


def from_tips(model: Tipsv2Model | str | PathLike, **config_overrides: Any) -> HolisticCLIPModel:
    """Return a `Tipsv2Model` as a Holistic CLIP whose branches are its class tokens, `web` and `synthetic`.

    Before training, branch `web` is TIPSv2's normalised image embedding. The fused vector is the centroid of both.
    `from_backbone` puts probes over the patches of the same tower instead.

    Args:
        model: the model, its folder, or its name on the Hub.
        config_overrides: fields of `HolisticCLIPConfig`; those of towers are in the dicts `vision_config` and
            `text_config`.

    Raises:
        ValueError: not a TIPSv2, or incomplete; fields that contradict it.

    Example:

    >>> model = from_tips("google/tipsv2-b14")  # doctest: +SKIP
    """
    kind = type_of(model)
    if kind != Tipsv2Model.config_class.model_type:
        raise ValueError(f"{name_of(model)} is of model type {kind!r}; expected 'tipsv2', with both towers.")
    tips = model if isinstance(model, PreTrainedModel) else load_whole(Tipsv2Model, model)
    fields: dict[str, Any] = {
        "perspectives": list(NAMES),
        "text_pooling": "mean",
        "projection_dim": tips.config.vision_config.hidden_size,
        "visual_projection": False,
        "text_projection": False,
        "logit_scale_init_value": -math.log(tips.temperature.item()),
    }
    vision = {"branch_type": "cls", **config_overrides.pop("vision_config", {})}
    return from_backbone(tips, tips, **{**fields, **config_overrides, "vision_config": vision})
