"""Random windows stay inside the image; recoloured images lose the captions that speak of colours."""

from typing import Any

import pytest
import torch
from PIL import Image

from holistic_clip_hf.augmentation import Augmentation


def gradient_image(width: int, height: int) -> Image.Image:
    """Red says where a pixel stands from left to right, green from top to bottom."""
    image = Image.new("RGB", (width, height))
    for x in range(width):
        for y in range(height):
            image.putpixel((x, y), (255 * x // (width - 1), 255 * y // (height - 1), 0))
    return image


def test_crop_of_everything_is_identity() -> None:
    image = gradient_image(40, 24)
    assert Augmentation(scale=(1.0, 1.0), ratio=(1.0, 1.0)).crop(image, torch.Generator()).tobytes() == image.tobytes()


def test_crop_stays_inside_and_has_the_share_asked_for() -> None:
    """What colours the corners have says which window was shown."""
    image, crop = gradient_image(64, 48), Augmentation(scale=(0.25, 0.64), ratio=(1.0, 1.0))
    sides, corners = [], []
    generator = torch.Generator().manual_seed(0)
    for _ in range(60):
        window = crop.crop(image, generator)
        assert window.size == image.size
        (left, top, _), (right, bottom, _) = window.getpixel((0, 0)), window.getpixel((63, 47))
        assert right - left == pytest.approx(bottom - top, abs=16)  # the window has the image's own shape
        sides.append((right - left) / 255)
        corners.append(left)
    assert min(sides) > 0.40 and max(sides) < 0.85  # square roots of 0.25 and 0.64, and rounding
    assert max(sides) - min(sides) > 0.15 and max(corners) - min(corners) > 60


def test_crop_changes_the_shape_within_the_ratio() -> None:
    image, crop = gradient_image(64, 64), Augmentation(scale=(0.25, 0.25), ratio=(0.5, 2.0))
    stretches = []
    generator = torch.Generator().manual_seed(0)
    for _ in range(60):
        window = crop.crop(image, generator)
        (left, top, _), (right, bottom, _) = window.getpixel((0, 0)), window.getpixel((63, 63))
        stretches.append((right - left) / (bottom - top))
    assert 0.45 < min(stretches) < 0.8 and 1.3 < max(stretches) < 2.2


def test_recolouring_takes_captions_about_colours_away() -> None:
    captions = [{"perspective": name, "text": name, "source": "test"} for name in ("short", "palette")]
    row = {"image_id": "a", "image": gradient_image(20, 20), "captions": captions}
    options = {"scale": (1.0, 1.0), "recolour": 0.5, "colour_perspectives": ("palette",)}
    always, never = (Augmentation(**options, recolour_share=share) for share in (1.0, 0.0))
    changed, same = (augmentation(row, torch.Generator().manual_seed(0)) for augmentation in (always, never))
    assert [caption["perspective"] for caption in changed["captions"]] == ["short"]
    assert same["captions"] == captions and same["image"].tobytes() == row["image"].tobytes()
    assert changed["image"].convert("RGB").tobytes() != row["image"].tobytes()
    assert row["captions"] == captions


def test_recolouring_keeps_white_and_transparency() -> None:
    image = Image.new("RGBA", (4, 4), (255, 255, 255, 90))
    mixed = Augmentation(recolour=0.7).mix_colours(image, torch.Generator().manual_seed(3))
    assert mixed.getpixel((1, 1))[3] == 90
    assert all(abs(channel - 255) <= 1 for channel in mixed.getpixel((1, 1))[:3])


@pytest.mark.parametrize(
    "options", [{"scale": (0.0, 1.0)}, {"scale": (0.5, 1.5)}, {"scale": (0.9, 0.5)}, {"ratio": (2.0, 1.0)}]
)
def test_crop_refuses_impossible_windows(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must rise within"):
        Augmentation(**options)


@pytest.mark.parametrize("options", [{"recolour": -0.1}, {"recolour_share": 1.5}])
def test_recolouring_refuses_impossible_numbers(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="`recolour` must be 0 or more"):
        Augmentation(**options)
