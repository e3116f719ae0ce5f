"""The processor: nested captions as exact tensors, ids of captions, transparency, and what the disk keeps."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, CLIPImageProcessor, CLIPTokenizer

from holistic_clip_hf import HolisticCLIPProcessor
from holistic_clip_hf.processing_holistic_clip import clean_caption


def hashed(text: str) -> int:
    """What two processes must agree on: the first 63 bits of BLAKE2b, as an unsigned number."""
    digest = hashlib.blake2b(text.encode("utf-8"), digest_size=8).hexdigest()
    return int(digest, 16) // 2


def test_nested_captions_exactly(processor: HolisticCLIPProcessor) -> None:
    start, end = processor.tokenizer.bos_token_id, processor.tokenizer.eos_token_id
    pad = processor.tokenizer.pad_token_id
    words = {word: processor.tokenizer(word)["input_ids"][1:-1] for word in ("red", "a", "circle")}
    assert [len(ids) for ids in words.values()] == [1, 1, 1], "the tiny tokenizer knows these words"
    (red,), (a,), (circle,) = words.values()
    found = processor.nested_captions([["red", None, "a circle"], ["red", "red circle", None]])
    short, two, none = [start, red, end, pad], [start, red, circle, end], [pad] * 4
    assert found["input_ids"].tolist() == [[short, none, [start, a, circle, end]], [short, two, none]]
    assert found["attention_mask"].tolist() == [[[1, 1, 1, 0], [0] * 4, [1] * 4], [[1, 1, 1, 0], [1] * 4, [0] * 4]]
    assert found["caption_mask"].tolist() == [[True, False, True], [True, True, False]]
    ids = [[hashed("red"), 0, hashed("a circle")], [hashed("red"), hashed("red circle"), 0]]
    assert found["caption_ids"].tolist() == ids
    types = {name: tensor.dtype for name, tensor in found.items()}
    assert types.pop("caption_mask") == torch.bool
    assert set(types.values()) == {torch.int64}


def test_long_captions_are_cut_before_the_end_token(processor: HolisticCLIPProcessor) -> None:
    ids = processor.nested_captions([["red circle " * 40, "red"]])["input_ids"]
    assert ids.shape == (1, 2, processor.tokenizer.model_max_length)
    assert ids[0, 0, -1] == processor.tokenizer.eos_token_id
    assert processor(text=["red circle " * 40], truncation=True)["input_ids"] == [ids[0, 0].tolist()]


REFUSED: list[tuple[Any, str]] = [
    ([], r"at least one; got \[\]"),
    ([[]], r"at least one; got \[0\]"),
    ([["a"], ["a", "b"]], r"got \[1, 2\]. Put None"),
    ([[None, None]], "none is given"),
    ([["a", ""]], "A caption is empty"),
    ([["a", " \n "]], "A caption is empty"),
    ([["a", "&nbsp;"]], "A caption is empty"),
]


@pytest.mark.parametrize(("captions", "message"), REFUSED, ids=[repr(captions) for captions, _ in REFUSED])
def test_refused_captions(processor: HolisticCLIPProcessor, captions: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        processor.nested_captions(captions)


def test_caption_ids_are_equal_exactly_for_the_same_text(processor: HolisticCLIPProcessor) -> None:
    assert hashed("Tom & Jerry") == 1306297690437224532  # pinned: published embeddings may be keyed by it
    same = ["Tom & Jerry", "  Tom &amp;\tJerry ", "Tom &amp;amp; Jerry"]
    other = ["Tom & jerry", "Tom and Jerry", "Tom& Jerry"]
    ids = processor.nested_captions([[*same, *other]])["caption_ids"][0].tolist()
    assert set(ids[:3]) == {hashed("Tom & Jerry")}
    assert len(set(ids[2:])) == 4
    assert all(0 <= number < 2**63 for number in ids)


def test_cleaning() -> None:
    assert clean_caption("  caf&eacute; &amp;lt; 3\n\n x ") == "café < 3 x"


@pytest.mark.parametrize("special", ["<|endoftext|>", "<|startoftext|>"])
def test_special_token_in_a_caption_stays_text(processor: HolisticCLIPProcessor, special: str) -> None:
    text = f"red {special} circle"
    nested = processor.nested_captions([[text]])["input_ids"][0, 0].tolist()
    flat = processor(text=[text])["input_ids"][0]
    single = processor(text=text)["input_ids"]
    assert nested == flat == (single[0] if isinstance(single[0], list) else single)
    start, end = processor.tokenizer.bos_token_id, processor.tokenizer.eos_token_id
    assert (nested.count(start), nested.count(end)) == (1, 1)
    assert nested[0] == start and nested[-1] == end
    written = "".join(processor.tokenizer.convert_ids_to_tokens(nested[1:-1])).replace("</w>", "")
    assert written == text.replace(" ", "")


def pixel(processor: HolisticCLIPProcessor, image: Image.Image) -> list[float]:
    """RGB of the middle, undoing the normalisation, 0 to 255."""
    values = processor(images=image, return_tensors="pt")["pixel_values"][0, :, 16, 16]
    mean, std = processor.image_processor.image_mean, processor.image_processor.image_std
    return [255 * (float(value) * s + m) for value, m, s in zip(values, mean, std, strict=True)]


def palette_with_transparency() -> Image.Image:
    image = Image.new("P", (32, 32), 0)
    image.putpalette([255, 0, 0])
    image.info["transparency"] = 0
    return image


@pytest.mark.parametrize("background", [(255, 255, 255), (0, 0, 0), (10, 200, 30)])
def test_alpha_is_composed_on_the_background(tokenizer: CLIPTokenizer, background: tuple[int, ...]) -> None:
    size = {"height": 32, "width": 32}
    processor = HolisticCLIPProcessor(CLIPImageProcessor(size=size, crop_size=size), tokenizer, background=background)
    half = Image.new("RGBA", (32, 32), (255, 0, 0, 51))
    expected = [0.2 * red + 0.8 * behind for red, behind in zip((255, 0, 0), background, strict=True)]
    assert pixel(processor, half) == pytest.approx(expected, abs=0.51)
    assert pixel(processor, Image.new("RGBA", (32, 32), (255, 0, 0, 0))) == pytest.approx(background, abs=1e-3)
    assert pixel(processor, Image.new("LA", (32, 32), (90, 0))) == pytest.approx(background, abs=1e-3)
    assert pixel(processor, palette_with_transparency()) == pytest.approx(background, abs=1e-3)
    assert pixel(processor, Image.new("RGB", (32, 32), (1, 2, 3))) == pytest.approx((1, 2, 3), abs=1e-3)
    many = processor(images=[half, Image.new("RGB", (32, 32))], return_tensors="pt")["pixel_values"]
    assert torch.equal(many[0], processor(images=half, return_tensors="pt")["pixel_values"][0])


@pytest.mark.parametrize("background", [(1, 2), (0, 0, 256), (-1, 0, 0)])
def test_background_is_checked(background: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="`background` must be three numbers from 0 to 255"):
        HolisticCLIPProcessor(background=background)


def test_saves_and_loads(processor: HolisticCLIPProcessor, red_square: Image.Image, tmp_path: Path) -> None:
    processor.background = [7, 8, 9]
    processor.save_pretrained(tmp_path)
    load: list[Callable[..., Any]] = [HolisticCLIPProcessor.from_pretrained, AutoProcessor.from_pretrained]
    for loaded in (from_pretrained(tmp_path, trust_remote_code=False) for from_pretrained in load):
        assert type(loaded) is HolisticCLIPProcessor
        assert loaded.background == [7, 8, 9]
        batch = {"images": red_square, "text": ["a red circle"], "return_tensors": "pt"}
        found, expected = loaded(**batch), processor(**batch)
        assert found.keys() == expected.keys() == {"input_ids", "attention_mask", "pixel_values"}
        assert all(torch.equal(found[name], expected[name]) for name in expected)
        nested, before = (one.nested_captions([["a red <|endoftext|>", None]]) for one in (loaded, processor))
        assert all(torch.equal(nested[name], before[name]) for name in before)


def test_sixteen_bits_are_scaled_not_clipped(processor: HolisticCLIPProcessor) -> None:
    deep, shallow = Image.new("I;16", (32, 32), 257 * 100), Image.new("L", (32, 32), 100)
    pixels = processor(images=[deep, shallow], return_tensors="pt")["pixel_values"]
    assert torch.equal(pixels[0], pixels[1])
