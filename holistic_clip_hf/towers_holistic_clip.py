# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Single towers in the contracts of other programs: vision-language models, dense heads, diffusion adapters.

What is notable:
- To them an image has one sequence of states (N, 1 + P, E), or (N, P, E). Branches are averaged, or one is chosen by
  name, whatever their number and type.
- Names of parameters are those of `HolisticCLIPModel`, so that every tower loads from a checkpoint of both towers.
- A configuration says where its code is (`auto_map`), and `HolisticConsumerConfig` lets people without the package
  load a model of transformers that has such a tower inside.

Axes: N images, H branches, P patches, S states of the wrapped tower, T texts, E tower width, D projection width.
"""

from typing import Any, ClassVar, TypeVar, cast

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    CONFIG_MAPPING,
    AutoBackbone,
    AutoConfig,
    AutoModel,
    CLIPTextConfig,
    PreTrainedConfig,
    SiglipTextConfig,
)
from transformers import initialization as init
from transformers.backbone_utils import BackboneConfigMixin, BackboneMixin
from transformers.configuration_utils import SubConfigSpec
from transformers.modeling_outputs import BackboneOutput
from transformers.models.clip.modeling_clip import CLIPTextModelOutput, CLIPVisionModelOutput
from transformers.utils.generic import can_return_tuple
from transformers.utils.output_capturing import selected_hidden_states

from .backbone_holistic_clip import make_vision_tower
from .configuration_holistic_clip import (
    MODEL_TYPES,
    HolisticBackboneVisionConfig,
    HolisticCLIPConfig,
    HolisticCLIPVisionConfig,
    HolisticSiglipConfig,
    require_own_attention,
)
from .loss_holistic_clip import branch_mean
from .options_holistic_clip import refusing_plainly
from .text_holistic_clip import make_text_tower
from .vision_holistic_clip import HolisticCLIPPreTrainedModel, HolisticCLIPVisionOutput, with_asked_for

CODE = "towers_holistic_clip"
Tower = TypeVar("Tower", bound="_TowerOfBoth")


class _TowerConfig(PreTrainedConfig):
    """A configuration that is also read from that of both towers, and that says where its code is."""

    # The Auto classes and the classes that they give people without the package.
    auto_classes: ClassVar[dict[str, str]] = {}
    # Fields that a configuration of both towers has under the same name.
    shared: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        self.auto_map = {name: f"{CODE}.{kind}" for name, kind in self.auto_classes.items()}
        self.require_valid()

    @classmethod
    def of(cls, config: HolisticCLIPConfig, **options: Any) -> Any:
        """Return the configuration of one tower of a model.

        Args:
            config: Configuration of both towers.
            options: Fields of this class.
        """
        return cls(**{**{name: getattr(config, name) for name in cls.shared}, **options})

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Read the configuration of such a tower, or of both, and refuse what does not fit.

        Raises:
            ValueError: the configuration of another architecture.
        """
        require_own_attention(config_dict)
        kind = config_dict.get("model_type")
        if kind in MODEL_TYPES:
            joint = HolisticSiglipConfig if kind == HolisticSiglipConfig.model_type else HolisticCLIPConfig
            config_dict = cls.of(joint.from_dict(config_dict)).to_dict()
        elif kind not in (None, cls.model_type):
            raise ValueError(
                f"The checkpoint is one of {kind!r}; expected {cls.model_type!r} or one of both towers "
                f"({', '.join(map(repr, MODEL_TYPES))}). Other checkpoints come in through "
                f"`holistic_clip_hf.initialization`."
            )
        found = super().from_dict(config_dict, **kwargs)
        (found[0] if isinstance(found, tuple) else found).require_valid()
        return found

    def require_valid(self) -> None:
        """Raise `ValueError` for fields that contradict each other, also if they were set one by one."""


def _of_tower(name: str, told: str) -> Any:
    """Return a property that reads a field of the wrapped tower's configuration."""
    return property(lambda config: getattr(config.vision_config, name), doc=told)


