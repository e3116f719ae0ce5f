"""The collator puts captions into slots by name; the random crop stays inside the image."""

import copy
import io
import logging
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from holistic_clip_hf import HolisticCLIPProcessor
from holistic_clip_hf.trainer.augmentation import Augmentation
from holistic_clip_hf.trainer.collator import HolisticCLIPCollator, sample_sentences
from holistic_clip_hf.trainer.streams import PLACE, Place


def caption(perspective: str, text: str) -> dict[str, str]:
    return {"perspective": perspective, "text": text, "source": "test"}


@pytest.fixture
def rows(red_square: Image.Image) -> list[dict[str, Any]]:
    """Two images and three perspectives; the second lacks the last."""
    first = [caption("short", "a red square"), caption("style", "drawn flat"), caption("web", "square")]
    second = [caption("short", "a circle"), caption("style", "drawn flat")]
    return [
        {"image_id": "a", "image": red_square, "captions": first},
        {"image_id": "b", "image": red_square.transpose(Image.Transpose.ROTATE_90), "captions": second},
    ]


def test_exact_tensors(processor: HolisticCLIPProcessor, rows: list[dict[str, Any]]) -> None:
    batch = HolisticCLIPCollator(processor, ["web", "short", "style"])(rows)
    captions = [["square", "a red square", "drawn flat"], [None, "a circle", "drawn flat"]]
    expected = processor.nested_captions(captions)
    pixels = torch.stack([processor(images=row["image"], return_tensors="pt")["pixel_values"][0] for row in rows])
    assert batch.keys() == {*expected, "pixel_values", "image_ids", "image_mask", "left_out"}
    assert batch["left_out"] == {} and batch["image_mask"].tolist() == [True, True]
    assert batch["image_ids"] == [row["image_id"] for row in rows]
    assert all(torch.equal(batch[name], expected[name]) for name in expected)
    assert torch.equal(batch["pixel_values"], pixels)
    assert batch["caption_mask"].tolist() == [[True, True, True], [False, True, True]]
    assert batch["caption_ids"][0, 2] == batch["caption_ids"][1, 2]


def test_a_recoloured_image_has_no_captions_about_colour(
    processor: HolisticCLIPProcessor, rows: list[dict[str, Any]]
) -> None:
    """What is drawn red is shown in another colour, and no caption calls it red."""
    augmentation = Augmentation(size=32, recolouring=0.5, colour_perspectives=("style",))
    collator = HolisticCLIPCollator(processor, ["short", "style"], augmentation=augmentation)
    plain = HolisticCLIPCollator(processor, ["short", "style"], augmentation=Augmentation(size=32))
    hidden = []
    for epoch in range(40):
        collator.epoch = plain.epoch = epoch
        batch, as_it_is = collator(rows), plain(rows)
        same = [torch.equal(*pair) for pair in zip(batch["pixel_values"], as_it_is["pixel_values"], strict=True)]
        assert batch["caption_mask"].tolist() == [[True, shown] for shown in same]
        assert batch["left_out"] == {}
        hidden += [not shown for shown in same]
    assert 20 < sum(hidden) < 60  # of 80, half of them drawn


def test_order_of_captions_does_not_matter(processor: HolisticCLIPProcessor, rows: list[dict[str, Any]]) -> None:
    shuffled = copy.deepcopy(rows)
    for row in shuffled:
        row["captions"].reverse()
    collator = HolisticCLIPCollator(processor, ["web", "short", "style"])
    batch, again = collator(rows), collator(shuffled)
    assert all(torch.equal(value, again[name]) for name, value in batch.items() if isinstance(value, torch.Tensor))


def test_order_of_slots_is_as_asked(processor: HolisticCLIPProcessor, rows: list[dict[str, Any]]) -> None:
    one, other = (HolisticCLIPCollator(processor, slots)(rows) for slots in (["web", "short"], ["short", "web"]))
    assert torch.equal(one["caption_ids"], other["caption_ids"].flip(1))


def id_of(processor: HolisticCLIPProcessor, text: str) -> int:
    return int(processor.nested_captions([[text]])["caption_ids"])


def test_several_captions_of_a_perspective_take_turns(
    processor: HolisticCLIPProcessor, rows: list[dict[str, Any]]
) -> None:
    rows[0]["captions"].append(caption("short", "red"))
    collator, drawn = HolisticCLIPCollator(processor, ["short"]), []
    for epoch in range(60):
        collator.epoch = epoch
        drawn.append(int(collator(rows)["caption_ids"][0]))
    assert len(set(drawn)) == 2 and min(Counter(drawn).values()) > 10
    expected = {id_of(processor, "a red square")}
    assert {int(collator.for_evaluation()(rows)["caption_ids"][0]) for _ in range(9)} == expected


