# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Holistic CLIP: CLIP with a vision tower that answers with H branch vectors per image.

What is notable:
- It states only what differs from `transformers.CLIPModel`; names of parameters are CLIP's, and branch 0 *is* CLIP's
  class token or second MLP linear. A stock CLIP state dict loads by name; only `branch_*` weights are new.
- Class tokens do not see each other (a real mask), and `num_branches=1` is CLIP, exactly.
- Unless patches, hidden states or attentions are asked for, the last layer computes the class tokens alone.
- Nested captions share rows of tokens, so that little is padded; equal ones are encoded once, missing ones not at all.

Axes: N images, H branches, M caption slots, T texts, L tokens, P patches, S tokens of the vision tower (class tokens,
then patches), E tower width, D projection width.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling, ImageClassifierOutput
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs
from transformers.utils.generic import can_return_tuple

from .configuration_holistic_clip import HolisticCLIPConfig
from .fusion_holistic_clip import BranchFusion, BranchRouter
from .loss_holistic_clip import LOSS_PARTS, MultiToMultiLoss, multi_to_multi_loss
from .packing_holistic_clip import pack_texts
from .vision_holistic_clip import HolisticCLIPPreTrainedModel, HolisticCLIPVisionModel, HolisticCLIPVisionOutput

ROW_LENGTH = 77  # of tokens that texts share: CLIP's longest text. In longer rows attention costs more