class _VisionConfig(_TowerConfig):
    """A configuration of a tower for images; sizes are those of the wrapped tower, under CLIP's names."""

    vision_config: dict | PreTrainedConfig | None = None
    perspectives: list[str] | tuple[str, ...] = ()
    branch: str | None = None
    class_token: bool = True
    projection_dim: int = 512

    hidden_size = _of_tower("hidden_size", "E, the width of states.")
    intermediate_size = _of_tower("intermediate_size", "Width of the MLPs.")
    num_hidden_layers = _of_tower("num_hidden_layers", "Number of layers.")
    num_attention_heads = _of_tower("num_attention_heads", "Number of attention heads.")
    num_channels = _of_tower("num_channels", "Number of channels of an image.")
    image_size = _of_tower("image_size", "Side of an image in pixels.")
    patch_size = _of_tower("patch_size", "Side of a patch in pixels.")
    layer_norm_eps = _of_tower("layer_norm_eps", "Epsilon of layer norms.")
    initializer_factor = _of_tower("initializer_factor", "Factor on the standard deviation of fresh weights.")

    def __post_init__(self, **kwargs: Any) -> None:
        self.vision_config = self._own_tower()
        self.perspectives = list(self.perspectives) or [f"branch_{h}" for h in range(self.tower.num_branches)]
        super().__post_init__(**kwargs)

    @property
    def tower(self) -> Any:
        """The wrapped tower's configuration."""
        return self.vision_config

    @property
    def has_layers_of_one_width(self) -> bool:
        """Tell whether the states of every layer are (N, S, E): not those of a pyramid, such as ResNet's."""
        backbone = getattr(self.tower, "backbone_config", None)
        return not any(hasattr(backbone, name) for name in ("depths", "hidden_sizes"))

    @property
    def branch_index(self) -> int | None:
        """Index of the chosen branch; `None` if branches are averaged."""
        return None if self.branch is None else list(self.perspectives).index(self.branch)

    def _own_tower(self) -> Any:
        """Return the wrapped tower's configuration as one of ours; transformers knows no name of another package."""
        if isinstance(self.vision_config, PreTrainedConfig):
            return self.vision_config
        fields = dict(self.vision_config or {})
        has_backbone = fields.get("model_type") == HolisticBackboneVisionConfig.model_type
        return (HolisticBackboneVisionConfig if has_backbone else HolisticCLIPVisionConfig).from_dict(fields)

    def require_valid(self) -> None:
        """Raise `ValueError` for fields that contradict each other, also if they were set one by one."""
        self.tower.require_valid()
        chosen, names = self.branch, self.perspectives
        if len(names) != self.tower.num_branches:
            raise ValueError(
                f"`perspectives` has {len(names)} names; expected {self.tower.num_branches}, one per branch. Give "
                f"those of the checkpoint."
            )
        if chosen is not None and chosen not in names:
            raise ValueError(
                f"`branch` is {chosen!r}; expected one of {', '.join(map(repr, names))}, or None for the mean of all. "
                f"Choose one."
            )


@refusing_plainly
@strict
class HolisticCLIPPatchConfig(BackboneConfigMixin, _VisionConfig):
    """A tower as vision-language models (`vision_config`) and dense heads (`backbone_config`) take it.

    Args:
        vision_config: Configuration of the tower with its branches, or its dict.
        perspectives: the H branch names; left out, `branch_0` ...
        branch: Name of the branch that is given; left out, the mean over branches.
        class_token: put one state before the patches, as CLIP's towers have it: the class token, or, with probes, the
            branch's vector. Consumers that count on patches alone, such as PaliGemma and Gemma 3, need `False`.
        projection_dim: Width that consumers project states to, which some of them set.
        out_features, out_indices: Stages that a backbone gives, by name (`stem`, `stage1` ...) or index; left out, the
            last.
    """

    model_type = "holistic_clip_patches"
    auto_classes: ClassVar[dict[str, str]] = {
        "AutoConfig": "HolisticCLIPPatchConfig",
        "AutoModel": "HolisticCLIPPatchModel",
        "AutoBackbone": "HolisticCLIPVisionBackbone",
    }
    shared: ClassVar[tuple[str, ...]] = ("vision_config", "perspectives", "projection_dim")

    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        chosen = {name: kwargs.pop(name, None) for name in ("out_features", "out_indices")}
        super().__post_init__(**kwargs)
        self.stage_names = ["stem", *(f"stage{layer}" for layer in range(1, self.num_hidden_layers + 1))]
        if not self.has_layers_of_one_width:
            self.stage_names = self.stage_names[-1:]
        self.set_output_features_output_indices(**chosen)


