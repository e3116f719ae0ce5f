# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Vision tower with H branches, built of CLIP's parts, each with only what branches add to it.

Branch 0 *is* CLIP's class token or second MLP linear, or the probe of SigLIP's head. Parameters of the others are
named `branch_*`.

Axes: N images, H branches, P patches, S tokens (class tokens, then patches), E tower width, D projection width.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from os import PathLike
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedConfig
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutput, BaseModelOutputWithPooling
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.clip.modeling_clip import (
    CLIPMLP,
    CLIPAttention,
    CLIPEncoderLayer,
    CLIPPreTrainedModel,
    CLIPVisionEmbeddings,
    eager_attention_forward,
)
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_holistic_clip import HolisticCLIPConfig, HolisticCLIPVisionConfig


class HolisticCLIPConvolutionalStem(nn.Module):
    """Patches by 3x3 convolutions of stride 2 (https://arxiv.org/abs/2106.14881), their widths doubling up to E."""

    def __init__(self, config: HolisticCLIPVisionConfig) -> None:
        super().__init__()
        self.patch_size = config.patch_size
        halvings = config.patch_size.bit_length() - 1
        widths = [config.num_channels] + [config.hidden_size >> shift for shift in reversed(range(halvings))]
        self.convolutions = nn.ModuleList(
            nn.Conv2d(inside, outside, kernel_size=3, stride=2, padding=1, bias=False)
            for inside, outside in zip(widths, widths[1:], strict=False)
        )
        # One group: a layer norm over channels and pixels, which unlike batch norm does not mix images.
        self.norms = nn.ModuleList(nn.GroupNorm(1, width) for width in widths[1:])
        self.projection = nn.Conv2d(config.hidden_size, config.hidden_size, kernel_size=1, bias=False)

    @property
    def weight(self) -> Tensor:
        """Weight of the stem, as `Conv2d.weight`: `CLIPVisionEmbeddings` reads the dtype of its `patch_embedding`
        there.
        """
        return self.projection.weight

    def initialize(self) -> None:
        """Keep the variance of activations from layer to layer."""
        for convolution in self.convolutions:
            init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
        init.kaiming_normal_(self.projection.weight, mode="fan_out", nonlinearity="linear")

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Embed (N, 3, height, width) as (N, E, rows, columns). As CLIP's, it leaves out pixels that fill no patch."""
        height, width = (size - size % self.patch_size for size in pixel_values.shape[2:])
        pixel_values = pixel_values[:, :, :height, :width]
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            pixel_values = F.relu(norm(convolution(pixel_values)))
        return self.projection(pixel_values)


class HolisticCLIPVisionEmbeddings(CLIPVisionEmbeddings):
    """CLIP's embeddings, with the class tokens of branches 1 to H-1 behind the first."""

    def __init__(self, config: HolisticCLIPVisionConfig) -> None:
        super().__init__(config)
        if config.patch_stem == "convolutional":
            self.patch_embedding = HolisticCLIPConvolutionalStem(config)
        self.num_class_tokens = config.num_branches if config.branch_type == "cls" else 1
        if self.num_class_tokens > 1:
            shape = (self.num_class_tokens - 1, config.hidden_size)
            self.branch_class_embedding = nn.Parameter(torch.zeros(shape))
            self.branch_position_embedding = nn.Parameter(torch.zeros(shape))

    def forward(self, pixel_values: Tensor, interpolate_pos_encoding: bool = False) -> Tensor:
        """Embed (N, 3, height, width) as (N, S, E)."""
        embeddings = super().forward(pixel_values, interpolate_pos_encoding=interpolate_pos_encoding)
        tokens, patches = embeddings[:, :1], self._drop_patches(embeddings[:, 1:])
        if self.num_class_tokens > 1:
            branch_tokens = self.branch_class_embedding + self.branch_position_embedding
            tokens = torch.cat([tokens, branch_tokens.expand(tokens.shape[0], -1, -1)], dim=1)
        return torch.cat([tokens, patches], dim=1)

    def _drop_patches(self, patches: Tensor) -> Tensor:
        if not self.training or self.config.patch_dropout == 0.0:
            return patches
        num_kept = max(1, round(patches.shape[1] * (1 - self.config.patch_dropout)))
        kept = torch.rand(patches.shape[:2], device=patches.device).topk(num_kept, dim=1).indices
        return patches.gather(1, kept[..., None].expand(-1, -1, patches.shape[-1]))


