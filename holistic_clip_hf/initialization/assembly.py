# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Assembly of a model from weights of its names, which every family of weights ends in.

Missing and unexpected weights raise an error that lists them.
"""

import dataclasses
import logging
import math
from collections.abc import Iterable, Mapping
from os import PathLike
from typing import Any, cast

import torch
from torch import Tensor
from transformers import CONFIG_MAPPING, CLIPTextConfig, PreTrainedConfig, PreTrainedModel

from ..configuration_holistic_clip import (
    HolisticBackboneVisionConfig,
    HolisticCLIPConfig,
    HolisticCLIPVisionConfig,
    require_own_attention,
)
from ..modeling_holistic_clip import HolisticCLIPModel
from .positions import stretch_positions

logger = logging.getLogger(__name__)

EMBEDDINGS = "vision_model.embeddings"
HEAD = "vision_model.head"
TEXT_POSITIONS = "text_model.embeddings.position_embedding.weight"


def assemble(
    weights: Mapping[str, Tensor],
    fields: dict[str, Any],
    overrides: dict[str, Any],
    perturbation: float = 0.0,
    seed: int = 0,
    kind: type[HolisticCLIPModel] = HolisticCLIPModel,
) -> Any:
    """Return a model of a kind from weights of our names, after checking both against `fields` alone."""
    if not 0 <= perturbation < math.inf:
        raise ValueError(f"`perturbation` is {perturbation}; expected 0 (exact copies) or more.")
    if any(value.is_meta for value in weights.values()):
        raise ValueError("The weights are on the meta device, without values. Load them first.")
    state = {name: value.detach().to("cpu", torch.float32) for name, value in weights.items()}
    vision = {"num_branches": 1, **fields["vision_config"]}
    lacking, unused, reshaped = _differences(state, kind, kind.config_class(**{**fields, "vision_config": vision}))
    if lacking or unused or reshaped:
        raise ValueError(f"Lacking: {listed(lacking)}. No place for: {listed(unused)}. Shapes: {listed(reshaped)}.")
    config = _overridden(fields, overrides, kind.config_class)
    length = cast(CLIPTextConfig, config.text_config).max_position_embeddings
    if length != len(state[TEXT_POSITIONS]):
        state[TEXT_POSITIONS] = stretch_positions(state[TEXT_POSITIONS], length)
    state |= _copies(state, config, perturbation, seed)
    fresh, unused, reshaped = _differences(state, kind, config)
    if reshaped:
        raise ValueError(f"`config_overrides` ask for other shapes than the weights have: {listed(reshaped)}.")
    if fresh or unused:
        logger.warning("By `config_overrides`, new and random: %s; left out: %s.", listed(fresh), listed(unused))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = kind._from_config(config, dtype=torch.float32)
    model.load_state_dict(state, strict=False)
    return model.eval()


def _differences(
    state: Mapping[str, Tensor], kind: type[HolisticCLIPModel], config: HolisticCLIPConfig
) -> tuple[list[str], list[str], list[str]]:
    """Return the names that are missing in `state`, unexpected in it, and of another shape, with both shapes."""
    with torch.device("meta"):
        expected = {name: tuple(value.shape) for name, value in kind(config).state_dict().items()}
    found = {name: tuple(value.shape) for name, value in state.items()}
    reshaped = [f"{n} {found[n]} for {expected[n]}" for n in expected if n in found and found[n] != expected[n]]
    return [name for name in expected if name not in found], [name for name in found if name not in expected], reshaped


def _overridden(
    fields: dict[str, Any], overrides: dict[str, Any], kind: type[HolisticCLIPConfig]
) -> HolisticCLIPConfig:
    merged = {**fields, **overrides}
    text = CONFIG_MAPPING[fields["text_config"].get("model_type", CLIPTextConfig.model_type)]
    has_backbone = "backbone_config" in fields["vision_config"]
    vision = HolisticBackboneVisionConfig if has_backbone else HolisticCLIPVisionConfig
    for name, tower in {"text_config": text, "vision_config": vision}.items():
        if not isinstance(merged[name], dict):
            raise ValueError(f"`{name}` is a {type(merged[name]).__name__}. Give a dict of what shall differ.")
        merged[name] = {**fields[name], **merged[name]}
        _check_fields(merged[name], tower)
    _check_fields(merged, kind)
    return kind(**merged)


def _check_fields(given: Iterable[str], kind: type) -> None:
    unknown = sorted(set(given) - {"model_type"} - {field.name for field in dataclasses.fields(kind)})
    if unknown:
        raise ValueError(
            f"{kind.__name__} has no field {listed(unknown)}. What describes a tower, as `num_branches`, goes into "
            f"`vision_config` or `text_config`."
        )


def _copies(
    state: Mapping[str, Tensor], config: HolisticCLIPConfig, perturbation: float, seed: int
) -> dict[str, Tensor]:
    """Return parameters of branches 1 to H - 1, each a copy of branch 0's; none where the weights have branches
    already, or no head that probes could be copied from.
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
        if vision.branched_token_mlp:
            sources |= _copied_linears(state, vision, others)
    elif vision.branch_type == "probe":
        sources = _copied_probes(state, others, vision.branched_head_mlp)
    else:
        sources = _copied_linears(state, vision, others)
    generator = torch.Generator().manual_seed(seed)
    return {
        name: value + perturbation * value.square().mean().sqrt() * torch.randn(value.shape, generator=generator)
        for name, value in sources.items()
    }


