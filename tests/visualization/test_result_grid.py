"""Pictures of results: what is framed, how texts are cut, what transparent images stand on."""

import numpy as np
import pytest
from PIL import Image, ImageChops, ImageColor, ImageDraw

from holistic_clip_hf.drawing import fit_text
from holistic_clip_hf.visualization import ResultRow, branch_grid, result_grid
from holistic_clip_hf.visualization.result_grid import CORRECT

GREEN, WHITE = ImageColor.getrgb(CORRECT), (255, 255, 255)
BLUE = (20, 40, 200)
SIDE = 96


def blue_squares(count: int) -> list[Image.Image]:
    return [Image.new("RGB", (40, 40), BLUE) for _ in range(count)]


def places_of(grid: Image.Image, colour: tuple[int, int, int], minimum: int) -> list[tuple[int, int]]:
    """Upper left corners, row by row, of the cells that hold at least `minimum` pixels of a colour."""
    channels = ImageChops.difference(grid, Image.new("RGB", grid.size, colour)).split()
    exact = ImageChops.lighter(ImageChops.lighter(channels[0], channels[1]), channels[2]).point(
        lambda v: 255 * (v == 0)
    )
    found, seen = [], exact.copy()
    while (box := seen.getbbox()) is not None:
        x = next(x for x in range(grid.width) if seen.getpixel((x, box[1])))
        cell = (x - 8, box[1] - 2, x + SIDE + 2, box[1] + SIDE + 2)
        if sum(seen.crop(cell).histogram()[255:]) >= minimum:
            found.append((x, box[1]))
        ImageDraw.Draw(seen).rectangle(cell, fill=0)
    return found


def test_correct_images_and_no_others_are_framed():
    rows = [
        ResultRow("style", "flat", [0, 1, 2], correct={0, 2}),
        ResultRow("object", "a fox", [1, 2, 0], correct={1}),
    ]
    framed = places_of(result_grid(rows, blue_squares(3)), GREEN, minimum=3 * SIDE)
    pictures = places_of(result_grid(rows, blue_squares(3)), BLUE, minimum=1000)

    assert len(pictures) == 6
    columns = sorted({round(x, -1) for x, _ in pictures})
    assert len(columns) == 3
    near = [
        [abs(x - px) < 40 and abs(y - py) < 40 for px, py in sorted(pictures, key=lambda p: (p[1], p[0]))]
        for x, y in framed
    ]
    assert sorted(cells.index(True) for cells in near) == [0, 2, 3]
    assert all(sum(cells) == 1 for cells in near)


def test_size_follows_from_rows_columns_and_options():
    images = blue_squares(8)
    one, wide = ResultRow("style", "flat", [0], {0}), ResultRow("style", "flat", list(range(8)), {0})
    small, wider, taller = (result_grid(rows, images) for rows in ([one], [wide], [one, one]))

    assert wider.width - small.width == 7 * (
        wider.width - result_grid([ResultRow("style", "flat", range(7), {0})], images).width
    )
    assert wider.height == small.height < taller.height
    assert result_grid([one], images, title="A title").height > small.height
    assert result_grid([one], images, names=["me"] * 8).height > small.height
    assert result_grid([one], images, thumbnail=128).height - small.height == 128 - SIDE


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_images_stand_on_white(mode):
    drawing = Image.new("RGBA", (40, 40), (0, 0, 0, 0))
    ImageDraw.Draw(drawing).rectangle((15, 15, 24, 24), fill=(255, 0, 0, 255))
    drawing = drawing.convert(mode) if mode != "P" else drawing.quantize(4)
    grid = result_grid([ResultRow("style", "", [0], set())], [drawing])

    black = int((np.asarray(grid).max(axis=-1) < 20).sum())
    assert black == 0
    assert (np.asarray(grid) == WHITE).all(axis=-1).sum() > 40 * 30


