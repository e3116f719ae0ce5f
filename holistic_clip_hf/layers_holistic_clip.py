# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""What the vision tower is built of: CLIP's parts, each with only what branches add to it.

Branch 0 *is* CLIP's class token or second MLP linear; parameters of the others are named `branch_*`.

Axes: N images, H branches, S tokens (class tokens, then patches), E tower width.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.clip.modeling_clip import (
    CLIPMLP,
    CLIPAttention,
    CLIPEncoderLayer,
    CLIPVisionEmbeddings,
    eager_attention_forward,
)
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs

from .configuration_holistic_clip import HolisticCLIPVisionConfig


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
        """As `Conv2d.weight`: `CLIPVisionEmbeddings` reads the dtype of its `patch_embedding` there."""
        return self.projection.weight

    def initialize(self) -> None:
        """Keep the variance of activations from layer to layer."""
        for convolution in self.convolutions:
            init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
        init.kaiming_normal_(self.projection.weight, mode="fan_out", nonlinearity="linear")

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(N, 3, height, width) to (N, E, rows, columns); as CLIP's, it leaves out pixels that fill no patch."""
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
        """(N, 3, height, width) to (N, S, E)."""
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
        """(N, S, E) to (N, num_queries, E); all S by default."""
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
        """(N, S, E) to (N, num_queries, E); all S by default."""
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
        """(N, 1 or H, S, E) to (N, H, S, E)."""
        inner = self.activation_fn(self.fc1(hidden_states))
        linears = [self.fc2, *self.branch_fc2]
        streams = inner.expand(-1, len(linears), -1, -1).unbind(dim=1)
        return torch.stack([linear(stream) for linear, stream in zip(linears, streams, strict=True)], dim=1)


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
        """(N, 1 or H, S, E) to (N, H, num_queries, E); all S by default."""
        sequences = self.layer_norm1(hidden_states).flatten(0, 1)  # attention knows no streams: (N * streams, S, E)
        attended, _ = self.self_attn(sequences, attention_mask, num_queries, **kwargs)
        hidden_states = hidden_states[:, :, :num_queries] + attended.unflatten(0, hidden_states.shape[:2])
        return hidden_states + self.mlp(self.layer_norm2(hidden_states))


class HolisticCLIPVisionEncoder(nn.Module):
    """Plain layers, then, with `branch_type="mlp"`, `num_branch_layers` of H streams."""

    def __init__(self, config: HolisticCLIPVisionConfig) -> None:
        super().__init__()
        self.has_streams = config.branch_type == "mlp" and config.num_branches > 1
        self.num_plain = config.num_hidden_layers - (config.num_branch_layers if self.has_streams else 0)
        self.layers = nn.ModuleList(
            HolisticCLIPVisionLayer(config) if index < self.num_plain else HolisticCLIPBranchLayer(config)
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
        """(N, S, E) to (N, S, E), or (N, H, S, E) with streams; the last layer for `num_queries` tokens."""
        for index, layer in enumerate(self.layers):
            if index == self.num_plain:
                hidden_states = hidden_states.unsqueeze(1)
            is_last = index == len(self.layers) - 1
            hidden_states = layer(
                hidden_states, attention_mask, num_queries=num_queries if is_last else None, **kwargs
            )
        return BaseModelOutput(last_hidden_state=hidden_states)