class HolisticCLIPVisionAttention(CLIPAttention):
    """CLIP's attention, able to answer for the first `num_queries` tokens alone."""

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        num_queries: int | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[Tensor, Tensor | None]:
        """Map (N, S, E) to (N, num_queries, E); all S by default."""
        asking = hidden_states[:, :num_queries]
        queries, keys, values = (
            projection(states).unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)
            for projection, states in (
                (self.q_proj, asking),
                (self.k_proj, hidden_states),
                (self.v_proj, hidden_states),
            )
        )
        if attention_mask is not None:
            attention_mask = attention_mask[:, :, :num_queries]
            if self.config._attn_implementation == "flex_attention":
                # transformers indexes a mask by image, unchecked, so that one for all images is read beyond its end,
                # and torch 2.13 on CPUs corrupts memory even where it is not. A bias is the same sum, done right.
                kwargs["position_bias"] = attention_mask.expand(queries.shape[0], self.num_heads, -1, -1)
                attention_mask = None
        attention: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        dropout = self.dropout if self.training else 0.0
        output, weights = attention(
            self, queries, keys, values, attention_mask, scaling=self.scale, dropout=dropout, **kwargs
        )
        return self.out_proj(output.flatten(2)), weights


class HolisticCLIPVisionLayer(CLIPEncoderLayer):
    """CLIP's layer, able to answer for the first `num_queries` tokens alone."""

    def __init__(self, config: HolisticCLIPVisionConfig) -> None:
        super().__init__(config)
        self.self_attn = HolisticCLIPVisionAttention(config)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        num_queries: int | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> Tensor:
        """Map (N, S, E) to (N, num_queries, E); all S by default."""
        attended, _ = self.self_attn(self.layer_norm1(hidden_states), attention_mask, num_queries, **kwargs)
        hidden_states = hidden_states[:, :num_queries] + attended
        return hidden_states + self.mlp(self.layer_norm2(hidden_states))


class HolisticCLIPBranchMLP(CLIPMLP):
    """An MLP whose second linear is H-fold: CLIP's own for branch 0, `branch_fc2[h - 1]` for branch h."""

    def __init__(self, config: HolisticCLIPVisionConfig) -> None:
        super().__init__(config)
        self.branch_fc2 = nn.ModuleList(
            nn.Linear(config.intermediate_size, config.hidden_size) for _ in range(config.num_branches - 1)
        )

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Map (N, 1 or H, S, E) to (N, H, S, E)."""
        inner = self.activation_fn(self.fc1(hidden_states))
        linears = [self.fc2, *self.branch_fc2]
        streams = inner.expand(-1, len(linears), -1, -1).unbind(dim=1)
        return torch.stack([linear(stream) for linear, stream in zip(linears, streams, strict=True)], dim=1)


class HolisticCLIPTokenMLP(HolisticCLIPBranchMLP):
    """An MLP whose second linear is H-fold for class tokens alone: patches, and the first class token, keep CLIP's."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Map (N, S, E), class tokens first, to (N, S, E)."""
        inner = self.activation_fn(self.fc1(hidden_states))
        shared, end = self.fc2(inner), 1 + len(self.branch_fc2)
        # A few rows are computed twice, which is cheaper than a copy of the patches without them.
        own = [linear(inner[:, index]) for index, linear in enumerate(self.branch_fc2, start=1)]
        return torch.cat([shared[:, :1], torch.stack(own, dim=1), shared[:, end:]], dim=1)


