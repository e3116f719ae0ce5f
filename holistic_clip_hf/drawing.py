# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Lettering of pictures that are drawn with Pillow; palette, matrix and page of those drawn with matplotlib."""

import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from .storage import import_extra, require_place, write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Of middle lightness, which stands out on white and on black alike; the page itself stays transparent.
INK, QUIET, BEST = "#767c86", "#868c96", "#d9822b"
LOW, HIGH, LOST = "#dfe7f2", "#1f4e8c", "#a8442f"  # from nothing to much; less than nothing
DARK_TEXT, LIGHT_TEXT, LIGHT_TEXT_FROM = "#20242a", "#ffffff", 0.55  # contrast of 4.5 and more within a cell
COLOURS = ("#5b8bc4", "#d9822b", "#8f7cc0", "#3f9a9e", "#c0688a", "#87984f", "#9a8268", "#6f8797")
DPI = 150
_SOFTWARE, _OURS = "Software", "holistic-clip-hf"  # text in a PNG, by which a picture of ours is known again
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
LINE_SPACING = 1.35
BUILT_IN_PUNCTUATION = "“”‘’…·"  # what Pillow's own font has beyond ASCII and is worth keeping


def require_picture(path: Path, name: str, apart: Sequence[str | Path] = ()) -> None:
    """Refuse a picture that would replace a file which is not a picture of ours, or would be taken for an image.

    Args:
        path: PNG file that is to be written; it need not exist.
        name: Name of the option, for the message.
        apart: Folders of images, below which no picture is written.

    Raises:
        ValueError: it would, or it does not end in .png, or cannot be written.
    """
    if path.suffix.casefold() != ".png":
        raise ValueError(f"`{name}` is {path}; expected a file that ends in .png. Name another.")
    require_place(path, name)
    for folder in apart:
        if path.resolve().is_relative_to(Path(folder).resolve()):
            raise ValueError(f"`{name}` is {path}, among the images of {folder}; expected a file elsewhere. Name one.")
    if path.exists() and not _is_ours(path):
        raise ValueError(
            f"`{name}` is {path}, a file that was not drawn by this command; expected a new one. Name another."
        )


def _is_ours(path: Path) -> bool:
    """Tell a picture that `save_picture` wrote by the text in it."""
    with open(path, "rb") as file:
        head = file.read(1_000)  # Pillow writes texts before pixels
    return head.startswith(b"\x89PNG") and f"tEXt{_SOFTWARE}\0{_OURS}".encode() in head


def save_picture(image: Image.Image, path: Path) -> None:
    """Write a picture that `require_picture` knows again as ours, complete or not at all."""
    told = PngInfo()
    told.add_text(_SOFTWARE, _OURS)
    path.parent.mkdir(parents=True, exist_ok=True)
    with write_atomically(path) as file:
        image.save(file, "PNG", pnginfo=told)


class Surface:
    """Something to draw on, with one typeface: Pillow's own or a file."""

    def __init__(self, page: Image.Image, font_path: str | None) -> None:
        self.page, self.draw, self.font_path = page, ImageDraw.Draw(page), font_path

    def text(self, place: tuple[int, int], text: str, size: int, colour: str, width: int, lines: int = 1) -> int:
        """Set `text` in at most `lines` lines of `width`, and return the height taken."""
        font, found = _font(size, self.font_path), lines_of(text, size, width, lines, self.font_path)
        for number, line in enumerate(found):
            self.draw.text((place[0], place[1] + number * line_height(size)), line, font=font, fill=colour)
        return len(found) * line_height(size)


def fit_text(text: str, width: float, lines: int, measure: Callable[[str], float]) -> list[str]:
    """Break a text at spaces into at most `lines` lines no wider than `width`; what is left out becomes an ellipsis.

    >>> fit_text("one two three four", width=9, lines=2, measure=len)
    ['one two', 'three fo…']
    """
    found: list[str] = []
    words = text.split()
    while words and len(found) < lines:
        taken = 1
        while taken < len(words) and measure(" ".join(words[: taken + 1])) <= width:
            taken += 1
        is_last = len(found) == lines - 1
        line = " ".join(words if is_last else words[:taken])
        found.append(_shorten(line, width, measure))
        words = [] if is_last else words[taken:]
    return found


