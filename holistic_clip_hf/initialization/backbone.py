# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Any vision tower and any text encoder of transformers, joined under fresh probes and projections."""

import logging
from collections.abc import Mapping
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, CLIPTextConfig, PreTrainedModel, SiglipTextConfig

from ..configuration_holistic_clip import PAPER_PERSPECTIVES, HolisticCLIPConfig, end_token_id
from ..modeling_holistic_clip import HolisticCLIPModel
from .assembly import listed, name_of, type_of

logger = logging.getLogger(__name__)


def from_backbone(
    vision: PreTrainedModel | str | PathLike,
    text: PreTrainedModel | str | PathLike,
    *,
    text_pooling: str | None = None,
    seed: int = 0,
    **config_overrides: Any,
) -> HolisticCLIPModel:
    """Return a vision tower and a text encoder as a Holistic CLIP, whose head of probes and projections are fresh.

    Of a model of both towers, such as CLIP or SigLIP, the tower is taken that is asked for, with the projection of its
    texts. Freeze what shall stay (`frozen` of the training arguments): with the text tower trained alone it is LiT
    (https://arxiv.org/abs/2111.07991), with probes trained alone a probe of the tower.

    Args:
        vision: Vision tower, such as DINOv3, ConvNeXt or ResNet: the model, its folder, or its name on the Hub.
        text: Text encoder in the same way.
        text_pooling: State that stands for a text, unless the encoder is one of CLIP, MetaCLIP 2 or SigLIP; see
            `HolisticCLIPConfig`.
        seed: Seed of what is fresh.
        config_overrides: fields of `HolisticCLIPConfig`; `vision_config` may have those of
            `HolisticBackboneVisionConfig`, such as `image_size`. H comes from `perspectives`; left out, it is the
            paper's six.

    Raises:
        ValueError: a tower that is incomplete, gives no patches, or has no rule of reading; fields that contradict it.

    Example:

    >>> model = from_backbone(  # doctest: +SKIP
    ...     "facebook/dinov3-vitb16-pretrain-lvd1689m", "openai/clip-vit-base-patch16", perspectives=["short", "style"]
    ... )
    """
    images, _ = _tower(vision, "vision_model")
    texts, projection = _tower(text, "text_model")
    text_config = texts.config.to_dict()
    if isinstance(texts.config, CLIPTextConfig):
        text_config["eos_token_id"] = end_token_id(texts.config.eos_token_id, texts.config.vocab_size)
    fields: dict[str, Any] = {"perspectives": PAPER_PERSPECTIVES, "text_pooling": text_pooling}
    if projection is not None:
        fields["projection_dim"] = projection.shape[0]
    elif isinstance(texts.config, SiglipTextConfig):
        fields |= {"projection_dim": texts.config.projection_size, "text_projection": False}
    fields |= {**config_overrides, "text_config": {**text_config, **config_overrides.get("text_config", {})}}
    fields["vision_config"] = {"backbone_config": images.config, **config_overrides.get("vision_config", {})}
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = HolisticCLIPModel._from_config(HolisticCLIPConfig(**fields), dtype=torch.float32)
    _copy(images.state_dict(), model.vision_model.backbone, name_of(vision))
    _copy(texts.state_dict(), getattr(model.text_model, "backbone", model.text_model), name_of(text))
    if projection is not None and projection.shape == getattr(model.text_projection, "weight", projection).shape:
        model.text_projection.load_state_dict({"weight": projection})
    _try_out(model.eval())
    return model


def _tower(source: Any, part: str) -> tuple[PreTrainedModel, Tensor | None]:
    """Return a tower, of a model of both the named part, and the weight of its projection if it is one of CLIP's."""
    type_of(source)
    model = (
        source if isinstance(source, PreTrainedModel) else AutoModel.from_pretrained(source, trust_remote_code=False)
    )
    tower = getattr(model, part, model)
    projection = getattr(model, "text_projection", None) if part == "text_model" else None
    return tower, projection.weight if isinstance(projection, nn.Linear) else None


def _copy(state: Mapping[str, Tensor], tower: nn.Module, source: str) -> None:
    """Copy a tower's weights, and tell which have no place: a pooler or a head, in whose stead the probes stand."""
    own = tower.state_dict()
    lacking = sorted(own.keys() - state.keys())
    if lacking:
        raise ValueError(f"{source} lacks {listed(lacking)}; expected all weights of a {type(tower).__name__}.")
    unused = sorted(state.keys() - own.keys())
    if unused:
        logger.warning("%s: left out, since probes or projections stand there, are %s.", source, listed(unused))
    tower.load_state_dict({name: state[name].to(torch.float32) for name in own})


@torch.no_grad()
def _try_out(model: HolisticCLIPModel) -> None:
    """Encode a blank image, so that a tower without patches is refused at once."""
    vision: Any = model.vision_model.config
    model.get_image_features(torch.zeros(1, vision.num_channels, vision.image_size, vision.image_size))
