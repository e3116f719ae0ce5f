# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Configuration of Holistic CLIP: two towers, of CLIP or of another family, with H named branches in the vision tower.

- `num_branches=1` describes the family's own model, such as stock CLIP or SigLIP.
- `perspectives[h]` is the name of what branch h reads; everything downstream (matching, records, cards) uses names.
- Towers have CLIP's defaults, so that the same keywords give the same towers as `CLIPConfig`.
- Contradictions are refused at construction, with what to do about them.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from os import PathLike
from typing import Any, ClassVar, cast

from huggingface_hub.dataclasses import strict
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    CLIPConfig,
    CLIPTextConfig,
    CLIPVisionConfig,
    PreTrainedConfig,
    Siglip2VisionConfig,
    SiglipTextConfig,
    SiglipVisionConfig,
)
from transformers.configuration_utils import SubConfigSpec

from .options_holistic_clip import (
    BRANCH_ISOLATIONS,
    BRANCH_TYPES,
    FUSIONS,
    LOSS_CHOICES,
    LOSS_OPTIONS,
    PATCH_STEMS,
    TEXT_POOLINGS,
    as_value_error,
    refusing_plainly,
    require_choice,
    require_numbers,
    require_prefixes,
    require_tower,
)

# The order in which the paper's released code merges its captions (PAPER: one web text, five generated ones).
PAPER_PERSPECTIVES = ("web", "detail", "nouns", "background", "main_object", "style")

MODEL_TYPES = ("holistic_clip", "holistic_siglip")
# Text towers that say themselves where a text is read, by the type of their configuration.
POOLED_TEXT_TOWERS = (CLIPTextConfig.model_type, "metaclip_2_text_model", SiglipTextConfig.model_type)
END_READING_TEXT_TOWERS = POOLED_TEXT_TOWERS[:2]

# Nothing is missing in their checkpoints that our vision tower would need, but they were trained to something else.
_OTHER_ARCHITECTURES = ("CLIPForImageClassification",)