def test_what_is_random_depends_on_seed_epoch_and_image_alone(
    processor: HolisticCLIPProcessor, rows: list[dict[str, Any]]
) -> None:
    def pixels(order: list[int], seed: int = 0, epoch: int = 0, noise: int = 0) -> torch.Tensor:
        torch.manual_seed(noise)
        collator = HolisticCLIPCollator(
            processor, ["short"], augmentation=Augmentation(size=32, scale=(0.2, 0.4)), seed=seed
        )
        collator.epoch = epoch
        return collator([rows[index] for index in order])["pixel_values"]

    once = pixels([0, 1])
    assert torch.equal(once, pixels([1, 0], noise=1).flip(0))
    assert not torch.equal(once[1], pixels([0, 1], seed=1)[1]) or not torch.equal(once[0], pixels([0, 1], seed=1)[0])
    assert not torch.equal(once, pixels([0, 1], epoch=1))
    plain = HolisticCLIPCollator(processor, ["short"])
    augmented = HolisticCLIPCollator(processor, ["short"], augmentation=Augmentation(size=32, scale=(0.2, 0.4)))
    assert torch.equal(augmented.for_evaluation()(rows)["pixel_values"], plain(rows)["pixel_values"])


def test_unknown_slots(processor: HolisticCLIPProcessor, rows: list[dict[str, Any]]) -> None:
    with pytest.raises(ValueError, match=r"any of the slots \['detail'\]. The corpus has: short, style, web"):
        HolisticCLIPCollator(processor, ["detail"])(rows)
    for slots in ([], ["short", "short"]):
        with pytest.raises(ValueError, match="`slots` must be distinct names"):
            HolisticCLIPCollator(processor, slots)


def drawn_slots(collator: HolisticCLIPCollator, rows: list[dict[str, Any]], epochs: int) -> torch.Tensor:
    """(epochs, N, M): which captions were read."""
    masks = []
    for epoch in range(epochs):
        collator.epoch = epoch
        masks.append(collator(rows)["caption_mask"])
    return torch.stack(masks)


def test_captions_are_drawn_per_image_and_epoch(processor: HolisticCLIPProcessor, rows: list[dict[str, Any]]) -> None:
    """Two of the first image's three captions; the second image has only two, and keeps them."""
    collator = HolisticCLIPCollator(processor, ["web", "short", "style"], captions_per_image=2)
    masks = drawn_slots(collator, rows, epochs=60)
    assert masks.sum(dim=2).eq(2).all()
    assert masks[:, 1].eq(torch.tensor([False, True, True])).all()
    often = masks[:, 0].float().mean(dim=0)  # 2 of 3, give or take three standard deviations
    assert (often - 2 / 3).abs().max() < 0.19
    assert torch.equal(masks, drawn_slots(collator, rows, epochs=60))
    assert collator.for_evaluation()(rows)["caption_mask"].sum() == 5


def test_sentences_are_drawn_in_training_only(processor: HolisticCLIPProcessor, rows: list[dict[str, Any]]) -> None:
    text = "A red square. It is flat. Nothing else."
    rows = [{**rows[0], "captions": [{"perspective": "short", "text": text, "source": "test"}]}]
    collator = HolisticCLIPCollator(processor, ["short"], sentences_per_caption=1)
    seen = set()
    for collator.epoch in range(30):
        seen.add(int(collator(rows)["caption_ids"]))
    assert seen == {id_of(processor, sentence) for sentence in ("A red square.", "It is flat.", "Nothing else.")}
    assert int(collator.for_evaluation()(rows)["caption_ids"]) == id_of(processor, text)


def encoded(image: Image.Image, file_format: str = "PNG", size: int | None = None, **options: Any) -> dict[str, Any]:
    """The image as a `datasets` column gives it undecoded; `size` bytes of it."""
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return {"path": None, "bytes": file.getvalue()[:size]}


def test_undecoded_images_are_decoded(processor: HolisticCLIPProcessor, rows: list[dict[str, Any]]) -> None:
    collator = HolisticCLIPCollator(processor, ["short"])
    expected = collator(rows)["pixel_values"]
    assert torch.equal(collator([{**row, "image": encoded(row["image"])} for row in rows])["pixel_values"], expected)
    turned = Image.Exif()
    turned[274] = 6  # "rotate by 90 degrees to see it"
    sideways = {**rows[0], "image": encoded(rows[0]["image"], exif=turned)}
    upright = {**rows[0], "image": rows[0]["image"].transpose(Image.Transpose.ROTATE_270)}
    assert torch.equal(collator([sideways])["pixel_values"], collator([upright])["pixel_values"])


