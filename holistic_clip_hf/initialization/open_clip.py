# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""State dicts of open_clip, of OpenAI's CLIP and of the paper's released code, as Holistic CLIPs."""

import logging
import math
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..configuration_holistic_clip import LEGACY_END, end_token_id
from ..modeling_holistic_clip import HolisticCLIPModel
from .assembly import EMBEDDINGS, TEXT_POSITIONS, assemble, listed
from .positions import LONG_CLIP_KEPT

logger = logging.getLogger(__name__)

# Source names to ours; one that ends in a dot is a prefix.
OUTER_NAMES = {
    "visual.conv1.weight": f"{EMBEDDINGS}.patch_embedding.weight",
    "visual.ln_pre.": "vision_model.pre_layrnorm.",
    "visual.ln_post.": "vision_model.post_layernorm.",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": TEXT_POSITIONS,
    "ln_final.": "text_model.final_layer_norm.",
    "logit_scale": "logit_scale",
}
PROJECTIONS = {"visual.proj": "visual_projection.weight", "text_projection": "text_projection.weight"}
BLOCK = re.compile(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+)")
BLOCK_NAMES = {
    "ln_1.": "layer_norm1.",
    "ln_2.": "layer_norm2.",
    "attn.out_proj.": "self_attn.out_proj.",
    "mlp.c_fc.": "mlp.fc1.",
    "mlp.c_proj.": "mlp.fc2.",
}
BRANCH_LINEAR = re.compile(r"c_proj\.(\d+)\.(weight|bias)")
WRAPPERS = ("module.", "_orig_mod.")  # of DistributedDataParallel and of torch.compile
LONG_CLIP_POSITIONS = "positional_embedding_res"
NOT_WEIGHTS = {"attn_mask", "position_ids", "input_resolution", "context_length", "vocab_size"}
UNSUPPORTED = {
    r"(text|vision)_model\.": "transformers' names: for a CLIP take `from_clip`, for a checkpoint of this package "
    "`HolisticCLIPModel.from_pretrained`",
    r"visual\.(layer\d|attnpool)\.": "a ResNet vision tower",
    r"visual\.trunk\.": "a timm vision tower",
    r"visual\.attn_pool": "an attentional pooler",
    r"text_decoder\.": "a text decoder (CoCa)",
    r"(text\.)?cls_emb$": "a class token in the text tower (CoCa)",
    r"text\.(transformer\.(?!resblocks\.)|proj\.)": "a Hugging Face text tower",
    r"(text\.)?text_projection\.": "a text projection with a bias",
    r".+\.ls_[12]\.gamma$": "layer scale",
    r".+\.attn\.ln_[qk]\.": "normalised queries and keys",
    r"logit_bias$": "a bias of the logits (SigLIP)",
}
REQUIRED = [*OUTER_NAMES, *PROJECTIONS, "visual.class_embedding", "visual.positional_embedding"]


REQUIRED += [f"{tower}transformer.resblocks.0.mlp.c_fc.weight" for tower in ("", "visual.")]


def from_open_clip(
    state_dict: Mapping[str, Tensor],
    *,
    vision_heads: int | None = None,
    text_heads: int | None = None,
    perturbation: float = 0.0,
    seed: int = 0,
    **config_overrides: Any,
) -> HolisticCLIPModel:
    """Return a state dict of open_clip or of OpenAI's CLIP, both towers transformers, as `from_clip`.

    A state dict does not say everything. You have to say if a model differs in attention heads (default: width / 64,
    and 16 for vision towers from a width of 1280, as in open_clip's configurations) or in `hidden_act` of both configs
    (default: `"quick_gelu"` for files of OpenAI and Long-CLIP, else `"gelu"`; models named `-quickgelu` need the
    former). Pooling is the class token of images and the end token of texts, behind causal attention. A tokenizer
    whose end token is neither CLIP's nor the highest id of the vocabulary needs `text_config={"eos_token_id": ...}`.

    Args:
        state_dict: the weights themselves, with or without the prefixes `module.` and `_orig_mod.`. Load a file with
            `torch.load(path, weights_only=True)`, never without: pickles run code. Training checkpoints hold the
            weights under `"state_dict"`. Files of TorchScript need `torch.jit.load(path).state_dict()`.
        vision_heads, text_heads: attention heads per layer.
        perturbation, seed, config_overrides: Options of `from_clip`.

    Raises:
        ValueError: another kind of model; parameters left over or lacking; overrides as in `from_clip`.
    """
    state = _read(state_dict)
    if state["visual.class_embedding"].ndim != 1 or _branch_linears(state):
        raise ValueError("These weights have branches. Take `from_official`, which keeps them.")
    fields = _infer(state, vision_heads, text_heads, num_class_tokens=1)
    fields["vision_config"]["branch_isolation"] = "anchored"
    # The first is in OpenAI's own files only, the second in those of Long-CLIP, which was trained from them.
    if any(name.endswith(("input_resolution", LONG_CLIP_POSITIONS)) for name in state_dict):
        fields["vision_config"]["hidden_act"] = fields["text_config"]["hidden_act"] = "quick_gelu"
    return assemble(_convert(state), fields, config_overrides, perturbation, seed)


