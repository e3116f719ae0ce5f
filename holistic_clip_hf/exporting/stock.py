# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""One branch as a stock model of transformers, where it is one: CLIP, MetaCLIP 2 or SigLIP.

An `mlp` branch is a CLIP, since its class token and its second linears are all that it has of its own. Of class tokens
only the one that patches see as they see CLIP's is one. A probe is the head of a SigLIP.
"""

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    MetaClip2Config,
    MetaClip2Model,
    MetaClip2TextConfig,
    PreTrainedModel,
    SiglipConfig,
    SiglipModel,
    SiglipTextConfig,
    SiglipVisionConfig,
)

from ..configuration_holistic_clip import HolisticCLIPConfig, HolisticCLIPVisionConfig
from ..initialization.assembly import own_fields
from ..modeling_holistic_clip import HolisticCLIPModel

TOWER, HEAD = "vision_model.", "vision_model.head."
# By type of the text tower: the stock model of both towers and its configuration.
CLIPS: dict[str, tuple[Any, Any]] = {
    CLIPTextConfig.model_type: (CLIPModel, CLIPConfig),
    MetaClip2TextConfig.model_type: (MetaClip2Model, MetaClip2Config),
}


def to_clip(model: HolisticCLIPModel, branch: str | None = None) -> CLIPModel | MetaClip2Model:
    """Return one branch as a `CLIPModel`, or as a `MetaClip2Model` if the text tower is MetaCLIP 2's.

    Its image vectors are the branch's, its text vectors the model's, and its logits those of the branch alone.

    Args:
        model: the model, whose weights are copied.
        branch: Name of the branch; left out, the only one.

    Raises:
        ValueError: no such branch, or one that is not a CLIP.
    """
    config = model.config
    index = branch_index(config, branch)
    _require_clip(config, index)
    text: Any = config.text_config
    kind, config_kind = CLIPS[text.model_type]
    stock_config = config_kind(
        text_config=text.to_dict(),
        vision_config=own_fields(config.vision_config, CLIPVisionConfig),
        projection_dim=config.projection_dim,
        logit_scale_init_value=config.logit_scale_init_value,
    )
    weights = model.state_dict()
    for name in [name for name in weights if ".branch_fc2." in name]:
        before, _, after = name.partition(".branch_fc2.")
        number, _, part = after.partition(".")
        if int(number) == index - 1:
            weights[f"{before}.fc2.{part}"] = weights[name]
    for name in ("visual_projection", "text_projection"):
        if not getattr(config, name):  # the identity, as a matrix
            weights[f"{name}.weight"] = torch.eye(config.projection_dim)
    return _filled(kind(stock_config), weights, model)


def to_siglip(model: HolisticCLIPModel, branch: str | None = None) -> SiglipModel:
    """Return one probe as the head of a `SiglipModel`.

    Texts have to be padded to all positions, as SigLIP's are: `padding="max_length"`.

    Args:
        model: the model, whose weights are copied.
        branch: Name of the branch; left out, the only one.

    Raises:
        ValueError: no such branch, or a model that is not a SigLIP with several probes.
    """
    config = model.config
    index = branch_index(config, branch)
    _require_siglip(config)
    backbone: Any = cast(Any, config.vision_config).backbone
    text: Any = config.text_config
    stock_config = SiglipConfig(
        text_config=own_fields(text, SiglipTextConfig),
        vision_config={**own_fields(backbone, SiglipVisionConfig), "vision_use_head": True},
    )
    weights: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        weights[name.replace("vision_model.backbone.", TOWER, 1)] = value
    attention = f"{HEAD}attention."
    for part in ("weight", "bias"):
        shares = [weights.pop(f"{attention}{letter}_proj.{part}") for letter in "qkv"]
        weights[f"{attention}in_proj_{part}"] = torch.cat(shares)
    if index > 0:
        weights[f"{HEAD}probe"] = weights[f"{HEAD}branch_probe"][:, index - 1 : index]
        for part in ("weight", "bias"):
            own = weights.get(f"{HEAD}mlp.branch_fc2.{index - 1}.{part}")
            weights |= {} if own is None else {f"{HEAD}mlp.fc2.{part}": own}
    weights["logit_scale"] = weights["logit_scale"].reshape(1)
    # A softmax has no bias, and adds none.
    weights["logit_bias"] = weights.get("logit_bias", torch.zeros(1)).reshape(1)
    return _filled(SiglipModel(stock_config), weights, model)


def branch_index(config: HolisticCLIPConfig, branch: str | None) -> int:
    """Return the index of a branch by name; with one branch, the name may be left out.

    Raises:
        ValueError: no such branch, or no name and several branches, whose fused vector has no stock form.
    """
    names = list(config.perspectives)
    if branch is None and len(names) == 1:
        return 0
    if branch not in names:
        why = ", since what all of them say together has no stock form" if branch is None else ""
        raise ValueError(f"`branch` is {branch!r}; expected one of {', '.join(map(repr, names))}{why}. Name one.")
    return names.index(branch)


def _require_clip(config: HolisticCLIPConfig, index: int) -> None:
    vision: Any = config.vision_config
    name = config.perspectives[index]
    found, way = "", "Take another layout, such as 'onnx'."
    if vision.model_type != HolisticCLIPVisionConfig.model_type:
        found = f"has a vision tower of type {vision.backbone.model_type!r}"
        way = "If that is SigLIP's, take the layout 'siglip'."
    elif vision.branch_type == "probe":
        found = "is a probe, which CLIP has not"
    elif vision.patch_stem != "linear":
        found = f"has `patch_stem={vision.patch_stem!r}`, which CLIP has not"
    elif vision.branch_type == "cls" and config.num_branches > 1:
        isolation = vision.branch_isolation
        if isolation != "anchored":
            found = f"is one of {config.num_branches} class tokens, which patches see otherwise than CLIP's one "
            found += f"(`branch_isolation={isolation!r}`)"
        elif index > 0:
            found = "is a class token that patches do not see"
            way = f"Take the first branch, {config.perspectives[0]!r}, or another layout."
    if not found and cast(Any, config.text_config).model_type not in CLIPS:
        found = f"has a text tower of type {cast(Any, config.text_config).model_type!r}"
    if not found and config.objective != "softmax":
        found = "has a bias of logits (`objective='sigmoid'`), which CLIP has not"
    if found:
        raise ValueError(f"`branch` is {name!r}, which {found}; expected one that is a CLIP. {way}")


def _require_siglip(config: HolisticCLIPConfig) -> None:
    vision: Any = config.vision_config
    backbone = getattr(vision, "backbone_config", None)
    text: Any = config.text_config
    found = ""
    if not isinstance(backbone, SiglipVisionConfig):
        kind = "CLIP's" if backbone is None else f"of type {backbone.model_type!r}"
        found = f"a vision tower that is {kind}"
    elif text.model_type != SiglipTextConfig.model_type:
        found = f"a text tower of type {text.model_type!r}"
    elif vision.patch_norm or any(
        getattr(vision, name) != getattr(backbone, name)
        for name in ("num_attention_heads", "intermediate_size", "hidden_act", "layer_norm_eps")
    ):
        found = "a head of other sizes than the tower's, or with a norm before it"
    elif config.visual_projection or config.text_projection:
        found = "projections behind its towers"
    if found:
        raise ValueError(
            f"The model has {found}; expected SigLIP's towers and head, as `from_siglip` makes them. Take the layout "
            f"'clip' or 'onnx'."
        )


def _filled(stock: Any, weights: Mapping[str, Tensor], model: PreTrainedModel) -> Any:
    """Fill a stock model with weights by its own names, in the dtype of the model."""
    stock = stock.to(model.dtype)
    stock.load_state_dict({name: weights[name] for name in stock.state_dict()})
    return stock.to(model.device).eval()
