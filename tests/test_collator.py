"""The collator puts captions into slots by name; the random crop stays inside the image."""

import copy
from collections import Counter
from typing import Any

import pytest
import torch
from PIL import Image

from holistic_clip_hf import HolisticCLIPProcessor
from holistic_clip_hf.collator import HolisticCLIPCollator, RandomCrop


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
    collator = HolisticCLIPCollator(processor, ["short"])
    drawn = Counter(int(collator(rows)["caption_ids"][0]) for _ in range(60))
    assert len(drawn) == 2 and min(drawn.values()) > 10
    torch.manual_seed(5)
    first = [int(collator(rows)["caption_ids"][0]) for _ in range(10)]
    torch.manual_seed(5)
    assert [int(collator(rows)["caption_ids"][0]) for _ in range(10)] == first


def test_unknown_slots(processor: HolisticCLIPProcessor, rows: list[dict[str, Any]]) -> None:
    with pytest.raises(ValueError, match=r"any of the slots \['detail'\]. The corpus has: short, style, web"):
        HolisticCLIPCollator(processor, ["detail"])(rows)
    for slots in ([], ["short", "short"]):
        with pytest.raises(ValueError, match="`slots` must be distinct names"):
            HolisticCLIPCollator(processor, slots)


def gradient_image(width: int, height: int) -> Image.Image:
    """Red says where a pixel stands from left to right, green from top to bottom."""
    image = Image.new("RGB", (width, height))
    for x in range(width):
        for y in range(height):
            image.putpixel((x, y), (255 * x // (width - 1), 255 * y // (height - 1), 0))
    return image


def test_crop_of_everything_is_identity() -> None:
    image = gradient_image(40, 24)
    assert RandomCrop(scale=(1.0, 1.0), ratio=(1.0, 1.0)).crop(image).tobytes() == image.tobytes()


def test_crop_stays_inside_and_has_the_share_asked_for() -> None:
    """What colours the corners have says which window was shown."""
    image, crop = gradient_image(64, 48), RandomCrop(scale=(0.25, 0.64), ratio=(1.0, 1.0))
    sides, corners = [], []
    for _ in range(60):
        window = crop.crop(image)
        assert window.size == image.size
        (left, top, _), (right, bottom, _) = window.getpixel((0, 0)), window.getpixel((63, 47))
        assert right - left == pytest.approx(bottom - top, abs=16)  # the window has the image's own shape
        sides.append((right - left) / 255)
        corners.append(left)
    assert min(sides) > 0.40 and max(sides) < 0.85  # square roots of 0.25 and 0.64, and rounding
    assert max(sides) - min(sides) > 0.15 and max(corners) - min(corners) > 60


def test_crop_changes_the_shape_within_the_ratio() -> None:
    image, crop = gradient_image(64, 64), RandomCrop(scale=(0.25, 0.25), ratio=(0.5, 2.0))
    stretches = []
    for _ in range(60):
        window = crop.crop(image)
        (left, top, _), (right, bottom, _) = window.getpixel((0, 0)), window.getpixel((63, 63))
        stretches.append((right - left) / (bottom - top))
    assert 0.45 < min(stretches) < 0.8 and 1.3 < max(stretches) < 2.2


def test_crop_is_seeded_by_torch() -> None:
    rows = {"image": [gradient_image(40, 24), gradient_image(24, 40)], "image_id": ["a", "b"], "captions": [[], []]}
    crop = RandomCrop(scale=(0.3, 0.9))
    torch.manual_seed(1)
    first = crop(rows)
    second = crop(rows)
    torch.manual_seed(1)
    again = crop(rows)
    assert [image.tobytes() for image in first["image"]] == [image.tobytes() for image in again["image"]]
    assert first["image"][0].tobytes() != second["image"][0].tobytes()
    assert first["image_id"] == ["a", "b"] and first["captions"] == [[], []]
    assert rows["image"][0].tobytes() == gradient_image(40, 24).tobytes()


@pytest.mark.parametrize(
    "options", [{"scale": (0.0, 1.0)}, {"scale": (0.5, 1.5)}, {"scale": (0.9, 0.5)}, {"ratio": (2.0, 1.0)}]
)
def test_crop_refuses_impossible_windows(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must rise within"):
        RandomCrop(**options)
