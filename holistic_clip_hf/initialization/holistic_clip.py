# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Checkpoints of this package, with the same, more or other branches."""

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import cast

import torch
from torch import Tensor
from transformers import CLIPTextConfig, PreTrainedConfig

from ..checkpoint_files import require_all_weights
from ..configuration_holistic_clip import (
    MODEL_TYPES,
    HolisticCLIPConfig,
    HolisticCLIPVisionConfig,
    HolisticSiglipConfig,
)
from ..modeling_holistic_clip import HolisticCLIPModel, HolisticSiglipModel
from .assembly import EMBEDDINGS, HEAD, branched_mlps
from .positions import stretch_text_positions


def from_holistic_clip(
    source: str | PathLike,
    *,
    perspectives: Sequence[str],
    max_position_embeddings: int | None = None,
    branched_head_mlp: bool = False,
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
        branched_head_mlp: Give each probe a second linear of its own, a copy of the one that they share.

    Raises:
        ValueError: not a checkpoint of this package, names that are not distinct, linears of their own for branches
            that are not probes, other names for class tokens that belong to a backbone, or another first branch where
            the patches use its MLPs (`branched_token_mlp`).
    """
    found = PreTrainedConfig.get_config_dict(source)[0].get("model_type")
    if found not in MODEL_TYPES:
        expected = " or ".join(map(repr, MODEL_TYPES))
        raise ValueError(f"{str(source)!r} is of model type {found!r}; expected {expected}.")
    kind = HolisticSiglipModel if found == HolisticSiglipConfig.model_type else HolisticCLIPModel
    model, report = kind.from_pretrained(source, dtype=torch.float32, output_loading_info=True)
    require_all_weights(str(source), report["missing_keys"], "source")
    vision = cast(HolisticCLIPVisionConfig, model.config.vision_config)
    if branched_head_mlp and vision.branch_type != "probe":
        raise ValueError(
            f"`branched_head_mlp` is True, and {str(source)!r} has branches of the type {vision.branch_type!r}; "
            "expected probes. Leave it out."
        )
    if list(perspectives) != model.config.perspectives and vision.branch_type == "cls" and hasattr(vision, "backbone"):
        raise ValueError(
            f"`perspectives` is {list(perspectives)}, and the class tokens of {str(source)!r} are its backbone's own; "
            f"expected their names {model.config.perspectives}. Give these."
        )
    first = model.config.perspectives[0]
    if getattr(vision, "branched_token_mlp", False) and perspectives[0] != first:
        raise ValueError(
            f"`perspectives` begins with {perspectives[0]!r}; expected {first!r}, the first of {str(source)!r}, whose "
            "MLPs the patches use too. Put it first."
        )
    gains_linears = branched_head_mlp and not vision.branched_head_mlp
    if list(perspectives) != model.config.perspectives or gains_linears:
        model = _rebranched(model, list(perspectives), gains_linears)
    length = cast(CLIPTextConfig, model.config.text_config).max_position_embeddings
    if max_position_embeddings is not None and max_position_embeddings != length:
        stretch_text_positions(model, max_position_embeddings)
    return model.eval()


def _rebranched(model: HolisticCLIPModel, names: list[str], gains_linears: bool) -> HolisticCLIPModel:
    old = model.config.perspectives
    first = next((old.index(name) for name in names if name in old), 0)
    order = [old.index(name) if name in old else first for name in names]
    fields, state = model.config.to_dict(), model.state_dict()
    if names != old:  # what was fitted to the old ones says nothing of the new
        fields = {**fields, "fusion": "centroid", "fusion_scale": None, "branch_weights": None}
        state = {name: value for name, value in state.items() if "branch_fusion" not in name}
    vision = {**fields["vision_config"], "num_branches": len(names)}
    vision |= {"branched_head_mlp": True} if gains_linears else {}
    config = type(model.config)(**{**fields, "perspectives": names, "vision_config": vision})
    kept = {name: value for name, value in state.items() if ".branch_" not in name}
    state = {**kept, **_branches_in_order(state, model.config, order, gains_linears)}
    made = type(model)._from_config(config, dtype=torch.float32)
    made.load_state_dict(state)
    return made


def _branches_in_order(
    state: Mapping[str, Tensor], config: HolisticCLIPConfig, order: Sequence[int], gains_linears: bool
) -> dict[str, Tensor]:
    """Return the parameters of branches, old branch `order[h]` as branch h; those of the first have CLIP's names.

    Probes that gain linears of their own have copies of the shared one.
    """
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
        found |= others if len(order) > 1 else {}
        mlps = branched_mlps(vision) if vision.branched_token_mlp and config.num_branches > 1 else []
    elif vision.branch_type == "probe":
        probes = [state[f"{HEAD}.{name}"] for name in ("probe", "branch_probe") if f"{HEAD}.{name}" in state]
        chosen = torch.cat(probes, dim=1)[:, list(order)]
        found = {f"{HEAD}.probe": chosen[:, :1], **({f"{HEAD}.branch_probe": chosen[:, 1:]} if order[1:] else {})}
        if gains_linears:
            return found | _linears_in_order(state, f"{HEAD}.mlp", [0] * len(order))
        mlps = [f"{HEAD}.mlp"] if vision.branched_head_mlp else []
    else:
        found, mlps = {}, branched_mlps(vision)
    for mlp in mlps:
        found |= _linears_in_order(state, mlp, order)
    return found


def _linears_in_order(state: Mapping[str, Tensor], mlp: str, order: Sequence[int]) -> dict[str, Tensor]:
    """Return the second linears of an MLP, that of branch `order[h]` as branch h's."""

    def name(branch: int) -> str:
        return f"{mlp}.branch_fc2.{branch - 1}" if branch else f"{mlp}.fc2"

    return {
        f"{name(place)}.{part}": state[f"{name(branch)}.{part}"]
        for place, branch in enumerate(order)
        for part in ("weight", "bias")
    }
