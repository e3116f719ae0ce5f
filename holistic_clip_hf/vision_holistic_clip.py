# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""The vision tower with H branches, and what transformers asks of all models of this family.

Axes: N images, H branches, S tokens (class tokens, then patches), E tower width, D projection width.
"""

from dataclasses import dataclass
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.clip.modeling_clip import CLIPPreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_holistic_clip import HolisticCLIPConfig, HolisticCLIPVisionConfig
from .layers_holistic_clip import (
    HolisticCLIPBranchMLP,
    HolisticCLIPConvolutionalStem,
    HolisticCLIPVisionEmbeddings,
    HolisticCLIPVisionEncoder,
)


@dataclass
class HolisticCLIPVisionOutput(BaseModelOutputWithPooling):
    """`BaseModelOutputWithPooling`, and all branches.

    From the tower alone: `branch_embeds` (N, H, E), `pooler_output` (N, E) their mean.
    From `get_image_features`: `branch_embeds` (N, H, D) of unit length, `pooler_output` (N, D) fused; it is *not* of
    unit length, so that its dot product with a text vector is the fused similarity.
    """

    branch_embeds: Tensor | None = None


class HolisticCLIPPreTrainedModel(CLIPPreTrainedModel):
    """Weight initialisation and what transformers asks of every model."""

    config: HolisticCLIPConfig
    base_model_prefix = "holistic_clip"
    _no_split_modules = ["CLIPTextEmbeddings", "CLIPEncoderLayer", "HolisticCLIPVisionEmbeddings"] + [
        "HolisticCLIPVisionLayer",
        "HolisticCLIPBranchLayer",
    ]
    # Its own loss is a mean over the batch: the Trainer must divide by accumulation steps as usual.
    accepts_loss_kwargs = False
    # The Auto classes through which a saved checkpoint can be loaded; pipelines each ask for their own.
    auto_classes: tuple[str, ...] = ("AutoModel",)

    def save_pretrained(self, save_directory: str | PathLike, **kwargs: Any) -> None:
        """As in transformers, which would record one Auto class only, and keep those of what this was loaded from."""
        name = f"{type(self).__module__.rpartition('.')[2]}.{type(self).__name__}"
        self.config.auto_map = dict.fromkeys(self.auto_classes, name)
        super().save_pretrained(save_directory, **kwargs)

    @classmethod
    def is_custom_code(cls) -> bool:
        # For code outside transformers the library skips modules without parameters of their own, such as attention
        # and MLP, in all towers; CLIP initialises linears through them. We write through `init`, which is all it asks.
        return False

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        factor = self.config.initializer_factor
        if isinstance(module, HolisticCLIPVisionEmbeddings):
            if module.num_class_tokens > 1:
                init.normal_(module.branch_class_embedding, std=module.embed_dim**-0.5 * factor)
                init.normal_(module.branch_position_embedding, std=module.config.initializer_range * factor)
            if isinstance(module.patch_embedding, HolisticCLIPConvolutionalStem):
                module.patch_embedding.initialize()
        elif isinstance(module, HolisticCLIPBranchMLP):
            std = module.config.hidden_size**-0.5 * (2 * module.config.num_hidden_layers) ** -0.5 * factor
            for linear in module.branch_fc2:
                init.normal_(linear.weight, std=std)


class HolisticCLIPVisionModel(HolisticCLIPPreTrainedModel):
    """The vision tower with its H branches, before projection."""

    config: HolisticCLIPVisionConfig
    base_model_prefix = "vision_model"  # loads by itself from a full checkpoint
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    _input_embed_layer = "patch_embedding"

    def __init__(self, config: HolisticCLIPVisionConfig) -> None:
        super().__init__(config)
        self.embeddings = HolisticCLIPVisionEmbeddings(config)
        self.pre_layrnorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)  # CLIP's spelling
        self.encoder = HolisticCLIPVisionEncoder(config)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        output_patches: bool = True,
        **kwargs: Unpack[TransformersKwargs],
    ) -> HolisticCLIPVisionOutput:
        """Encode images.

        Args:
            pixel_values: (N, 3, height, width).
            interpolate_pos_encoding: take images of another size than `config.image_size`.
            output_patches: without, the last layer is computed for class tokens alone, and `last_hidden_state` holds
                no patches: (N, H, E), or (N, H, 1, E) with `branch_type="mlp"`.

        Raises:
            ValueError: no images, or images of another size.
        """
        self._check_pixels(pixel_values, interpolate_pos_encoding)
        hidden_states = self.pre_layrnorm(self.embeddings(pixel_values, interpolate_pos_encoding))
        num_class_tokens = self.embeddings.num_class_tokens
        states = self.encoder(
            hidden_states,
            self._isolation_mask(hidden_states),
            num_queries=None if output_patches else num_class_tokens,
            **kwargs,
        ).last_hidden_state
        branches = states[:, :, 0] if self.encoder.has_streams else states[:, :num_class_tokens]
        branches = self.post_layernorm(branches)
        return HolisticCLIPVisionOutput(
            last_hidden_state=states, pooler_output=branches.mean(dim=1), branch_embeds=branches
        )

    def _check_pixels(self, pixel_values: Tensor | None, any_size: bool) -> None:
        if pixel_values is None:
            raise ValueError("`pixel_values` is missing. Make it with the processor: `processor(images=...)`.")
        config = self.config
        if pixel_values.ndim != 4 or pixel_values.shape[1] != config.num_channels:
            raise ValueError(
                f"`pixel_values` must be (N, {config.num_channels}, height, width); got {tuple(pixel_values.shape)}. "
                f"Make it with the processor: `processor(images=...)`."
            )
        size = tuple(pixel_values.shape[2:])
        if not any_size and size != (config.image_size, config.image_size):
            raise ValueError(
                f"Images of {size[0]} x {size[1]} pixels for a model of {config.image_size} x {config.image_size}. "
                f"Resize them with the processor, or pass interpolate_pos_encoding=True."
            )
        if min(size) < config.patch_size:
            raise ValueError(f"Images of {size[0]} x {size[1]} pixels hold no patch of {config.patch_size} pixels.")

    def _isolation_mask(self, hidden_states: Tensor) -> Tensor | None:
        """(1, 1, S, S), added to the attention logits; `None` where everything sees everything."""
        num_class_tokens, isolation = self.embeddings.num_class_tokens, self.config.branch_isolation
        if num_class_tokens == 1 or isolation == "open":
            return None
        if "flash" in self.config._attn_implementation:
            raise ValueError(
                f"Flash attention takes no mask, which branch_isolation={isolation!r} needs. Load with "
                f"attn_implementation='sdpa', or set branch_isolation='open'."
            )
        size, device = hidden_states.shape[1], hidden_states.device
        places = torch.arange(size, device=device)
        is_class = places < num_class_tokens
        between = is_class[:, None] & is_class[None] & ~torch.eye(size, dtype=torch.bool, device=device)
        if isolation in ("strict", "anchored"):
            hidden = is_class if isolation == "strict" else is_class & (places > 0)
            between = between | (~is_class[:, None] & hidden[None])
        # The released code's mask is boolean but added: +1.0, the opposite of its intent.
        value = 1.0 if isolation == "official" else torch.finfo(hidden_states.dtype).min
        return torch.zeros(size, size, dtype=hidden_states.dtype, device=device).masked_fill(between, value)[
            None, None
        ]


__all__ = ["HolisticCLIPPreTrainedModel", "HolisticCLIPVisionModel", "HolisticCLIPVisionOutput"]
