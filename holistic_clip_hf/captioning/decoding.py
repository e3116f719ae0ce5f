# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Answers to different prompts about different images that one model decodes together, each for as long as it needs.

- Rows of tokens go on in pieces, each a call of transformers' `generate`. A piece ends as soon as a row has ended, so
  that no row is decoded beyond its end. Rows that have ended leave the key-value cache, and others may join it.
- All padding is on the left of a row, none between its prompt and its answer. Tokens keep their distances, so layers
  that see a window of tokens see the same window as without padding.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import (
    Cache,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer
from transformers.generation import GenerateDecoderOnlyOutput

from .perspectives import Perspective

# Layers of a cache that hold keys and values by token, and nothing else that a row would have to take along.
_JOINED = (DynamicLayer, DynamicSlidingWindowLayer)


class CannotJoinError(Exception):
    """Reason why a model has to decode the answers to each prompt apart."""


@dataclass(eq=False)
class Row:
    """One answer on its way.

    Args:
        place: Index among the answers of the batch.
        perspective: Perspective that is asked, with its budget of tokens and how they are drawn.
        numbers: Source of its random numbers, which no other row draws from.
        opening: Text by which the prompt begins the answer.
        tokens: Answer so far.
    """

    place: int
    perspective: Perspective
    numbers: random.Random
    opening: str = ""
    tokens: list[int] = field(default_factory=list)

    @property
    def left(self) -> int:
        """Number of tokens that may still come."""
        return self.perspective.max_new_tokens - len(self.tokens)


@dataclass
class Rows:
    """Rows that go on together.

    Args:
        each: Rows in the order of the tensors.
        ids: Prompts and answers so far (R, L), behind padding.
        mask: 1 for each token, and 0 for padding (R, L).
        positions: Position of each newest token, (R, 1) or with dimensions of the model's own before.
        cache: Keys and values of all tokens but the newest.
    """

    each: list[Row]
    ids: Tensor
    mask: Tensor
    positions: Tensor
    cache: Cache

    @property
    def bytes_per_row(self) -> int:
        """Size of the keys and values of one row."""
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in self.cache.layers) // len(self.each)

    def add(self, tokens: Tensor) -> None:
        """Add new tokens (R, L) to the answers."""
        self.ids = torch.cat([self.ids, tokens], dim=1)
        self.mask = torch.cat([self.mask, self.mask.new_ones(tokens.shape)], dim=1)
        for row, answer in zip(self.each, tokens.tolist(), strict=True):
            row.tokens += answer

    def keep(self, places: Sequence[int]) -> None:
        """Keep the rows at these indices. All others leave, and with them the padding that only they asked for."""
        index = torch.tensor(places, device=self.ids.device)
        self.each = [self.each[place] for place in places]
        self.ids, self.mask = self.ids[index], self.mask[index]
        self.positions = self.positions.index_select(-2, index)
        self.cache.batch_select_indices(index)
        self.set_length(self.mask.shape[1] - int(self.mask.any(dim=0).int().argmax()))

    def set_length(self, length: int, padding: int = 0) -> None:
        """Add padding on the left up to a length, or cut padding away."""
        more = length - self.ids.shape[1]
        if more:
            self.ids = functional.pad(self.ids, (more, 0), value=padding)
            self.mask = functional.pad(self.mask, (more, 0))
            for layer in self.cache.layers:
                _set_length(layer, length - 1)


def _set_length(layer: DynamicLayer, length: int) -> None:
    """Cut keys and values (R, heads, L, width) or add zeros on the left, as if the layer had seen `length` tokens."""
    held = length
    if isinstance(layer, DynamicSlidingWindowLayer):
        held, layer.cumulative_length = min(length, layer.sliding_window - 1), length
    more = held - layer.keys.shape[-2]
    layer.keys, layer.values = (functional.pad(each, (0, 0, more, 0)) for each in (layer.keys, layer.values))