@dataclass
class HolisticCLIPTextOutput(BaseModelOutputWithPooling):
    """What `get_text_features` returns beside the text tower's own.

    Args:
        pooler_output: (T, D), or (T, H * D) with `fusion="routed"`: its dot product with an image's `pooler_output`
            is the fused similarity.
        text_embeds: (T, D) of unit length, to hold against single branches.
    """

    text_embeds: Tensor | None = None


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
        image_embeds: (N, D), the fused vectors; (N, H * D) with `fusion="routed"`.
        branch_embeds: (N, H, D), unit length.
        text_embeds: (T, D), or (N, M, D) for nested captions, of unit length; (T, H * D) with `fusion="routed"`.
        routing: (N, M, H), with nested captions and `fusion="routed"`: how much each branch answers for each caption.
        logit_scale: scalar, the inverse temperature (exponentiated).
        logit_bias: scalar, added to the logits with `objective="sigmoid"`.
        loss_parts: `contrastive`, `fused` and `diversity`, with `return_loss=True`.
        text_model_output, vision_model_output: what the towers returned.
    """

    loss: Tensor | None = None
    logits_per_image: Tensor | None = None
    logits_per_text: Tensor | None = None
    image_embeds: Tensor | None = None
    branch_embeds: Tensor | None = None
    text_embeds: Tensor | None = None
    routing: Tensor | None = None
    logit_scale: Tensor | None = None
    logit_bias: Tensor | None = None
    loss_parts: dict[str, Tensor] | None = None
    text_model_output: BaseModelOutputWithPooling | None = None
    vision_model_output: HolisticCLIPVisionOutput | None = None

    def to_tuple(self) -> tuple[Any, ...]:
        return tuple(value.to_tuple() if isinstance(value, ModelOutput) else value for value in self.values())


class HolisticCLIPModel(HolisticCLIPPreTrainedModel):
    """Both towers and their common space: H vectors and one fused vector per image, one vector per text."""

    auto_classes = ("AutoModel", "AutoModelForZeroShotImageClassification")

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
        self.branch_fusion = BranchFusion(config)
        self.logit_scale = nn.Parameter(torch.tensor(config.logit_scale_init_value))
        self.logit_bias = None
        if config.objective == "sigmoid":
            self.logit_bias = nn.Parameter(torch.tensor(float(config.logit_bias_init_value)))
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, BranchRouter):
            init.zeros_(module.weight)
            init.zeros_(module.bias)
        if module is not self:
            return
        for projection in (self.text_projection, self.visual_projection):
            std = projection.in_features**-0.5 * self.config.initializer_factor
            init.normal_(projection.weight, std=std)
        init.constant_(self.logit_scale, self.config.logit_scale_init_value)
        if self.logit_bias is not None:
            init.constant_(self.logit_bias, self.config.logit_bias_init_value)

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
    ) -> HolisticCLIPTextOutput:
        """Encode texts: (T, L) to `text_embeds` (T, D) of unit length, and `pooler_output`, what fusion makes of them.

        Raises:
            ValueError: texts longer than the model has positions, or token ids that it does not know.
        """
        self._check_tokens(input_ids)
        outputs = self.text_model(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, return_dict=True, **kwargs
        )
        text_embeds = F.normalize(self.text_projection(outputs.pooler_output), dim=-1)
        outputs.pooler_output = self.branch_fusion.text_vectors(text_embeds)
        return HolisticCLIPTextOutput(**outputs, text_embeds=text_embeds)

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
        outputs.pooler_output = self.branch_fusion.image_vectors(outputs.branch_embeds)
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
        return HolisticCLIPPatchOutput(patch_embeds=self.branch_fusion.mean(embeds), branch_patch_embeds=embeds)

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

    def fused_similarity(self, branch_embeds: Tensor, text_embeds: Tensor) -> Tensor:
        """(N, H, D) and (T, D) to (N, T): cosine similarity over branches, fused as `config.fusion` says."""
        text_embeds = text_embeds.to(branch_embeds.device)  # a device map may have put the towers on two
        return self.branch_fusion.similarity(branch_embeds, text_embeds, self.logit_scale.exp())

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
            ValueError: captions padded in front, or without a token.
        """
        num_images, num_slots = input_ids.shape[:2]
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        has_tokens = attention_mask.any(dim=-1)
        if (attention_mask[..., 0].logical_not() & has_tokens).any():
            raise ValueError("Captions are padded in front. Set the tokenizer's `padding_side` to 'right'.")
        if caption_mask is None:
            caption_mask = has_tokens
        if (caption_mask.bool() & ~has_tokens).any():
            raise ValueError("A caption that is there has no tokens. Set its `caption_mask` to false.")
        present = caption_mask.flatten().nonzero().squeeze(1)
        if len(present) == 0:
            # The text tower is run all the same: with several ranks, all must take part in every step.
            unused = self.get_text_features(input_ids[:1, 0, :1]).text_embeds
            return (0.0 * unused).expand(num_images, num_slots, -1)
        places = torch.arange(len(present), device=present.device)
        inverse, first = places, places
        if caption_ids is not None:
            distinct, inverse = caption_ids.flatten()[present].unique(return_inverse=True)
            first = places.new_zeros(len(distinct)).scatter_reduce(0, inverse, places, "amin", include_self=False)
        embeds = self._encode_packed(input_ids.flatten(0, 1)[present[first]])[inverse]
        flat = embeds.new_zeros(num_images * num_slots, embeds.shape[-1]).index_copy(0, present, embeds)
        return flat.unflatten(0, (num_images, num_slots))

    def _encode_packed(self, input_ids: Tensor) -> Tensor:
        """(T, L) to (T, D) of unit length, in one call of the text tower, whatever the lengths are.

        CLIP's text tower is causal and reads the end token: what stands behind it changes nothing.
        """
        config = self.text_model.config
        # The first end token, as CLIP's text tower finds it; its old configurations say 2 and mean the highest id.
        lengths = (input_ids if config.eos_token_id == 2 else (input_ids == config.eos_token_id).int()).argmax(-1) + 1
        input_ids = input_ids[:, : int(lengths.max())]
        if config._attn_implementation not in ("sdpa", "eager"):  # the others take no such mask
            return self.get_text_features(input_ids).text_embeds
        self._check_tokens(input_ids)
        texts = pack_texts(input_ids, lengths, min(ROW_LENGTH, config.max_position_embeddings))
        dtype = self.text_model.dtype
        hidden = texts.visible.logical_not().to(dtype)[:, None] * torch.finfo(dtype).min
        states = self.text_model(
            input_ids=texts.input_ids, attention_mask=hidden, position_ids=texts.position_ids, return_dict=True
        ).last_hidden_state
        ends = texts.ends.to(states.device).unbind(dim=1)
        return F.normalize(self.text_projection(states[ends]), dim=-1).to(input_ids.device)

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
        images = texts = text_embeds = text_vectors = routing = logits = None
        if pixel_values is not None:
            images = self.get_image_features(pixel_values, interpolate_pos_encoding=interpolate_pos_encoding, **kwargs)
        if input_ids is not None and input_ids.ndim == 3:
            if caption_mask is None and attention_mask is not None:
                caption_mask = attention_mask.any(dim=-1)
            text_embeds = text_vectors = self.encode_captions(input_ids, attention_mask, caption_mask, caption_ids)
            routing = self.branch_fusion.routing(text_embeds)
        elif input_ids is not None:
            texts = self.get_text_features(input_ids, attention_mask, position_ids, **kwargs)
            text_embeds, text_vectors = texts.text_embeds, texts.pooler_output
            if images is not None:
                similarity = self.fused_similarity(images.branch_embeds, text_embeds)
                logits = self.logit_scale.exp().to(similarity.device) * similarity
                if self.logit_bias is not None:
                    logits = logits + self.logit_bias.to(logits.device)
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
            text_embeds=text_vectors,
            routing=routing,
            logit_scale=self.logit_scale.exp(),
            logit_bias=self.logit_bias,
            loss_parts=None if loss is None else {name: getattr(loss, name) for name in LOSS_PARTS},
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
        device = branch_embeds.device  # a device map may have put the towers on two
        return multi_to_multi_loss(
            branch_embeds,
            text_embeds.to(device),
            self.logit_scale.exp().to(device),
            logit_bias=None if self.logit_bias is None else self.logit_bias.to(device),
            branch_of_slot=branch_of_slot,
            caption_mask=None if caption_mask is None else caption_mask.to(device),
            caption_ids=None if caption_ids is None else caption_ids.to(device),
            routing=self.branch_fusion.routing(text_embeds.to(device)),
            **self.config.loss_options,
        )


class HolisticCLIPForImageClassification(HolisticCLIPPreTrainedModel):
    """The vision tower and one linear over its H branches, side by side, for supervised fine-tuning.

    It takes the vision tower of any `HolisticCLIPModel` checkpoint: `from_pretrained(checkpoint, num_labels=C)`.
    """

    base_model_prefix = "vision_model"  # loads from a vision tower too
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    auto_classes = ("AutoModelForImageClassification",)
    _keys_to_ignore_on_load_unexpected = [r"^text_model\.", r"^(text|visual)_projection\.", r"^(logit_|branch_fusion)"]
    _input_embed_layer = "patch_embedding"

    def __init__(self, config: HolisticCLIPConfig) -> None:
        super().__init__(config)
        config.validate_perspectives()
        self.vision_model = HolisticCLIPVisionModel._from_config(config.vision_config)
        width = config.num_branches * self.vision_model.config.hidden_size
        self.classifier = nn.Linear(width, config.num_labels)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self.classifier:
            init.normal_(module.weight, std=module.in_features**-0.5 * self.config.initializer_factor)

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
    "HolisticCLIPTextOutput",
    "HolisticCLIPVisionModel",
    "HolisticCLIPVisionOutput",
]