class HolisticCLIPProbeAttention(nn.Module):
    """Attention of queries that belong to the model to what an image has, with CLIP's names."""

    is_causal = False

    def __init__(self, config: HolisticCLIPVisionConfig) -> None:
        super().__init__()
        self.config = config
        self.num_heads = config.num_attention_heads
        self.head_dim = config.hidden_size // self.num_heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (
            nn.Linear(config.hidden_size, config.hidden_size) for _ in range(4)
        )

    def forward(
        self, probes: Tensor, patches: Tensor, mask: Tensor | None = None, attention: Callable | None = None
    ) -> tuple[Tensor, Any]:
        """Map (N, H, E) and (N, P, E) to (N, H, E), and the weights (N, heads, H, P) of an attention that tells them.

        Args:
            probes: Queries (N, H, E).
            patches: States (N, P, E).
            mask: (N, P), zero where a patch is padding.
            attention: Function of transformers' contract, in place of the configuration's.
        """
        queries, keys, values = (
            projection(states).unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)
            for projection, states in ((self.q_proj, probes), (self.k_proj, patches), (self.v_proj, patches))
        )
        if attention is None:
            attention = ALL_ATTENTION_FUNCTIONS.get_interface(
                self.config._attn_implementation, eager_attention_forward
            )
        hidden = None
        if mask is not None:
            hidden = mask.logical_not().to(queries.dtype)[:, None, None] * torch.finfo(queries.dtype).min
            hidden = hidden.expand(-1, -1, probes.shape[1], -1)
        output, weights = attention(self, queries, keys, values, hidden, scaling=self.head_dim**-0.5, dropout=0.0)
        return self.out_proj(output.flatten(2)), weights


class HolisticCLIPProbeHead(nn.Module):
    """Head of H probes, each of which reads the patches through the same attention, layer norm and MLP.

    With one probe it is SigLIP's head (https://arxiv.org/abs/2303.15343). The probes are queries only, so that they
    cannot see each other, and keys and values are computed once.
    """

    def __init__(self, config: HolisticCLIPVisionConfig) -> None:
        super().__init__()
        width, others = config.hidden_size, config.num_branches - 1
        self.probe = nn.Parameter(torch.zeros(1, 1, width))
        if others:
            self.branch_probe = nn.Parameter(torch.zeros(1, others, width))
        self.attention = HolisticCLIPProbeAttention(config)
        self.layernorm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.has_branched_mlp = config.branched_head_mlp and others > 0
        self.mlp = (HolisticCLIPBranchMLP if self.has_branched_mlp else CLIPMLP)(config)

    def initialize(self, std: float) -> None:
        """Draw the probes, and the attention as SigLIP does."""
        for probes in self.parameters(recurse=False):
            init.normal_(probes, std=std)
        attention = self.attention
        for linear in (attention.q_proj, attention.k_proj, attention.v_proj, attention.out_proj):
            init.xavier_uniform_(linear.weight)

    def forward(self, patches: Tensor, mask: Tensor | None = None) -> Tensor:
        """Map (N, P, E) to (N, H, E); `mask` (N, P) is zero where a patch is padding, which no probe sees."""
        attended, _ = self.attention(self._probes(patches), patches, mask)
        normed = self.layernorm(attended)
        return attended + (self.mlp(normed[:, :, None])[:, :, 0] if self.has_branched_mlp else self.mlp(normed))

    def attention_weights(self, patches: Tensor) -> Tensor:
        """Return the share of its attention that each probe gives to each patch, a mean over heads: (N, P, E) to
        (N, H, P).
        """
        return self.attention(self._probes(patches), patches, attention=eager_attention_forward)[1].mean(dim=1)

    def patch_states(self, patches: Tensor) -> Tensor:
        """Return the answer of a probe that sees one patch alone: (N, P, E) to (N, P, E), or to (N, H, P, E) with
        branched MLPs.
        """
        states = self.attention.out_proj(self.attention.v_proj(patches))
        normed = self.layernorm(states)
        if self.has_branched_mlp:
            return states[:, None] + self.mlp(normed[:, None])
        return states + self.mlp(normed)

    def _probes(self, patches: Tensor) -> Tensor:
        probes: list[Tensor] = [self.probe, self.branch_probe] if hasattr(self, "branch_probe") else [self.probe]
        return torch.cat(probes, dim=1).expand(patches.shape[0], -1, -1)


class HolisticCLIPBranchLayer(HolisticCLIPVisionLayer):
    """A layer of H streams. The first of them is given one stream, which its MLP fans out."""

    def __init__(self, config: HolisticCLIPVisionConfig) -> None:
        super().__init__(config)
        self.mlp = HolisticCLIPBranchMLP(config)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        num_queries: int | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> Tensor:
        """Map (N, 1 or H, S, E) to (N, H, num_queries, E); all S by default."""
        sequences = self.layer_norm1(hidden_states).flatten(0, 1)  # attention knows no streams: (N * streams, S, E)
        attended, _ = self.self_attn(sequences, attention_mask, num_queries, **kwargs)
        hidden_states = hidden_states[:, :, :num_queries] + attended.unflatten(0, hidden_states.shape[:2])
        return hidden_states + self.mlp(self.layer_norm2(hidden_states))


