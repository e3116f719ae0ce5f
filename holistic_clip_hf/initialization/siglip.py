# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""SigLIP and SigLIP 2, of fixed resolution and NaFlex, as Holistic CLIPs whose branches are probes."""

from collections.abc import Mapping
from os import PathLike
from typing import Any

from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel, Siglip2Model, SiglipModel, SiglipTextConfig

from ..configuration_holistic_clip import PAPER_PERSPECTIVES, HolisticBackboneVisionConfig
from ..modeling_holistic_clip import HolisticSiglipModel
from .assembly import HEAD, assemble, load_whole, name_of, own_fields, type_of

GEMMA_VOCABULARY = 256_000  # SigLIP 2's, of whose configurations transformers takes the padding to be SigLIP's
GEMMA_PADDING = 0
KINDS: dict[str, type[PreTrainedModel]] = {"siglip": SiglipModel, "siglip2": Siglip2Model}


def from_siglip(
    model: SiglipModel | Siglip2Model | str | PathLike,
    *,
    pad_token_id: int | None = None,
    perturbation: float = 0.0,
    seed: int = 0,
    **config_overrides: Any,
) -> HolisticSiglipModel:
    """Return a `SiglipModel` or `Siglip2Model` as a Holistic CLIP whose probes start as copies of SigLIP's own.

    SigLIP 2 of fixed resolution is a `SiglipModel`; a `Siglip2Model` is the NaFlex variant, whose images keep their
    shape. Before training, every branch, and hence the fused vector, is
    SigLIP's normalised image embedding, and the logits are SigLIP's.

    Args:
        model: the model, its folder, or its name on the Hub.
        pad_token_id: Id of the tokenizer's padding, with which texts are filled up inside the model. Left out, it is
            that of the tokenizer in the folder. Without one it is 0 for the vocabulary of SigLIP 2, and else what the
            configuration says.
        perturbation: standard deviation of noise on the copies, as a share of each parameter's root mean square.
        seed: Seed of the noise, and of parameters that only an override makes new.
        config_overrides: fields of `HolisticSiglipConfig`; the dicts `vision_config` and `text_config` are merged over
            those of the towers. H comes from `perspectives` or `vision_config`; left out, it is the paper's six.

    Raises:
        ValueError: not a SigLIP with both towers and a pooling head, or incomplete; an unknown
            override, or one that asks for other shapes.

    Example:

    >>> model = from_siglip("google/siglip2-base-patch16-224", perspectives=["short", "style"])  # doctest: +SKIP
    """
    kind = type_of(model)
    if kind not in KINDS:
        raise ValueError(
            f"{name_of(model)} is of model type {kind!r}; expected 'siglip' or 'siglip2', a model with both towers. "
            f"Other families come in through `from_backbone`."
        )
    siglip = model if isinstance(model, PreTrainedModel) else load_whole(KINDS[kind], model)
    text, vision = (
        {"model_type": tower.model_type, **own_fields(tower, type(tower))}
        for tower in (siglip.config.text_config, siglip.config.vision_config)
    )
    if not vision["vision_use_head"]:
        raise ValueError(f"{name_of(model)} has no pooling head in its vision tower. Take `from_backbone`.")
    fields: dict[str, Any] = {
        "projection_dim": vision["hidden_size"],
        # The text towers of both are one, by the names of their weights too.
        "text_config": {**text, "model_type": SiglipTextConfig.model_type, **_tokens(model, text, pad_token_id)},
        "vision_config": {"model_type": HolisticBackboneVisionConfig.model_type, "backbone_config": vision},
    }
    if "perspectives" not in config_overrides and "num_branches" not in config_overrides.get("vision_config", {}):
        config_overrides["perspectives"] = PAPER_PERSPECTIVES
    return assemble(_renamed(siglip.state_dict()), fields, config_overrides, perturbation, seed, HolisticSiglipModel)


def _tokens(source: Any, text: Mapping[str, Any], pad_token_id: int | None) -> dict[str, Any]:
    """Return the ids of special tokens, of the tokenizer in the checkpoint if there is one."""
    if not isinstance(source, PreTrainedModel):
        try:
            tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        except (OSError, ValueError, ImportError):
            tokenizer = None
        if tokenizer is not None:
            names = ("pad_token_id", "bos_token_id", "eos_token_id")
            found = {name: getattr(tokenizer, name) for name in names}
            return {**found, **({} if pad_token_id is None else {"pad_token_id": pad_token_id})}
    if pad_token_id is None:
        pad_token_id = GEMMA_PADDING if text["vocab_size"] == GEMMA_VOCABULARY else text["pad_token_id"]
    return {"pad_token_id": pad_token_id}


def _renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Name SigLIP's weights as ours: the vision tower is a backbone, and the head's attention has four linears."""
    found: dict[str, Tensor] = {}
    for name, value in state.items():
        if name.startswith(f"{HEAD}.attention.in_proj_"):
            part = name.rpartition("_")[2]
            shares = zip("qkv", value.chunk(3), strict=True)
            found |= {f"{HEAD}.attention.{letter}_proj.{part}": share for letter, share in shares}
        elif name.startswith("vision_model.") and not name.startswith(f"{HEAD}."):
            found[name.replace("vision_model.", "vision_model.backbone.", 1)] = value
        else:
            found[name] = value.reshape(()) if name in ("logit_scale", "logit_bias") else value
    return found
