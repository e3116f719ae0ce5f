"""Rows that join and leave a batch at any time say what each says alone."""

import random

import pytest
import torch
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    GenerationConfig,
    Lfm2Config,
    Lfm2ForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
)

from conftest import randomise
from holistic_clip_hf.captioning.decoding import CannotJoinError, Decoder, Row, Rows
from holistic_clip_hf.captioning.perspectives import Perspective

WIDTHS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 50}
LLAMA = {**WIDTHS, "intermediate_size": 48, "num_key_value_heads": 1}
PADDING, BUDGET = 49, 12


def decoder(model: PreTrainedModel) -> Decoder:
    randomise(model)
    model.eval().generation_config = GenerationConfig(eos_token_id=None, pad_token_id=0)
    return Decoder(model, PADDING)


def begin(using: Decoder, length: int, place: int = 0) -> Rows:
    """A prompt of random tokens."""
    ids = torch.randint(0, PADDING, (1, length), generator=torch.Generator().manual_seed(place))
    row = Row(place, Perspective("any", "?", BUDGET), random.Random(0))
    return using.begin({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, [row])


@pytest.mark.parametrize("window", [None, 6, 20])
def test_rows_come_and_go(window: int | None) -> None:
    """Of a Mistral; prompts are shorter than its window, and longer."""
    using = decoder(MistralForCausalLM(MistralConfig(**LLAMA, sliding_window=window)))
    lengths = [5, 16, 3, 9]
    alone = [begin(using, length, place) for place, length in enumerate(lengths)]
    for rows in alone:
        using.go_on(rows)
    started = [begin(using, length, place) for place, length in enumerate(lengths)]
    running = using.join(started[:2])
    using.go_on(running, max_new_tokens=3)
    running = using.join([running, *started[2:]])
    assert running.ids.shape == (4, 16 + 1 + 3)
    assert set(running.ids[2, : -3 - 1].tolist()) == {PADDING}
    using.go_on(running, max_new_tokens=4)
    running.keep([3, 0])
    assert running.ids.shape == (2, max(9 + 1 + 4, 5 + 1 + 3 + 4))  # no padding but what these two need
    using.go_on(running)
    said = [rows.each[0].tokens for rows in alone]
    assert [row.tokens for row in running.each] == [said[3][: len(running.each[0].tokens)], said[0]]
    assert [len(row.tokens) for row in running.each] == [1 + 4 + 4, BUDGET]
    assert len({tuple(tokens) for tokens in said}) == 4


def test_models_whose_rows_cannot_be_joined_are_refused() -> None:
    """Positions that no model is told, and states that belong to no token."""
    with pytest.raises(CannotJoinError, match="it keeps positions to itself"):
        begin(decoder(BloomForCausalLM(BloomConfig(n_head=2, n_layer=2, hidden_size=32, vocab_size=50))), 4)
    config = Lfm2Config(**LLAMA, layer_types=["conv", "full_attention"])
    with pytest.raises(CannotJoinError, match="its cache has layers of the kind LinearAttentionLayer"):
        begin(decoder(Lfm2ForCausalLM(config)), 4)
