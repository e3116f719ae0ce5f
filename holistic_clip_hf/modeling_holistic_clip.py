# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Holistic CLIP: CLIP with a vision tower that answers with H branch vectors per image.

What is notable:
- It states only what differs from `transformers.CLIPModel`. Names of parameters are CLIP's, and branch 0 *is* CLIP's
  class token or second MLP linear. A stock CLIP state dict loads by name, and only `branch_*` weights are new.
- Class tokens do not see each other (a real mask), and `num_branches=1` is CLIP, exactly.
- Unless patches, hidden states or attentions are asked for, the last layer computes the class tokens alone.
- Captions share rows of tokens, so that little is padded. They differ in length by a factor of ten, and a causal text
  tower lets each token see its own text alone. Equal captions are encoded once, missing ones not at all.
- Fusions `mean`, `weighted` and `routed` are linear in the branches: the score is one dot product, of a vector that
  the image has by itself and a vector that the text has by itself. `max` and `softmax` need all H similarities.

Axes: N images, H branches, M caption slots, T texts, L tokens, P patches, S tokens of the vision tower (class tokens,
then patches) or of a shared row, R shared rows, E tower width, D projection width.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling, ImageClassifierOutput
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs
from transformers.utils.generic import can_return_tuple

from .backbone_holistic_clip import make_vision_tower
from .configuration_holistic_clip import (
    HolisticCLIPConfig,
    HolisticSiglipConfig,
    end_token_id,
)
from .loss_holistic_clip import LOSS_PARTS, LossOptions, MultiToMultiLoss, branch_mean, multi_to_multi_loss, route
from .text_holistic_clip import (
    PADDED_IN_FRONT,
    ROW_LENGTH,
    HolisticCLIPTextModel,
    PackedTexts,
    make_text_tower,
    pack_texts,
    padded_in_front,
)
from .vision_holistic_clip import (
    HolisticCLIPPreTrainedModel,
    HolisticCLIPVisionModel,
    HolisticCLIPVisionOutput,
    asks_for_all,
    with_asked_for,
)


class BranchRouter(nn.Module):
    """Router that tells from a text how much each branch should answer: a softmax over H of a linear map of its
    vector.

    The vector is made of length sqrt(D), entries of about 1, which is what a linear layer learns from at the learning
    rate of the others.

    Averaging unlike perspectives hurts, since all branches but the right one answer with noise. The router is trained
    with the towers where `config.fused_weight` is above zero, or fitted once they are trained
    (`evaluation.fusion_fitting`); before that, all branches count alike.
    """

    def __init__(self, width: int, num_branches: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(num_branches, width))
        self.bias = nn.Parameter(torch.zeros(num_branches))

    def forward(self, text_embeds: Tensor) -> Tensor:
        """Map (..., D) to (..., H), of sum one."""
        return F.linear(text_embeds * text_embeds.shape[-1] ** 0.5, self.weight, self.bias).softmax(dim=-1)