def _shorten(line: str, width: float, measure: Callable[[str], float]) -> str:
    if measure(line) <= width:
        return line
    while line and measure(line + "…") > width:
        line = line[:-1]
    return line.rstrip() + "…"


def _in_built_in_font(text: str) -> str:
    """Return letters without their accents, which the built-in font lacks; a question mark for what has no such
    letter.
    """
    kept = []
    for letter in text:
        plain = unicodedata.normalize("NFKD", letter).encode("ascii", "ignore").decode()
        kept.append(letter if letter in BUILT_IN_PUNCTUATION else plain or "?")
    return "".join(kept)


def _font(size: int, font_path: str | None) -> Font:
    return ImageFont.load_default(size) if font_path is None else ImageFont.truetype(font_path, size)


def lines_of(text: str, size: int, width: int, lines: int, font_path: str | None) -> list[str]:
    """Fit a text in the font of that file or, without one, in Pillow's own."""
    shown = text if font_path else _in_built_in_font(text)
    return fit_text(shown, width, lines, _font(size, font_path).getlength)


def line_height(size: int) -> int:
    """Return the height of a line of letters of that size, in pixels."""
    return round(size * LINE_SPACING)


def new_figure(width: float, height: float, *, extra: str = "demo") -> "Figure":
    """Return a transparent figure of matplotlib, in inches, bound to no window and no global state.

    Args:
        width, height: Size in inches.
        extra: Extra of this package that brings matplotlib to those who draw here.

    Raises:
        ImportError: matplotlib is not installed.
    """
    return import_extra("matplotlib.figure", extra).Figure(
        figsize=(width, height), dpi=DPI, layout="constrained", facecolor="none"
    )


def draw_matrix(
    axes: "Axes",
    values: np.ndarray,
    *,
    limits: tuple[float, float],
    form: str | None = "{:.2f}",
    shades: Sequence[str] = (LOW, HIGH),
    size: int = 9,
) -> None:
    """Draw a matrix (rows, columns) as shaded cells with their numbers; NaN leaves its cell empty.

    Args:
        axes: Axes to draw into.
        values: Matrix of numbers.
        limits: Values of the first and of the last shade.
        form: Format of a number; `None` draws shades alone.
        shades: Colours between which cells are shaded, from the lowest to the highest value.
        size: Size of the numbers in points.
    """
    from matplotlib.colors import LinearSegmentedColormap

    low, high = limits
    colours = LinearSegmentedColormap.from_list("cells", list(shades))
    axes.imshow(np.ma.masked_invalid(values), cmap=colours, vmin=low, vmax=high, aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        if form is not None and np.isfinite(value):
            share = abs(2 * (value - low) / (high - low) - 1) if len(shades) > 2 else (value - low) / (high - low)
            colour = LIGHT_TEXT if share > LIGHT_TEXT_FROM else DARK_TEXT
            axes.text(column, row, form.format(value), ha="center", va="center", color=colour, fontsize=size)


def frame_cell(axes: "Axes", row: int, column: int) -> None:
    """Draw a frame around one cell of a matrix, as the best of its row or column."""
    from matplotlib.patches import Rectangle

    axes.add_patch(Rectangle((column - 0.47, row - 0.47), 0.94, 0.94, fill=False, edgecolor=BEST, linewidth=2))


def quiet_axes(axes: "Axes", size: int = 9) -> None:
    """Take frames, ticks and ground from axes, and print their labels as plain text in `INK`."""
    axes.set_facecolor("none")
    axes.tick_params(colors=INK, labelsize=size, length=0)
    for label in (*axes.get_xticklabels(), *axes.get_yticklabels()):
        label.set_parse_math(False)
    for spine in axes.spines.values():
        spine.set_visible(False)