def damaged_images(red_square: Image.Image, folder: Path) -> dict[str, Any]:
    jpeg = encoded(red_square.resize((200, 200)), "JPEG")["bytes"]
    return {
        "truncated": {"path": None, "bytes": jpeg[:-200]},
        "is truncated": Image.open(io.BytesIO(jpeg[:-200])),
        "cannot identify": {"path": None, "bytes": b"<html>404</html>"},
        "cannot identify image": {"path": None, "bytes": b""},
        "no such file": {"path": str(folder / "nowhere.png"), "bytes": None},
        "neither bytes nor a path": {"path": None, "bytes": None},
        "no image": None,
        "it is int, not an image": 7,
        "The image has pixels that are NaN": np.full((8, 8, 3), np.nan, dtype=np.float32),
        "0 x 4 pixels": Image.new("RGB", (0, 4)),
        "exceeds limit": encoded(Image.new("1", (400, 400))),
    }


@pytest.mark.parametrize("place", [0, 1])
def test_a_damaged_image_leaves_nothing_in_the_batch(
    processor: HolisticCLIPProcessor,
    rows: list[dict[str, Any]],
    red_square: Image.Image,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: int,
) -> None:
    """No caption, and the pixels of the other image; what the readable one brings is as it would be alone."""
    monkeypatch.setenv("HOLISTIC_CLIP_IMAGE_ROOTS", str(tmp_path))
    collator = HolisticCLIPCollator(processor, ["short", "style"])
    readable = 1 - place
    alone = collator([rows[readable]])
    damaged = damaged_images(red_square, tmp_path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200 * 200)
    for reason, image in damaged.items():
        rows[place] = {**rows[place], "image": image}
        batch = collator(rows)
        assert reason in batch["left_out"][rows[place]["image_id"]] and len(batch["left_out"]) == 1
        assert batch["image_mask"].tolist() == [place != 0, place != 1]
        assert not batch["caption_mask"][place].any() and not batch["caption_ids"][place].any()
        for name in ("caption_mask", "caption_ids", "input_ids", "attention_mask"):
            assert torch.equal(batch[name][readable], alone[name][0])
        assert torch.equal(batch["pixel_values"], alone["pixel_values"].expand(2, -1, -1, -1))
        assert batch["image_ids"] == ["a", "b"]


def test_a_batch_without_a_readable_image_is_refused(
    processor: HolisticCLIPProcessor, rows: list[dict[str, Any]]
) -> None:
    broken = [{**row, "image": {"path": None, "bytes": b"nothing"}} for row in rows]
    with pytest.raises(ValueError, match="No image of the batch is readable. a: .*; b: "):
        HolisticCLIPCollator(processor, ["short"])(broken)


BLANKS = ["", "  \n", "&nbsp;", "&amp;nbsp;", "\u200b", "\ufeff \u2060", "\x1b[0m", "\x07"]


@pytest.mark.parametrize("is_training", [True, False])
@pytest.mark.parametrize("text", [*BLANKS, None, 7, ["a list"], b"bytes"], ids=repr)
def test_a_caption_that_cannot_be_read_is_missing(
    processor: HolisticCLIPProcessor, rows: list[dict[str, Any]], text: Any, is_training: bool
) -> None:
    """The batch is that of rows without it, and the caption is named by its image."""
    collator = HolisticCLIPCollator(processor, ["short", "style"])
    collator = collator if is_training else collator.for_evaluation()
    whole = rows[0]["captions"]
    without = collator([{**rows[0], "captions": whole[1:]}, rows[1]])
    batch = collator([{**rows[0], "captions": [{**whole[0], "text": text}, *whole[1:]]}, rows[1]])
    assert list(batch["left_out"]) == ["a, short"] and batch["left_out"]["a, short"].startswith("its text is ")
    assert batch["image_mask"].all() and batch["caption_mask"].tolist() == [[False, True], [True, True]]
    for name in ("input_ids", "attention_mask", "caption_mask", "caption_ids", "pixel_values"):
        assert torch.equal(batch[name], without[name])


def test_a_blank_caption_beside_another_of_its_perspective_is_never_drawn(
    processor: HolisticCLIPProcessor, rows: list[dict[str, Any]]
) -> None:
    rows[0]["captions"].append(caption("short", "&nbsp;"))
    collator = HolisticCLIPCollator(processor, ["short"])
    for collator.epoch in range(20):
        assert int(collator(rows)["caption_ids"][0, 0]) == id_of(processor, "a red square")


