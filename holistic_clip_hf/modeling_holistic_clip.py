# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Holistic CLIP: CLIP with a vision tower that answers with H branch vectors per image.

What is notable:
- It states only what differs from `transformers.CLIPModel`; names of parameters are CLIP's, and branch 0 *is* CLIP's
  class token or second MLP linear. A stock CLIP state dict loads by name; only `branch_*` weights are new.
- Class tokens do not see each other (a real mask), and `num_branches=1` is CLIP, exactly.
- Unless patches, hidden states or attentions are asked for, the last layer computes the class tokens alone.
- Nested captions are encoded in length buckets; equal ones once, missing ones not at all.

Axes: N images, H branches, M caption slots, T texts, L tokens, P patches, S tokens of the vision tower (class tokens,
then patches), E tower width, D projection width.
"""

from dataclasses import dataclass
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling, ImageClassifierOutput
from transformers.models.clip.modeling_clip import CLIPPreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_holistic_clip import HolisticCLIPConfig, HolisticCLIPVisionConfig
from .layers_holistic_clip import (
    HolisticCLIPBranchMLP,
    HolisticCLIPConvolutionalStem,
    HolisticCLIPVisionEmbeddings,
    HolisticCLIPVisionEncoder,
)
from .loss_holistic_clip import MultiToMultiLoss, multi_to_multi_loss


@dataclass
class HolisticCLIPVisionOutput(BaseModelOutputWithPooling):
    """`BaseModelOutputWithPooling`, and all branches.

    From the tower alone: `branch_embeds` (N, H, E), `pooler_output` (N, E) their mean.
    From `get_image_features`: `branch_embeds` (N, H, D) of unit length, `pooler_output` (N, D) fused; it is *not* of
    unit length, so that its dot product with a text vector is the fused similarity.
    """

    branch_embeds: Tensor | None = None


@dataclass
class HolisticCLIPPatchOutput(ModelOutput):
    """What `get_patch_features` returns, all of unit length but the mean over branches.

    Args:
        patch_embeds: (N, P, D), row by row from the top left; with `branch_type="mlp"` fused over branches.
        branch_patch_embeds: (N, H, P, D) with `branch_type="mlp"`, where every branch has patches of its own; else
            `None`.
    """

    patch_embeds: Tensor | None = None
    branch_patch_embeds: Tensor | None = None


@dataclass
class HolisticCLIPOutput(ModelOutput):
    """What `HolisticCLIPModel` returns; fields of a modality that was not given are `None`.

    Args:
        loss: scalar, with `return_loss=True`.
        logits_per_image: (N, T), scaled and fused similarity; `None` for nested captions.
        logits_per_text: (T, N), its transpose.
        image_embeds: (N, D), the fused vectors.
        branch_embeds: (N, H, D), unit length.
        text_embeds: (T, D), or (N, M, D) for nested captions; unit length.
        logit_scale: scalar, the inverse temperature (exponentiated).
        logit_bias: scalar, added to the logits with `objective="sigmoid"`.
        loss_parts: `contrastive` and `diversity`, with `return_loss=True`.
        text_model_output, vision_model_output: what the towers returned.
    """

    loss: Tensor | None = None
    logits_per_image: Tensor | None = None
    logits_per_text: Tensor | None = None
    image_embeds: Tensor | None = None
    branch_embeds: Tensor | None = None
    text_embeds: Tensor | None = None
    logit_scale: Tensor | None = None
    logit_bias: Tensor | None = None
    loss_parts: dict[str, Tensor] | None = None
    text_model_output: BaseModelOutputWithPooling | None = None
    vision_model_output: HolisticCLIPVisionOutput | None = None

    def to_tuple(self) -> tuple[Any, ...]:
        return tuple(value.to_tuple() if isinstance(value, ModelOutput) else value for value in self.values())


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
        elif isinstance(module, HolisticCLIPModel):
            for projection in (module.text_projection, module.visual_projection):
                init.normal_(projection.weight, std=projection.in_features**-0.5 * factor)
            init.constant_(module.logit_scale, self.config.logit_scale_init_value)
            if module.logit_bias is not None:
                init.constant_(module.logit_bias, self.config.logit_bias_init_value)
        elif isinstance(module, HolisticCLIPForImageClassification):
            init.normal_(module.classifier.weight, std=module.classifier.in_features**-0.5 * factor)


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


class HolisticCLIPModel(HolisticCLIPPreTrainedModel):
    """Both towers and their common space: H vectors and one fused vector per image, one vector per text."""

    auto_classes = ("AutoModel", "AutoModelForZeroShotImageClassification")
    # Off where weights are sharded over ranks (FSDP): there, every rank must call the text tower equally often.
    bucket_texts = True

    def __init__(self, config: HolisticCLIPConfig) -> None:
        super().__init__(config)
        if config.architectures == [HolisticCLIPVisionModel.__name__]:
            raise ValueError(
                "This is a checkpoint of a vision tower alone. Load it with `HolisticCLIPVisionModel`, or under a "
                "classifier with `HolisticCLIPForImageClassification`."
            )
        config.validate_perspectives()  # keywords of `from_pretrained` are set after the configuration's own checks
        self.text_model = CLIPTextModel._from_config(config.text_config)
        self.vision_model = HolisticCLIPVisionModel._from_config(config.vision_config)
        vision_width, text_width = self.vision_model.config.hidden_size, self.text_model.config.hidden_size
        self.visual_projection = nn.Linear(vision_width, config.projection_dim, bias=False)
        self.text_projection = nn.Linear(text_width, config.projection_dim, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(config.logit_scale_init_value))
        self.logit_bias = None
        if config.objective == "sigmoid":
            self.logit_bias = nn.Parameter(torch.tensor(float(config.logit_bias_init_value)))
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.text_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.text_model.set_input_embeddings(value)

    @can_return_tuple
    def get_text_features(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """Encode texts: (T, L) to `pooler_output` (T, D), of unit length.

        Raises:
            ValueError: texts longer than the model has positions, or token ids that it does not know.
        """
        self._check_tokens(input_ids)
        outputs = self.text_model(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, return_dict=True, **kwargs
        )
        outputs.pooler_output = F.normalize(self.text_projection(outputs.pooler_output), dim=-1)
        return outputs

    @can_return_tuple
    def get_image_features(
        self,
        pixel_values: Tensor,
        interpolate_pos_encoding: bool = False,
        output_patches: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> HolisticCLIPVisionOutput:
        """Encode images: (N, 3, height, width) to `pooler_output` (N, D) fused and `branch_embeds` (N, H, D).

        `last_hidden_state` holds patches too with `output_patches`.
        """
        asked_for_all = (
            output_patches
            or kwargs.get("output_hidden_states", self.config.output_hidden_states)
            or kwargs.get("output_attentions", self.config.output_attentions)
        )
        outputs = self.vision_model(
            pixel_values=pixel_values,
            interpolate_pos_encoding=interpolate_pos_encoding,
            output_patches=bool(asked_for_all),
            return_dict=True,
            **kwargs,
        )
        if not output_patches:
            # What is returned must not depend on what else is asked for.
            num_class_tokens = self.vision_model.embeddings.num_class_tokens
            outputs.last_hidden_state = outputs.last_hidden_state[..., :num_class_tokens, :]
        outputs.branch_embeds = F.normalize(self.visual_projection(outputs.branch_embeds), dim=-1)
        outputs.pooler_output = self.fuse_branches(outputs.branch_embeds)
        return outputs

    @can_return_tuple
    def get_patch_features(
        self, pixel_values: Tensor, interpolate_pos_encoding: bool = False, **kwargs: Unpack[TransformersKwargs]
    ) -> HolisticCLIPPatchOutput:
        """Encode images patch by patch, in the space of texts: (N, 3, height, width) to (N, P, D).

        As CLIP's class token, patches pass the last norm and the projection. No loss ever trained them to: their
        agreement with texts is a by-product.
        """
        tower = self.vision_model
        states = tower(pixel_values, interpolate_pos_encoding, return_dict=True, **kwargs).last_hidden_state
        patches = tower.post_layernorm(states[..., tower.embeddings.num_class_tokens :, :])
        embeds = F.normalize(self.visual_projection(patches), dim=-1)
        if not tower.encoder.has_streams:
            return HolisticCLIPPatchOutput(patch_embeds=embeds)
        fused = self.fuse_branches(embeds.flatten(2)).unflatten(-1, embeds.shape[2:])
        return HolisticCLIPPatchOutput(patch_embeds=fused, branch_patch_embeds=embeds)

    def _check_tokens(self, input_ids: Tensor) -> None:
        longest, known = self.text_model.config.max_position_embeddings, self.get_input_embeddings().num_embeddings
        if input_ids.shape[-1] > longest:
            raise ValueError(
                f"Texts of {input_ids.shape[-1]} tokens for a model of {longest} positions. Truncate them with the "
                f"processor, or stretch the positions with `holistic_clip_hf.initialization.stretch_text_positions`."
            )
        # On a GPU an unknown id would end the process. A compiled graph cannot look at values.
        if torch.compiler.is_compiling() or torch.jit.is_tracing() or input_ids.numel() == 0:
            return
        lowest, highest = (int(bound) for bound in input_ids.aminmax())
        if lowest < 0 or highest >= known:
            raise ValueError(
                f"Token ids from {lowest} to {highest} for a vocabulary of {known}. Use this checkpoint's own "
                f"processor, or `resize_token_embeddings` after adding tokens."
            )

    def fuse_branches(self, branch_embeds: Tensor) -> Tensor:
        """(N, H, D) to (N, D): the mean of unit vectors, weighted with `fusion="weighted"`.

        It is not normalised again: its dot product with a unit text vector is then the mean of the branches'
        similarities. `"max"` and `"softmax"` have no vector of their own and take the mean here.
        """
        if self.config.branch_weights is None:
            return branch_embeds.mean(dim=1)
        weights = branch_embeds.new_tensor(self.config.branch_weights)
        return torch.einsum("nhd,h->nd", branch_embeds, weights / weights.sum())

    def fused_similarity(self, branch_embeds: Tensor, text_embeds: Tensor) -> Tensor:
        """(N, H, D) and (T, D) to (N, T): cosine similarity over branches, fused as `config.fusion` says."""
        if self.config.fusion in ("mean", "weighted"):
            return self.fuse_branches(branch_embeds) @ text_embeds.T
        similarity = torch.einsum("nhd,td->nht", branch_embeds, text_embeds)
        if self.config.fusion == "max":
            return similarity.amax(dim=1)
        return ((self.logit_scale.exp() * similarity).softmax(dim=1) * similarity).sum(dim=1)

    def encode_captions(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        caption_mask: Tensor | None = None,
        caption_ids: Tensor | None = None,
    ) -> Tensor:
        """(N, M, L) to (N, M, D) of unit length; zeros where `caption_mask` (N, M) says that a caption is missing.

        Missing captions never enter the text tower, and captions with the same id (N, M) enter it once.

        Raises:
            ValueError: captions padded in front.
        """
        num_images, num_slots = input_ids.shape[:2]
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        elif (attention_mask[..., 0].logical_not() & attention_mask.any(dim=-1)).any():
            raise ValueError("Captions are padded in front. Set the tokenizer's `padding_side` to 'right'.")
        if caption_mask is None:
            caption_mask = attention_mask.any(dim=-1)
        present = caption_mask.flatten().nonzero().squeeze(1)
        if len(present) == 0:
            # The text tower is run all the same: with several ranks, all must take part in every step.
            unused = self.get_text_features(input_ids[:1, 0, :1]).pooler_output
            return (0.0 * unused).expand(num_images, num_slots, -1)
        places = torch.arange(len(present), device=present.device)
        inverse, first = places, places
        if caption_ids is not None:
            distinct, inverse = caption_ids.flatten()[present].unique(return_inverse=True)
            first = places.new_zeros(len(distinct)).scatter_reduce(0, inverse, places, "amin", include_self=False)
        rows = present[first]
        lengths = attention_mask.sum(dim=-1).flatten()[rows]
        embeds = self._encode_in_buckets(input_ids.flatten(0, 1)[rows], lengths)[inverse]
        flat = embeds.new_zeros(num_images * num_slots, embeds.shape[-1]).index_copy(0, present, embeds)
        return flat.unflatten(0, (num_images, num_slots))

    def _encode_in_buckets(self, input_ids: Tensor, lengths: Tensor) -> Tensor:
        """(T, L) to (T, D), texts of like length together: up to 8, 16, 32 ... tokens.

        CLIP's text tower is causal and reads the end token, so that padding behind it, trimmed here, changes nothing.
        """
        buckets = lengths.clamp(min=8).log2().ceil().long() if self.bucket_texts else torch.zeros_like(lengths)
        rows, embeds = [], []
        for bucket in buckets.unique().tolist():
            members = (buckets == bucket).nonzero().squeeze(1)
            rows.append(members)
            embeds.append(self.get_text_features(input_ids[members, : int(lengths[members].max())]).pooler_output)
        return torch.cat(embeds)[torch.cat(rows).argsort()]

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        caption_mask: Tensor | None = None,
        caption_ids: Tensor | None = None,
        branch_of_slot: list[int] | None = None,
        return_loss: bool | None = None,
        interpolate_pos_encoding: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> HolisticCLIPOutput:
        """Score images against texts, or embed what is given.

        Args:
            input_ids: (T, L) texts to score, or (N, M, L) nested captions to train on.
            pixel_values: (N, 3, height, width).
            attention_mask: as `input_ids`.
            position_ids: (T, L), for scoring only.
            caption_mask: (N, M), false where a caption is missing.
            caption_ids: (N, M), equal where two captions are the same text.
            branch_of_slot: M branch indices, -1 for free (`config.branch_of_slot(names)` makes them).
            return_loss: compute the loss of these images alone (`HolisticCLIPTrainer` gathers over ranks). Flat texts
                (T = N) are one slot, in the order of the images.

        Raises:
            ValueError: nothing given; a loss without both modalities or with T different from N.
        """
        if input_ids is None and pixel_values is None:
            raise ValueError("Give `pixel_values`, `input_ids`, or both.")
        images = texts = text_embeds = logits = None
        if pixel_values is not None:
            images = self.get_image_features(pixel_values, interpolate_pos_encoding=interpolate_pos_encoding, **kwargs)
        if input_ids is not None and input_ids.ndim == 3:
            if caption_mask is None and attention_mask is not None:
                caption_mask = attention_mask.any(dim=-1)
            text_embeds = self.encode_captions(input_ids, attention_mask, caption_mask, caption_ids)
        elif input_ids is not None:
            texts = self.get_text_features(input_ids, attention_mask, position_ids, **kwargs)
            text_embeds = texts.pooler_output
            if images is not None:
                logits = self.logit_scale.exp() * self.fused_similarity(images.branch_embeds, text_embeds)
                if self.logit_bias is not None:
                    logits = logits + self.logit_bias
        loss = None
        if return_loss:
            branch_embeds = None if images is None else images.branch_embeds
            loss = self._loss(branch_embeds, text_embeds, caption_mask, caption_ids, branch_of_slot)
        # Made at once: pipelines read an output in the order in which its fields were set.
        return HolisticCLIPOutput(
            loss=None if loss is None else loss.total,
            logits_per_image=logits,
            logits_per_text=None if logits is None else logits.T,
            image_embeds=None if images is None else images.pooler_output,
            branch_embeds=None if images is None else images.branch_embeds,
            text_embeds=text_embeds,
            logit_scale=self.logit_scale.exp(),
            logit_bias=self.logit_bias,
            loss_parts=None if loss is None else {"contrastive": loss.contrastive, "diversity": loss.diversity},
            text_model_output=texts,
            vision_model_output=images,
        )

    def _loss(
        self,
        branch_embeds: Tensor | None,
        text_embeds: Tensor | None,
        caption_mask: Tensor | None,
        caption_ids: Tensor | None,
        branch_of_slot: list[int] | None,
    ) -> MultiToMultiLoss:
        if branch_embeds is None or text_embeds is None:
            raise ValueError("`return_loss=True` needs both `pixel_values` and `input_ids`.")
        if text_embeds.ndim == 2:
            text_embeds = text_embeds[:, None]
        if len(text_embeds) != len(branch_embeds):
            raise ValueError(
                f"`return_loss=True` pairs images and texts in order; got {len(branch_embeds)} images and "
                f"{len(text_embeds)} texts. Give one text per image, or nested captions (N, M, L)."
            )
        return multi_to_multi_loss(
            branch_embeds,
            text_embeds,
            self.logit_scale.exp(),
            objective=self.config.objective,
            logit_bias=self.logit_bias,
            matching=self.config.matching,
            branch_of_slot=branch_of_slot,
            caption_mask=caption_mask,
            caption_ids=caption_ids,
            duplicate_captions=self.config.duplicate_captions,
            diversity_weight=self.config.diversity_weight,
            diversity_threshold=self.config.diversity_threshold,
        )


class HolisticCLIPForImageClassification(HolisticCLIPPreTrainedModel):
    """The vision tower and one linear over its H branches, side by side, for supervised fine-tuning.

    It takes the vision tower of any `HolisticCLIPModel` checkpoint: `from_pretrained(checkpoint, num_labels=C)`.
    """

    base_model_prefix = "vision_model"  # loads from a vision tower too
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    auto_classes = ("AutoModelForImageClassification",)
    _keys_to_ignore_on_load_unexpected = [r"^text_model\.", r"^(text|visual)_projection\.", r"^logit_"]
    _input_embed_layer = "patch_embedding"

    def __init__(self, config: HolisticCLIPConfig) -> None:
        super().__init__(config)
        config.validate_perspectives()
        self.vision_model = HolisticCLIPVisionModel._from_config(config.vision_config)
        width = config.num_branches * self.vision_model.config.hidden_size
        self.classifier = nn.Linear(width, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor | None = None,
        labels: Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> ImageClassifierOutput:
        """Classify images: (N, 3, height, width) to `logits` (N, C).

        Args:
            pixel_values: (N, 3, height, width).
            labels: (N,) class indices, (N, C) for several labels, or (N,) numbers for regression
                (`config.problem_type`); with them, `loss` is returned.
            interpolate_pos_encoding: take images of another size than `config.vision_config.image_size`.
        """
        images = self.vision_model(pixel_values, interpolate_pos_encoding, return_dict=True, **kwargs)
        logits = self.classifier(images.branch_embeds.flatten(1))
        loss = None if labels is None else self.loss_function(labels, logits, self.config)
        return ImageClassifierOutput(
            loss=loss, logits=logits, hidden_states=images.hidden_states, attentions=images.attentions
        )


__all__ = [
    "HolisticCLIPForImageClassification",
    "HolisticCLIPModel",
    "HolisticCLIPOutput",
    "HolisticCLIPPatchOutput",
    "HolisticCLIPPreTrainedModel",
    "HolisticCLIPVisionModel",
    "HolisticCLIPVisionOutput",
]
