# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Vision towers of other families of transformers under H probes.

The family's model stands in `backbone`, with its own names of parameters, and the probes' head beside it. What it
returns before the patches, class tokens and registers, is left out, unless the class tokens are the branches.

Axes: N images, H branches, P patches, S states of a backbone, E tower width.
"""

import inspect
import re
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from transformers import MODEL_MAPPING, PreTrainedConfig, PreTrainedModel
from transformers.utils.generic import can_return_tuple

from .configuration_holistic_clip import HolisticBackboneVisionConfig
from .vision_holistic_clip import (
    HolisticCLIPPreTrainedModel,
    HolisticCLIPProbeHead,
    HolisticCLIPVisionModel,
    HolisticCLIPVisionOutput,
    require_pixels,
    require_states,
    with_asked_for,
)

# Parameters that states do not depend on: an optimizer would get no gradient of them, nor would the ranks of DDP.
_UNREAD = re.compile(r"(^|\.)(mask_token$|pooler\.)")
_UNREAD_OF = {"clip_vision_model": "post_layernorm.", "convnext": "layernorm.", "convnextv2": "layernorm."}


def make_backbone(config: PreTrainedConfig) -> PreTrainedModel:
    """Return the model of transformers that a configuration is of, with fresh weights and without a pooler.

    Raises:
        ValueError: a configuration whose model is not an encoder of one input.
    """
    kind: Any = MODEL_MAPPING.get(type(config), None)
    kind = kind[0] if isinstance(kind, tuple) else kind
    if kind is None or config.is_encoder_decoder:
        raise ValueError(
            f"A tower of model type {config.model_type!r} has no encoder of its own in transformers; expected one "
            f"that `AutoModel` makes, without a decoder. Choose another tower."
        )
    options = (
        {"add_pooling_layer": False} if "add_pooling_layer" in inspect.signature(kind.__init__).parameters else {}
    )
    backbone = kind._from_config(config, **options)
    unread = _UNREAD_OF.get(config.model_type)
    for name, parameter in backbone.named_parameters():
        if _UNREAD.search(name) or (unread is not None and name.startswith(unread)):
            parameter.requires_grad_(False)
    return backbone


class Patches(NamedTuple):
    """Images as SigLIP 2's NaFlex variant takes them.

    Args:
        pixel_values: (N, P, 3 * side * side), of each image its patches row by row, then padding.
        pixel_attention_mask: (N, P), zero where a patch is padding.
        spatial_shapes: (N, 2), rows and columns of each image's patches.
    """

    pixel_values: Tensor
    pixel_attention_mask: Tensor
    spatial_shapes: Tensor


def cut_patches(images: Tensor, side: int) -> Patches:
    """Cut images (N, 3, height, width) of one size into patches; what fills no patch is left out."""
    rows, columns = (size // side for size in images.shape[2:])
    cut = images[:, :, : rows * side, : columns * side].unflatten(3, (columns, side)).unflatten(2, (rows, side))
    patches = cut.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
    shapes = torch.tensor([[rows, columns]], device=images.device).expand(images.shape[0], -1)
    return Patches(patches, torch.ones(patches.shape[:2], dtype=torch.int64, device=images.device), shapes)


def join_patches(patches: Patches, side: int) -> Tensor:
    """Put the patches of one image together again: (1, 3, height, width), without the padding.

    >>> images = torch.rand(1, 3, 8, 12)
    >>> torch.equal(join_patches(cut_patches(images, 4), 4), images)
    True
    """
    rows, columns = patches.spatial_shapes[0].tolist()
    cut = patches.pixel_values[:1, : rows * columns].unflatten(1, (rows, columns)).unflatten(3, (side, side, -1))
    return cut.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


def resize_positions(positional_embeddings: Tensor, spatial_shapes: Tensor, max_length: int) -> Tensor:
    """Return the positions of images of any shapes, as `Siglip2VisionEmbeddings.resize_positional_embeddings` does.

    It is the same bilinear interpolation with antialiasing, as a product with its weights. transformers' own reads the
    shape of each image on the CPU, which neither `torch.compile(fullgraph=True)` nor ONNX can do.

    Args:
        positional_embeddings: (rows, columns, E), those of the checkpoint.
        spatial_shapes: (N, 2), rows and columns of each image's patches.
        max_length: P; behind an image's own patches stands the position of its first.

    Returns:
        (N, P, E).
    """
    sizes = spatial_shapes.to(positional_embeddings.device)[:, :, None]
    places = torch.arange(max_length, device=sizes.device)
    places = torch.where(places < sizes[:, 0] * sizes[:, 1], places, 0)
    down = _interpolation(places // sizes[:, 1], sizes[:, 0], positional_embeddings.shape[0])
    across = _interpolation(places % sizes[:, 1], sizes[:, 1], positional_embeddings.shape[1])
    found = torch.einsum("npr,npc,rce->npe", down, across, positional_embeddings.float())
    return found.to(positional_embeddings.dtype)


def _interpolation(places: Tensor, size: Tensor, length: int) -> Tensor:
    """Return how much each of `length` old positions counts for new ones (N, P) of a side of `size` (N, 1)."""
    ratio = length / size.float()
    centers = ratio * (places.float() + 0.5)
    offsets = torch.arange(length, device=places.device) + 0.5 - centers[..., None]
    weights = (1 - offsets.abs() / ratio.clamp(min=1)[..., None]).clamp(min=0)
    return weights / weights.sum(dim=-1, keepdim=True)


class HolisticBackboneVisionModel(HolisticCLIPPreTrainedModel):
    """A vision tower of any family with its H branches, before projection."""

    config: HolisticBackboneVisionConfig
    base_model_prefix = "vision_model"  # loads by itself from a full checkpoint
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    has_streams = False
    below_states = ("backbone",)  # modules that `last_hidden_state` comes out of

    def __init__(self, config: HolisticBackboneVisionConfig) -> None:
        super().__init__(config)
        self.backbone = make_backbone(config.backbone)
        if config.takes_patches:
            self.backbone.embeddings.resize_positional_embeddings = resize_positions
        takes = inspect.signature(self.backbone.forward).parameters
        self.interpolates = "interpolate_pos_encoding" in takes
        width, eps = cast(int, config.hidden_size), cast(float, config.layer_norm_eps)
        self.patch_norm = nn.LayerNorm(width, eps=eps) if config.patch_norm else nn.Identity()
        self.head = HolisticCLIPProbeHead(config) if config.branch_type == "probe" else None
        self.post_init()

    @property
    def num_class_tokens(self) -> int:
        """Number of tokens before the patches in `last_hidden_state`: H if they are the branches, else none."""
        return self.config.num_branches if self.head is None else 0

    @property
    def last_norm(self) -> nn.Module:
        """The norm before the last attention, of a backbone whose class tokens are the branches."""
        return self.backbone.encoder.layer[-1].norm1

    def get_input_embeddings(self) -> nn.Module:
        return self.backbone.get_input_embeddings()

    def patch_states(self, last_hidden_state: Tensor) -> Tensor:
        """Return the patches (N, P, E) as the probes read them."""
        return self.patch_norm(last_hidden_state[:, self.num_class_tokens :])

    def patch_grid(self, height: int, width: int) -> tuple[int, int]:
        """Return rows and columns of the patches of an image of so many pixels, as a blank one has them."""
        blank = torch.zeros(
            1, cast(int, self.config.num_channels), height, width, device=self.device, dtype=self.dtype
        )
        with torch.no_grad():
            states = self._states(blank, is_resized=True).last_hidden_state
        side: Any = self.config.patch_size
        return tuple(states.shape[2:]) if states.ndim == 4 else (height // side, width // side)

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        output_patches: bool = True,
        pixel_attention_mask: Tensor | None = None,
        spatial_shapes: Tensor | None = None,
        tower_states: Tensor | None = None,
        **kwargs: Any,
    ) -> HolisticCLIPVisionOutput:
        """Encode images.

        Args:
            pixel_values: (N, 3, height, width); with SigLIP 2's NaFlex variant, of any size, or (N, P, 3 * side *
                side), patches of images of any shape.
            interpolate_pos_encoding: take images of another size than `config.image_size`.
            output_patches: Option of `HolisticCLIPVisionModel`, which changes nothing here. Probes need the patches,
                and `last_hidden_state` is (N, P, E) either way, or (N, H + P, E) with class tokens.
            pixel_attention_mask: (N, P), zero where a patch is padding; with patches alone.
            spatial_shapes: (N, 2), rows and columns of each image's patches; with patches alone.
            tower_states: (N, P, E), `last_hidden_state` of an earlier call, for probes to read in place of pixels. The
                backbone is left out.

        Raises:
            ValueError: no images, images of another size, a backbone whose states are not those of patches, patches
                that lack their mask or shapes, or that the backbone does not take; states of another shape.
        """
        kwargs = with_asked_for(kwargs, self.config)
        mask, output = pixel_attention_mask, {}
        if tower_states is not None:
            states = require_states(self, tower_states, pixel_values)
        elif mask is not None or spatial_shapes is not None or _are_patches(self.config, pixel_values):
            patches = require_patches(self.config, pixel_values, mask, spatial_shapes)
            output = self.backbone(**self._in_dtype(patches), return_dict=True, **kwargs)
            states = output.last_hidden_state
        else:
            is_resized = interpolate_pos_encoding or self.config.takes_patches
            pixel_values = require_pixels(self.config, pixel_values, is_resized)
            output = self._states(pixel_values, is_resized, **kwargs)
            states = self._patches(output.last_hidden_state, *pixel_values.shape[2:])
            if self.head is None:
                states = torch.cat([output.last_hidden_state[:, : self.num_class_tokens], states], dim=1)
        if self.head is None:
            branches = states[:, : self.num_class_tokens]
        else:
            branches = self.head(self.patch_states(states), mask)
        return HolisticCLIPVisionOutput(
            last_hidden_state=states,
            pooler_output=branches.mean(dim=1),
            branch_embeds=branches,
            hidden_states=output.get("hidden_states"),
            attentions=output.get("attentions"),
        )

    def _in_dtype(self, patches: Patches) -> dict[str, Tensor]:
        return {**patches._asdict(), "pixel_values": patches.pixel_values.to(self.dtype)}

    def _states(self, pixel_values: Tensor, is_resized: bool, **kwargs: Any) -> Any:
        if self.config.takes_patches:
            side: Any = self.config.patch_size
            return self.backbone(**self._in_dtype(cut_patches(pixel_values, side)), return_dict=True, **kwargs)
        if self.interpolates:
            kwargs["interpolate_pos_encoding"] = is_resized
        return self.backbone(pixel_values.to(self.dtype), return_dict=True, **kwargs)

    def _patches(self, states: Tensor, height: int, width: int) -> Tensor:
        """Return the patches (N, P, E) among the states (N, S, E), or of a feature map (N, E, rows, columns)."""
        if states.ndim == 4 and states.shape[1] == self.config.hidden_size:
            return states.flatten(2).transpose(1, 2)
        side: Any = self.config.patch_size
        num_patches = (height // side) * (width // side)
        if states.ndim != 3 or not 0 < num_patches <= states.shape[1]:
            raise ValueError(
                f"The backbone, of model type {self.config.backbone.model_type!r}, gives states of shape "
                f"{tuple(states.shape)} for images of {height} x {width} pixels; expected (N, S, E) with the "
                f"{num_patches} patches of {side} pixels at the end, or a feature map. Set `patch_size`, or choose "
                f"another backbone."
            )
        return states[:, states.shape[1] - num_patches :]


def _are_patches(config: HolisticBackboneVisionConfig, pixel_values: Tensor | None) -> bool:
    return config.takes_patches and pixel_values is not None and pixel_values.ndim == 3


def require_patches(
    config: HolisticBackboneVisionConfig, pixel_values: Tensor | None, mask: Tensor | None, shapes: Tensor | None
) -> Patches:
    """Return what a NaFlex tower takes.

    Raises:
        ValueError: patches for a tower that takes images of one size, of another size than its own, or without their
            mask or shapes.
    """
    if not config.takes_patches:
        raise ValueError(
            f"`pixel_values` come with `pixel_attention_mask` or `spatial_shapes`, and the tower is of model type "
            f"{config.backbone.model_type!r}; expected images (N, {config.num_channels}, height, width). "
            f"Make them with this checkpoint's own processor."
        )
    width = cast(int, config.num_channels) * cast(int, config.patch_size) ** 2
    shape = () if pixel_values is None else tuple(pixel_values.shape)
    if pixel_values is None or mask is None or shapes is None or len(shape) != 3 or shape[-1] != width:
        raise ValueError(
            f"`pixel_values` is of shape {shape or None}; expected patches (N, P, {width}) with "
            f"`pixel_attention_mask` (N, P) and `spatial_shapes` (N, 2), or images (N, {config.num_channels}, height, "
            f"width). Pass on all that the processor makes: `model.get_image_features(**processor(images=...))`."
        )
    return Patches(pixel_values, mask, shapes)


def make_vision_tower(config: Any) -> Any:
    """Return the vision tower that a configuration describes, with fresh weights."""
    # By name: people who lack the package may have the class of the configuration from two loadings of its file.
    has_backbone = config.model_type == HolisticBackboneVisionConfig.model_type
    return (HolisticBackboneVisionModel if has_backbone else HolisticCLIPVisionModel)._from_config(config)


__all__ = ["HolisticBackboneVisionModel"]
