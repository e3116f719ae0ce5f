# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Encoding for the index: single images to vectors, and the fingerprint of everything that decides these.

An image that cannot be encoded is told apart, with the reason, and never ends a run.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import CLIPConfig

from ..configuration_holistic_clip import HolisticCLIPConfig
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