def from_official(
    state_dict: Mapping[str, Tensor],
    *,
    vision_heads: int | None = None,
    text_heads: int | None = None,
    **config_overrides: Any,
) -> HolisticCLIPModel:
    """Return a state dict of the paper's released code, with its branches: H class tokens, or H second MLP linears.

    Arguments and errors are those of `from_open_clip`; a state dict without branches (its baselines) belongs there.
    `branch_isolation` is `"official"` for class tokens. Give `perspectives` in the order of the training captions;
    for H = 6 the default is the order in which the released code merges them.

    Example:

    >>> checkpoint = torch.load("epoch_100.pt", weights_only=True)  # doctest: +SKIP
    >>> model = from_official(checkpoint["state_dict"], perspectives=["web", "detail"])  # doctest: +SKIP
    """
    state = _read(state_dict)
    linears = _branch_linears(state)
    class_tokens = state["visual.class_embedding"]
    if class_tokens.ndim == 1 and not linears:
        raise ValueError("These weights have no branches. Take `from_open_clip`.")
    num_class_tokens = len(class_tokens) if class_tokens.ndim == 2 else 1
    fields = _infer(state, vision_heads, text_heads, num_class_tokens)
    if linears:
        layers = {layer for layer, _ in linears}
        branches = {"branch_type": "mlp", "num_branches": 1 + max(h for _, h in linears)}
        fields["vision_config"] |= {**branches, "num_branch_layers": len(layers)}
    else:
        fields["vision_config"] |= {"num_branches": num_class_tokens, "branch_isolation": "official"}
    return assemble(_convert(state), fields, config_overrides)


