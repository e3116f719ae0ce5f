"""More text positions: Long-CLIP's values for its lengths, a straight line kept straight for any other."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from holistic_clip_hf import HolisticCLIPModel
from holistic_clip_hf.initialization import stretch_positions, stretch_text_positions

MakeModel = Callable[..., HolisticCLIPModel]
MakeTokens = Callable[[list[int]], tuple[Tensor, Tensor]]
WEIGHT = "text_model.embeddings.position_embedding.weight"


def long_clip(weight: Tensor) -> Tensor:
    """77 positions to 248, one number at a time: four for each of the last 57, the last four on the line beyond."""
    new = torch.zeros(248, weight.shape[1])
    for place in range(248):
        for column in range(weight.shape[1]):
            if place < 20:
                new[place, column] = weight[place, column]
                continue
            old, quarters = 20 + (place - 20) // 4, (place - 20) % 4
            here = float(weight[old, column])
            step = float(weight[old + 1, column]) - here if old < 76 else here - float(weight[old - 1, column])
            new[place, column] = here + quarters / 4 * step
    return new


def test_248_positions_are_long_clips() -> None:
    weight = torch.randn(77, 5)
    torch.testing.assert_close(stretch_positions(weight, 248), long_clip(weight), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("size", "length", "kept"), [(77, 248, 20), (77, 154, 20), (24, 61, 20), (30, 31, 0)])
def test_a_straight_line_stays_straight(size: int, length: int, kept: int) -> None:
    line = torch.arange(size, dtype=torch.float64)[:, None]
    found = stretch_positions(line, length, kept=kept)
    assert found.dtype == torch.float64 and found.shape == (length, 1)
    assert torch.equal(found[:kept], line[:kept])
    ratio = (length - kept) / (size - kept)
    expected = torch.tensor([[kept + x / ratio] for x in range(length - kept)], dtype=torch.float64)
    torch.testing.assert_close(found[kept:], expected)


def test_the_same_length_is_the_same_positions() -> None:
    weight = torch.randn(77, 5)
    assert torch.equal(stretch_positions(weight, 77), weight)
    half = weight.half()
    assert stretch_positions(half, 248).dtype == torch.float16


@pytest.mark.parametrize(
    ("length", "kept", "message"),
    [
        (23, 20, "24 positions cannot be stretched to 23"),
        (48, 23, "`kept` is 23. Valid for 24 positions: 0 to 22"),
        (48, -1, "`kept` is -1. Valid"),
    ],
)
def test_what_cannot_be_stretched(length: int, kept: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        stretch_positions(torch.zeros(24, 4), length, kept=kept)


def test_a_stretched_model_reads_longer_texts(make_model: MakeModel, make_tokens: MakeTokens, tmp_path: Path) -> None:
    model = make_model()
    short, _ = make_tokens([12, 20])
    before = model.get_text_features(short).pooler_output
    long, _ = make_tokens([40, 60])
    with pytest.raises(ValueError, match="Texts of 60 tokens for a model of 24 positions"):
        model.get_text_features(long)
    old = model.state_dict()[WEIGHT].clone()
    stretch_text_positions(model, 60, kept=18)
    assert torch.equal(model.state_dict()[WEIGHT], stretch_positions(old, 60, kept=18))
    after = model.get_text_features(short).pooler_output
    torch.testing.assert_close(after[0], before[0])
    assert (after[1] - before[1]).abs().max() > 1e-4
    model.get_text_features(long).pooler_output.sum().backward()
    assert model.text_model.embeddings.position_embedding.weight.grad[59].any()
    model.save_pretrained(tmp_path)
    loaded = HolisticCLIPModel.from_pretrained(tmp_path)
    torch.testing.assert_close(
        loaded.get_text_features(long).pooler_output, model.get_text_features(long).pooler_output
    )


def test_frozen_positions_stay_frozen(make_model: MakeModel) -> None:
    model = make_model()
    model.text_model.requires_grad_(False)
    stretch_text_positions(model, 60)
    assert not any(parameter.requires_grad for parameter in model.text_model.parameters())
    assert model.text_model.embeddings.position_ids.shape == (1, 60)
    assert "text_model.embeddings.position_ids" not in model.state_dict()