def test_sixteen_bits_are_scaled_not_clipped_to_white():
    ramp = np.repeat(np.arange(64, dtype=np.uint16)[None] * 1040, 64, axis=0)  # 0 to 65,520: 0 to 254 in eight bits
    grid = np.asarray(result_grid([ResultRow("style", "", [0], set())], [Image.fromarray(ramp)], thumbnail=64))
    drawn = {int(red) for red, green, blue in grid.reshape(-1, 3) if red == green == blue}
    assert len(drawn) > 40  # clipped, there are two: black and white


def test_the_given_images_are_not_changed():
    image = Image.new("RGBA", (500, 300), (1, 2, 3, 4))
    result_grid([ResultRow("style", "", [0], {0})], {0: image})
    assert image.size == (500, 300) and image.mode == "RGBA" and image.getpixel((0, 0)) == (1, 2, 3, 4)


def test_text_is_broken_at_spaces_and_what_is_left_out_shows():
    assert fit_text("one two three", 20, 1, len) == ["one two three"]
    assert fit_text("one two three", 7, 2, len) == ["one two", "three"]
    assert fit_text("one two three four", 9, 2, len) == ["one two", "three fo…"]
    assert fit_text("one two three four", 7, 1, len) == ["one tw…"]
    assert fit_text("uninterrupted word", 6, 2, len) == ["unint…", "word"]
    assert fit_text("", 6, 2, len) == []
    assert fit_text("wide", 0, 1, len) == ["…"]


def test_long_texts_stay_in_their_column():
    below = ResultRow("style", "b", [0], set())
    texts = ("a", "many words " * 80)
    short, long = (result_grid([ResultRow("style", text, [0], set()), below], blue_squares(1)) for text in texts)
    left, next_row = places_of(short, BLUE, minimum=1000)[1]

    assert long.size == short.size
    same = ImageChops.difference(long, short).getbbox()
    assert same is not None and same[2] < left and same[3] < next_row - 20


def test_letters_that_the_built_in_font_lacks_lose_their_accents():
    plain, accented = (
        result_grid([ResultRow("style", text, [0], set())], blue_squares(1)) for text in ("Jager", "Jäger")
    )
    assert ImageChops.difference(plain, accented).getbbox() is None


def test_labels_have_their_own_colours_and_keep_them():
    rows = [ResultRow(label, "", [0], set()) for label in ("style", "object", "style")]
    grid = result_grid(rows, blue_squares(1))
    height = (grid.height - result_grid(rows[:1], blue_squares(1)).height) // 2
    bar = [grid.getpixel((29, grid.height - 14 - (3 - row) * height + height // 2)) for row in range(3)]

    assert bar[0] == bar[2] != bar[1]


def test_branch_grid_is_a_row_for_each_branch_below_the_text():
    images = blue_squares(2)
    grid = branch_grid("a fox", {"fused": [0, 1], "style": [1, 0]}, {0}, images)
    rows = [ResultRow("fused", "", [0, 1], {0}), ResultRow("style", "", [1, 0], {0})]

    assert ImageChops.difference(grid, result_grid(rows, images, title="“a fox”")).getbbox() is None


def test_green_is_explained_where_there_is_some():
    known, unknown = (
        result_grid([ResultRow("style", "flat", [0, 0], correct)], blue_squares(1)) for correct in ({0}, set())
    )
    assert (np.asarray(known.crop((0, 0, 240, known.height))) == GREEN).all(axis=-1).any()
    assert not (np.asarray(unknown) == GREEN).all(axis=-1).any()


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([], {}, "Give one row or more"),
        ([ResultRow("style", "flat", [], set())], {}, "none empty"),
        ([ResultRow("style", "flat", [0], set())], {"thumbnail": 10}, "`thumbnail` is 10 pixels; expected 48"),
    ],
)
def test_misuse_is_refused(rows, options, message):
    with pytest.raises(ValueError, match=message):
        result_grid(rows, blue_squares(1), **options)