class Decoder:
    """Model that goes on with rows together.

    Args:
        model: Decoder, as `AutoModelForImageTextToText` loads it.
        padding: Token that stands before shorter rows.
    """

    def __init__(self, model: PreTrainedModel, padding: int) -> None:
        self.model = model
        self.padding = padding
        ends = model.generation_config.eos_token_id
        self.ends: list[int] = ends if isinstance(ends, list) else [] if ends is None else [ends]
        self._weight = sum(each.nbytes for each in model.parameters())

    def has_room(self, parts: Sequence[Rows], count: int) -> bool:
        """Tell whether `count` rows may join: the first always, others until their caches weigh what the model does.

        A step reads all weights and all caches once. If both weigh the same, more rows save less than they hold.
        """
        held = sum(len(part.each) for part in parts)
        return not held or (held + count) * parts[0].bytes_per_row <= self._weight

    def begin(self, inputs: Mapping[str, Any], each: list[Row], **settings: Any) -> Rows:
        """Read prompts (R, L), or the rest of those that begin in a cache, up to the first token of each answer.

        Args:
            inputs: Inputs of the model, with a cache if prompts begin in one.
            each: Rows of the prompts.
            settings: Other fields of `GenerationConfig`, such as more tokens.

        Raises:
            CannotJoinError: the model does not tell what it would go on from.
        """
        passed: dict[str, Any] = {}

        def note(_: Any, __: Any, options: dict[str, Any]) -> None:
            passed["positions"] = options.get("position_ids")

        # Positions are the model's own business, and may have more than one dimension. So they are taken from it.
        watching = self.model.register_forward_pre_hook(note, with_kwargs=True)
        try:
            output = generate(self.model, inputs, each, **{"max_new_tokens": 1, **settings})
        finally:
            watching.remove()
        cache, positions = output.past_key_values, passed["positions"]
        if positions is None:
            raise CannotJoinError("it keeps positions to itself")
        if kinds := {type(layer).__name__ for layer in cache.layers if type(layer) not in _JOINED}:
            raise CannotJoinError(f"its cache has layers of the kind {', '.join(sorted(kinds))}")
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        rows = Rows(each, ids, mask, positions[..., -1:] + 1, cache)
        rows.add(output.sequences[:, ids.shape[1] :])
        return rows

    def join(self, parts: Sequence[Rows]) -> Rows:
        """Return all rows of these parts, which are used up."""
        length = max(part.ids.shape[1] for part in parts)
        for part in parts:
            part.set_length(length, self.padding)
        for layer, *others in zip(*(part.cache.layers for part in parts), strict=True):
            layer.keys = torch.cat([layer.keys, *(each.keys for each in others)])
            layer.values = torch.cat([layer.values, *(each.values for each in others)])
            for each in others:  # at once, so that no more than a layer is held twice
                each.keys = each.values = None
        return Rows(
            [row for part in parts for row in part.each],
            torch.cat([part.ids for part in parts]),
            torch.cat([part.mask for part in parts]),
            torch.cat([part.positions for part in parts], dim=-2),
            parts[0].cache,
        )

    def go_on(self, rows: Rows, **settings: Any) -> GenerateDecoderOnlyOutput:
        """Add tokens until a row has ended, or by other settings, and return what `generate` does."""
        options = {"max_new_tokens": min(row.left for row in rows.each), **settings}
        inputs = {"input_ids": rows.ids, "attention_mask": rows.mask, "position_ids": rows.positions}
        output = generate(
            self.model,
            {**inputs, "past_key_values": rows.cache},
            rows.each,
            [_AnyEnds(torch.tensor(self.ends, device=rows.ids.device))],
            begin_suppress_tokens=[],  # this is not the beginning
            **options,
        )
        new = output.sequences[:, rows.ids.shape[1] :]
        rows.positions = rows.positions + new.shape[1]
        rows.add(new)
        return output

    def has_ended(self, row: Row) -> bool:
        """Tell whether a row has its last token."""
        return row.tokens[-1] in self.ends or not row.left


def generate(
    model: PreTrainedModel,
    inputs: Mapping[str, Any],
    each: Sequence[Row] = (),
    criteria: Sequence[StoppingCriteria] = (),
    **settings: Any,
) -> GenerateDecoderOnlyOutput:
    """Run transformers' `generate` for the most likely tokens, or those that are drawn for rows with a temperature.

    Args:
        model: Model that answers.
        inputs: Inputs of the model.
        each: Rows of the inputs, if any of them is drawn.
        criteria: Reasons to stop beside those of the settings.
        settings: Fields of `GenerationConfig`.
    """
    return model.generate(
        **inputs,
        generation_config=GenerationConfig(do_sample=False, return_dict_in_generate=True, **settings),
        logits_processor=LogitsProcessorList([RowSampler(each)]),
        stopping_criteria=StoppingCriteriaList(criteria),
    )


class _AnyEnds(StoppingCriteria):
    """End of a piece: the end of any row."""

    def __init__(self, ends: Tensor) -> None:
        self._ends = ends

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        """Return for each row (R,) that it is over, if any is."""
        return torch.isin(input_ids[:, -1], self._ends).any().expand(len(input_ids))


class RowSampler(LogitsProcessor):
    """Sampler that draws the next token of each row by random numbers of its own, and leaves no other.

    `generate` has one source of random numbers for a batch, so that a caption would depend on its neighbours: after a
    kill they are others.

    Args:
        each: Rows; those of perspectives with the temperature 0 are left alone.
    """

    def __init__(self, each: Sequence[Row]) -> None:
        self._numbers = [row.numbers for row in each]
        self._alike: dict[tuple[float, float], list[int]] = {}
        for place, row in enumerate(each):
            if row.perspective.temperature:
                asked = (float(row.perspective.temperature), row.perspective.top_p)
                self._alike.setdefault(asked, []).append(place)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return scores (N, V) that are 0 for a drawn token and minus infinity for all others of its row."""
        for (temperature, top_p), places in self._alike.items():
            warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
            if top_p < 1:
                warpers.append(TopPLogitsWarper(top_p))
            probabilities = warpers(input_ids[places], scores[places].float()).softmax(dim=-1)
            cumulative = probabilities.double().cumsum(dim=-1)
            drawn = torch.tensor([[self._numbers[place].random()] for place in places], dtype=torch.double)
            tokens = torch.searchsorted(cumulative, drawn.to(scores.device) * cumulative[:, -1:], right=True)
            tokens = tokens.clamp(max=scores.shape[-1] - 1)
            scores = scores.index_copy(
                0,
                torch.tensor(places, device=scores.device),
                torch.full_like(scores[places], float("-inf")).scatter(1, tokens, 0.0),
            )
        return scores