class BranchFusion(nn.Module):
    """The fusion that `config.fusion` names."""

    def __init__(self, config: HolisticCLIPConfig) -> None:
        super().__init__()
        self.config = config
        self.router = None
        if self.is_routed:
            self.router = BranchRouter(config.projection_dim, config.num_branches)

    @property
    def is_routed(self) -> bool:
        return self.config.fusion == "routed"

    @property
    def is_linear(self) -> bool:
        """Tell whether the score is a dot product of `image_vectors` and `text_vectors`."""
        return self.config.fusion in ("centroid", "mean", "weighted", "routed")

    def mean(self, branch_embeds: Tensor) -> Tensor:
        """Average (N, H, ...) over branches to (N, ...), weighted if the configuration has weights.

        Raises:
            ValueError: a fusion or weights that contradict each other, set since the model was made.
        """
        self.config.validate_fusion()
        return branch_mean(branch_embeds, self.config.branch_weights)

    def image_vectors(self, branch_embeds: Tensor) -> Tensor:
        """Map (N, H, D) to (N, D), or to (N, H * D) if texts are routed.

        Its dot product with a text's vector is the fused similarity. That of `centroid` is of unit length, the others
        are shorter. `max` and `softmax` have no vector of their own and take the mean here.
        """
        return branch_embeds.flatten(1) if self.is_routed else self.single_vectors(branch_embeds)

    def single_vectors(self, branch_embeds: Tensor) -> Tensor:
        """Map (N, H, D) to (N, D): the mean over branches, of unit length if the fusion is `centroid`."""
        mean = self.mean(branch_embeds)
        return F.normalize(mean, dim=-1) if self.config.fusion == "centroid" else mean

    def text_vectors(self, text_embeds: Tensor) -> Tensor:
        """Map (T, D) of unit length to the same, or to (T, H * D): the text once for each branch, by its share."""
        routing = self.routing(text_embeds)
        return text_embeds if routing is None else route(text_embeds, routing)

    def routing(self, text_embeds: Tensor) -> Tensor | None:
        """Map (..., D) of unit length to (..., H), how much each branch answers; `None` if texts are not routed."""
        if not self.is_routed:
            return None
        if self.router is None:
            raise ValueError(
                "`fusion` was set to 'routed' on a model that has no router. Load the checkpoint with "
                "`from_pretrained(..., fusion='routed')`, then fit it (`holistic_clip_hf.evaluation.fusion_fitting`)."
            )
        return self.router(text_embeds)

    def similarity(self, branch_embeds: Tensor, text_embeds: Tensor, logit_scale: Tensor) -> Tensor:
        """Fuse the cosine similarities of (N, H, D) and (T, D) over branches: (N, T)."""
        if self.is_linear:
            return self.image_vectors(branch_embeds) @ self.text_vectors(text_embeds).T
        self.config.validate_fusion()  # it may have been set since the model was made
        similarity = torch.einsum("nhd,td->nht", branch_embeds, text_embeds)
        if self.config.fusion == "max":
            return similarity.amax(dim=1)
        scale = logit_scale.to(similarity) if self.config.fusion_scale is None else self.config.fusion_scale
        return ((scale * similarity).softmax(dim=1) * similarity).sum(dim=1)


@dataclass
class HolisticCLIPTextOutput(BaseModelOutputWithPooling):
    """Output of `get_text_features` beside the text tower's own.

    Args:
        pooler_output: (T, D), or (T, H * D) with `fusion="routed"`: its dot product with an image's `pooler_output`
            is the fused similarity.
        text_embeds: (T, D) of unit length, to hold against single branches.
    """

    text_embeds: Tensor | None = None


@dataclass
class HolisticCLIPPatchOutput(ModelOutput):
    """Output of `get_patch_features`, all of unit length but the mean over branches.

    Args:
        patch_embeds: (N, P, D), row by row from the top left; fused over branches if those have patches of their own.
        branch_patch_embeds: (N, H, P, D) if every branch has patches of its own, with `branch_type="mlp"` or
            `branched_head_mlp`; else `None`.
    """

    patch_embeds: Tensor | None = None
    branch_patch_embeds: Tensor | None = None