class HolisticCLIPTokenLayer(HolisticCLIPVisionLayer):
    """A layer whose class tokens each have a second MLP linear of their own."""

    def __init__(self, config: HolisticCLIPVisionConfig) -> None:
        super().__init__(config)
        self.mlp = HolisticCLIPTokenMLP(config)


class HolisticCLIPVisionEncoder(nn.Module):
    """Plain layers, then `num_branch_layers` of H streams (`branch_type="mlp"`), or of class tokens with linears of
    their own (`branched_token_mlp`).
    """

    def __init__(self, config: HolisticCLIPVisionConfig) -> None:
        super().__init__()
        self.has_streams = config.branch_type == "mlp" and config.num_branches > 1
        has_branches = self.has_streams or (config.branched_token_mlp and config.num_branches > 1)
        self.num_plain = config.num_hidden_layers - (config.num_branch_layers if has_branches else 0)
        branched = HolisticCLIPBranchLayer if self.has_streams else HolisticCLIPTokenLayer
        self.layers = nn.ModuleList(
            (HolisticCLIPVisionLayer if index < self.num_plain else branched)(config)
            for index in range(config.num_hidden_layers)
        )
        self.gradient_checkpointing = False

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None,
        num_queries: int | None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutput:
        """Map (N, S, E) to (N, S, E), or (N, H, S, E) with streams; the last layer for `num_queries` tokens."""
        for index, layer in enumerate(self.layers):
            if index == self.num_plain and self.has_streams:
                hidden_states = hidden_states.unsqueeze(1)
            is_last = index == len(self.layers) - 1
            hidden_states = layer(
                hidden_states, attention_mask, num_queries=num_queries if is_last else None, **kwargs
            )
        return BaseModelOutput(last_hidden_state=hidden_states)


@dataclass
class HolisticCLIPVisionOutput(BaseModelOutputWithPooling):
    """`BaseModelOutputWithPooling`, and all branches.

    From the tower alone: `branch_embeds` (N, H, E), `pooler_output` (N, E) their mean.
    From `get_image_features`: `branch_embeds` (N, H, D) of unit length, `pooler_output` (N, D) fused. It is *not* of
    unit length, so that its dot product with a text vector is the fused similarity.
    """

    branch_embeds: Tensor | None = None

    def to_tuple(self) -> tuple[Any, ...]:
        """Return all that is given in the order of CLIP's output, with the branches behind, whatever was set last."""
        return tuple(self[field.name] for field in fields(self) if field.name in self)


RECORDED = ("output_hidden_states", "output_attentions")


def with_asked_for(kwargs: Any, *configs: PreTrainedConfig) -> Any:
    """Add what one of the configurations asks for to the keywords of a forward pass, which come first."""
    asked = {name: True for name in RECORDED if any(getattr(config, name) for config in configs)}
    return {**asked, **{name: value for name, value in kwargs.items() if value is not None or name not in asked}}


def asks_for_all(kwargs: Any) -> bool:
    """Tell whether a forward pass with these keywords has to compute the last layer for all tokens."""
    return any(kwargs.get(name) for name in RECORDED)