@refusing_plainly
@strict
class HolisticCLIPVisionProjectionConfig(_VisionConfig):
    """A tower and its projection, as diffusion adapters take CLIP's.

    Args:
        vision_config: Configuration of the tower with its branches, or its dict.
        perspectives: the H branch names; left out, `branch_0` ...
        branch: Name of the branch whose vector is `image_embeds`; left out, the fused vector.
        class_token: put one state before the patches.
        projection_dim: D, the width of `image_embeds`.
        visual_projection: Presence of a linear map from the tower's width to D. SigLIP has none.
        branch_weights: H weights of the fused vector; left out, all branches count alike.
    """

    model_type = "holistic_clip_vision_projection"
    auto_classes: ClassVar[dict[str, str]] = {
        "AutoConfig": "HolisticCLIPVisionProjectionConfig",
        "AutoModel": "HolisticCLIPVisionModelWithProjection",
    }
    shared: ClassVar[tuple[str, ...]] = (
        *("vision_config", "perspectives", "projection_dim"),
        *("visual_projection", "branch_weights"),
    )

    visual_projection: bool = True
    branch_weights: list[float | int] | tuple[float | int, ...] | None = None


@refusing_plainly
@strict
class HolisticCLIPTextProjectionConfig(_TowerConfig):
    """A text tower and its projection, as `CLIPTextModelWithProjection` has them.

    Args:
        text_config: Configuration of the text encoder, or its dict; without `model_type`, CLIP's.
        text_pooling: State that stands for a text, as in `HolisticCLIPConfig`.
        projection_dim: D, the width of `text_embeds`.
        text_projection: Presence of a linear map from the tower's width to D. SigLIP has none.
    """

    model_type = "holistic_clip_text_projection"
    auto_classes: ClassVar[dict[str, str]] = {
        "AutoConfig": "HolisticCLIPTextProjectionConfig",
        "AutoModel": "HolisticCLIPTextModelWithProjection",
    }
    shared: ClassVar[tuple[str, ...]] = ("text_config", "text_pooling", "projection_dim", "text_projection")
    sub_configs_defaults = {
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type=CLIPTextConfig.model_type)
    }

    text_config: dict | PreTrainedConfig | None = None
    text_pooling: str | None = None
    projection_dim: int = 512
    text_projection: bool = True

    @property
    def hidden_size(self) -> int:
        """Width of a text's state, before the projection."""
        text = cast(Any, self.text_config)
        return text.projection_size if text.model_type == SiglipTextConfig.model_type else text.hidden_size

    @property
    def initializer_factor(self) -> float:
        """Factor on the standard deviation of fresh weights."""
        return getattr(self.text_config, "initializer_factor", 1.0)


class _TowerOfBoth(HolisticCLIPPreTrainedModel):
    """A model that takes its weights from one of both towers."""

    def _auto_map(self) -> dict[str, str]:
        return {name: f"{CODE}.{kind}" for name, kind in self.config.auto_classes.items()}

    @classmethod
    def from_model(cls: type[Tower], model: Any, **options: Any) -> Tower:
        """Return one tower of a model of both, with a copy of its weights.

        Args:
            model: `HolisticCLIPModel` or `HolisticSiglipModel`.
            options: Fields of the configuration, such as `branch` and `class_token`.

        Raises:
            ValueError: no such branch, or another model.
        """
        joint: Any = model.config
        if joint.model_type not in MODEL_TYPES:
            raise ValueError(
                f"`model` is of model type {joint.model_type!r}; expected one of "
                f"{', '.join(map(repr, MODEL_TYPES))}. Make one with `holistic_clip_hf.initialization`."
            )
        config = cast(Any, cls.config_class).of(joint, **options)
        tower = cls._from_config(config, dtype=model.dtype)
        weights = model.state_dict()
        tower.load_state_dict({name: weights[name] for name in tower.state_dict()})
        return tower.to(model.device).train(model.training)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Linear) and module in (
            getattr(self, "visual_projection", None),
            getattr(self, "text_projection", None),
        ):
            init.normal_(module.weight, std=module.in_features**-0.5 * self.config.initializer_factor)


