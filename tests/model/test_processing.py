"""The processor: open_clip's token ids, nested captions as exact tensors, transparency, what is refused and kept."""

import hashlib
import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageChops
from transformers import AutoProcessor, CLIPImageProcessor, CLIPTokenizer, PreTrainedTokenizer

from holistic_clip_hf import HolisticCLIPConfig, HolisticCLIPProcessor
from holistic_clip_hf import processing_holistic_clip as processing
from holistic_clip_hf.images.decoding import read_image
from holistic_clip_hf.processing_holistic_clip import clean_caption

OPEN_CLIP = Path(__file__).parents[1] / "data" / "open_clip"
# What only ftfy can repair: letters that were decoded wrongly, and entities that HTML does not know.
NEEDS_FTFY = {"mojibake, Latin", "mojibake, twice", "mojibake, emoji", "C1 controls", "other white space"}
NEEDS_FTFY |= {"entities without semicolon, in capitals"}


def hashed(tokens: list[int]) -> int:
    """What two processes must agree on: the first 63 bits of BLAKE2b, as an unsigned number."""
    digest = hashlib.blake2b(bytes.fromhex("".join(f"{token:016x}" for token in tokens)), digest_size=8).hexdigest()
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
    ids = [[hashed(short[:3]), 0, hashed([start, a, circle, end])], [hashed(short[:3]), hashed(two), 0]]
    assert found["caption_ids"].tolist() == ids
    types = {name: tensor.dtype for name, tensor in found.items()}
    assert types.pop("caption_mask") == torch.bool
    assert set(types.values()) == {torch.int64}


@pytest.fixture(scope="module")
def open_clip() -> dict[str, tuple[str, list[int]]]:
    """kind → (text, ids up to the end token)."""
    captions = json.loads((OPEN_CLIP / "captions.json").read_text())
    return {caption["kind"]: (caption["text"], caption["ids"]) for caption in captions}


@pytest.fixture
def full(processor: HolisticCLIPProcessor) -> HolisticCLIPProcessor:
    """The processor with the part of CLIP's vocabulary that open_clip's texts need."""
    part = json.loads((OPEN_CLIP / "vocabulary.json").read_text())
    merges = [tuple(pair) for pair in part["merges"]]
    processor.tokenizer = CLIPTokenizer(vocab=part["vocab"], merges=merges, model_max_length=77)
    return processor


def kinds_that_differ(processor: HolisticCLIPProcessor, expected: dict[str, tuple[str, list[int]]]) -> set[str]:
    texts = [text for text, _ in expected.values()]
    flat = processor(text=texts, padding=False)["input_ids"]
    nested = processor.nested_captions([texts])
    lengths = nested["attention_mask"][0].sum(-1).tolist()
    cut = [ids[:length].tolist() for ids, length in zip(nested["input_ids"][0], lengths, strict=True)]
    assert cut == flat
    return {kind for (kind, (_, ids)), found in zip(expected.items(), flat, strict=True) if ids != found}


def test_ids_are_those_of_open_clip(full: HolisticCLIPProcessor, open_clip: dict[str, tuple[str, list[int]]]) -> None:
    assert len(open_clip) == 64
    assert kinds_that_differ(full, open_clip) == set()


