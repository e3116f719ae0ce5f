# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Configuration of Holistic CLIP: CLIP's two towers, with H named branches in the vision tower.

- `num_branches=1` describes stock CLIP.
- `perspectives[h]` is the name of what branch h reads; everything downstream (matching, records, cards) uses names.
- Contradictions are refused at construction, with what to do about them.
"""

import math
from typing import Any, cast

from huggingface_hub.dataclasses import strict
from transformers import CLIPConfig, CLIPTextConfig, CLIPVisionConfig, PreTrainedConfig

# The order in which the paper's released code merges its captions (PAPER: one web text, five generated ones).
PAPER_PERSPECTIVES = ("web", "detail", "nouns", "background", "main_object", "style")

BRANCH_TYPES = ("cls", "mlp")
BRANCH_ISOLATIONS = ("isolated", "strict", "anchored", "open", "official")
PATCH_STEMS = ("linear", "convolutional")
MATCHINGS = ("aligned", "free", "balanced")
OBJECTIVES = ("softmax", "sigmoid")
FUSIONS = ("mean", "weighted", "routed", "max", "softmax")
DIVERSITIES = ("pairwise", "official")
LOSS_OPTIONS = (
    *("objective", "matching", "duplicate_captions", "fused_weight"),
    *("diversity", "diversity_weight", "diversity_threshold"),
)
DUPLICATE_CAPTIONS = ("positive", "ignore", "negative")


LOSS_CHOICES = {
    "objective": OBJECTIVES,
    "matching": MATCHINGS,
    "diversity": DIVERSITIES,
    "duplicate_captions": DUPLICATE_CAPTIONS,
}


def require_choice(name: str, value: Any, valid: tuple[str, ...]) -> None:
    """Raise `ValueError` unless an option has one of its valid values."""
    if value not in valid:
        raise ValueError(f"`{name}` is {value!r}; expected one of {', '.join(map(repr, valid))}.")


def _require_family(config_dict: dict[str, Any], *families: str) -> None:
    """transformers would only warn, and start from random weights."""
    found = config_dict.get("model_type")
    if found is not None and found not in families:
        raise ValueError(
            f"The checkpoint is one of {found!r}; expected one of {', '.join(map(repr, families))}. Other families of "
            f"CLIP weights come in through `holistic_clip_hf.initialization`."
        )


@strict
class HolisticCLIPVisionConfig(CLIPVisionConfig):
    """The vision tower: CLIP's, with `num_branches` outputs.

    Args:
        num_branches: H, the number of outputs. 1 is CLIP.
        branch_type: `"cls"`, H class tokens (the paper's Psi_CLS, about +2 % compute at H=6); or `"mlp"`, one class
            token and an H-fold second MLP linear in the last layers (Psi_MLP).
        num_branch_layers: Number of last layers that are branched with `branch_type="mlp"`; 3 in the paper's figure of
            the method. Not used by `"cls"`.
        branch_isolation: Mask of class tokens with `branch_type="cls"`. With `"isolated"` they do not see each other.
            With `"strict"` patches do not see them either, so that branches cannot talk through patches. With
            `"anchored"` patches see branch 0's alone, so that copies of CLIP's class token each give CLIP's own
            answer. With `"open"` everything sees everything. `"official"` is the authors' released code, whose boolean
            mask is *added*, as +1.0, to the attention logits between different class tokens. Not used by `"mlp"`.
        patch_dropout: share of patches left out at random while training (FLIP, https://arxiv.org/abs/2212.00794).
            Class tokens are never dropped.
        patch_stem: `"linear"`, CLIP's single strided convolution; or `"convolutional"`, a stack of 3x3 stride-2
            convolutions (https://arxiv.org/abs/2106.14881), which learns from far fewer images. The latter needs a
            power of two as `patch_size`.
    """

    model_type = "holistic_clip_vision_model"
    base_config_key = "vision_config"

    patch_size: int = 16  # the paper's backbone is ViT-B/16
    hidden_act: str = "gelu"  # the paper trains with GELU; weights of OpenAI's CLIP need "quick_gelu"
    num_branches: int = 1
    branch_type: str = "cls"
    num_branch_layers: int = 3
    branch_isolation: str = "isolated"
    patch_dropout: float | int = 0.0
    patch_stem: str = "linear"

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        # The decorator would run these later, and wrap the ValueError in an exception of another type.
        self.validate_branches()
        self.validate_patches()

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> "HolisticCLIPVisionConfig":
        """Refuses the configuration of another architecture than this tower or CLIP's."""
        _require_family(config_dict, cls.model_type, CLIPVisionConfig.model_type)
        return super().from_dict(config_dict, **kwargs)

    def validate_branches(self) -> None:
        """Part of the `@strict` validation."""
        require_choice("branch_type", self.branch_type, BRANCH_TYPES)
        require_choice("branch_isolation", self.branch_isolation, BRANCH_ISOLATIONS)
        if self.num_branches < 1:
            raise ValueError(f"`num_branches` is {self.num_branches}; expected 1 (CLIP) or more.")
        if self.branch_type == "mlp" and not 1 <= self.num_branch_layers <= self.num_hidden_layers:
            raise ValueError(
                f"`num_branch_layers` is {self.num_branch_layers}; expected 1 to `num_hidden_layers`, which is "
                f"{self.num_hidden_layers}."
            )

    def validate_patches(self) -> None:
        """Part of the `@strict` validation."""
        require_choice("patch_stem", self.patch_stem, PATCH_STEMS)
        if not 0.0 <= self.patch_dropout < 1.0:
            raise ValueError(f"`patch_dropout` is {self.patch_dropout}; expected at least 0 and below 1.")
        if self.patch_stem == "convolutional" and (self.patch_size < 2 or self.patch_size & (self.patch_size - 1)):
            raise ValueError(
                f"`patch_stem='convolutional'` halves the image once per layer, so `patch_size` must be a power of "
                f"two; it is {self.patch_size}."
            )


@strict
class HolisticCLIPConfig(PreTrainedConfig):
    """Both towers and what joins them.

    Args:
        text_config: a `CLIPTextConfig` or its dict.
        vision_config: a `HolisticCLIPVisionConfig` or its dict.
        projection_dim: D, the width of the common space.
        logit_scale_init_value: logarithm of the initial inverse temperature; ln(1/0.07) in CLIP and the paper.
        perspectives: the H branch names. Left out: the paper's six where H = 6, else `branch_0` ... Given without
            `num_branches` in `vision_config`, it sets H.
        objective: `"softmax"` (the paper, CLIP) or `"sigmoid"` (SigLIP, https://arxiv.org/abs/2303.15343, which starts
            from `logit_scale_init_value=2.3026`, that is ln 10).
        logit_bias_init_value: initial bias of the logits with `objective="sigmoid"`; -10 in SigLIP. Not used else.
        matching: which branch is held against which caption: `"aligned"` (by name; the paper's main setting),
            `"free"` (the branch that scores the true pair highest) or `"balanced"` (free, but no branch starves).
        fusion: Way in which the H similarities become one score. `"mean"` is the paper's (its Table 7: above max),
            `"weighted"` has one weight per branch, `"routed"` lets the text say how much each branch answers,
            `"softmax"` lets its similarities say so.
        branch_weights: H non-negative numbers for `fusion="weighted"`; they are normalised to sum to one.
        fusion_scale: Multiplier of the similarities within `fusion="softmax"`: 0 is the mean, infinity the maximum.
            Left out: the model's own logit scale.
        fused_weight: Weight of the one-to-many loss of the fused score, beside the loss of each branch; 0 in the
            paper, whose mean over branches falls behind one vector (training/LOG.md, the study). With
            `fusion="routed"` it trains the router too; with all others the fused score that is trained is the mean.
        diversity: Form of the penalty on branches that are alike. `"pairwise"`, each pair of branches that say the
            same; `"official"`, as the released code, only a high mean over all pairs, which two collapsed branches of
            five do not reach.
        diversity_weight, diversity_threshold: Weight and threshold of the penalty on branches that say the same; 1.0
            and 0.7 in the paper's released code.
        duplicate_captions: Relation of two images with the same caption: `"positive"`, `"ignore"` or
            `"negative"` (the paper).

    Example:

    >>> config = HolisticCLIPConfig(perspectives=["short", "style"])
    >>> config.vision_config.num_branches
    2
    """

    model_type = "holistic_clip"
    sub_configs_defaults = {"text_config": CLIPTextConfig, "vision_config": HolisticCLIPVisionConfig}

    text_config: dict | CLIPTextConfig | None = None
    vision_config: dict | HolisticCLIPVisionConfig | None = None
    projection_dim: int = 512
    logit_scale_init_value: float | int = 2.6592
    initializer_factor: float | int = 1.0
    perspectives: list[str] | tuple[str, ...] = ()
    objective: str = "softmax"
    logit_bias_init_value: float | int = -10.0
    matching: str = "aligned"
    fusion: str = "mean"
    branch_weights: list[float | int] | tuple[float | int, ...] | None = None
    fusion_scale: float | int | None = None
    fused_weight: float | int = 1.0
    diversity: str = "pairwise"
    diversity_weight: float | int = 1.0
    diversity_threshold: float | int = 0.7
    duplicate_captions: str = "positive"

    def __post_init__(self, **kwargs: Any) -> None:
        if self.text_config is None:
            self.text_config = {"hidden_act": "gelu"}
        if self.vision_config is None:
            self.vision_config = {}
        if isinstance(self.vision_config, dict):
            self.vision_config = self._complete(self.vision_config)
        super().__post_init__(**kwargs)
        if not self.perspectives:
            named = self.num_branches == len(PAPER_PERSPECTIVES)
            self.perspectives = PAPER_PERSPECTIVES if named else [f"branch_{h}" for h in range(self.num_branches)]
        self.perspectives = list(self.perspectives)
        for check in (self.validate_perspectives, self.validate_objective, self.validate_fusion):
            check()

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> "HolisticCLIPConfig":
        """Refuses the configuration of another architecture than this one or CLIP; completes a vision tower's."""
        if config_dict.get("model_type") == HolisticCLIPVisionConfig.model_type:
            vision = HolisticCLIPVisionConfig.from_dict(config_dict)
            config_dict = {"vision_config": vision, "architectures": config_dict.get("architectures")}
        _require_family(config_dict, cls.model_type, CLIPConfig.model_type)
        return super().from_dict(config_dict, **kwargs)

    def _complete(self, vision: dict[str, Any]) -> dict[str, Any]:
        if vision.get("model_type") == CLIPVisionConfig.model_type:
            # A stock CLIP checkpoint, which may have saved only what differs from CLIP's own defaults.
            stock = CLIPVisionConfig(**vision).to_dict()
            del stock["model_type"]
            return {**stock, "num_branches": max(1, len(self.perspectives))}
        return {"num_branches": len(self.perspectives or PAPER_PERSPECTIVES), **vision}

    @property
    def num_branches(self) -> int:
        """H, which the vision tower's configuration holds."""
        return cast(HolisticCLIPVisionConfig, self.vision_config).num_branches

    @property
    def loss_options(self) -> dict[str, Any]:
        """Options that `multi_to_multi_loss` takes from here."""
        return {name: getattr(self, name) for name in LOSS_OPTIONS}

    def validate_perspectives(self) -> None:
        """Part of the `@strict` validation."""
        if len(self.perspectives) != self.num_branches:
            raise ValueError(
                f"{len(self.perspectives)} `perspectives` ({', '.join(self.perspectives)}) for "
                f"{self.num_branches} branches. Give one name per branch, or set `vision_config.num_branches`."
            )
        if len(set(self.perspectives)) != self.num_branches or not all(self.perspectives):
            raise ValueError(f"`perspectives` must be distinct, non-empty names; got {self.perspectives}.")

    def validate_objective(self) -> None:
        """Part of the `@strict` validation."""
        for name, valid in LOSS_CHOICES.items():
            require_choice(name, getattr(self, name), valid)
        for name in ("fused_weight", "diversity_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` is {getattr(self, name)}; expected 0 (off) or more.")

    def validate_fusion(self) -> None:
        """Part of the `@strict` validation."""
        require_choice("fusion", self.fusion, FUSIONS)
        if (self.fusion == "weighted") != (self.branch_weights is not None):
            raise ValueError(
                f"`branch_weights` go with `fusion='weighted'`, and only with it; got fusion={self.fusion!r}, "
                f"branch_weights={self.branch_weights}."
            )
        if self.fusion_scale is not None and (self.fusion != "softmax" or not 0 <= self.fusion_scale < math.inf):
            raise ValueError(
                f"`fusion_scale` goes with `fusion='softmax'` and is 0 or more; got fusion={self.fusion!r}, "
                f"fusion_scale={self.fusion_scale}."
            )
        if self.branch_weights is None:
            return
        usable = all(math.isfinite(weight) and weight >= 0 for weight in self.branch_weights)
        if len(self.branch_weights) != len(self.perspectives) or not usable:
            raise ValueError(
                f"`branch_weights` needs {len(self.perspectives)} non-negative numbers, one per branch; got "
                f"{list(self.branch_weights)}."
            )
        if sum(self.branch_weights) == 0:
            raise ValueError("`branch_weights` are all zero. At least one branch must count.")

    def branch_of_slot(self, slots: list[str] | tuple[str, ...]) -> list[int]:
        """Return for each caption slot the index of the branch of that name, or -1 (free) if no branch has it."""
        return [self.perspectives.index(slot) if slot in self.perspectives else -1 for slot in slots]


__all__ = ["HolisticCLIPConfig", "HolisticCLIPVisionConfig"]