class HolisticCLIPPatchModel(_TowerOfBoth):
    """States of patches, one sequence for each image, whatever the branches.

    Taken by LLaVA and its kin, PaliGemma, Gemma 3, VisionEncoderDecoder and VisionTextDualEncoder as it is.
    `from_pretrained` takes checkpoints of both towers too: `from_pretrained(checkpoint, branch="style")`.
    """

    config: HolisticCLIPPatchConfig
    base_model_prefix = "patches"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    _keys_to_ignore_on_load_unexpected = [r"^text_model\.", r"^(text|visual)_projection\.", r"^(logit_|branch_fusion)"]

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.vision_model = make_vision_tower(config.vision_config)
        self._add_projection(config)
        self.post_init()

    def _add_projection(self, config: Any) -> None:
        """Add what stands behind the tower: nothing here."""

    def get_input_embeddings(self) -> nn.Module:
        return self.vision_model.get_input_embeddings()

    @can_return_tuple
    def forward(
        self, pixel_values: Tensor | None = None, interpolate_pos_encoding: bool = False, **kwargs: Any
    ) -> HolisticCLIPVisionOutput:
        """Encode images (N, 3, height, width).

        Args:
            pixel_values: (N, 3, height, width).
            interpolate_pos_encoding: take images of another size than `config.image_size`.

        Returns:
            `last_hidden_state` and each of `hidden_states` (N, 1 + P, E), or (N, P, E) without `class_token`.
            `pooler_output` (N, E) is the branch's vector or the mean, `branch_embeds` (N, H, E) are all of them.

        Raises:
            ValueError: no images, images of another size, or hidden states of a pyramid's inner layers.
        """
        return self._encode(pixel_values, interpolate_pos_encoding, **kwargs)

    def _encode(self, pixel_values: Tensor | None, is_resized: bool, **kwargs: Any) -> HolisticCLIPVisionOutput:
        tower = self.vision_model
        kwargs = with_asked_for(kwargs, self.config, tower.config)
        asked = kwargs.get("output_hidden_states")
        # An index of 0 is asked for too.
        wants_states = asked is not None and asked is not False
        if wants_states and not self.config.has_layers_of_one_width:
            self._require_last(asked)
            kwargs["output_hidden_states"] = False
        output = tower(pixel_values, is_resized, return_dict=True, **kwargs)
        vector = self._chosen(output.branch_embeds)
        last = self._sequence(output.last_hidden_state, vector)
        states = None
        if wants_states:
            states = (last,)
            if self.config.has_layers_of_one_width:
                num_patches = output.last_hidden_state.shape[-2] - tower.num_class_tokens
                states = tuple(self._sequence(each, vector, num_patches) for each in output.hidden_states)
        return HolisticCLIPVisionOutput(
            last_hidden_state=last,
            pooler_output=vector,
            hidden_states=states,
            attentions=output.attentions,
            branch_embeds=output.branch_embeds,
        )

    def _chosen(self, branches: Tensor) -> Tensor:
        """Choose a branch of (N, H, ...), or average: (N, ...)."""
        index = self.config.branch_index
        # Before the first layer of several streams there is one, which is that of all.
        return branches.mean(dim=1) if index is None else branches[:, min(index, branches.shape[1] - 1)]

    def _sequence(self, states: Any, vector: Tensor, num_patches: int | None = None) -> Any:
        """Make one sequence (N, 1 + P, E) or (N, P, E) of the tower's states (N, S, E) or (N, H, S, E).

        Args:
            states: States, or `None` where transformers did not select a layer.
            vector: (N, E), the branch's.
            num_patches: P, if the states of a backbone have class tokens and registers before the patches.
        """
        if states is None:
            return None
        if states.ndim == 4:
            states = self._chosen(states)
        count = self.vision_model.num_class_tokens
        patches = states[:, count:] if num_patches is None else states[:, states.shape[1] - num_patches :]
        if not self.config.class_token:
            return patches
        if self.vision_model.head is not None:
            token = vector
        else:
            token = states[:, 0] if count == 1 else self._chosen(states[:, :count])
        return torch.cat([token[:, None].to(patches), patches], dim=1)

    def _require_last(self, asked: Any) -> None:
        """Refuse inner layers of a tower whose layers have states of several widths."""
        selected = selected_hidden_states(asked)
        if selected is not None and any(index != -1 for index in selected):
            raise ValueError(
                f"`output_hidden_states` is {asked!r}; expected -1, since the layers of this tower, a pyramid of type "
                f"{self.config.tower.backbone.model_type!r}, have states of several widths. Set "
                f"`vision_feature_layer=-1`."
            )


