# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Text towers: of CLIP, MetaCLIP 2 and SigLIP, each with its family's rule of reading, and any other encoder.

A tower maps `input_ids` and `attention_mask` (T, L) to `pooler_output` (T, E), and says how it reads: `end_token`,
which every text must have, and `packs_texts`, if texts may share rows. Names of parameters are the family's.

Axes: T texts, L tokens, R shared rows, S tokens of a shared row, E tower width.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPTextModel, MetaClip2TextModel, PreTrainedConfig, PreTrainedModel, SiglipTextModel
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils.generic import can_return_tuple

from .backbone_holistic_clip import make_backbone
from .configuration_holistic_clip import LEGACY_END, HolisticCLIPConfig


class PackedTexts(NamedTuple):
    """T texts in R rows.

    Args:
        input_ids: (R, S); zeros behind the last text of a row.
        position_ids: (R, S), from zero in each text.
        visible: (R, S, S) bool, true where a token (second axis) may see another (third): its own text, up to itself.
        ends: (T, 2), row and place of the last token of each text.
    """

    input_ids: Tensor
    position_ids: Tensor
    visible: Tensor
    ends: Tensor


def pack_texts(input_ids: Tensor, lengths: Tensor, row_length: int) -> PackedTexts:
    """Put texts (T, L), of which the first `lengths` (T,) tokens count, into rows of at least `row_length` tokens.

    The longest first, each into the fullest row that has room for it: hardly more than 11/9 of the fewest rows
    (best-fit decreasing, https://doi.org/10.1137/0203025).
    """
    counts = lengths.tolist()
    row_length = max([row_length, *counts])
    rows, starts = _places(counts, row_length)
    device, num_rows = input_ids.device, max(rows) + 1
    text = torch.arange(len(counts), device=device).repeat_interleave(lengths)
    place = torch.arange(len(text), device=device) - (lengths.cumsum(0) - lengths)[text]
    row, start = (torch.tensor(numbers, device=device) for numbers in (rows, starts))
    where = row[text], start[text] + place
    packed, positions = (input_ids.new_zeros(num_rows, row_length) for _ in range(2))
    owner = input_ids.new_full(
        (num_rows, row_length), -1
    )  # tokens behind the last text see each other: no row is blind
    packed[where], positions[where], owner[where] = input_ids[text, place], place.to(input_ids), text.to(input_ids)
    is_causal = torch.ones(row_length, row_length, dtype=torch.bool, device=device).tril()
    visible = (owner[:, :, None] == owner[:, None]) & is_causal
    return PackedTexts(packed, positions, visible, torch.stack([row, start + lengths - 1], dim=1))


def _places(counts: list[int], row_length: int) -> tuple[list[int], list[int]]:
    """Return the row and first place of each text."""
    rows, starts = [0] * len(counts), [0] * len(counts)
    rows_with_room: list[list[int]] = [[] for _ in range(row_length + 1)]
    num_rows = 0
    for text in sorted(range(len(counts)), key=lambda text: -counts[text]):
        count = counts[text]
        room = next((room for room in range(count, row_length + 1) if rows_with_room[room]), None)
        if room is None:
            row, room, num_rows = num_rows, row_length, num_rows + 1
        else:
            row = rows_with_room[room].pop()
        rows_with_room[room - count].append(row)
        rows[text], starts[text] = row, row_length - room
    return rows, starts


ROW_LENGTH = 77  # of tokens that texts share: CLIP's longest text. In longer rows attention costs more


class _ReadAtTheEnd:
    """One source of truth for the end token, where a text is read.

    The constructors of CLIP and MetaCLIP 2 keep a copy of `config.eos_token_id`. Training aligns the configuration
    with the tokenizer, and what is saved is the configuration: a copy would make one vector of a text now and another
    after loading.
    """

    packs_texts = True
    config: Any

    @property
    def eos_token_id(self) -> int:
        """Id of the end token, or 2 for the highest id of a text, as transformers has it for CLIP's first
        configurations.
        """
        return self.config.eos_token_id

    @eos_token_id.setter
    def eos_token_id(self, value: int) -> None:
        """Copy that the constructor makes, which is dropped."""

    @property
    def end_token(self) -> int | None:
        """Id that every text must have, since it is read there."""
        return self.eos_token_id

    def lengths(self, input_ids: Tensor) -> Tensor:
        """Return the number of tokens of each text (T, L) up to its first end token: (T,)."""
        return (input_ids == self.eos_token_id).int().argmax(-1) + 1

    @classmethod
    def is_custom_code(cls) -> bool:
        return False  # or transformers would leave out attention and MLP, as in `HolisticCLIPPreTrainedModel`


class HolisticCLIPTextModel(_ReadAtTheEnd, CLIPTextModel):
    """CLIP's text tower."""

    @property
    def end_token(self) -> int | None:
        """Id that every text must have; `None` if the configuration means the highest id."""
        return None if self.eos_token_id == LEGACY_END else self.eos_token_id

    def lengths(self, input_ids: Tensor) -> Tensor:
        """Return the number of tokens of each text (T, L) up to where CLIP reads it: (T,)."""
        return input_ids.argmax(-1) + 1 if self.end_token is None else super().lengths(input_ids)


class HolisticMetaClip2TextModel(_ReadAtTheEnd, MetaClip2TextModel):
    """MetaCLIP 2's text tower, CLIP's but that an end token of 2 is an id like any other."""