@dataclass
class HolisticCLIPOutput(ModelOutput):
    """Output of `HolisticCLIPModel`; fields of a modality that was not given are `None`.

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
        text_model_output, vision_model_output: Outputs of the towers.
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


class _Texts(NamedTuple):
    """Texts of a forward pass: unit vectors, what images are scored with, and what nested captions bring along."""

    embeds: Any = None  # (T, D) or (N, M, D)
    vectors: Tensor | None = None  # the same, or (T, H * D) if texts are routed
    routing: Tensor | None = None  # (N, M, H)
    caption_mask: Tensor | None = None  # (N, M)
    tower: HolisticCLIPTextOutput | None = None


class HolisticCLIPModel(HolisticCLIPPreTrainedModel):
    """Both towers and their common space: H vectors and one fused vector per image, one vector per text."""

    auto_classes = ("AutoModel", "AutoModelForZeroShotImageClassification")
    _may_be_new = (*HolisticCLIPPreTrainedModel._may_be_new, r"^logit_bias$")

    def __init__(self, config: HolisticCLIPConfig) -> None:
        super().__init__(config)
        if config.architectures in (["HolisticCLIPVisionModel"], ["HolisticBackboneVisionModel"]):
            raise ValueError(
                f"This is a checkpoint of a vision tower alone. Load it with `{config.architectures[0]}`, or under a "
                f"classifier with `HolisticCLIPForImageClassification`."
            )
        config.require_valid()  # fields may have been set since it was made
        self.text_model = make_text_tower(config)
        self.vision_model = make_vision_tower(config.vision_config)
        self.visual_projection, self.text_projection = (
            nn.Linear(width, config.projection_dim, bias=False) if is_projected else nn.Identity()
            for width, is_projected in (
                (self.vision_model.config.hidden_size, config.visual_projection),
                (config.text_width, config.text_projection),
            )
        )
        self.branch_fusion = BranchFusion(config)
        self.logit_scale = nn.Parameter(torch.tensor(float(config.logit_scale_init_value)))
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
            if isinstance(projection, nn.Identity):
                continue
            std = projection.in_features**-0.5 * self.config.initializer_factor
            init.normal_(projection.weight, std=std)
        init.constant_(self.logit_scale, self.config.logit_scale_init_value)
        if self.logit_bias is not None:
            init.constant_(self.logit_bias, self.config.logit_bias_init_value)

    def get_input_embeddings(self) -> nn.Embedding:
        return self.text_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.text_model.set_input_embeddings(value)

    def resize_token_embeddings(self, new_num_tokens: int | None = None, *args: Any, **kwargs: Any) -> nn.Embedding:
        """Resize as inherited; an old configuration, which reads texts at their highest id, is told the end token's,
        since added tokens have higher ones.
        """
        text = self.text_model.config
        if new_num_tokens is not None and isinstance(self.text_model, HolisticCLIPTextModel):
            text.eos_token_id = end_token_id(text.eos_token_id, text.vocab_size)
        return super().resize_token_embeddings(new_num_tokens, *args, **kwargs)

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
            ValueError: texts longer than the model has positions, without the end token or padded in front, or token
                ids that it does not know.
        """
        self._check_tokens(input_ids, attention_mask)
        kwargs = with_asked_for(kwargs, self.config, self.text_model.config)
        outputs = self.text_model(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, return_dict=True, **kwargs
        )
        text_embeds = F.normalize(self.text_projection(outputs.pooler_output), dim=-1)
        outputs.pooler_output = self.branch_fusion.text_vectors(text_embeds)
        return HolisticCLIPTextOutput(**outputs, text_embeds=text_embeds)

    @can_return_tuple
    def get_image_features(
        self,
        pixel_values: Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        output_patches: bool = False,
        pixel_attention_mask: Tensor | None = None,
        spatial_shapes: Tensor | None = None,
        tower_states: Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> HolisticCLIPVisionOutput:
        """Encode images: (N, 3, height, width) to `pooler_output` (N, D) fused and `branch_embeds` (N, H, D).

        `last_hidden_state` holds patches too with `output_patches`. With `branch_type="probe"` it may be given back as
        `tower_states` (N, S, E), in place of `pixel_values`: the head then reads what the tower once said. SigLIP 2's
        NaFlex variant takes patches with `pixel_attention_mask` and `spatial_shapes`; see
        `HolisticBackboneVisionModel`.

        Raises:
            ValueError: patches for another tower, or what the tower refuses.
        """
        kwargs = with_asked_for(kwargs, self.config, self.vision_model.config)
        kwargs.update(self._of_patches(pixel_attention_mask, spatial_shapes))
        outputs = self.vision_model(
            pixel_values=pixel_values,
            interpolate_pos_encoding=interpolate_pos_encoding,
            output_patches=output_patches or asks_for_all(kwargs),
            tower_states=tower_states,
            return_dict=True,
            **kwargs,
        )
        if not output_patches and self.vision_model.head is None:
            # What is returned must not depend on what else is asked for.
            outputs.last_hidden_state = outputs.last_hidden_state[..., : self.vision_model.num_class_tokens, :]
        outputs.branch_embeds = F.normalize(self.visual_projection(outputs.branch_embeds), dim=-1)
        outputs.pooler_output = self.branch_fusion.image_vectors(outputs.branch_embeds)
        return outputs

    def _of_patches(self, mask: Tensor | None, shapes: Tensor | None) -> Any:
        """Return what patches bring along, as keywords of a tower that takes them."""
        given = {"pixel_attention_mask": mask, "spatial_shapes": shapes}
        given = {name: value for name, value in given.items() if value is not None}
        if given and not self.vision_model.config.takes_patches:
            raise ValueError(
                f"{' and '.join(f'`{name}`' for name in given)} came with the images, and the vision tower takes "
                f"images of one size; expected `pixel_values` alone. Make them with this checkpoint's own processor."
            )
        return given

    @can_return_tuple
    def get_patch_features(
        self, pixel_values: Tensor, interpolate_pos_encoding: bool = False, **kwargs: Unpack[TransformersKwargs]
    ) -> HolisticCLIPPatchOutput:
        """Encode images patch by patch, in the space of texts: (N, 3, height, width) to (N, P, D).

        As CLIP's class token, patches pass the last norm and the projection. With `branch_type="probe"` they pass the
        head too, each as if a probe saw it alone. No loss ever trained them to: their agreement with texts is a
        by-product.
        """
        tower = self.vision_model
        states = tower(pixel_values, interpolate_pos_encoding, return_dict=True, **kwargs).last_hidden_state
        patches = tower.patch_states(states)
        if tower.head is not None:
            patches = tower.head.patch_states(patches)
        embeds = F.normalize(self.visual_projection(patches), dim=-1)
        if embeds.ndim == 3:
            return HolisticCLIPPatchOutput(patch_embeds=embeds)
        return HolisticCLIPPatchOutput(patch_embeds=self.branch_fusion.mean(embeds), branch_patch_embeds=embeds)

    def _check_tokens(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> None:
        longest = getattr(self.text_model.config, "max_position_embeddings", None)
        known = self.get_input_embeddings().num_embeddings
        if longest is not None and input_ids.shape[-1] > longest:
            raise ValueError(
                f"Texts of {input_ids.shape[-1]} tokens for a model of {longest} positions. Truncate them with the "
                f"processor, whose `tokenizer.model_max_length` is to be {longest}, or stretch the positions with "
                f"`holistic_clip_hf.initialization.stretch_text_positions`."
            )
        # On a GPU an unknown id would end the process. A compiled graph cannot look at values.
        if torch.compiler.is_compiling() or torch.jit.is_tracing() or input_ids.numel() == 0:
            return
        end = self.text_model.end_token
        has_end = (input_ids == (-1 if end is None else end)).any(dim=-1).all().to(input_ids)
        is_padded_in_front = has_end.new_zeros(())
        if attention_mask is not None and attention_mask.shape == input_ids.shape:
            is_padded_in_front = padded_in_front(attention_mask).to(has_end)
        found = torch.stack([*input_ids.aminmax(), has_end, is_padded_in_front]).tolist()  # at once: each waits for it
        lowest, highest, has_end, is_padded_in_front = found
        if is_padded_in_front:
            raise ValueError(PADDED_IN_FRONT)
        if lowest < 0 or highest >= known:
            raise ValueError(
                f"Token ids from {lowest} to {highest} for a vocabulary of {known}. Use this checkpoint's own "
                f"processor, or `resize_token_embeddings` after adding tokens."
            )
        if end is not None and not has_end:
            raise ValueError(
                f"`input_ids` has texts without the end token {end}, at which they are read; expected it in each. Use "
                f"this checkpoint's own processor, or set `text_config.eos_token_id` to the tokenizer's."
            )

    def fused_similarity(self, branch_embeds: Tensor, text_embeds: Tensor) -> Tensor:
        """Fuse the cosine similarities of (N, H, D) and (T, D) as `config.fusion` says: (N, T)."""
        text_embeds = text_embeds.to(branch_embeds.device)  # a device map may have put the towers on two
        return self.branch_fusion.similarity(branch_embeds, text_embeds, self.logit_scale.exp())

    def encode_captions(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        caption_mask: Tensor | None = None,
        caption_ids: Tensor | None = None,
    ) -> Tensor:
        """Encode (N, M, L) to (N, M, D) of unit length, zeros where `caption_mask` (N, M) says that a caption is
        missing.

        Missing captions never enter the text tower, and captions with the same id (N, M) enter it once.

        Raises:
            ValueError: captions padded in front, or without a token.
        """
        num_images, num_slots = input_ids.shape[:2]
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        has_tokens = attention_mask.any(dim=-1)
        if padded_in_front(attention_mask):
            raise ValueError(PADDED_IN_FRONT)
        if caption_mask is None:
            caption_mask = has_tokens
        if (caption_mask.bool() & ~has_tokens).any():
            raise ValueError("A caption marked as present has no tokens. Set its `caption_mask` to false.")
        present = caption_mask.flatten().nonzero().squeeze(1)
        if len(present) == 0:
            # The text tower is run all the same: with several ranks, all must take part in every step.
            unused = self.text_projection(self.text_model(input_ids[:1, 0, :1], return_dict=True).pooler_output)
            return (0.0 * unused).expand(num_images, num_slots, -1)
        places = torch.arange(len(present), device=present.device)
        inverse, first = places, places
        if caption_ids is not None:
            distinct, inverse = caption_ids.flatten()[present].unique(return_inverse=True)
            first = places.new_zeros(len(distinct)).scatter_reduce(0, inverse, places, "amin", include_self=False)
        distinct_ids, mask = (given.flatten(0, 1)[present[first]] for given in (input_ids, attention_mask))
        if self.text_model.packs_texts:
            embeds = self._encode_packed(distinct_ids)[inverse]
        else:
            longest = int(mask.sum(dim=-1).max())
            embeds = self.get_text_features(distinct_ids[:, :longest], mask[:, :longest]).text_embeds[inverse]
        flat = embeds.new_zeros(num_images * num_slots, embeds.shape[-1]).index_copy(0, present, embeds)
        return flat.unflatten(0, (num_images, num_slots))

    def _encode_packed(self, input_ids: Tensor) -> Tensor:
        """Encode (T, L) to (T, D) of unit length, in one call of the text tower, whatever the lengths are.

        Such a text tower is causal and reads the end token: what stands behind it changes nothing.
        """
        config, lengths = self.text_model.config, self.text_model.lengths(input_ids)
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
        pixel_attention_mask: Tensor | None = None,
        spatial_shapes: Tensor | None = None,
        tower_states: Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> HolisticCLIPOutput:
        """Score images against texts, or embed what is given.

        Args:
            input_ids: (T, L) texts to score, or (N, M, L) nested captions to train on.
            pixel_values: (N, 3, height, width).
            attention_mask: Mask in the shape of `input_ids`.
            position_ids: (T, L), for scoring only.
            caption_mask: (N, M), false where a caption is missing.
            caption_ids: (N, M), equal where two captions are the same text.
            branch_of_slot: M branch indices, -1 for free (`config.branch_of_slot(names)` makes them).
            return_loss: compute the loss of these images alone (`HolisticCLIPTrainer` gathers over ranks). Flat texts
                (T = N) are one slot, in the order of the images.
            interpolate_pos_encoding: take images of another size than the tower's.
            pixel_attention_mask, spatial_shapes: Tensors that come with patches; see `get_image_features`.
            tower_states: (N, S, E) in place of `pixel_values`, as `get_image_features` takes them.

        Raises:
            ValueError: nothing given; a loss without both modalities or with T different from N.
        """
        has_images = pixel_values is not None or tower_states is not None
        if input_ids is None and not has_images:
            raise ValueError("Give `pixel_values`, `input_ids`, or both.")
        images = logits = loss = None
        texts = _Texts()
        if has_images:
            images = self.get_image_features(
                pixel_values,
                interpolate_pos_encoding=interpolate_pos_encoding,
                tower_states=tower_states,
                **self._of_patches(pixel_attention_mask, spatial_shapes),
                **kwargs,
            )
        if input_ids is not None and input_ids.ndim == 3:
            texts = self._nested(input_ids, attention_mask, caption_mask, caption_ids)
        elif input_ids is not None:
            texts = self._flat(input_ids, attention_mask, position_ids, **kwargs)
            if images is not None:
                logits = self.fused_logits(images.branch_embeds, texts.embeds)
        if return_loss:
            branch_embeds = None if images is None else images.branch_embeds
            mask = caption_mask if texts.caption_mask is None else texts.caption_mask
            loss = self._loss(branch_embeds, texts.embeds, mask, caption_ids, branch_of_slot)
        # Made at once: pipelines read an output in the order in which its fields were set.
        return HolisticCLIPOutput(
            loss=None if loss is None else loss.total,
            logits_per_image=logits,
            logits_per_text=None if logits is None else logits.T,
            image_embeds=None if images is None else images.pooler_output,
            branch_embeds=None if images is None else images.branch_embeds,
            text_embeds=texts.vectors,
            routing=texts.routing,
            logit_scale=self.logit_scale.exp(),
            # DistributedDataParallel takes a parameter in an output for one that it has seen already.
            logit_bias=None if self.logit_bias is None else self.logit_bias.clone(),
            loss_parts=None if loss is None else {name: getattr(loss, name) for name in LOSS_PARTS},
            text_model_output=texts.tower,
            vision_model_output=images,
        )

    def _nested(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        caption_mask: Tensor | None,
        caption_ids: Tensor | None,
    ) -> "_Texts":
        """Encode nested captions (N, M, L), of which those without tokens are missing unless said otherwise."""
        if caption_mask is None and attention_mask is not None:
            caption_mask = attention_mask.any(dim=-1)
        embeds = self.encode_captions(input_ids, attention_mask, caption_mask, caption_ids)
        return _Texts(embeds, embeds, self.branch_fusion.routing(embeds), caption_mask)

    def _flat(
        self, input_ids: Tensor, attention_mask: Tensor | None, position_ids: Tensor | None, **kwargs: Any
    ) -> "_Texts":
        """Encode texts to score (T, L)."""
        output = self.get_text_features(input_ids, attention_mask, position_ids, **kwargs)
        return _Texts(output.text_embeds, output.pooler_output, tower=output)

    def fused_logits(self, branch_embeds: Tensor, text_embeds: Tensor) -> Tensor:
        """Scale the fused similarities to logits (N, T)."""
        similarity = self.fused_similarity(branch_embeds, text_embeds)
        logits = self.logit_scale.exp().to(similarity.device) * similarity
        return logits if self.logit_bias is None else logits + self.logit_bias.to(logits.device)

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
            LossOptions(**self.config.loss_options),
            logit_bias=None if self.logit_bias is None else self.logit_bias.to(device),
            branch_of_slot=branch_of_slot,
            caption_mask=None if caption_mask is None else caption_mask.to(device),
            caption_ids=None if caption_ids is None else caption_ids.to(device),
            routing=self.branch_fusion.routing(text_embeds.to(device)),
        )


class HolisticSiglipModel(HolisticCLIPModel):
    """`HolisticCLIPModel` under SigLIP's name, by which pipelines answer with sigmoids."""

    config: HolisticSiglipConfig


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
    _may_be_new = (*HolisticCLIPPreTrainedModel._may_be_new, r"^classifier\.")

    def __init__(self, config: HolisticCLIPConfig) -> None:
        super().__init__(config)
        config.require_valid()
        self.vision_model = make_vision_tower(config.vision_config)
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
        kwargs = with_asked_for(kwargs, self.config, self.vision_model.config)
        images = self.vision_model(
            pixel_values,
            interpolate_pos_encoding,
            output_patches=asks_for_all(kwargs),
            return_dict=True,
            **kwargs,
        )
        logits = self.classifier(images.branch_embeds.flatten(1))
        loss = None if labels is None else self.loss_function(labels, logits, self.config)
        return ImageClassifierOutput(
            loss=loss, logits=logits, hidden_states=images.hidden_states, attentions=images.attentions
        )


__all__ = [
    "BranchFusion",
    "BranchRouter",
    "HolisticCLIPForImageClassification",
    "HolisticCLIPModel",
    "HolisticCLIPOutput",
    "HolisticCLIPPatchOutput",
    "HolisticCLIPPreTrainedModel",
    "HolisticCLIPTextModel",
    "HolisticCLIPTextOutput",
    "HolisticCLIPVisionModel",
    "HolisticCLIPVisionOutput",
    "HolisticSiglipModel",
    "PackedTexts",
    "pack_texts",
]