def _read(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Read the weights by open_clip's plain names; anything that is not a CLIP of two transformers is refused."""
    if not isinstance(state_dict, Mapping):
        hint = (
            "Read the file: `torch.load(path, weights_only=True)`, or, of TorchScript, "
            "`torch.jit.load(path).state_dict()`."
        )
        if isinstance(state_dict, nn.Module):
            hint = "Pass its `state_dict()`."
        raise ValueError(f"`state_dict` is a {type(state_dict).__name__}; expected names and tensors. {hint}")
    for name, value in state_dict.items():
        if not isinstance(value, Tensor):
            hint = 'Pass checkpoint["state_dict"].' if "state_dict" in state_dict else "Pass a state dict of tensors."
            raise ValueError(f"{name!r} is a {type(value).__name__}, not a tensor. {hint}")
    state = dict(state_dict)
    while state and (wrapper := next((each for each in WRAPPERS if all(name.startswith(each) for name in state)), "")):
        state = {name.removeprefix(wrapper): value for name, value in state.items()}
    if LONG_CLIP_POSITIONS in state and "positional_embedding" in state:
        # Long-CLIP adds the first positions of one table and the others of a second.
        first, others = state["positional_embedding"], state.pop(LONG_CLIP_POSITIONS)
        if first.shape != others.shape:
            raise ValueError(
                f"`positional_embedding` is {tuple(first.shape)} and `{LONG_CLIP_POSITIONS}` {tuple(others.shape)}; "
                "expected one shape, as in Long-CLIP's files. Get them again."
            )
        state["positional_embedding"] = torch.cat([first[:LONG_CLIP_KEPT], others[LONG_CLIP_KEPT:]])
    unit_scales = [name for name in state if name.endswith(".gamma") and bool((state[name] == 1).all())]
    aside = [name for name in state if name.rpartition(".")[2] in NOT_WEIGHTS] + unit_scales
    if aside:
        logger.info("Not weights, left aside: %s.", listed(aside))
    state = {name: value for name, value in state.items() if name not in aside}
    for pattern, found in UNSUPPORTED.items():
        names = [name for name in state if re.match(pattern, name)]
        if names:
            raise ValueError(f"Only CLIPs of two plain transformers can be converted. Found {found}: {listed(names)}.")
    state = _distinct([(name.removeprefix("text."), value) for name, value in state.items()])
    lacking = [name for name in REQUIRED if not any(_matches(known, name) for known in state)]
    if lacking:
        raise ValueError(
            f"Not a CLIP of open_clip's or OpenAI's names. It lacks {listed(lacking)}; it has {listed(state)}."
        )
    return state


def _distinct(named: list[tuple[str, Tensor]]) -> dict[str, Tensor]:
    twice = sorted(name for name, count in Counter(name for name, _ in named).items() if count > 1)
    if twice:
        raise ValueError(f"Two of the weights are meant for the same place: {listed(twice)}.")
    return dict(named)


def _branch_linears(state: Mapping[str, Tensor]) -> set[tuple[int, int]]:
    """Return the (layer, branch) of every second MLP linear of the paper's MLP variant."""
    blocks = (BLOCK.fullmatch(name) for name in state)
    found = ((block[2], BRANCH_LINEAR.fullmatch(block[3])) for block in blocks if block and block[1])
    return {(int(layer), int(linear[1])) for layer, linear in found if linear}


def _infer(
    state: Mapping[str, Tensor], vision_heads: int | None, text_heads: int | None, num_class_tokens: int
) -> dict[str, Any]:
    """Return the fields of `HolisticCLIPConfig`, from the shapes."""
    width, channels, patch, patch_width = state["visual.conv1.weight"].shape
    patches = len(state["visual.positional_embedding"]) - num_class_tokens
    if math.isqrt(patches) ** 2 != patches or patch_width != patch:
        raise ValueError(
            f"{patches} patches of {patch} x {patch_width} pixels do not tile a square image by squares, the only "
            f"images that can be converted."
        )
    vocab_size, text_width = state["token_embedding.weight"].shape
    end = end_token_id(LEGACY_END, vocab_size)
    vision = {
        **_tower(state, "visual.", width, vision_heads or (16 if width >= 1280 else None)),
        "num_channels": channels,
        "patch_size": patch,
        "image_size": patch * math.isqrt(patches),
    }
    text = {
        **_tower(state, "", text_width, text_heads),
        "vocab_size": vocab_size,
        "max_position_embeddings": len(state["positional_embedding"]),
        # Of open_clip's tokenizer. These models read a text at its highest id, which is the end token's.
        **{"pad_token_id": 0, "bos_token_id": end - 1, "eos_token_id": end},
    }
    return {"projection_dim": state["visual.proj"].shape[1], "text_config": text, "vision_config": vision}


def _tower(state: Mapping[str, Tensor], tower: str, width: int, heads: int | None) -> dict[str, Any]:
    if heads is None and width % 64:
        raise ValueError(f"A width of {width} does not tell the number of heads. Give `vision_heads`, `text_heads`.")
    blocks = (BLOCK.fullmatch(name) for name in state)
    return {
        "hidden_size": width,
        "intermediate_size": len(state[f"{tower}transformer.resblocks.0.mlp.c_fc.weight"]),
        "num_hidden_layers": len({block[2] for block in blocks if block and (block[1] or "") == tower}),
        "num_attention_heads": heads or width // 64,
        "hidden_act": "gelu",
    }


def _convert(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert open_clip's names and shapes to ours; what has no place keeps its name."""
    positions = state["visual.positional_embedding"]
    class_tokens = state["visual.class_embedding"].reshape(-1, positions.shape[1])
    size = len(class_tokens)
    weights = [
        (f"{EMBEDDINGS}.class_embedding", class_tokens[0]),
        (f"{EMBEDDINGS}.position_embedding.weight", torch.cat([positions[:1], positions[size:]])),
    ]
    if size > 1:
        weights.append((f"{EMBEDDINGS}.branch_class_embedding", class_tokens[1:]))
        weights.append((f"{EMBEDDINGS}.branch_position_embedding", positions[1:size]))
    for name, value in state.items():
        block = BLOCK.fullmatch(name)
        if block:
            tower = "vision_model" if block[1] else "text_model"
            weights += _convert_block(f"{tower}.encoder.layers.{block[2]}.", block[3], value)
        elif name in PROJECTIONS:
            weights.append((PROJECTIONS[name], value.T))
        elif name not in ("visual.class_embedding", "visual.positional_embedding"):
            weights.append((_renamed(name, OUTER_NAMES), value.reshape(()) if name == "logit_scale" else value))
    return _distinct(weights)


def _convert_block(layer: str, name: str, value: Tensor) -> list[tuple[str, Tensor]]:
    if name in ("attn.in_proj_weight", "attn.in_proj_bias"):
        part = name.removeprefix("attn.in_proj_")
        return [(f"{layer}self_attn.{p}_proj.{part}", v) for p, v in zip("qkv", value.chunk(3), strict=True)]
    linear = BRANCH_LINEAR.fullmatch(name)
    if linear:
        branch = int(linear[1])
        place = f"branch_fc2.{branch - 1}" if branch else "fc2"
        return [(f"{layer}mlp.{place}.{linear[2]}", value)]
    return [(layer + _renamed(name, BLOCK_NAMES), value)]


def _renamed(name: str, names: Mapping[str, str]) -> str:
    return next((new + name[len(old) :] for old, new in names.items() if _matches(name, old)), name)


def _matches(name: str, known: str) -> bool:
    """Tell whether `known`, a name or with its last dot a prefix, covers `name`."""
    return name == known or (known.endswith(".") and name.startswith(known))