class HolisticSiglipTextModel(SiglipTextModel):
    """SigLIP's text tower, which fills texts up itself.

    It was trained on texts of one length, sees their padding and reads the last of it, so that other padding, or a
    mask over it, gives another vector.
    """

    packs_texts = False
    end_token = None

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPooling:
        """Encode texts (T, L), whatever they are padded to.

        Args:
            input_ids: (T, L).
            attention_mask: (T, L), zero where a text is padded; left out, all tokens count.
            position_ids: not taken, since texts begin at the first position.

        Raises:
            ValueError: texts padded in front, `position_ids`, no texts.
        """
        if input_ids is None or position_ids is not None:
            raise ValueError(
                "`input_ids` is missing or `position_ids` given; expected `input_ids` alone, since SigLIP reads every "
                "text from the first position. Make them with the processor: `processor(text=...)`."
            )
        return super().forward(input_ids=self._filled(input_ids, attention_mask), **kwargs)

    def _filled(self, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        """Fill texts up to the length of all."""
        padding = self.config.pad_token_id
        if attention_mask is not None:
            require_padding_behind(attention_mask)
            input_ids = input_ids.masked_fill(attention_mask == 0, padding)
        room = self.config.max_position_embeddings - input_ids.shape[-1]
        return F.pad(input_ids, (0, room), value=padding)

    @classmethod
    def is_custom_code(cls) -> bool:
        return False


class HolisticBackboneTextModel(PreTrainedModel):
    """A text encoder of any family, with a rule of which state stands for the text.

    Args:
        config: Configuration of the encoder.
        pooling: `"mean"` over the tokens, `"cls"` the first, `"eos"` the first end token, `"last"` the last token.
    """

    config: PreTrainedConfig
    base_model_prefix = "text_model"
    packs_texts = False
    supports_gradient_checkpointing = True
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True

    def __init__(self, config: PreTrainedConfig, pooling: str) -> None:
        super().__init__(config)
        self.pooling = pooling
        self.backbone = make_backbone(config)
        self.post_init()

    def _init_weights(self, module: torch.nn.Module) -> None:
        """Leave it to the encoder, all of whose weights are its own."""

    @property
    def end_token(self) -> int | None:
        """Id that every text must have, since it is read there."""
        return self.config.eos_token_id if self.pooling == "eos" else None

    def get_input_embeddings(self) -> torch.nn.Module:
        return self.backbone.get_input_embeddings()

    def set_input_embeddings(self, value: torch.nn.Module) -> None:
        self.backbone.set_input_embeddings(value)

    @can_return_tuple
    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> BaseModelOutputWithPooling:
        """Encode texts (T, L).

        Args:
            input_ids: (T, L).
            attention_mask: (T, L), zero where a text is padded; left out, all tokens count.

        Raises:
            ValueError: texts padded in front.
        """
        given = {name: value for name, value in kwargs.items() if value is not None}
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        require_padding_behind(attention_mask)
        output = self.backbone(input_ids=input_ids, attention_mask=attention_mask, return_dict=True, **given)
        states = output.last_hidden_state
        return BaseModelOutputWithPooling(
            last_hidden_state=states,
            pooler_output=self._pooled(states, input_ids, attention_mask),
            hidden_states=output.hidden_states,
            attentions=output.attentions,
        )

    def _pooled(self, states: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        if self.pooling == "cls":
            return states[:, 0]
        if self.pooling == "mean":
            counts = attention_mask[..., None].to(states)
            return (states * counts).sum(dim=1) / counts.sum(dim=1).clamp(min=1)
        if self.pooling == "eos":
            at = (input_ids == self.config.eos_token_id).int().argmax(-1)
        else:
            at = attention_mask.sum(dim=-1) - 1
        return states[torch.arange(states.shape[0], device=states.device), at.to(states.device)]


PADDED_IN_FRONT = (
    "`attention_mask` is of texts that are padded in front; expected padding behind, since positions count from the "
    "first token. Set the tokenizer's `padding_side` to 'right', or take this package's processor."
)


def padded_in_front(attention_mask: Tensor) -> Tensor:
    """Tell whether any text of (..., L) has tokens, and none at its first place: a scalar of bool."""
    return (attention_mask[..., 0].logical_not() & attention_mask.any(dim=-1)).any()


def require_padding_behind(attention_mask: Tensor) -> None:
    """Raise `ValueError` for texts (T, L) padded in front; a graph that is compiled cannot look at values."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or attention_mask.numel() == 0:
        return
    if padded_in_front(attention_mask):
        raise ValueError(PADDED_IN_FRONT)


def make_text_tower(config: HolisticCLIPConfig) -> Any:
    """Return the text tower that the configuration of both towers describes, with fresh weights."""
    text: Any = config.text_config
    families = (HolisticCLIPTextModel, HolisticMetaClip2TextModel, HolisticSiglipTextModel)
    for family in families:
        if family.config_class is type(text):
            return family._from_config(text)
    return HolisticBackboneTextModel._from_config(text, pooling=config.text_pooling)


__all__ = [
    "HolisticBackboneTextModel",
    "HolisticCLIPTextModel",
    "HolisticMetaClip2TextModel",
    "HolisticSiglipTextModel",
    "PackedTexts",
    "pack_texts",
]
