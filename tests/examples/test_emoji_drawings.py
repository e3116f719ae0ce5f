"""Drawings and their colours: the expected pixels and names are those of shapes one can describe in words."""

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from training.emoji.captions import describe_palette
from training.emoji.drawings import IconSet, draw


def icon_set(icons: dict[str, Any], aliases: dict[str, Any] | None = None, **defaults: int) -> IconSet:
    return IconSet({"icons": icons, "aliases": aliases or {}, **defaults}, "MIT", {})


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGBA"))


def rectangle(x: float, y: float, width: float, height: float, colour: str = "#f00") -> str:
    return f'<rect x="{x}" y="{y}" width="{width}" height="{height}" fill="{colour}"/>'


@pytest.mark.parametrize("left", [0, 4])
def test_a_drawing_fills_the_picture_wherever_it_lies_in_its_box(left: int) -> None:
    drawn = pixels(draw(icon_set({"half": {"body": rectangle(left, 0, 4, 8)}}, width=8, height=8).svg("half"), 16))
    assert drawn.shape == (16, 16, 4)
    assert (drawn[:, 4:12] == [255, 0, 0, 255]).all()
    assert (drawn[:, :4, 3] == 0).all() and (drawn[:, 12:, 3] == 0).all()


def test_an_icon_is_cut_at_the_box_of_its_set() -> None:
    halves = rectangle(0, 0, 8, 8, "#f00") + rectangle(8, 0, 8, 8, "#00f")
    drawn = pixels(draw(icon_set({"cut": {"body": halves}}, width=8, height=8).svg("cut"), 16))
    assert (drawn == [255, 0, 0, 255]).all()


def test_an_icon_has_a_box_of_its_own() -> None:
    own = {"body": rectangle(10, 20, 4, 4), "left": 10, "top": 20, "width": 4, "height": 4}
    assert (pixels(draw(icon_set({"own": own}, width=100, height=100).svg("own"), 16)) == [255, 0, 0, 255]).all()


def test_a_wide_drawing_lies_in_the_middle_of_a_square() -> None:
    wide = {"body": rectangle(0, 0, 8, 4), "width": 8, "height": 4}
    drawn = pixels(draw(icon_set({"wide": wide}).svg("wide"), 16))
    assert drawn.shape == (16, 16, 4)
    assert (drawn[4:12] == [255, 0, 0, 255]).all()
    assert (drawn[:4, :, 3] == 0).all() and (drawn[12:, :, 3] == 0).all()


def test_gradients_and_half_transparency_survive() -> None:
    body = (
        '<defs><linearGradient id="g"><stop stop-color="#f00"/><stop offset="1" stop-color="#00f"/></linearGradient>'
        '</defs><rect width="8" height="8" fill="url(#g)" opacity=".5"/>'
    )
    drawn = pixels(draw(icon_set({"g": {"body": body}}, width=8, height=8).svg("g"), 16))
    assert drawn[8, 0, 0] > 200 > 50 > drawn[8, 0, 2] and drawn[8, -1, 2] > 200
    assert abs(int(drawn[8, 8, 3]) - 128) <= 1


@pytest.mark.parametrize("body", ["", rectangle(50, 50, 4, 4), "<text>A</text>"])
def test_a_blank_drawing_is_refused(body: str) -> None:
    with pytest.raises(ValueError, match="draws nothing"):
        draw(icon_set({"blank": {"body": body}}).svg("blank"), 16)


def test_a_broken_drawing_is_refused() -> None:
    with pytest.raises(ValueError):
        draw(icon_set({"broken": {"body": "<g>"}}).svg("broken"), 16)


def test_aliases_lead_to_their_drawing_unless_transformed() -> None:
    aliases = {
        "same": {"parent": "half"},
        "of-same": {"parent": "same"},
        "mirrored": {"parent": "half", "hFlip": True},
        "turned": {"parent": "same", "rotate": 1},
        "lost": {"parent": "nothing"},
        "circle": {"parent": "circle"},
    }
    drawings = icon_set({"half": {"body": rectangle(0, 0, 4, 8)}}, aliases)
    assert drawings.names() == {"half": "half", "same": "half", "of-same": "half"}
    assert drawings.svg("of-same") == drawings.svg("half")
    with pytest.raises(ValueError, match="'mirrored'.*without rotation"):
        drawings.svg("mirrored")


def striped(**shares: int) -> np.ndarray:
    """An opaque image whose rows have these colours, by name; `shares` are percentages."""
    colours = {"red": (230, 20, 30), "yellow": (255, 215, 50), "white": (255, 255, 255), "black": (10, 10, 10)}
    rows = [(*colours[name], 255) for name, share in shares.items() for _ in range(share)]
    return np.array(rows, dtype=np.uint8)[:, None].repeat(10, axis=1)


@pytest.mark.parametrize(
    ("colour", "name"),
    [
        ((255, 0, 0), "red"),
        ((255, 255, 0), "yellow"),
        ((255, 204, 77), "yellow"),
        ((0, 160, 0), "green"),
        ((0, 0, 255), "blue"),
        ((173, 216, 230), "light blue"),
        ((0, 0, 90), "dark blue"),
        ((128, 0, 128), "purple"),
        ((255, 105, 180), "pink"),
        ((255, 140, 0), "orange"),
        ((139, 69, 19), "brown"),
        ((0, 0, 0), "black"),
        ((255, 255, 255), "white"),
        ((128, 128, 128), "gray"),
    ],
)
def test_one_colour_is_called_by_its_name(colour: tuple[int, int, int], name: str) -> None:
    image = np.full((8, 8, 4), 255, dtype=np.uint8)
    image[..., :3] = colour
    assert describe_palette(image) == f"all {name}"


@pytest.mark.parametrize(
    ("shares", "phrase"),
    [
        ({"yellow": 70, "red": 22, "white": 8}, "mostly yellow, with red and a little white"),
        ({"white": 8, "yellow": 70, "red": 22}, "mostly yellow, with red and a little white"),
        ({"yellow": 40, "red": 35, "black": 25}, "yellow, red and black"),
        ({"yellow": 96, "red": 4}, "all yellow"),
        ({"red": 49, "white": 48, "black": 3}, "red and white"),
    ],
)
def test_colours_are_listed_by_area(shares: dict[str, int], phrase: str) -> None:
    assert describe_palette(striped(**shares)) == phrase


def test_transparent_pixels_do_not_count() -> None:
    image = striped(yellow=30, red=70)
    image[30:, :, 3] = 0
    assert describe_palette(image) == "all yellow"
    image[30:, :, 3] = 128
    assert describe_palette(image) == "mostly red, with yellow"
    image[..., 3] = 0
    with pytest.raises(ValueError, match="no opaque pixel"):
        describe_palette(image)