@pytest.mark.parametrize(
    ("captions", "named"),
    [
        (None, {"a, captions": "they are NoneType, not a list"}),
        ("a dog", {"a, captions": "they are str, not a list"}),
        (["a dog"], {"a, caption 0": "it has no perspective: 'a dog'"}),
        ([{"text": "a dog"}], {"a, caption 0": "it has no perspective: {'text': 'a dog'}"}),
        ([{"perspective": "short"}], {"a, short": "its text is NoneType, not a string"}),
        ([], {}),
    ],
    ids=str,
)
def test_captions_of_another_form_are_named(
    processor: HolisticCLIPProcessor, rows: list[dict[str, Any]], captions: Any, named: dict[str, str]
) -> None:
    batch = HolisticCLIPCollator(processor, ["short"])([{**rows[0], "captions": captions}, rows[1]])
    assert batch["left_out"] == named
    assert batch["caption_mask"].tolist() == [[False], [True]]


@pytest.mark.parametrize("column", ["image", "captions"])
def test_a_row_without_a_column_is_left_out(
    processor: HolisticCLIPProcessor, rows: list[dict[str, Any]], column: str
) -> None:
    del rows[0][column]
    batch = HolisticCLIPCollator(processor, ["short"])(rows)
    assert list(batch["left_out"]) == ["a" if column == "image" else "a, captions"]
    assert batch["caption_mask"].tolist() == [[False], [True]]


def test_a_batch_of_blank_captions_says_so(processor: HolisticCLIPProcessor, rows: list[dict[str, Any]]) -> None:
    """One process has nothing to learn from it; one of several may draw it."""
    blank = [{**row, "captions": [caption("short", "&nbsp;")]} for row in rows]
    with pytest.raises(ValueError, match="The corpus has: none.*Left out are a, short: its text is blank: '&nbsp;'"):
        HolisticCLIPCollator(processor, ["short"])(blank)
    batch = HolisticCLIPCollator(processor, ["short"], takes_empty=True)(blank)
    assert not batch["caption_mask"].any() and batch["image_mask"].all() and len(batch["left_out"]) == 2
    unseen = HolisticCLIPCollator(processor, ["short"], takes_empty=True)([{**row, "image": None} for row in rows])
    assert not unseen["caption_mask"].any() and not unseen["image_mask"].any()
    assert unseen["pixel_values"].shape == batch["pixel_values"].shape


def test_a_blank_sentence_is_never_drawn_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    assert {sample_sentences("狗。&nbsp;", 1, generator) for _ in range(30)} == {"狗。&nbsp;"}
    assert {sample_sentences("狗。\u200b。猫。", 1, generator) for _ in range(60)} <= {"狗。", "\u200b。", "猫。"}


def test_a_disk_that_fails_is_not_a_damaged_image(
    processor: HolisticCLIPProcessor, rows: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOLISTIC_CLIP_IMAGE_ROOTS", str(tmp_path))
    rows[1] = {**rows[1], "image": {"path": str(tmp_path), "bytes": None}}
    with pytest.raises(IsADirectoryError):
        HolisticCLIPCollator(processor, ["short"])(rows)


def test_the_pass_of_a_stream_counts_as_the_epoch(
    processor: HolisticCLIPProcessor, rows: list[dict[str, Any]]
) -> None:
    augmentation = Augmentation(size=32, scale=(0.2, 0.4))
    collator = HolisticCLIPCollator(processor, ["short"], augmentation=augmentation)
    places = [Place(3, 1, "a"), Place(3, 2, "b")]
    batch = collator([{**row, PLACE: place} for row, place in zip(rows, places, strict=True)])
    streamed = batch["pixel_values"]
    assert batch["place"] == places[-1]
    assert not torch.equal(streamed, collator(rows)["pixel_values"])
    collator.epoch = 3
    assert torch.equal(streamed, collator(rows)["pixel_values"])


def test_rows_that_a_resumed_run_has_seen_cost_nothing(processor: HolisticCLIPProcessor) -> None:
    assert HolisticCLIPCollator(processor, ["short"])([None, None]) == {}


@pytest.mark.parametrize("epochs", [1, 3])
def test_cut_texts_are_told_of_by_one_worker_of_the_first_epoch(
    processor: HolisticCLIPProcessor, red_square: Image.Image, capfd: pytest.CaptureFixture[str], epochs: int
) -> None:
    captions = [caption("short", "red circle " * 40)]
    rows = [{"image_id": str(number), "image": red_square, "captions": captions} for number in range(8)]
    collator, handler = HolisticCLIPCollator(processor, ["short"]), logging.StreamHandler(sys.stderr)
    logging.getLogger("holistic_clip_hf").addHandler(handler)
    for collator.epoch in range(epochs):
        assert len(list(DataLoader(rows, batch_size=2, num_workers=2, collate_fn=collator))) == 4
    logging.getLogger("holistic_clip_hf").removeHandler(handler)
    assert capfd.readouterr().err.count("texts are too long and cut") == 1