class HolisticCLIPPreTrainedModel(CLIPPreTrainedModel):
    """Weight initialisation and what transformers asks of every model."""

    config: HolisticCLIPConfig
    base_model_prefix = "holistic_clip"
    _no_split_modules = ["CLIPTextEmbeddings", "CLIPEncoderLayer", "HolisticCLIPVisionEmbeddings"] + [
        "HolisticCLIPVisionLayer",
        "HolisticCLIPBranchLayer",
        "HolisticCLIPTokenLayer",
        "HolisticCLIPProbeHead",
    ]
    # Its own loss is a mean over the batch: the Trainer must divide by accumulation steps as usual.
    accepts_loss_kwargs = False
    # The Auto classes through which a saved checkpoint can be loaded; pipelines each ask for their own.
    auto_classes: tuple[str, ...] = ("AutoModel",)
    # Weights that a checkpoint may lack, since only the new configuration has them: of branches and of their router.
    _may_be_new: tuple[str, ...] = (r"(^|\.)branch_",)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | PathLike | None, *args: Any, **kwargs: Any) -> Any:
        """Load as transformers does, which would only warn of missing weights, and draw whole towers at random.

        Raises:
            ValueError: a checkpoint that lacks weights other than those of new branches, or has some of other shapes,
                unless `ignore_mismatched_sizes=True`.
        """
        tell = kwargs.pop("output_loading_info", False)
        takes_other_shapes = kwargs.pop("ignore_mismatched_sizes", False)  # else named below, in place of a traceback
        kwargs |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
        model, report = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        if pretrained_model_name_or_path is not None:
            model._require_weights(str(pretrained_model_name_or_path), report["missing_keys"])
            if not takes_other_shapes:
                model._require_shapes(str(pretrained_model_name_or_path), report["mismatched_keys"])
        return (model, report) if tell else model

    def _require_weights(self, source: str, missing: Iterable[str]) -> None:
        lacking = sorted(name for name in missing if not any(re.search(known, name) for known in self._may_be_new))
        if lacking:
            more = f" and {len(lacking) - 3} more" if len(lacking) > 3 else ""
            saved_by = ", ".join(self.config.architectures or ["an unnamed architecture"])
            raise ValueError(
                f"{source!r}, saved by {saved_by}, lacks the weights {', '.join(lacking[:3])}{more} of "
                f"{type(self).__name__}; expected all but those of new branches. Load it with the class that saved "
                f"it, or make a model of random weights with `{type(self).__name__}(config)`."
            )

    def _require_shapes(self, source: str, other: Iterable[tuple[str, Any, Any]]) -> None:
        for name, stored, asked in sorted(other)[:1]:
            raise ValueError(
                f"{source!r} has the weight {name} of the shape {tuple(stored)}; the configuration asks for "
                f"{tuple(asked)}. Leave out the setting that changes it, or, to draw such weights at random, give "
                f"`ignore_mismatched_sizes=True`."
            )

    def save_pretrained(self, save_directory: str | PathLike, **kwargs: Any) -> None:
        """Save as transformers does, which would record one Auto class only, and keep those of what this was loaded
        from.
        """
        self.config.auto_map = self._auto_map()
        super().save_pretrained(save_directory, **kwargs)

    def _auto_map(self) -> dict[str, str]:
        """Return the class that each of the Auto classes makes, as `file.Class`."""
        name = f"{type(self).__module__.rpartition('.')[2]}.{type(self).__name__}"
        return dict.fromkeys(self.auto_classes, name)

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
        elif isinstance(module, HolisticCLIPProbeHead):
            module.initialize(module.probe.shape[-1] ** -0.5 * factor)
        elif isinstance(module, HolisticCLIPBranchMLP):
            std = module.config.hidden_size**-0.5 * (2 * module.config.num_hidden_layers) ** -0.5 * factor
            for linear in module.branch_fc2:
                init.normal_(linear.weight, std=std)


def require_pixels(config: HolisticCLIPVisionConfig, pixel_values: Tensor | None, any_size: bool) -> Tensor:
    """Return images (N, 3, height, width) that a tower can see.

    Raises:
        ValueError: no images, images of another size, or smaller than a patch.
    """
    if pixel_values is None:
        raise ValueError("`pixel_values` is missing. Make it with the processor: `processor(images=...)`.")
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
    return pixel_values


def require_states(tower: Any, tower_states: Tensor, pixel_values: Tensor | None) -> Tensor:
    """Return states (N, S, E) of images, which a head of probes can read in place of pixels.

    Raises:
        ValueError: pixels as well, a tower without probes, or states of another shape.
    """
    if pixel_values is not None:
        raise ValueError("`pixel_values` and `tower_states` are both given; expected one of them. Leave one out.")
    if tower.head is None:
        raise ValueError(
            f"`tower_states` are given to a tower of branch_type={tower.config.branch_type!r}, whose branches come "
            "out of the tower itself; expected 'probe', whose head reads states. Give `pixel_values`."
        )
    width, before = tower.config.hidden_size, tower.num_class_tokens
    if tower_states.ndim != 3 or tower_states.shape[2] != width or tower_states.shape[1] <= before:
        raise ValueError(
            f"`tower_states` is {tuple(tower_states.shape)}; expected (N, S, {width}) with patches behind {before} "
            "class tokens. Take `last_hidden_state` of this very tower."
        )
    return tower_states.to(tower.head.probe.dtype)