def branched_mlps(vision: HolisticCLIPVisionConfig) -> list[str]:
    """Return the names of the MLPs of the last `num_branch_layers` layers."""
    layers = range(vision.num_hidden_layers - vision.num_branch_layers, vision.num_hidden_layers)
    return [f"vision_model.encoder.layers.{layer}.mlp" for layer in layers]


def _copied_linears(state: Mapping[str, Tensor], vision: HolisticCLIPVisionConfig, others: int) -> dict[str, Tensor]:
    return {
        f"{mlp}.branch_fc2.{branch}.{part}": state[f"{mlp}.fc2.{part}"]
        for mlp in branched_mlps(vision)
        for branch in range(others)
        for part in ("weight", "bias")
        if f"{mlp}.fc2.{part}" in state
    }


def _copied_probes(state: Mapping[str, Tensor], others: int, has_own_linears: bool) -> dict[str, Tensor]:
    if f"{HEAD}.probe" not in state:
        return {}
    sources = {f"{HEAD}.branch_probe": state[f"{HEAD}.probe"].expand(1, others, -1)}
    if has_own_linears:
        for part in ("weight", "bias"):
            names = [f"{HEAD}.mlp.branch_fc2.{branch}.{part}" for branch in range(others)]
            sources |= dict.fromkeys(names, state[f"{HEAD}.mlp.fc2.{part}"])
    return sources


def listed(names: Iterable[str]) -> str:
    """Return the first twenty, for a message."""
    names = list(names)
    return (", ".join(names[:20]) or "nothing") + (f" and {len(names) - 20} more" if len(names) > 20 else "")


def own_fields(tower: Any, kind: type[PreTrainedConfig]) -> dict[str, Any]:
    """Return the fields that describe a tower of a kind, without those of every configuration."""
    return {name: getattr(tower, name) for name in kind.__annotations__ if hasattr(tower, name)}


def load_whole(kind: type[PreTrainedModel], source: str | PathLike) -> Any:
    """Load a model of transformers, all of whose weights the checkpoint has to have.

    Raises:
        ValueError: missing or unexpected weights, by name.
    """
    model, report = kind.from_pretrained(source, output_loading_info=True)
    lacking, unused = sorted(report["missing_keys"]), sorted(report["unexpected_keys"])
    if lacking or unused:
        raise ValueError(f"{str(source)!r} lacks {listed(lacking)}; has no place for {listed(unused)}.")
    return model


def name_of(source: Any) -> str:
    """Return how a message calls a checkpoint, given as `type_of` takes it."""
    return f"The {type(source).__name__}" if isinstance(source, PreTrainedModel) else repr(str(source))


def type_of(source: Any) -> str:
    """Return the model type of a checkpoint, given as a model, a folder or a name on the Hub.

    Raises:
        ValueError: neither of these, or one whose attention is code of another repository.
    """
    if isinstance(source, PreTrainedModel):
        return source.config.model_type
    if not isinstance(source, str | PathLike):
        raise ValueError(f"`model` is a {type(source).__name__}. Give a model of transformers, a name or a folder.")
    found = PreTrainedConfig.get_config_dict(source)[0]
    require_own_attention(found)
    return found.get("model_type", "unknown")
