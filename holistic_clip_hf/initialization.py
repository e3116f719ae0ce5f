# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Initialization from other people's weights: CLIP of transformers, open_clip, and the paper's own towers.

Branches start as copies of the checkpoint's class token or second MLP linear. Missing and unexpected weights raise an
error that lists them. Text positions are stretched as in Long-CLIP.
"""

import dataclasses
import logging
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import CLIPModel, CLIPTextConfig, CLIPVisionConfig, PreTrainedConfig

from .checkpoint_files import require_all_weights
from .configuration_holistic_clip import (
    LEGACY_END,
    HolisticCLIPConfig,
    HolisticCLIPVisionConfig,
    end_token_id,
    require_own_attention,
)
from .modeling_holistic_clip import HolisticCLIPModel

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


logger = logging.getLogger(__name__)

EMBEDDINGS = "vision_model.embeddings"
TEXT_POSITIONS = "text_model.embeddings.position_embedding.weight"


def assemble(
    weights: Mapping[str, Tensor],
    fields: dict[str, Any],
    overrides: dict[str, Any],
    perturbation: float = 0.0,
    seed: int = 0,
) -> HolisticCLIPModel:
    """Return a model of our names from weights of our names, after checking both against `fields` alone."""
    if not 0 <= perturbation < math.inf:
        raise ValueError(f"`perturbation` is {perturbation}; expected 0 (exact copies) or more.")
    if any(value.is_meta for value in weights.values()):
        raise ValueError("The weights are on the meta device, without values. Load them first.")
    state = {name: value.detach().to("cpu", torch.float32) for name, value in weights.items()}
    vision = {"num_branches": 1, **fields["vision_config"]}
    lacking, unused, reshaped = _differences(state, HolisticCLIPConfig(**{**fields, "vision_config": vision}))
    if lacking or unused or reshaped:
        raise ValueError(f"Lacking: {listed(lacking)}. No place for: {listed(unused)}. Shapes: {listed(reshaped)}.")
    config = _overridden(fields, overrides)
    length = cast(CLIPTextConfig, config.text_config).max_position_embeddings
    if length != len(state[TEXT_POSITIONS]):
        state[TEXT_POSITIONS] = stretch_positions(state[TEXT_POSITIONS], length)
    state |= _copies(state, config, perturbation, seed)
    fresh, unused, reshaped = _differences(state, config)
    if reshaped:
        raise ValueError(f"`config_overrides` ask for other shapes than the weights have: {listed(reshaped)}.")
    if fresh or unused:
        logger.warning("By `config_overrides`, new and random: %s; left out: %s.", listed(fresh), listed(unused))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = HolisticCLIPModel._from_config(config, dtype=torch.float32)
    model.load_state_dict(state, strict=False)
    return model.eval()


def _differences(state: Mapping[str, Tensor], config: HolisticCLIPConfig) -> tuple[list[str], list[str], list[str]]:
    """Return the names that are missing in `state`, unexpected in it, and of another shape, with both shapes."""
    with torch.device("meta"):
        expected = {name: tuple(value.shape) for name, value in HolisticCLIPModel(config).state_dict().items()}
    found = {name: tuple(value.shape) for name, value in state.items()}
    reshaped = [f"{n} {found[n]} for {expected[n]}" for n in expected if n in found and found[n] != expected[n]]
    return [name for name in expected if name not in found], [name for name in found if name not in expected], reshaped


def _overridden(fields: dict[str, Any], overrides: dict[str, Any]) -> HolisticCLIPConfig:
    merged = {**fields, **overrides}
    kinds = {"text_config": CLIPTextConfig, "vision_config": HolisticCLIPVisionConfig}
    for name, kind in kinds.items():
        if not isinstance(merged[name], dict):
            raise ValueError(f"`{name}` is a {type(merged[name]).__name__}. Give a dict of what shall differ.")
        merged[name] = {**fields[name], **merged[name]}
        _check_fields(merged[name], kind)
    _check_fields(merged, HolisticCLIPConfig)
    return HolisticCLIPConfig(**merged)


def _check_fields(given: Iterable[str], kind: type) -> None:
    unknown = sorted(set(given) - {field.name for field in dataclasses.fields(kind)})
    if unknown:
        raise ValueError(
            f"{kind.__name__} has no field {listed(unknown)}. What describes a tower, as `num_branches`, goes into "
            f"`vision_config` or `text_config`."
        )


def _copies(
    state: Mapping[str, Tensor], config: HolisticCLIPConfig, perturbation: float, seed: int
) -> dict[str, Tensor]:
    """Return parameters of branches 1 to H - 1, each a copy of branch 0's; none where the weights have branches
    already.
    """
    vision, others = cast(HolisticCLIPVisionConfig, config.vision_config), config.num_branches - 1
    if others == 0 or any(".branch_" in name for name in state):
        return {}
    if vision.branch_type == "cls":
        rows = {
            f"{EMBEDDINGS}.branch_class_embedding": state[f"{EMBEDDINGS}.class_embedding"],
            f"{EMBEDDINGS}.branch_position_embedding": state[f"{EMBEDDINGS}.position_embedding.weight"][0],
        }
        sources = {name: row.expand(others, -1) for name, row in rows.items()}
    else:
        layers = range(vision.num_hidden_layers - vision.num_branch_layers, vision.num_hidden_layers)
        mlps = [f"vision_model.encoder.layers.{layer}.mlp" for layer in layers]
        sources = {
            f"{mlp}.branch_fc2.{branch}.{part}": state[f"{mlp}.fc2.{part}"]
            for mlp in mlps
            for branch in range(others)
            for part in ("weight", "bias")
            if f"{mlp}.fc2.{part}" in state
        }
    generator = torch.Generator().manual_seed(seed)
    return {
        name: value + perturbation * value.square().mean().sqrt() * torch.randn(value.shape, generator=generator)
        for name, value in sources.items()
    }


def listed(names: Iterable[str]) -> str:
    """Return the first twenty, for a message."""
    names = list(names)
    return (", ".join(names[:20]) or "nothing") + (f" and {len(names) - 20} more" if len(names) > 20 else "")


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
    (default: `"quick_gelu"` for OpenAI's own files, else `"gelu"`; models named `-quickgelu` need the former). Pooling
    is the class token of images and the end token of texts, behind causal attention. A tokenizer whose end token is
    neither CLIP's nor the highest id of the vocabulary needs `text_config={"eos_token_id": ...}`.

    Args:
        state_dict: the weights themselves, with or without the prefix `module.`. Load a file with
            `torch.load(path, weights_only=True)`, never without: pickles run code. Training checkpoints hold the
            weights under `"state_dict"`.
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
    if "input_resolution" in state_dict:  # in OpenAI's own files only
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
    for name, value in state_dict.items():
        if not isinstance(value, Tensor):
            hint = 'Pass checkpoint["state_dict"].' if "state_dict" in state_dict else "Pass a state dict of tensors."
            raise ValueError(f"{name!r} is a {type(value).__name__}, not a tensor. {hint}")
    state = dict(state_dict)
    if all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
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


def from_holistic_clip(
    source: str | PathLike, *, perspectives: Sequence[str], max_position_embeddings: int | None = None
) -> HolisticCLIPModel:
    """Return a checkpoint of this package with the branches of these names.

    A branch that the checkpoint has is kept, by its name; a new one is a copy of the first that is kept, or of the
    checkpoint's first. Branched MLPs answer as before, and so do class tokens that patches do not see (`strict`). In
    the other modes, and with one class token left, the set of tokens that patches see moves the answers a little. If
    the names or their order change, what was fitted to the old ones, a router or weights of branches, is left out, and
    the fusion is `centroid`.

    Args:
        source: Folder of the checkpoint, or its name on the Hub.
        perspectives: Names of the branches, in order.
        max_position_embeddings: Text positions to stretch to; see `stretch_positions`.

    Raises:
        ValueError: not a checkpoint of this package, or names that are not distinct.
    """
    found = PreTrainedConfig.get_config_dict(source)[0].get("model_type")
    if found != HolisticCLIPConfig.model_type:
        raise ValueError(f"{str(source)!r} is of model type {found!r}; expected {HolisticCLIPConfig.model_type!r}.")
    model, report = HolisticCLIPModel.from_pretrained(source, dtype=torch.float32, output_loading_info=True)
    require_all_weights(str(source), report["missing_keys"], "source")
    if list(perspectives) != model.config.perspectives:
        model = _rebranched(model, list(perspectives))
    length = cast(CLIPTextConfig, model.config.text_config).max_position_embeddings
    if max_position_embeddings is not None and max_position_embeddings != length:
        stretch_text_positions(model, max_position_embeddings)
    return model.eval()


def _rebranched(model: HolisticCLIPModel, names: list[str]) -> HolisticCLIPModel:
    old = model.config.perspectives
    first = next((old.index(name) for name in names if name in old), 0)
    order = [old.index(name) if name in old else first for name in names]
    fields = {
        name: value for name, value in model.config.to_dict().items() if name not in ("fusion_scale", "branch_weights")
    }
    fields["vision_config"] = {**fields["vision_config"], "num_branches": len(names)}
    config = HolisticCLIPConfig(**{**fields, "perspectives": names, "fusion": "centroid"})
    state = model.state_dict()
    kept = {name: value for name, value in state.items() if ".branch_" not in name and "branch_fusion" not in name}
    state = {**kept, **_branches_in_order(state, model.config, order)}
    made = HolisticCLIPModel._from_config(config, dtype=torch.float32)
    made.load_state_dict(state)
    return made


def _branches_in_order(
    state: Mapping[str, Tensor], config: HolisticCLIPConfig, order: Sequence[int]
) -> dict[str, Tensor]:
    """Return the parameters of branches, old branch `order[h]` as branch h; those of the first have CLIP's names."""
    vision = cast(HolisticCLIPVisionConfig, config.vision_config)
    if vision.branch_type == "cls":
        token, positions = f"{EMBEDDINGS}.class_embedding", f"{EMBEDDINGS}.position_embedding.weight"
        tokens, places = [state[token][None]], [state[positions][:1]]
        if config.num_branches > 1:
            tokens.append(state[f"{EMBEDDINGS}.branch_class_embedding"])
            places.append(state[f"{EMBEDDINGS}.branch_position_embedding"])
        chosen, at = torch.cat(tokens)[list(order)], torch.cat(places)[list(order)]
        found = {token: chosen[0], positions: torch.cat([at[:1], state[positions][1:]])}
        others = {
            f"{EMBEDDINGS}.branch_class_embedding": chosen[1:],
            f"{EMBEDDINGS}.branch_position_embedding": at[1:],
        }
        return {**found, **(others if len(order) > 1 else {})}
    found = {}
    for layer in range(vision.num_hidden_layers - vision.num_branch_layers, vision.num_hidden_layers):
        mlp = f"vision_model.encoder.layers.{layer}.mlp"
        names = [
            f"{mlp}.fc2",
            *(f"{mlp}.branch_fc2.{branch}" for branch in range(max(len(order), config.num_branches))),
        ]
        for place, branch in enumerate(order):
            found |= {f"{names[place]}.{part}": state[f"{names[branch]}.{part}"] for part in ("weight", "bias")}
    return found