class HolisticCLIPVisionBackbone(BackboneMixin, HolisticCLIPPatchModel):
    """Feature maps (N, E, rows, columns) of chosen layers, for `AutoBackbone` and the dense heads that use it.

    Images may have any size that holds a patch. A pyramid, such as ResNet's, gives its last map alone: for all of
    them take transformers' own backbone.
    """

    has_attentions = True

    def __init__(self, config: HolisticCLIPPatchConfig) -> None:
        super().__init__(config)
        self.num_features = [config.hidden_size] * len(config.stage_names)

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs: Any,
    ) -> BackboneOutput:
        """Encode images (N, 3, height, width) to `feature_maps`, one (N, E, rows, columns) for each of `out_features`.

        Args:
            pixel_values: (N, 3, height, width).
            output_hidden_states: return `hidden_states` as `HolisticCLIPPatchModel` does.
            output_attentions: return attention weights; only of towers that record them.

        Raises:
            ValueError: no images, or images smaller than a patch.
        """
        given = {} if output_attentions is None else {"output_attentions": output_attentions}
        output = self._encode(pixel_values, is_resized=True, output_hidden_states=True, **given)
        grid = self.vision_model.patch_grid(*pixel_values.shape[2:])
        start = int(self.config.class_token)
        maps = tuple(
            states[:, start:].transpose(1, 2).unflatten(2, grid).contiguous()
            for name, states in zip(self.stage_names, cast(Any, output.hidden_states), strict=True)
            if name in self.out_features
        )
        return BackboneOutput(
            feature_maps=maps,
            hidden_states=output.hidden_states if output_hidden_states else None,
            attentions=output.attentions,
        )


class HolisticCLIPVisionModelWithProjection(HolisticCLIPPatchModel):
    """Image vectors in the space of texts, and states of patches, as `CLIPVisionModelWithProjection` gives them.

    `image_embeds` has the length that projections have before they are made of unit length, as CLIP's, since adapters
    are trained on it. That of the fused vector is the mean over branches.
    """

    config: HolisticCLIPVisionProjectionConfig
    _keys_to_ignore_on_load_unexpected = [r"^text_model\.", r"^text_projection\.", r"^(logit_|branch_fusion)"]

    def _add_projection(self, config: Any) -> None:
        self.visual_projection: nn.Module = nn.Identity()
        if config.visual_projection:
            self.visual_projection = nn.Linear(config.hidden_size, config.projection_dim, bias=False)

    @can_return_tuple
    def forward(
        self, pixel_values: Tensor | None = None, interpolate_pos_encoding: bool = False, **kwargs: Any
    ) -> CLIPVisionModelOutput:
        """Encode images (N, 3, height, width) to `image_embeds` (N, D), of the chosen branch or fused.

        Args:
            pixel_values: (N, 3, height, width).
            interpolate_pos_encoding: take images of another size than `config.image_size`.

        Raises:
            ValueError: no images, or images of another size.
        """
        output = self._encode(pixel_values, interpolate_pos_encoding, **kwargs)
        embeds = self.visual_projection(output.branch_embeds)
        if self.config.branch is None and embeds.shape[1] > 1:
            weights = self.config.branch_weights
            lengths = branch_mean(embeds.norm(dim=-1, keepdim=True), weights)
            chosen = F.normalize(branch_mean(F.normalize(embeds, dim=-1), weights), dim=-1) * lengths
        else:
            chosen = self._chosen(embeds)
        return CLIPVisionModelOutput(
            image_embeds=chosen,
            last_hidden_state=output.last_hidden_state,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
        )


