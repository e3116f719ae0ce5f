# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""CLIP of transformers as a Holistic CLIP."""

from os import PathLike
from typing import Any

from transformers import CLIPModel, CLIPTextConfig, CLIPVisionConfig, PreTrainedConfig

from ..configuration_holistic_clip import end_token_id, require_own_attention
from ..modeling_holistic_clip import HolisticCLIPModel
from .assembly import assemble, listed


def from_clip(
    model: CLIPModel | str | PathLike, *, perturbation: float = 0.0, seed: int = 0, **config_overrides: Any
) -> HolisticCLIPModel:
    """Return a `transformers.CLIPModel` as a Holistic CLIP whose branches start as copies of CLIP's own.

    With one branch it gives CLIP's logits. With H copies, and before training, every branch and hence the fused
    vector is CLIP's normalised image embedding: with `branch_type="mlp"` always, with `"cls"` for
    `branch_isolation="anchored"`, the default here. In the other modes patches see H class tokens or none, where
    CLIP's see one: copies are near CLIP, not equal to it.

    Args:
        model: the model, or what `CLIPModel.from_pretrained` takes.
        perturbation: standard deviation of noise on the copies, as a share of each parameter's root mean square. It
            tells branches apart where the captions do not, as with `matching="free"`. Branch 0 stays CLIP's.
        seed: Seed of the noise, and of parameters that only an override makes new.
        config_overrides: fields of `HolisticCLIPConfig`; the dicts `vision_config` and `text_config` are merged over
            CLIP's. H comes from `perspectives` or `vision_config`; left out, it is the paper's six. A larger
            `max_position_embeddings` in `text_config` stretches the positions (`stretch_positions`). An
            `eos_token_id` of 2, for the highest id of a text, becomes the end token's, which is the highest id of the
            vocabulary or CLIP's own.

    Raises:
        ValueError: not a CLIP, or incomplete; an unknown override, or one that asks for other shapes.

    Example:

    >>> model = from_clip("openai/clip-vit-base-patch32", perspectives=["short", "style"])  # doctest: +SKIP
    """
    clip = model if isinstance(model, CLIPModel) else _load_clip(model)
    text, vision = clip.config.text_config.to_dict(), clip.config.vision_config.to_dict()
    fields = {
        "projection_dim": clip.config.projection_dim,
        "logit_scale_init_value": clip.config.logit_scale_init_value,
        "text_config": {name: text[name] for name in CLIPTextConfig.__annotations__},
        "vision_config": {name: vision[name] for name in CLIPVisionConfig.__annotations__},
    }
    fields["vision_config"]["branch_isolation"] = "anchored"
    fields["text_config"]["eos_token_id"] = end_token_id(text["eos_token_id"], text["vocab_size"])
    return assemble(clip.state_dict(), fields, config_overrides, perturbation, seed)


def _load_clip(source: str | PathLike) -> CLIPModel:
    if not isinstance(source, str | PathLike):
        raise ValueError(f"`model` is a {type(source).__name__}. Give a `transformers.CLIPModel`, a name or a folder.")
    found = PreTrainedConfig.get_config_dict(source)[0]
    require_own_attention(found)
    kind = found.get("model_type")
    if kind != "clip":
        raise ValueError(f"{str(source)!r} is of model type {kind!r}, not a 'clip' with both towers.")
    clip, report = CLIPModel.from_pretrained(source, output_loading_info=True)
    lacking, unused = sorted(report["missing_keys"]), sorted(report["unexpected_keys"])
    if lacking or unused:
        raise ValueError(f"{str(source)!r} lacks {listed(lacking)}; has no place for {listed(unused)}.")
    return clip
