# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Lettering of pictures that are drawn with Pillow."""

import unicodedata
from collections.abc import Callable

from PIL import Image, ImageDraw, ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
LINE_SPACING = 1.35
MAT = "#ffffff"  # under transparent images
BUILT_IN_PUNCTUATION = "“”‘’…·"  # what Pillow's own font has beyond ASCII and is worth keeping


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
    """Letters without their accents, which the built-in font lacks; a question mark for what has no such letter."""
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


def on_white(image: Image.Image) -> Image.Image:
    """Return the image without transparency, as RGB."""
    if not image.has_transparency_data:
        return image.convert("RGB")
    page = Image.new("RGBA", image.size, MAT)
    return Image.alpha_composite(page, image.convert("RGBA")).convert("RGB")