def _read_config(read: Callable[..., Any], source: Any, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read the configuration of a checkpoint, and refuse one that is not of a model that we read.

    Args:
        read: `PreTrainedConfig.get_config_dict`.
        source: Folder of the checkpoint, or its name on the Hub.
        kwargs: Options of `read`.
    """
    try:
        found, rest = read(source, **kwargs)
    except TypeError:  # transformers looks for keys in whatever the file holds
        found, rest = None, {}
    _require_architecture(found, source)
    return found, rest


def _require_architecture(config_dict: Any, source: Any) -> None:
    """Raise `ValueError` for weights that would load by name into a model that computes something else."""
    if not isinstance(config_dict, Mapping):
        raise ValueError(f"The configuration of {str(source)!r} is not a JSON object; expected one. Get it again.")
    found = [name for name in config_dict.get("architectures") or () if name in _OTHER_ARCHITECTURES]
    if found:
        raise ValueError(
            f"{str(source)!r} was saved by {found[0]}, whose classifier reads the mean of the patches; expected a "
            f"checkpoint of CLIPModel or of this package. Load it with {found[0]}."
        )


def settings_of(content: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every key of a file's settings with its value, at any depth."""
    waiting = [content]
    while waiting:
        found = waiting.pop()
        if isinstance(found, Mapping):
            yield from found.items()
            waiting += found.values()
        elif isinstance(found, list):
            waiting += found


def is_foreign_attention(key: str, value: Any) -> bool:
    """Tell whether a setting of a file takes attention from a repository: transformers would run its code."""
    return "attn_implementation" in key and "/" in str(value)


def require_own_attention(config_dict: Mapping[str, Any]) -> None:
    """Refuse the configuration of a file that takes attention from a repository, at any depth.

    Raises:
        ValueError: it does, with the repository.
    """
    for key, value in settings_of(config_dict):
        if is_foreign_attention(str(key), value):
            raise ValueError(
                f"`{key}` of the checkpoint is {value!r}, which is code of another repository; expected sdpa, eager, "
                "flash_attention_2 or flex_attention. Remove it from config.json."
            )


def _clip_types(kind: type[PreTrainedConfig]) -> tuple[str, ...]:
    """Return the types under which the configuration of CLIP's text tower, or of its vision tower, is known."""
    return (CLIPTextConfig if kind is CLIPTextConfig else CLIPVisionConfig).model_type, kind.model_type, "clip"


def _require_family(config_dict: dict[str, Any], *families: str) -> None:
    """Refuse another architecture: transformers would only warn, and start from random weights."""
    found = config_dict.get("model_type")
    if found is not None and found not in families:
        raise ValueError(
            f"The checkpoint is one of {found!r}; expected one of {', '.join(map(repr, families))}. Other families of "
            f"CLIP weights come in through `holistic_clip_hf.initialization`."
        )


@refusing_plainly
@strict
class HolisticCLIPVisionConfig(CLIPVisionConfig):
    """The vision tower: CLIP's, with `num_branches` outputs.

    Args:
        num_branches: H, the number of outputs. 1 is CLIP.
        branch_type: Kind of the branches. `"cls"` is H class tokens (the paper's Psi_CLS, about +2 % compute at H=6).
            `"mlp"` is one class token and an H-fold second MLP linear in the last layers (Psi_MLP). `"probe"` is H
            learned queries that read the patches through one attention-pooling head, as SigLIP's one does
            (https://arxiv.org/abs/2303.15343). Probes do not see each other, and patches do not see them.
        num_branch_layers: Number of last layers that are branched with `branch_type="mlp"` or `branched_token_mlp`; 3
            in the paper's figure of the method.
        branched_token_mlp: give each class token a second linear of its own in the MLPs of those layers, with
            `branch_type="cls"`. Patches and the first class token keep the tower's, so that it costs about as much as
            class tokens, where `"mlp"` computes the patches H times.
        branched_head_mlp: give each probe a second linear of its own in the MLP of the head, with
            `branch_type="probe"`. A probe alone has E numbers of its own; with it, E times the MLP's width more.
        branch_isolation: Mask of class tokens with `branch_type="cls"`. With `"isolated"` they do not see each other.
            With `"strict"` patches do not see them either, so that branches cannot talk through patches. With
            `"anchored"` patches see branch 0's alone, so that copies of CLIP's class token each give CLIP's own
            answer. With `"open"` everything sees everything. `"official"` is the authors' released code, whose boolean
            mask is *added*, as +1.0, to the attention logits between different class tokens. Used by `"cls"` alone.
        patch_dropout: share of patches left out at random while training (FLIP, https://arxiv.org/abs/2212.00794).
            Class tokens are never dropped.
        patch_stem: `"linear"`, CLIP's single strided convolution; or `"convolutional"`, a stack of 3x3 stride-2
            convolutions (https://arxiv.org/abs/2106.14881), which learns from far fewer images. The latter needs a
            power of two as `patch_size`.
    """

    model_type = "holistic_clip_vision_model"
    families: ClassVar[tuple[str, ...]] = ("holistic_clip_vision_model", CLIPVisionConfig.model_type)
    base_config_key = "vision_config"

    # `patch_size` and `hidden_act` stay CLIP's, 32 and "quick_gelu". The paper's ViT-B/16 has 16 and "gelu", which the
    # recipes say: a default of ours would make another model of the keywords of CLIPConfig.
    num_branches: int = 1
    branch_type: str = "cls"
    num_branch_layers: int = 3
    branched_token_mlp: bool = False
    branched_head_mlp: bool = False
    branch_isolation: str = "isolated"
    patch_dropout: float | int = 0.0
    patch_stem: str = "linear"

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        # The decorator would run these later, and wrap the ValueError in an exception of another type.
        self.require_valid()

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: str | PathLike, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Refuse the checkpoint of a model that reads the tower in another way; merge the tower's name of old ones."""
        found, rest = _read_config(super().get_config_dict, pretrained_model_name_or_path, **kwargs)
        old = found.get("vision_config_dict")
        if old is not None:
            found["vision_config"] = {**(found.get("vision_config") or {}), **CLIPVisionConfig(**old).to_dict()}
        return found, rest

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> "HolisticCLIPVisionConfig":
        """Refuse the configuration of another architecture than this tower or CLIP's, and keywords that do not fit."""
        require_own_attention(config_dict)
        _require_family(config_dict, *cls.families)
        with as_value_error(cls.__name__):
            return _require_valid(super().from_dict(config_dict, **kwargs))

    @property
    def takes_patches(self) -> bool:
        """Tell whether images come as patches with a mask, which only some towers of other families take."""
        return False

    def require_valid(self) -> None:
        """Raise `ValueError` for fields that contradict each other, also if they were set one by one."""
        require_tower(type(self), vars(self))
        self.validate_branches()
        self.validate_patches()

    def validate_branches(self) -> None:
        """Take part in the `@strict` validation."""
        require_choice("branch_type", self.branch_type, BRANCH_TYPES)
        require_choice("branch_isolation", self.branch_isolation, BRANCH_ISOLATIONS)
        has_branched_layers = self.branch_type == "mlp" or self.branched_token_mlp
        if has_branched_layers and not 1 <= self.num_branch_layers <= self.num_hidden_layers:
            raise ValueError(
                f"`num_branch_layers` is {self.num_branch_layers}; expected 1 to `num_hidden_layers`, which is "
                f"{self.num_hidden_layers}."
            )
        if self.branched_head_mlp and self.branch_type != "probe":
            raise ValueError(
                f"`branched_head_mlp` is True and `branch_type` is {self.branch_type!r}; expected 'probe', whose head "
                f"it belongs to. Leave it out, or set `branch_type='probe'`."
            )
        if self.branched_token_mlp and self.branch_type != "cls":
            raise ValueError(
                f"`branched_token_mlp` is True and `branch_type` is {self.branch_type!r}; expected 'cls', whose class "
                f"tokens it belongs to. Leave it out, or set `branch_type='cls'`."
            )

    def validate_patches(self) -> None:
        """Take part in the `@strict` validation."""
        require_choice("patch_stem", self.patch_stem, PATCH_STEMS)
        require_numbers(vars(self))
        size, patch = cast(int, self.image_size), cast(int, self.patch_size)
        if patch > size:
            raise ValueError(f"`patch_size` is {patch}; expected at most `image_size`, which is {size}.")
        if self.patch_stem == "linear":
            return
        if patch < 2 or patch & (patch - 1):
            raise ValueError(
                f"`patch_stem='convolutional'` halves the image once per layer, so `patch_size` must be a power of "
                f"two; it is {patch}."
            )
        if self.hidden_size < patch // 2:
            raise ValueError(
                f"`hidden_size` is {self.hidden_size}; expected at least {patch // 2} with "
                f"`patch_stem='convolutional'` and a `patch_size` of {patch}, since each layer has half the channels "
                f"of the next."
            )


def _side(value: Any) -> int | None:
    """Return the side of a square that a configuration gives as one number or as two, if it gives one."""
    sides = value if isinstance(value, list | tuple) else [value]
    return sides[0] if sides and len(set(sides)) == 1 else None


def _stride(backbone: PreTrainedConfig) -> int | None:
    """Return the side of what one state of a backbone stands for, in pixels: each stage but the first halves."""
    first = _side(getattr(backbone, "patch_size", None))
    stages = getattr(backbone, "depths", None)
    if stages is None:
        return first
    downsampled = 2 if getattr(backbone, "downsample_in_first_stage", False) else 1
    return (first or 4) * 2 ** (len(stages) - 1) * downsampled


# Families whose states begin with several class tokens, each trained on captions of its own, and their number. The
# registers of others, such as DINOv3's, stand at the same place and mean nothing by themselves.
CLASS_TOKENS = {"tipsv2_vision_model": lambda backbone: 1 + backbone.num_register_tokens}
# SigLIP 2's NaFlex variant: patches of images of any shape, with a mask, in place of images of one size.
NAFLEX = "siglip2_vision_model"


def _as_config(name: str, value: Any) -> PreTrainedConfig:
    """Return the configuration of a tower of transformers from it or its dict."""
    if isinstance(value, PreTrainedConfig):
        found = deepcopy(value)
    elif isinstance(value, Mapping) and value.get("model_type") in CONFIG_MAPPING:
        with as_value_error(name):
            found = CONFIG_MAPPING[value["model_type"]](**{k: v for k, v in value.items() if k != "model_type"})
    else:
        kind = value.get("model_type") if isinstance(value, Mapping) else value
        raise ValueError(
            f"`{name}` is of model type {kind!r}; expected the configuration of a model of transformers, or its dict "
            f"with `model_type`."
        )
    for inner in ("vision_config", "text_config"):
        if getattr(found, inner, None) is not None:
            raise ValueError(
                f"`{name}` is of model type {found.model_type!r}, a model of several towers; expected that of one "
                f"tower. Give its `{inner}`."
            )
    return found


@refusing_plainly
@strict
class HolisticBackboneVisionConfig(HolisticCLIPVisionConfig):
    """A vision tower of another family of transformers, whose states H probes read.

    Left out, each field but `backbone_config` and the branches' follows the backbone.

    Args:
        backbone_config: Configuration of the tower, or its dict with `model_type`: any whose model maps
            `pixel_values` to states (N, S, E) that end in the patches, or to a feature map (N, E, rows, columns).
        hidden_size: E, the width of the backbone's states.
        num_attention_heads, intermediate_size, hidden_act, layer_norm_eps: Sizes of the head, SigLIP's own with a
            tower of SigLIP. Else 64 numbers to an attention head, an MLP of four times the width, and GELU.
        branch_type: `"probe"`, or `"cls"` for the class tokens that the backbone itself has, such as TIPSv2's two, one
            for each branch.
        image_size: Side of the images in pixels; 224 if the backbone does not say.
        patch_size: Side of what one state stands for, in pixels.
        patch_norm: put a layer norm of the head's before it. Left out, it is with all but SigLIP, whose trained head
            reads the states as they are, and class tokens, which have no head.
    """

    model_type = "holistic_backbone_vision_model"
    families: ClassVar[tuple[str, ...]] = ("holistic_backbone_vision_model",)
    sub_configs_defaults = {
        "backbone_config": SubConfigSpec(config_class=AutoConfig, model_type="siglip_vision_model", optional=True)
    }

    backbone_config: dict | PreTrainedConfig | None = None
    branch_type: str = "probe"
    hidden_size: int | None = None
    intermediate_size: int | None = None
    num_hidden_layers: int | None = None
    num_attention_heads: int | None = None
    num_channels: int | None = None
    image_size: int | list[int] | tuple[int, int] | None = None
    patch_size: int | list[int] | tuple[int, int] | None = None
    hidden_act: str | None = None
    layer_norm_eps: float | None = None
    patch_norm: bool | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if self.backbone_config is None:
            self.backbone_config = SiglipVisionConfig()
        backbone = self.backbone_config = _as_config("backbone_config", self.backbone_config)
        if hasattr(backbone, "vision_use_head"):
            backbone.vision_use_head = False  # the head is here
        if self.branch_type == "cls" and self.patch_norm is None:
            self.patch_norm = False
        for name, value in self._following(backbone).items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        super().__post_init__(**kwargs)

    @staticmethod
    def _following(backbone: PreTrainedConfig) -> dict[str, Any]:
        """Return what the fields are if they are left out."""
        width = _width(backbone)
        found = {
            "hidden_size": width,
            "num_hidden_layers": getattr(backbone, "num_hidden_layers", None) or sum(getattr(backbone, "depths", [1])),
            "num_channels": getattr(backbone, "num_channels", 3),
            "image_size": _side(getattr(backbone, "image_size", None)) or _naflex_side(backbone) or 224,
            "patch_size": _stride(backbone) or 1,
        }
        if isinstance(backbone, SiglipVisionConfig | Siglip2VisionConfig):
            own = ("num_attention_heads", "intermediate_size", "hidden_act", "layer_norm_eps")
            return {**found, "patch_norm": False, **{name: getattr(backbone, name) for name in own}}
        heads = math.gcd(width, max(1, width // 64))
        head = {"num_attention_heads": heads, "intermediate_size": 4 * width, "hidden_act": "gelu"}
        return {**found, **head, "layer_norm_eps": 1e-6, "patch_norm": True}

    @property
    def backbone(self) -> PreTrainedConfig:
        """The backbone's configuration."""
        return cast(PreTrainedConfig, self.backbone_config)

    @property
    def takes_patches(self) -> bool:
        """Tell whether images come as patches with a mask, as those of SigLIP 2's NaFlex variant do."""
        return self.backbone.model_type == NAFLEX

    def validate_branches(self) -> None:
        """Take part in the `@strict` validation."""
        kind = self.backbone.model_type
        if self.branch_type not in ("probe", "cls") or (self.branch_type == "cls" and kind not in CLASS_TOKENS):
            raise ValueError(
                f"`branch_type` is {self.branch_type!r} and the backbone is of model type {kind!r}; expected 'probe', "
                f"which reads the states of any tower. The others belong to CLIP's, and class tokens to those of "
                f"{', '.join(CLASS_TOKENS)} too."
            )
        if self.branch_type == "cls" and self.num_branches != CLASS_TOKENS[kind](self.backbone):
            raise ValueError(
                f"`num_branches` is {self.num_branches} and `branch_type` 'cls'; expected "
                f"{CLASS_TOKENS[kind](self.backbone)}, the number of class tokens of the backbone. Give as many "
                f"`perspectives`."
            )
        if self.branched_token_mlp:
            raise ValueError(
                f"`branched_token_mlp` is True and the backbone is of model type {kind!r}; expected False, since it "
                f"belongs to CLIP's layers. Leave it out."
            )
        super().validate_branches()

    def validate_patches(self) -> None:
        """Take part in the `@strict` validation."""
        width = _width(self.backbone)
        if self.hidden_size != width:
            raise ValueError(
                f"`hidden_size` is {self.hidden_size}; expected the width of the backbone's states, which is {width}. "
                f"Leave it out."
            )
        if self.patch_dropout or self.patch_stem != "linear":
            raise ValueError(
                f"`patch_dropout` is {self.patch_dropout} and `patch_stem` {self.patch_stem!r}; expected 0 and "
                f"'linear' with a backbone, whose patches are its own affair. Leave them out."
            )
        super().validate_patches()


def _naflex_side(backbone: PreTrainedConfig) -> int | None:
    """Return the side in pixels of a square image of as many patches as a NaFlex tower has positions."""
    if not isinstance(backbone, Siglip2VisionConfig):
        return None
    return math.isqrt(backbone.num_patches) * cast(int, _side(backbone.patch_size))


def _width(backbone: PreTrainedConfig) -> int:
    """Return the width of a backbone's states.

    Raises:
        ValueError: a configuration without one.
    """
    widths = getattr(backbone, "hidden_sizes", None)
    width = widths[-1] if widths else getattr(backbone, "hidden_size", None)
    if not isinstance(width, int):
        raise ValueError(
            f"`backbone_config` is of model type {backbone.model_type!r}, which says neither `hidden_size` nor "
            f"`hidden_sizes`; expected a vision tower with states of one width."
        )
    return width


def _require_valid(found: Any) -> Any:
    """Check what `from_dict` returns, a configuration or a pair of it and unused keywords, which were set last."""
    (found[0] if isinstance(found, tuple) else found).require_valid()
    return found


LEGACY_END = 2  # `eos_token_id` of CLIP's first configurations, by which transformers means the highest id of a text
CLIP_END = 49407  # the end token of CLIP's own tokenizer, its highest id


def end_token_id(eos_token_id: int, vocab_size: int) -> int:
    """Return the id of the end token, also where a configuration says 2 and means the highest id of a text.

    That is the highest id of the vocabulary, unless tokens were added to CLIP's own.
    """
    return min(CLIP_END, vocab_size - 1) if eos_token_id == LEGACY_END else eos_token_id


@refusing_plainly
@strict
class HolisticCLIPConfig(PreTrainedConfig):
    """Both towers and what joins them.

    Args:
        text_config: a `CLIPTextConfig` or its dict, or the configuration of another text encoder, whose dict says its
            `model_type`. Those of CLIP, MetaCLIP 2 and SigLIP know how a text is read.
        text_pooling: State of another text encoder that stands for the text: `"mean"` over its tokens, `"cls"` the
            first, `"eos"` the first end token, `"last"` the last token.
        vision_config: a `HolisticCLIPVisionConfig`, a `CLIPVisionConfig` or the dict of either, or the configuration
            of another vision tower of transformers, which becomes the backbone of a `HolisticBackboneVisionConfig`.
        projection_dim: D, the width of the common space. The `projection_dim` of both towers follows it.
        visual_projection, text_projection: Presence of a linear map from the tower's width to D. SigLIP has none.
        logit_scale_init_value: logarithm of the initial inverse temperature; ln(1/0.07) in CLIP and the paper.
        perspectives: the H branch names. Left out: the paper's six where H = 6, else `branch_0` ... Given without
            `num_branches` in `vision_config`, it sets H.
        objective: `"softmax"` (the paper, CLIP) or `"sigmoid"` (SigLIP, https://arxiv.org/abs/2303.15343, which starts
            from `logit_scale_init_value=2.3026`, that is ln 10).
        logit_bias_init_value: initial bias of the logits with `objective="sigmoid"`; -10 in SigLIP. Not used else.
        matching: which branch is held against which caption: `"aligned"` (by name; the paper's main setting),
            `"free"` (the branch that scores the true pair highest) or `"balanced"` (free, but no branch starves).
        fusion: Way in which the H similarities become one score. `"centroid"` is the similarity of the branches' mean,
            made of unit length, which is what libraries that compare by cosine rank by. `"mean"` is the paper's mean
            similarity (its Table 7: above max), `"weighted"` has one weight per branch, `"routed"` lets the text say
            how much each branch answers, `"softmax"` lets its similarities say so. Checkpoints say theirs: those of
            before `"centroid"` stay at `"mean"`.
        branch_weights: H non-negative numbers for `fusion="weighted"`; they are normalised to sum to one.
        fusion_scale: Multiplier of the similarities within `fusion="softmax"`: 0 is the mean, infinity the maximum.
            Left out: the model's own logit scale.
        fused_weight: Weight of the one-to-many loss of the fused score, beside the loss of each branch; 0 in the
            paper, whose mean over branches falls behind one vector (training/LOG.md, the study). It trains the score
            that `fusion` names, with `"routed"` the router too. `"max"` and `"softmax"` are chosen for a trained
            model; with them it trains the centroid.
        diversity: Form of the penalty on branches that are alike. `"pairwise"`, each pair of branches that say the
            same; `"official"`, as the released code, only a high mean over all pairs, which two collapsed branches of
            five do not reach.
        diversity_weight, diversity_threshold: Weight and threshold of the penalty on branches that say the same; 1.0
            and 0.7 in the paper's released code.
        duplicate_captions: Relation of two images with the same caption: `"positive"` (the target is shared),
            `"ignore"` (left out) or `"negative"` (the paper). With softmax and matching by name, `"positive"` and
            `"negative"` are the same loss. They differ in free slots and with sigmoid.
        matryoshka_dims: Numbers of leading dimensions whose prefixes were trained as vectors of their own, beside
            the whole D (https://arxiv.org/abs/2205.13147), so that an index may keep them alone. None in the paper.

    Example:

    >>> config = HolisticCLIPConfig(perspectives=["short", "style"])
    >>> config.vision_config.num_branches
    2
    """

    model_type = "holistic_clip"
    families: ClassVar[tuple[str, ...]] = ("holistic_clip", CLIPConfig.model_type)
    sub_configs_defaults = {"text_config": CLIPTextConfig, "vision_config": HolisticCLIPVisionConfig}

    text_config: dict | PreTrainedConfig | None = None
    text_pooling: str | None = None
    vision_config: dict | PreTrainedConfig | None = None
    projection_dim: int = 512
    visual_projection: bool = True
    text_projection: bool = True
    logit_scale_init_value: float | int = 2.6592
    initializer_factor: float | int = 1.0
    perspectives: list[str] | tuple[str, ...] = ()
    objective: str = "softmax"
    logit_bias_init_value: float | int = -10.0
    matching: str = "aligned"
    fusion: str = "centroid"
    branch_weights: list[float | int] | tuple[float | int, ...] | None = None
    fusion_scale: float | int | None = None
    fused_weight: float | int = 1.0
    diversity: str = "pairwise"
    diversity_weight: float | int = 1.0
    diversity_threshold: float | int = 0.7
    duplicate_captions: str = "positive"
    matryoshka_dims: list[int] | tuple[int, ...] = ()

    def __post_init__(self, **kwargs: Any) -> None:
        self._merge_old_names(kwargs)
        self.vision_config = self._vision({} if self.vision_config is None else self.vision_config)
        self.text_config = self._text(self.text_config)
        super().__post_init__(**kwargs)
        if not self.perspectives:
            named = self.num_branches == len(PAPER_PERSPECTIVES)
            self.perspectives = PAPER_PERSPECTIVES if named else [f"branch_{h}" for h in range(self.num_branches)]
        self.perspectives, self.matryoshka_dims = list(self.perspectives), list(self.matryoshka_dims)
        self.require_valid()

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: str | PathLike, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Refuse the checkpoint of a model that reads the tower in another way."""
        found, rest = _read_config(super().get_config_dict, pretrained_model_name_or_path, **kwargs)
        return found, rest

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> "HolisticCLIPConfig":
        """Refuse the configuration of another architecture than this one or CLIP's, and keywords that do not fit.

        The configuration of a vision tower is completed.
        """
        require_own_attention(config_dict)
        kind = {one.model_type: one for one in (HolisticCLIPVisionConfig, HolisticBackboneVisionConfig)}.get(
            config_dict.get("model_type", "")
        )
        if kind is not None:
            vision = kind.from_dict(config_dict)
            config_dict = {"vision_config": vision, "architectures": config_dict.get("architectures")}
        _require_family(config_dict, *cls.families)
        for name, kind in (("text_config", CLIPTextConfig), ("vision_config", HolisticCLIPVisionConfig)):
            found, given = config_dict.get(name), kwargs.get(name)
            if not isinstance(found, dict) or not isinstance(given, dict):
                continue
            if found.get("model_type") in (None, *_clip_types(kind)):
                require_tower(kind, {**found, **given}, f"{name}.")
        with as_value_error(cls.__name__):
            return _require_valid(super().from_dict(config_dict, **kwargs))

    def _merge_old_names(self, kwargs: dict[str, Any]) -> None:
        """Merge `text_config_dict` and `vision_config_dict`, which old checkpoints have, as `CLIPConfig` does."""
        old = {name: kwargs.pop(name) for name in ("text_config_dict", "vision_config_dict") if name in kwargs}
        if all(value is None for value in old.values()):
            return
        towers = deepcopy({"text_config": self.text_config, "vision_config": self.vision_config})
        merged = CLIPConfig(**towers, **old)
        self.text_config, self.vision_config = merged.text_config, merged.vision_config.to_dict()

    def _vision(self, given: Any) -> Any:
        """Return what is given for `vision_config` as a configuration of ours, or as a dict that lacks nothing."""
        if isinstance(given, HolisticCLIPVisionConfig):
            return given
        kind = given.get("model_type") if isinstance(given, dict) else given.model_type
        if kind == HolisticBackboneVisionConfig.model_type or (isinstance(given, dict) and "backbone_config" in given):
            return HolisticBackboneVisionConfig(**self._with_branches(given))
        if isinstance(given, PreTrainedConfig) and hasattr(given, "vision_config"):
            _as_config("vision_config", given)  # which refuses it
        if kind in CONFIG_MAPPING and kind not in _clip_types(HolisticCLIPVisionConfig):
            return HolisticBackboneVisionConfig(**self._with_branches({"backbone_config": given}))
        vision = self._complete(given if isinstance(given, dict) else given.to_dict())
        require_tower(HolisticCLIPVisionConfig, vision, "vision_config.")
        return vision

    def _with_branches(self, vision: dict[str, Any]) -> dict[str, Any]:
        fields = {name: value for name, value in vision.items() if name != "model_type"}
        return {"num_branches": max(1, len(self.perspectives)), **fields}

    def _text(self, given: Any) -> Any:
        """Return what is given for `text_config`, as a configuration unless it is a dict of CLIP's."""
        if isinstance(given, dict):
            if given.get("model_type") in CONFIG_MAPPING and given["model_type"] not in _clip_types(CLIPTextConfig):
                return _as_config("text_config", given)
            # CLIP's own checks would divide by zero heads.
            require_tower(CLIPTextConfig, given, "text_config.")
        return given

    def _complete(self, vision: dict[str, Any]) -> dict[str, Any]:
        # A stock CLIP has one branch, unless the names say more.
        is_stock = vision.get("model_type") == CLIPVisionConfig.model_type
        num_branches = max(1, len(self.perspectives)) if is_stock else len(self.perspectives or PAPER_PERSPECTIVES)
        fields = {name: value for name, value in vision.items() if name != "model_type" or not is_stock}
        return {"num_branches": num_branches, **fields}

    @property
    def num_branches(self) -> int:
        """H, which the vision tower's configuration holds."""
        return cast(HolisticCLIPVisionConfig, self.vision_config).num_branches

    @property
    def reads_end_token(self) -> bool:
        """Tell whether a text is read at its end token, which every text must have then."""
        kind = cast(PreTrainedConfig, self.text_config).model_type
        return kind in END_READING_TEXT_TOWERS or self.text_pooling == "eos"

    @property
    def text_width(self) -> int:
        """Width of a text's state, before the projection."""
        text = cast(Any, self.text_config)
        return text.projection_size if text.model_type == SiglipTextConfig.model_type else text.hidden_size

    @property
    def loss_options(self) -> dict[str, Any]:
        """Options that `multi_to_multi_loss` takes from here."""
        return {name: getattr(self, name) for name in LOSS_OPTIONS}

    def require_valid(self) -> None:
        """Raise `ValueError` for fields that contradict each other, also if they were set one by one."""
        require_numbers(vars(self))
        self._let_towers_follow()
        self.validate_text()
        cast(HolisticCLIPVisionConfig, self.vision_config).require_valid()
        self.validate_projections()
        for check in (self.validate_perspectives, self.validate_objective, self.validate_fusion):
            check()

    def _let_towers_follow(self) -> None:
        """Give both towers this `projection_dim`; they may belong to somebody else, who keeps his own."""
        for name in ("text_config", "vision_config"):
            tower = getattr(self, name)
            if getattr(tower, "projection_dim", self.projection_dim) != self.projection_dim:
                tower = deepcopy(tower)
                tower.projection_dim = self.projection_dim
                setattr(self, name, tower)

    def validate_text(self) -> None:
        """Take part in the `@strict` validation."""
        text = cast(Any, self.text_config)
        if text.model_type == CLIPTextConfig.model_type:
            require_tower(CLIPTextConfig, vars(text), "text_config.")
        self._validate_pooling(text.model_type)
        if text.model_type == SiglipTextConfig.model_type and not isinstance(text.pad_token_id, int):
            raise ValueError(
                f"`text_config.pad_token_id` is {text.pad_token_id}; expected the id of the tokenizer's padding, with "
                f"which texts are filled up. Set `text_config={{'pad_token_id': tokenizer.pad_token_id}}`."
            )
        if not self.reads_end_token:
            return
        end = text.eos_token_id
        if not isinstance(end, int) or not (end == LEGACY_END or 0 <= end < text.vocab_size):
            raise ValueError(
                f"`text_config.eos_token_id` is {end}; expected the id of the tokenizer's end token, below "
                f"`vocab_size`, which is {text.vocab_size}. A text is read there: set "
                f"`text_config={{'eos_token_id': tokenizer.eos_token_id}}`."
            )

    def _validate_pooling(self, kind: str) -> None:
        if kind in POOLED_TEXT_TOWERS:
            if self.text_pooling is not None:
                raise ValueError(
                    f"`text_pooling` is {self.text_pooling!r} and `text_config` of model type {kind!r}, which says "
                    f"itself where a text is read. Leave `text_pooling` out."
                )
        elif self.text_pooling not in TEXT_POOLINGS:
            raise ValueError(
                f"`text_pooling` is {self.text_pooling!r}; expected one of {', '.join(map(repr, TEXT_POOLINGS))}, "
                f"since a text encoder of model type {kind!r} does not say which state stands for a text."
            )

    def validate_projections(self) -> None:
        """Take part in the `@strict` validation."""
        widths = {
            "visual_projection": cast(HolisticCLIPVisionConfig, self.vision_config).hidden_size,
            "text_projection": self.text_width,
        }
        for name, width in widths.items():
            if not getattr(self, name) and width != self.projection_dim:
                raise ValueError(
                    f"`{name}` is False and `projection_dim` is {self.projection_dim}; expected the width of the "
                    f"tower, which is {width}, since nothing leads from one to the other."
                )

    def validate_perspectives(self) -> None:
        """Take part in the `@strict` validation."""
        if len(self.perspectives) != self.num_branches:
            raise ValueError(
                f"{len(self.perspectives)} `perspectives` ({', '.join(self.perspectives)}) for "
                f"{self.num_branches} branches. Give one name per branch, or set `vision_config.num_branches`."
            )
        if len(set(self.perspectives)) != self.num_branches or not all(self.perspectives):
            raise ValueError(f"`perspectives` must be distinct, non-empty names; got {self.perspectives}.")

    def validate_objective(self) -> None:
        """Take part in the `@strict` validation."""
        for name, valid in LOSS_CHOICES.items():
            require_choice(name, getattr(self, name), valid)
        require_numbers(vars(self))
        require_prefixes(self.matryoshka_dims, self.projection_dim)

    def validate_fusion(self) -> None:
        """Take part in the `@strict` validation."""
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


@refusing_plainly
@strict
class HolisticSiglipConfig(HolisticCLIPConfig):
    """SigLIP's towers and what joins them: `HolisticCLIPConfig` with SigLIP's defaults.

    Its name tells transformers' pipelines to answer by sigmoids. With any towers, take it for a model of the sigmoid
    objective, and `HolisticCLIPConfig` for one of softmax.

    Args:
        text_config: Configuration as in `HolisticCLIPConfig`; a dict without `model_type` is a `SiglipTextConfig`'s.
        vision_config: Configuration as in `HolisticCLIPConfig`; a dict without `model_type` is a
            `SiglipVisionConfig`'s, or a `HolisticBackboneVisionConfig`'s if it has a `backbone_config`.
        logit_scale_init_value: logarithm of the initial inverse temperature; ln 10 in SigLIP.
    """

    model_type = "holistic_siglip"
    families: ClassVar[tuple[str, ...]] = ("holistic_siglip",)

    projection_dim: int = 768
    visual_projection: bool = False
    text_projection: bool = False
    objective: str = "sigmoid"
    logit_scale_init_value: float | int = 2.3026

    def _vision(self, given: Any) -> Any:
        if isinstance(given, dict) and "model_type" not in given and "backbone_config" not in given:
            given = {"model_type": SiglipVisionConfig.model_type, **given}
        return super()._vision(given)

    def _text(self, given: Any) -> Any:
        given = {} if given is None else given
        if isinstance(given, dict) and "model_type" not in given:
            given = {"model_type": SiglipTextConfig.model_type, **given}
        return super()._text(given)

    def validate_objective(self) -> None:
        """Take part in the `@strict` validation."""
        super().validate_objective()
        if self.objective != "sigmoid":
            raise ValueError(
                f"`objective` is {self.objective!r}; expected 'sigmoid', by which pipelines read a model of type "
                f"{self.model_type!r}. Take a `HolisticCLIPConfig`."
            )


__all__ = [
    "HolisticBackboneVisionConfig",
    "HolisticCLIPConfig",
    "HolisticCLIPVisionConfig",
    "HolisticSiglipConfig",
]
