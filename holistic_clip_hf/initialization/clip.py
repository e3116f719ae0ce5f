# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""CLIP and MetaCLIP 2 of transformers as Holistic CLIPs."""

from os import PathLike
from typing import Any

from transformers import (
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    MetaClip2Model,
    MetaClip2TextConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from ..configuration_holistic_clip import end_token_id
from ..modeling_holistic_clip import HolisticCLIPModel
from .assembly import assemble, load_whole, name_of, own_fields, type_of

# By model type: the model of both towers, and its text tower's configuration. Vision towers are one and the same.
FAMILIES: dict[str, tuple[type[PreTrainedModel], type[PreTrainedConfig]]] = {
    "clip": (CLIPModel, CLIPTextConfig),
    "metaclip_2": (MetaClip2Model, MetaClip2TextConfig),
}


def from_clip(
    model: PreTrainedModel | str | PathLike, *, perturbation: float = 0.0, seed: int = 0, **config_overrides: Any
) -> HolisticCLIPModel:
    """Return a `CLIPModel` or `MetaClip2Model` as a Holistic CLIP whose branches start as copies of CLIP's own.

    With one branch it gives CLIP's logits. With H copies, and before training, every branch and hence the fused
    vector is CLIP's normalised image embedding: with `branch_type="mlp"` always, with `"cls"` for
    `branch_isolation="anchored"`, the default here. In the other modes patches see H class tokens or none, where
    CLIP's see one: copies are near CLIP, not equal to it.

    Args:
        model: the model, its folder, or its name on the Hub.
        perturbation: standard deviation of noise on the copies, as a share of each parameter's root mean square. It
            tells branches apart where the captions do not, as with `matching="free"`. Branch 0 stays CLIP's.
        seed: Seed of the noise, and of parameters that only an override makes new.
        config_overrides: fields of `HolisticCLIPConfig`; the dicts `vision_config` and `text_config` are merged over
            CLIP's. H comes from `perspectives` or `vision_config`; left out, it is the paper's six. A larger
            `max_position_embeddings` in `text_config` stretches the positions (`stretch_positions`). An
            `eos_token_id` of 2, with which CLIP means the highest id of a text, becomes the end token's, which is the
            highest id of the vocabulary or CLIP's own. MetaCLIP 2's is an id like any other.

    Raises:
        ValueError: not a CLIP, or incomplete; an unknown override, or one that asks for other shapes.

    Example:

    >>> model = from_clip("openai/clip-vit-base-patch32", perspectives=["short", "style"])  # doctest: +SKIP
    """
    kind = type_of(model)
    if kind not in FAMILIES:
        known = ", ".join(map(repr, FAMILIES))
        raise ValueError(f"{name_of(model)} is of model type {kind!r}; expected one of {known}, with both towers.")
    loaded, text_kind = FAMILIES[kind]
    clip = model if isinstance(model, PreTrainedModel) else load_whole(loaded, model)
    text = clip.config.text_config
    fields = {
        "projection_dim": clip.config.projection_dim,
        "logit_scale_init_value": clip.config.logit_scale_init_value,
        "text_config": {"model_type": text.model_type, **own_fields(text, text_kind)},
        "vision_config": {**own_fields(clip.config.vision_config, CLIPVisionConfig), "branch_isolation": "anchored"},
    }
    if text_kind is CLIPTextConfig:
        fields["text_config"]["eos_token_id"] = end_token_id(text.eos_token_id, text.vocab_size)
    return assemble(clip.state_dict(), fields, config_overrides, perturbation, seed)
