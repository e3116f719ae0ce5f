"""A random window stays inside the image and has the share and the shape that were asked for."""

from typing import Any

import pytest
import torch
from PIL import Image

from holistic_clip_hf.trainer.augmentation import Augmentation


def gradient_image(width: int, height: int) -> Image.Image:
    """Red says where a pixel stands from left to right, green from top to bottom."""
    image = Image.new("RGB", (width, height))
    for x in range(width):
        for y in range(height):
            image.putpixel((x, y), (255 * x // (width - 1), 255 * y // (height - 1), 0))
    return image


def corners(window: Image.Image) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of the window, as shares of the `gradient_image` that it shows."""
    last = window.width - 1
    (left, top, _), (right, bottom, _) = window.getpixel((0, 0)), window.getpixel((last, last))
    return left / 255, top / 255, right / 255, bottom / 255


def test_a_window_of_everything_is_the_image() -> None:
    image = gradient_image(40, 40)
    augmentation = Augmentation(size=40, scale=(1.0, 1.0), ratio=(1.0, 1.0))
    assert augmentation(image, torch.Generator()).tobytes() == image.tobytes()


def test_windows_stay_inside_and_have_the_share_asked_for() -> None:
    image, generator = gradient_image(128, 128), torch.Generator().manual_seed(0)
    augmentation = Augmentation(size=128, scale=(0.25, 0.64), ratio=(1.0, 1.0))
    found = [corners(augmentation(image, generator)) for _ in range(60)]
    sides = [right - left for left, _, right, _ in found]
    assert all(right - left == pytest.approx(bottom - top, abs=0.03) for left, top, right, bottom in found)
    assert min(sides) > 0.47 and max(sides) < 0.83  # square roots of 0.25 and 0.64, and rounding
    assert max(sides) - min(sides) > 0.15
    assert max(left for left, *_ in found) - min(left for left, *_ in found) > 0.25


def test_shape_of_a_window_is_within_the_ratio() -> None:
    """Also where the image is not square: width to height is counted in pixels."""
    image, generator = gradient_image(160, 80), torch.Generator().manual_seed(0)
    augmentation = Augmentation(size=64, scale=(0.1, 0.1), ratio=(0.5, 2.0))
    found = [corners(augmentation(image, generator)) for _ in range(60)]
    shapes = [160 * (right - left) / (80 * (bottom - top)) for left, top, right, bottom in found]
    assert 0.4 < min(shapes) < 0.8 and 1.4 < max(shapes) < 2.2


def test_a_window_is_drawn_by_the_generator() -> None:
    augmentation, image = Augmentation(size=24, scale=(0.3, 0.6)), gradient_image(40, 40)
    one, same, other = (augmentation(image, torch.Generator().manual_seed(seed)).tobytes() for seed in (1, 1, 2))
    assert one == same != other


@pytest.mark.parametrize("mode", ["P", "1", "L", "LA"])
def test_windows_are_interpolated_whatever_the_mode(mode: str) -> None:
    """Thin stripes at a third of their size are grey; the nearest pixel would be black or white."""
    stripes = Image.new("L", (96, 96), 255)
    for x in range(0, 96, 2):
        stripes.paste(0, (x, 0, x + 1, 96))
    augmentation = Augmentation(size=32, scale=(1.0, 1.0), ratio=(1.0, 1.0))
    window = augmentation(stripes.convert(mode), torch.Generator())
    assert window.mode == "RGB"
    values = torch.frombuffer(bytearray(window.tobytes()), dtype=torch.uint8).float()
    assert 100 < values.mean() < 155 and values.std() < 40


@pytest.mark.parametrize(
    "options", [{"scale": (0.0, 1.0)}, {"scale": (0.5, 1.5)}, {"scale": (0.9, 0.5)}, {"ratio": (2.0, 1.0)}]
)
def test_crop_refuses_impossible_windows(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must rise within"):
        Augmentation(size=24, **options)


def test_a_size_is_needed() -> None:
    with pytest.raises(ValueError, match="`size` is 0"):
        Augmentation(size=0)


def test_white_black_and_greys_keep_their_colour_when_others_change() -> None:
    image, generator = Image.new("RGB", (8, 8), (255, 255, 255)), torch.Generator().manual_seed(0)
    image.paste((0, 0, 0), (0, 0, 4, 4))
    image.paste((127, 127, 127), (4, 0, 8, 4))
    image.paste((200, 40, 40), (0, 4, 4, 8))
    augmentation = Augmentation(size=8, scale=(1.0, 1.0), ratio=(1.0, 1.0), recolouring=1.0)
    reds = set()
    for _ in range(20):
        changed = augmentation(image, generator)
        places = [(6, 6), (1, 1), (6, 1)]
        assert all(
            max(map(abs, (a - b for a, b in zip(changed.getpixel(at), image.getpixel(at), strict=True)))) < 3
            for at in places
        )
        reds.add(changed.getpixel((1, 6)))
    assert len(reds) > 10 and any(max(red) - min(red) < 3 for red in reds)  # some are grey


def test_as_many_are_recoloured_as_asked_for() -> None:
    augmentation, generator = Augmentation(size=8, recolouring=0.25), torch.Generator().manual_seed(0)
    drawn = [augmentation.draw(generator).mix for _ in range(2_000)]
    assert sum(mix is not None for mix in drawn) / 2_000 == pytest.approx(0.25, abs=0.03)


def test_a_turn_is_that_of_pillow_and_within_the_limits() -> None:
    image = gradient_image(40, 40)
    augmentation = Augmentation(size=40, scale=(1.0, 1.0), ratio=(1.0, 1.0), rotation=(5.0, 15.0))
    change = augmentation.draw(torch.Generator().manual_seed(0))
    turned = image.rotate(change.degrees, Image.Resampling.BICUBIC, fillcolor=image.getpixel((0, 0)))
    assert 5 <= change.degrees <= 15 and augmentation.apply(image, change).tobytes() == turned.tobytes()


def test_windows_are_those_that_were_drawn_before_there_were_turns_and_colours() -> None:
    generator = torch.Generator().manual_seed(7)
    expected = torch.rand(8, generator=torch.Generator().manual_seed(7)).tolist()
    augmentation = Augmentation(size=8)
    assert [augmentation.draw(generator).window for _ in range(2)] == [expected[:4], expected[4:]]


def test_the_name_of_cached_views_is_as_before_unless_more_is_asked_for() -> None:
    told = "Augmentation(size=8, scale=(0.9, 1.0), ratio=(0.75, 1.3333333333333333)"
    assert repr(Augmentation(size=8)) == f"{told})"
    assert repr(Augmentation(size=8, recolouring=0.5)) == f"{told}, recolouring=0.5)"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rotation": (10.0, -10.0)}, "`rotation` is"),
        ({"rotation": (0.0, 200.0)}, "`rotation` is"),
        ({"recolouring": 1.5}, "`recolouring` is 1.5"),
        ({"colour_perspectives": ("palette",)}, "without `recolouring`"),
    ],
)
def test_other_changes_have_limits(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Augmentation(size=24, **options)
