# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Which checkpoint made an index: one fingerprint of everything that decides its vectors."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch

from ..evaluation.encoding import DualEncoder

# How branches become one score, which vectors of single branches do not depend on. Fitting it keeps an index valid.
_OF_SCORES = ("branch_fusion.", "logit_scale", "logit_bias")
# What a library writes about itself, or about how it runs.
_OF_LIBRARIES = {"_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures", "auto_map"} | {
    "_attn_implementation",
    "_processor_class",
    "processor_class",
    "image_processor_type",
}


def fingerprint(model: DualEncoder, processor: Any, *, with_fusion: bool) -> str:
    """64 hexadecimal digits, equal for equal vectors: weights with their dtype, towers, processor; else different.

    `with_fusion` counts in how branches become one vector. Attention implementation, device and versions of libraries
    do not count.
    """
    digest = hashlib.sha256()
    config = model.config.to_dict()
    facts = {name: config[name] for name in ("text_config", "vision_config", "projection_dim", "perspectives")}
    if with_fusion:
        facts |= {name: config[name] for name in ("fusion", "branch_weights")}
    tokenizer = processor.tokenizer
    facts["processor"] = {
        "image": processor.image_processor.to_dict(),
        "background": list(processor.background),
        "tokenizer": _tokenizer_facts(tokenizer),
    }
    digest.update(json.dumps(_without_libraries(facts), sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):  # type: ignore[attr-defined]
        if not name.startswith(_OF_SCORES):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(memoryview(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()))
    return digest.hexdigest()


def _tokenizer_facts(tokenizer: Any) -> dict[str, Any]:
    # What it pads and cuts is set anew by each call.
    rules = json.loads(tokenizer.backend_tokenizer.to_str()) | {"padding": None, "truncation": None}
    return {"rules": rules, "max_length": tokenizer.model_max_length}


def _without_libraries(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_libraries(each) for key, each in value.items() if key not in _OF_LIBRARIES}
    return [_without_libraries(each) for each in value] if isinstance(value, (list, tuple)) else value
