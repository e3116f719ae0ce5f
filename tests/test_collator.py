"""The collator puts captions into slots by name; the random crop stays inside the image."""

import copy
from collections import Counter
from typing import Any

import pytest
import torch
from PIL import Image

from holistic_clip_hf import HolisticCLIPProcessor
from holistic_clip_hf.augmentation import Augmentation
from holistic_clip_hf.collator import HolisticCLIPCollator
from holistic_clip_hf.processing_holistic_clip import caption_id


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
    assert batch.keys() == {*expected, "pixel_values"}
    assert all(torch.equal(batch[name], expected[name]) for name in expected)
    assert torch.equal(batch["pixel_values"], pixels)
    assert batch["caption_mask"].tolist() == [[True, True, True], [False, True, True]]
    assert batch["caption_ids"][0, 2] == batch["caption_ids"][1, 2]


def test_order_of_captions_does_not_matter(processor: HolisticCLIPProcessor, rows: list[dict[str, Any]]) -> None:
    shuffled = copy.deepcopy(rows)
    for row in shuffled:
        row["captions"].reverse()
    collator = HolisticCLIPCollator(processor, ["web", "short", "style"])
    batch, again = collator(rows), collator(shuffled)
    assert all(torch.equal(batch[name], again[name]) for name in batch)


def test_order_of_slots_is_as_asked(processor: HolisticCLIPProcessor, rows: list[dict[str, Any]]) -> None:
    one, other = (HolisticCLIPCollator(processor, slots)(rows) for slots in (["web", "short"], ["short", "web"]))
    assert torch.equal(one["caption_ids"], other["caption_ids"].flip(1))


def test_several_captions_of_a_perspective_take_turns(
    processor: HolisticCLIPProcessor, rows: list[dict[str, Any]]
) -> None:
    rows[0]["captions"].append(caption("short", "red"))
    collator, drawn = HolisticCLIPCollator(processor, ["short"]), []
    for epoch in range(60):
        collator.epoch = epoch
        drawn.append(int(collator(rows)["caption_ids"][0]))
    assert len(set(drawn)) == 2 and min(Counter(drawn).values()) > 10
    assert {int(collator.for_evaluation()(rows)["caption_ids"][0]) for _ in range(9)} == {caption_id("a red square")}


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