def test_without_ftfy_only_mis_decoded_letters_differ_and_that_is_said_once(
    full: HolisticCLIPProcessor,
    open_clip: dict[str, tuple[str, list[int]]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    cleaned = {kind: clean_caption(text) for kind, (text, _) in open_clip.items()}
    monkeypatch.setattr(processing, "ftfy", None)
    processing.logger.warning_once.cache_clear()
    full(text=["Tom & Jerry: 3 < 4\n"])
    assert not caplog.records
    assert kinds_that_differ(full, open_clip) == NEEDS_FTFY
    assert {kind for kind, (text, _) in open_clip.items() if clean_caption(text) != cleaned[kind]} == NEEDS_FTFY
    assert [record.message.endswith("pip install ftfy") for record in caplog.records].count(True) == 1


def test_a_slow_tokenizer_is_refused(processor: HolisticCLIPProcessor) -> None:
    class Slow(PreTrainedTokenizer):
        @property
        def vocab_size(self) -> int:
            return 1

        def get_vocab(self) -> dict[str, int]:
            return {"a": 0}

    with pytest.raises(ValueError, match="`tokenizer` is a Slow, of the slow kind; expected one of the library"):
        HolisticCLIPProcessor(processor.image_processor, Slow())


def test_long_texts_are_cut_before_the_end_token_and_counted(
    processor: HolisticCLIPProcessor, caplog: pytest.LogCaptureFixture
) -> None:
    long, longest = "red circle " * 40, processor.tokenizer.model_max_length
    ids = processor.nested_captions([[long, "red"], [long, "a " + long]])["input_ids"]
    assert ids.shape == (2, 2, longest)
    assert ids[0, 0, -1] == processor.tokenizer.eos_token_id
    assert processor.num_truncated == 2
    assert processor(text=[long])["input_ids"] == [ids[0, 0].tolist()]
    assert processor(text=long, return_tensors="pt")["input_ids"].tolist() == [ids[0, 0].tolist()]
    assert processor.num_truncated == 4
    assert len(processor(text=["red " * (longest - 2)])["input_ids"][0]) == longest
    assert len(processor(text=[long], truncation=False)["input_ids"][0]) == 82
    assert processor.num_truncated == 4
    said = [record.message for record in caplog.records if "cut" in record.message]
    assert len(said) == 1
    assert said[0].startswith("2 of 3 texts are too long") and "stretch_text_positions" in said[0]


def test_without_a_longest_length_nothing_is_cut(processor: HolisticCLIPProcessor) -> None:
    processor.tokenizer.model_max_length = int(1e30)  # what transformers sets where a tokenizer says nothing
    long = "red circle " * 40
    assert processor(text=[long, "red"], return_tensors="pt")["input_ids"].shape == (2, 82)
    assert processor.nested_captions([[long], [None]])["input_ids"].shape == (2, 1, 82)
    assert processor.num_truncated == 0


def test_what_the_tokenizer_was_made_with_stands(processor: HolisticCLIPProcessor) -> None:
    processor.tokenizer.init_kwargs["max_length"] = 5
    assert len(processor(text="red circle " * 3)["input_ids"]) == 5
    assert len(processor(text="red circle " * 3, max_length=6)["input_ids"]) == 6


def test_short_rows_miss_their_last_captions(processor: HolisticCLIPProcessor) -> None:
    ragged = processor.nested_captions([["red"], [None, "a circle", "red"], []])
    filled = processor.nested_captions([["red", None, None], [None, "a circle", "red"], [None, None, None]])
    assert ragged["caption_mask"].tolist() == [[True, False, False], [False, True, True], [False] * 3]
    assert all(torch.equal(ragged[name], filled[name]) for name in filled)


REFUSED: list[tuple[Any, str]] = [
    ([], "No image has a caption. Put None"),
    ([[]], "No image has a caption"),
    ([[None, None], []], "No image has a caption"),
    ([["a", "b"], [None, ""]], r"empty at \(image, slot\) \[\(1, 1\)\]. Put None where"),
    ([["a", " \n "]], r"empty at \(image, slot\) \[\(0, 1\)\]"),
    ([["a", "&nbsp;"]], r"empty at \(image, slot\) \[\(0, 1\)\]"),
    ([["a"], "b"], "a list of strings .* got 'b' for image 1"),
    ([["a"], ["b", 3]], r"a list of strings .* got \['b', 3\] for image 1"),
    ([["a"], None], "a list of strings .* got None for image 1"),
]


@pytest.mark.parametrize(("captions", "message"), REFUSED, ids=[repr(captions) for captions, _ in REFUSED])
def test_refused_captions(processor: HolisticCLIPProcessor, captions: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        processor.nested_captions(captions)


REFUSED_TEXTS: list[tuple[Any, str]] = [
    ("", r"`text` is empty at \[0\]. Leave empty texts out"),
    (["a", "&nbsp;", "b", "\n"], r"`text` is empty at \[1, 3\]"),
    (["a", "\u200b", "\ufeff \u2060"], r"`text` is empty at \[1, 2\]"),
    ([], "`text` is empty. Leave"),
    ([["a", "b"], ["c"]], "several captions per image, use `nested_captions`"),
    (["a", None], r"a string or a list of strings; got \['a', None\]"),
    (b"a red square", "a string or a list of strings"),
    (3, "a string or a list of strings; got 3"),
]


@pytest.mark.parametrize(("text", "message"), REFUSED_TEXTS, ids=[repr(text) for text, _ in REFUSED_TEXTS])
def test_refused_texts(processor: HolisticCLIPProcessor, text: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        processor(text=text)


def spoilt(value: float) -> np.ndarray:
    image = np.full((32, 32, 3), 7, dtype=np.float32)
    image[3, 4, 1] = value
    return image


GRAY = Image.new("RGB", (32, 32), "gray")
PNG = io.BytesIO()
GRAY.resize((40, 36)).save(PNG, "PNG")
FORMS: list[Any] = [
    *(bytearray(PNG.getvalue()), memoryview(PNG.getvalue()), io.BytesIO(PNG.getvalue())),
    *({"bytes": PNG.getvalue(), "path": None}, {"bytes": bytearray(PNG.getvalue()), "path": "/not/read.png"}),
]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: type(form).__name__)
def test_bytes_of_any_form_are_read_by_the_one_door(processor: HolisticCLIPProcessor, form: Any) -> None:
    expected = processor(images=Image.open(PNG), return_tensors="pt")["pixel_values"]
    for images in (form, [form], [[form]]):
        assert torch.equal(processor(images=images, return_tensors="pt")["pixel_values"], expected)
    assert ImageChops.difference(read_image(form), Image.open(PNG)).getbbox() is None


REFUSED_IMAGES: list[tuple[Any, str]] = [
    ([], "`images` is empty"),
    (spoilt(math.nan), "Image 0 has pixels that are NaN or infinite"),
    ([GRAY, spoilt(1), spoilt(-math.inf)], "Image 2 has pixels that are NaN"),
    (np.stack([spoilt(1), spoilt(math.inf)]), "Image 1 has pixels that are NaN"),
    ([[GRAY], [torch.from_numpy(spoilt(math.nan)).half()]], "Image 1 has pixels that are NaN"),
    ([GRAY, np.zeros((0, 32, 3))], r"Image 1 has no pixels: its shape is \(0, 32, 3\)"),
    ([GRAY, np.full((32, 32, 3), 0.5)], "Image 1 has floats from 0.5 to 0.5, which may be shares of 1"),
    ([GRAY, np.full((32, 32, 3), 255.5)], "Image 1 has floats from 255.5 to 255.5; expected 0 to 255"),
    (np.full((32, 32, 3), -1), "Image 0 has whole numbers from -1 to -1; expected 0 to 255"),
    (np.full((32, 32), 65_536), "Image 0 has whole numbers from 65,536 to 65,536"),
    (np.zeros((32, 32, 2), dtype=np.uint8), r"Image 0 has the shape \(32, 32, 2\); expected .* 1, 3 or 4 channels"),
    (Image.new("L", (3_000, 1)), "Image 0 has 3,000 x 1 pixels; expected .* no side over 100 times the other"),
    (np.zeros((2, 300, 3), dtype=np.uint8), "Image 0 has 300 x 2 pixels; expected"),
    ({"bytes": None, "path": __file__}, "without the bytes of a file; expected them under 'bytes'. Read the file"),
    ([GRAY, {"image": GRAY}], "without the bytes of a file"),
    (io.StringIO("text"), "which gives text; expected bytes. Open the file in the mode 'rb'"),
    (7, "`images` has 7; expected paths, bytes or open files, Pillow images, arrays or tensors"),
    ([None], "`images` has None; expected paths"),
]


@pytest.mark.parametrize(("images", "message"), REFUSED_IMAGES, ids=[message[:30] for _, message in REFUSED_IMAGES])
def test_refused_images(processor: HolisticCLIPProcessor, images: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        processor(images=images)


def test_caption_ids_are_equal_exactly_for_the_same_tokens(processor: HolisticCLIPProcessor) -> None:
    assert hashed([538, 7, 539]) == 8252511393554434349  # pinned: published embeddings may be keyed by it
    same = ["Tom & Jerry", "  Tom &amp;\tJerry ", "Tom &amp;amp; Jerry", "TOM & jerry", "Tom& Jerry"]
    other = ["Tom and Jerry", "Tom & Jerry too", "Jerry & Tom"]
    found = processor.nested_captions([[*same, *other]])
    ids, tokens = found["caption_ids"][0].tolist(), processor.tokenizer("tom & jerry")["input_ids"]
    assert ids[: len(same)] == [hashed(tokens)] * len(same)
    assert len(set(ids)) == 1 + len(other)
    assert all(0 <= number < 2**63 for number in ids)


def test_captions_alike_in_all_tokens_that_fit_are_the_same(processor: HolisticCLIPProcessor) -> None:
    """Whatever they are padded with: in another batch the longest is another."""
    long = "a red square on white, drawn flat, " * 9
    ids = processor.nested_captions([[f"{long} by day", f"{long} by night", "a dog"], ["A Dog"]])["caption_ids"]
    assert ids[0, 0] == ids[0, 1] != ids[0, 2] and ids[0, 2] == ids[1, 0]
    assert processor.nested_captions([["A DOG"]])["caption_ids"] == ids[0, 2]


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


def pixel(processor: HolisticCLIPProcessor, image: Any) -> list[float]:
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
    pixels = np.array(half)
    for array in (pixels, torch.from_numpy(pixels).permute(2, 0, 1)):
        assert pixel(processor, array) == pytest.approx(expected, abs=0.51)
    assert pixel(processor, np.full((32, 32, 3), 7, dtype=np.uint8)) == pytest.approx([7] * 3, abs=1e-3)
    many = processor(images=[half, Image.new("RGB", (32, 32))], return_tensors="pt")["pixel_values"]
    assert torch.equal(many[0], processor(images=half, return_tensors="pt")["pixel_values"][0])


@pytest.mark.parametrize("background", [(1, 2), (0, 0, 256), (-1, 0, 0), (0.5, 0, 0)])
def test_background_is_checked(background: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="`background` must be three numbers from 0 to 255"):
        HolisticCLIPProcessor(background=background)


def test_saves_and_loads(processor: HolisticCLIPProcessor, red_square: Image.Image, tmp_path: Path) -> None:
    processor.background = [7, 8, 9]
    processor(text=["red " * 80])
    processor.save_pretrained(tmp_path)
    load: list[Callable[..., Any]] = [HolisticCLIPProcessor.from_pretrained, AutoProcessor.from_pretrained]
    for loaded in (from_pretrained(tmp_path, trust_remote_code=False) for from_pretrained in load):
        assert type(loaded) is HolisticCLIPProcessor
        assert (loaded.background, loaded.num_truncated) == ([7, 8, 9], 0)
        batch = {"images": red_square, "text": ["a red circle"], "return_tensors": "pt"}
        found, expected = loaded(**batch), processor(**batch)
        assert found.keys() == expected.keys() == {"input_ids", "attention_mask", "pixel_values"}
        assert all(torch.equal(found[name], expected[name]) for name in expected)
        nested, before = (one.nested_captions([["a red <|endoftext|>", None]]) for one in (loaded, processor))
        assert all(torch.equal(nested[name], before[name]) for name in before)


def test_a_folder_of_an_earlier_transformers_loads(
    processor: HolisticCLIPProcessor, red_square: Image.Image, tmp_path: Path
) -> None:
    """Its image processor and tokenizer have files of their own, and the processor has none."""
    processor.image_processor.save_pretrained(tmp_path)
    processor.tokenizer.save_pretrained(tmp_path)
    assert (tmp_path / "preprocessor_config.json").is_file() and not (tmp_path / "processor_config.json").exists()
    loaded_alone = HolisticCLIPProcessor.from_pretrained(tmp_path)
    HolisticCLIPConfig().save_pretrained(tmp_path)
    for loaded in (loaded_alone, AutoProcessor.from_pretrained(tmp_path, trust_remote_code=False)):
        assert type(loaded) is HolisticCLIPProcessor and loaded.background == processor.background
        given: dict[str, Any] = {"images": red_square, "text": "a red square", "return_tensors": "pt"}
        found, expected = loaded(**given), processor(**given)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_sixteen_bits_are_scaled_not_clipped(processor: HolisticCLIPProcessor) -> None:
    deep, shallow = Image.new("I;16", (32, 32), 257 * 100), Image.new("L", (32, 32), 100)
    pixels = processor(images=[deep, shallow], return_tensors="pt")["pixel_values"]
    assert torch.equal(pixels[0], pixels[1])


def test_transparent_shade_of_sixteen_bits(processor: HolisticCLIPProcessor, tmp_path: Path) -> None:
    shade = 257 * 200 + 250
    Image.new("I;16", (32, 32), shade).save(tmp_path / "deep.png", transparency=shade)
    assert pixel(processor, Image.open(tmp_path / "deep.png")) == pytest.approx([255] * 3, abs=1e-3)


def test_shares_of_one_are_taken_where_nothing_is_rescaled(processor: HolisticCLIPProcessor) -> None:
    levels = np.arange(32 * 32 * 3, dtype=np.uint8).reshape(32, 32, 3)
    found = processor(images=levels / 255, do_rescale=False, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(found, processor(images=levels, return_tensors="pt")["pixel_values"])
    for spoiling, message in ((np.full((32, 32, 4), 0.5), "four channels of float64"), (spoilt(math.nan), "NaN")):
        with pytest.raises(ValueError, match=f"Image 0 has .*{message}"):
            processor(images=spoiling, do_rescale=False)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("tokenizer.json", lambda found: found["model"]["vocab"].update(a={"b": []})),
        ("tokenizer.json", lambda found: found["model"]["merges"].__setitem__(0, [1])),
        ("tokenizer_config.json", lambda found: found.update(bos_token=0)),
        ("processor_config.json", lambda found: found["image_processor"].update(size={"height": "x"})),
    ],
)
def test_nonsense_in_a_file_of_the_processor_is_a_value_error(
    name: str, change: Callable[[Any], Any], processor: HolisticCLIPProcessor, tmp_path: Path
) -> None:
    processor.save_pretrained(tmp_path)
    found = json.loads((tmp_path / name).read_text())
    change(found)
    (tmp_path / name).write_text(json.dumps(found))
    with pytest.raises(ValueError, match="The processor of .* cannot be loaded|`?[Ss]ize`? "):
        HolisticCLIPProcessor.from_pretrained(tmp_path)