class HolisticCLIPTextModelWithProjection(_TowerOfBoth):
    """Text vectors in the space of images, as `CLIPTextModelWithProjection` gives them: before they are made of unit
    length.
    """

    config: HolisticCLIPTextProjectionConfig
    base_model_prefix = "text"
    main_input_name = "input_ids"
    input_modalities = ("text",)
    _keys_to_ignore_on_load_unexpected = [r"^vision_model\.", r"^visual_projection\.", r"^(logit_|branch_fusion)"]

    def __init__(self, config: HolisticCLIPTextProjectionConfig) -> None:
        super().__init__(config)
        self.text_model = make_text_tower(cast(Any, config))
        self.text_projection: nn.Module = nn.Identity()
        if config.text_projection:
            self.text_projection = nn.Linear(config.hidden_size, config.projection_dim, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.text_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.text_model.set_input_embeddings(value)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> CLIPTextModelOutput:
        """Encode texts (T, L) to `text_embeds` (T, D).

        Args:
            input_ids: (T, L).
            attention_mask: (T, L), zero where a text is padded; left out, all tokens count.
            position_ids: (T, L), for towers that take them.

        Raises:
            ValueError: texts that the tower refuses.
        """
        kwargs = with_asked_for(kwargs, self.config, self.text_model.config)
        output = self.text_model(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, return_dict=True, **kwargs
        )
        return CLIPTextModelOutput(
            text_embeds=self.text_projection(output.pooler_output),
            last_hidden_state=output.last_hidden_state,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
        )


TOWERS: tuple[tuple[Any, Any], ...] = (
    (HolisticCLIPPatchConfig, HolisticCLIPPatchModel),
    (HolisticCLIPVisionProjectionConfig, HolisticCLIPVisionModelWithProjection),
    (HolisticCLIPTextProjectionConfig, HolisticCLIPTextModelWithProjection),
)


def register_towers() -> None:
    """Register the towers with the Auto classes, unless an installed package has done so."""
    if HolisticCLIPPatchConfig.model_type in CONFIG_MAPPING:
        return
    for config, model in TOWERS:
        AutoConfig.register(config.model_type, config)
        AutoModel.register(config, model)
    AutoBackbone.register(HolisticCLIPPatchConfig, HolisticCLIPVisionBackbone)


class HolisticConsumerConfig:
    """Door to a model of transformers that has one of these towers inside, for people without the package.

    transformers makes the configuration inside another by its name alone, and knows no name of ours. The `auto_map` of
    such a model's configuration names this class. It registers the towers, and reads the configuration as
    transformers' own class does.
    """

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoConfig") -> None:
        """Register nothing: what is returned by `from_pretrained` is a configuration of transformers."""

    @classmethod
    def from_pretrained(cls, name: str, **kwargs: Any) -> Any:
        """Read the configuration of the model around a tower.

        Args:
            name: Folder of the model, or its name on the Hub.
            kwargs: Options of `AutoConfig.from_pretrained`.
        """
        register_towers()
        found, _ = PreTrainedConfig.get_config_dict(name, **kwargs)
        return CONFIG_MAPPING[found["model_type"]].from_pretrained(name, **kwargs)


__all__ = [
    "HolisticCLIPPatchConfig",
    "HolisticCLIPPatchModel",
    "HolisticCLIPTextModelWithProjection",
    "HolisticCLIPTextProjectionConfig",
    "HolisticCLIPVisionBackbone",
    "HolisticCLIPVisionModelWithProjection",
    "HolisticCLIPVisionProjectionConfig",
    "HolisticConsumerConfig",
]
