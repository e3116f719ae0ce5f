# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Fingerprints of checkpoints: hashes of everything that decides a vector, by which kept vectors are known again."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPConfig

from ..configuration_holistic_clip import HolisticCLIPConfig
from .encoding import DualEncoder

# How branches become one score, which vectors of single branches do not depend on. Fitting it keeps an index valid.
_ADDED_LATER = {"branched_head_mlp", "branched_token_mlp"}
_OF_OTHER_TOWERS = ("text_pooling", "visual_projection", "text_projection")
_OF_SCORES = ("branch_fusion.", "logit_scale", "logit_bias")
# What a library writes about itself, or about how it runs.
_OF_LIBRARIES = {"_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures", "auto_map"} | {
    "_attn_implementation",
    "_processor_class",
    "processor_class",
    "image_processor_type",
}


def fingerprint(model: DualEncoder, processor: Any, *, with_fusion: bool) -> str:
    """Hash what decides a vector (weights with their dtype, towers, processor) to 64 hexadecimal digits.

    `with_fusion` counts in how branches become one vector. Attention implementation, device and versions of libraries
    do not count.
    """
    config = model.config.to_dict()
    facts = {name: config[name] for name in ("text_config", "vision_config", "projection_dim", "perspectives")}
    # A tower's own decides nothing, and earlier versions left CLIP's default there: their indexes stay valid.
    for tower in ("text_config", "vision_config"):
        facts[tower] = {**facts[tower], "projection_dim": CLIPConfig.projection_dim}
    # What earlier versions did not know decides nothing either, unless it is used.
    facts["vision_config"] = {
        name: value for name, value in facts["vision_config"].items() if value or name not in _ADDED_LATER
    }
    usual = {name: getattr(HolisticCLIPConfig, name) for name in _OF_OTHER_TOWERS}
    facts |= {name: config[name] for name, value in usual.items() if config.get(name, value) != value}
    if with_fusion:
        facts |= {name: config[name] for name in ("fusion", "branch_weights")}
    tokenizer = processor.tokenizer
    facts["processor"] = {**image_facts(processor), "tokenizer": _tokenizer_facts(tokenizer)}
    if processor.caption_form is not None:
        facts["processor"]["captions"] = [processor.caption_form, *processor.caption_perspectives]
    weights = model.state_dict()  # type: ignore[attr-defined]
    return hash_weights(facts, {name: each for name, each in weights.items() if not name.startswith(_OF_SCORES)})


def hash_weights(facts: Mapping[str, Any], weights: Mapping[str, Tensor]) -> str:
    """Hash facts and weights, with their names and dtypes, to 64 hexadecimal digits.

    What a library writes about itself among the facts does not count.
    """
    digest = hashlib.sha256(json.dumps(_without_libraries(facts), sort_keys=True, default=str).encode())
    for name, tensor in sorted(weights.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def image_facts(processor: Any) -> dict[str, Any]:
    """Return what decides the pixels that a processor makes of an image."""
    return {"image": processor.image_processor.to_dict(), "background": list(processor.background)}


def _tokenizer_facts(tokenizer: Any) -> dict[str, Any]:
    # What it pads and cuts is set anew by each call.
    rules = json.loads(tokenizer.backend_tokenizer.to_str()) | {"padding": None, "truncation": None}
    return {"rules": rules, "max_length": tokenizer.model_max_length}


def _without_libraries(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_libraries(each) for key, each in value.items() if key not in _OF_LIBRARIES}
    return [_without_libraries(each) for each in value] if isinstance(value, (list, tuple)) else value