class HolisticCLIPVisionModel(HolisticCLIPPreTrainedModel):
    """The vision tower with its H branches, before projection."""

    config: HolisticCLIPVisionConfig
    base_model_prefix = "vision_model"  # loads by itself from a full checkpoint
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    _input_embed_layer = "patch_embedding"
    below_states = ("embeddings", "pre_layrnorm", "encoder")  # modules that `last_hidden_state` comes out of

    def __init__(self, config: HolisticCLIPVisionConfig) -> None:
        super().__init__(config)
        self.embeddings = HolisticCLIPVisionEmbeddings(config)
        self.pre_layrnorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)  # CLIP's spelling
        self.encoder = HolisticCLIPVisionEncoder(config)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.head = HolisticCLIPProbeHead(config) if config.branch_type == "probe" else None
        self.post_init()

    @property
    def has_streams(self) -> bool:
        """Tell whether the states of tokens have an axis of branches: (N, H, S, E)."""
        return self.encoder.has_streams

    @property
    def num_class_tokens(self) -> int:
        """Number of tokens before the patches in `last_hidden_state`."""
        return self.embeddings.num_class_tokens

    @property
    def last_norm(self) -> nn.Module:
        """The norm before the last attention."""
        return cast(nn.Module, self.encoder.layers[-1].layer_norm1)

    def patch_states(self, last_hidden_state: Tensor) -> Tensor:
        """Return the patches of (..., S, E) behind the last norm: (..., P, E), which probes read."""
        return self.post_layernorm(last_hidden_state[..., self.num_class_tokens :, :])

    def patch_grid(self, height: int, width: int) -> tuple[int, int]:
        """Return rows and columns of the patches of an image of so many pixels."""
        return height // self.config.patch_size, width // self.config.patch_size

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        output_patches: bool = True,
        tower_states: Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> HolisticCLIPVisionOutput:
        """Encode images.

        Args:
            pixel_values: (N, 3, height, width).
            interpolate_pos_encoding: take images of another size than `config.image_size`.
            output_patches: without, the last layer is computed for class tokens alone, and `last_hidden_state` holds
                no patches: (N, H, E), or (N, H, 1, E) with `branch_type="mlp"`. Probes need the patches, and have
                them either way.
            tower_states: (N, S, E), `last_hidden_state` of an earlier call, for probes to read in place of pixels.
                Everything below them is left out.

        Raises:
            ValueError: no images, or images of another size; states without probes, or of another shape.
        """
        if tower_states is None:
            states = self._states(pixel_values, interpolate_pos_encoding, output_patches, **kwargs)
        else:
            states = require_states(self, tower_states, pixel_values)
        if self.head is not None:
            branches = self.head(self.patch_states(states))
        else:
            tokens = states[:, :, 0] if self.has_streams else states[:, : self.num_class_tokens]
            branches = self.post_layernorm(tokens)
        return HolisticCLIPVisionOutput(
            last_hidden_state=states, pooler_output=branches.mean(dim=1), branch_embeds=branches
        )

    def _states(
        self, pixel_values: Tensor | None, is_resized: bool, output_patches: bool, **kwargs: Unpack[TransformersKwargs]
    ) -> Tensor:
        pixel_values = require_pixels(self.config, pixel_values, is_resized)
        hidden_states = self.pre_layrnorm(self.embeddings(pixel_values, is_resized))
        return self.encoder(
            hidden_states,
            self._isolation_mask(hidden_states),
            num_queries=None if output_patches or self.head is not None else self.num_class_tokens,
            **kwargs,
        ).last_hidden_state

    def _isolation_mask(self, hidden_states: Tensor) -> Tensor | None:
        """Return what is added to the attention logits, (1, 1, S, S), or `None` if everything sees everything."""
        num_class_tokens, isolation = self.num_class_tokens, self.config.branch_isolation
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


__all__ = [
    "HolisticCLIPPreTrainedModel",
    "HolisticCLIPVisionModel",
    "HolisticCLIPVisionOutput",
]
