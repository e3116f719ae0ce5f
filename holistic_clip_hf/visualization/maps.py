# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Maps laid over an image, and sheets of them, drawn with Pillow; readable on light and on dark pages.

Takes an image and one number for each patch, never a model. Only what stands out within a map is drawn, so that maps
can be compared by their places, not by their strength: that is what `notes` are for.
"""

import itertools
from collections.abc import Mapping, Sequence

import torch
from PIL import Image, ImageOps
from torch import Tensor

from ..drawing import INK, QUIET, Surface, line_height, lines_of
from ..processing_holistic_clip import on_background

# From what a patch has least of to what it has most of: colour, and how much of the image it covers.
RAMP = ((0.0, (255, 214, 102), 0.0), (0.45, (247, 148, 64), 0.5), (1.0, (190, 18, 78), 0.88))
PALEST = 96  # the image below a map is grey, its darkest pixel this light
NAME_SIZE, NOTE_SIZE, TITLE_SIZE = 15, 12, 18
MARGIN, GAP, ROW_NAME_WIDTH = 14, 10, 110
MIN_CELL = 48


def stretched(maps: Tensor) -> Tensor:
    """Return each map (..., P) from its own least, 0, to its own greatest, 1; one of equal numbers becomes zeros."""
    low, high = maps.amin(dim=-1, keepdim=True), maps.amax(dim=-1, keepdim=True)
    return (maps - low) / (high - low).clamp(min=torch.finfo(maps.dtype).tiny)


def map_over_image(image: Image.Image, values: Tensor) -> Image.Image:
    """Return one map (rows, columns) of numbers from 0 to 1 over the image, which turns pale and grey below it.

    Raises:
        ValueError: numbers that are not a map, or not from 0 to 1.
    """
    if values.ndim != 2 or not ((values >= 0) & (values <= 1)).all():
        raise ValueError(
            f"`values` has the shape {tuple(values.shape)}, from {values.min():.3g} to {values.max():.3g}; expected "
            f"(rows, columns), from 0 to 1, as `stretched` gives."
        )
    picture = on_background(image).convert("RGB")
    grid = Image.fromarray((255 * values.float().cpu()).round().to(torch.uint8).numpy())
    heat = grid.resize(picture.size, Image.Resampling.BICUBIC)
    pale = ImageOps.grayscale(picture).point(lambda level: PALEST + level * (255 - PALEST) // 255).convert("RGB")
    channels = [heat.point([_ramp(level / 255)[part] for level in range(256)]) for part in range(4)]
    pale.paste(Image.merge("RGB", channels[:3]), mask=channels[3])
    return pale


def map_sheet(
    image: Image.Image,
    maps: Tensor,
    columns: Sequence[str],
    *,
    rows: Sequence[str] = ("",),
    notes: Sequence[Sequence[str]] | None = None,
    title: str = "",
    cell: int = 160,
    font_path: str | None = None,
) -> Image.Image:
    """Return the image, and beside it a map for each column and row: R rows (branches, say), C columns (branches or
    words).

    Args:
        image: Image as the model sees it; see `crop_as_seen`.
        maps: (R, C, rows of patches, columns of patches), each stretched by itself for the picture.
        columns: C names, above or below the maps.
        rows: R names, at the left; without names, one row.
        notes: R times C short remarks, such as how strong a map is, below the maps.
        title: above all, if not empty.
        cell: side of a map in pixels.
        font_path: a TrueType file, for texts beyond basic Latin; Pillow's own font has no more.

    Raises:
        ValueError: names that do not count with the maps, or cells too small to see anything.

    >>> maps = branch_attention(model, pixels)[0].unflatten(-1, patch_grid(model, pixels))
    >>> map_sheet(image, maps[None], model.config.perspectives).save("maps.png")
    """
    if maps.ndim != 4 or maps.shape[:2] != (len(rows), len(columns)):
        raise ValueError(
            f"`maps` has the shape {tuple(maps.shape)} for {len(rows)} rows and {len(columns)} columns; expected (R, "
            f"C, "
            f"rows of patches, columns of patches), and a name for each row and column."
        )
    if cell < MIN_CELL:
        raise ValueError(f"`cell` is {cell} pixels; expected {MIN_CELL} or more.")
    sheet = _Sheet(cell, rows, columns, has_notes=notes is not None, title=title, font_path=font_path)
    picture = _fitted(image, cell)
    sheet.page.paste(picture, (sheet.left, sheet.top))
    spread = stretched(maps.flatten(2)).unflatten(2, maps.shape[2:])
    for row, column in itertools.product(range(len(rows)), range(len(columns))):
        note = notes[row][column] if notes else ""
        sheet.add(row, column, map_over_image(picture, spread[row, column]), note)
    return sheet.page


class _Sheet:
    """A page with a title, a name for each row and column, and a cell where they meet."""

    def __init__(
        self,
        cell: int,
        rows: Sequence[str],
        columns: Sequence[str],
        *,
        has_notes: bool,
        title: str,
        font_path: str | None,
    ) -> None:
        self.cell, self.columns = cell, columns
        self.left = MARGIN + (ROW_NAME_WIDTH if any(rows) else 0)
        width = self.left + (1 + len(columns)) * (cell + GAP) - GAP + MARGIN
        num_lines = len(lines_of(title, TITLE_SIZE, width - 2 * MARGIN, 2, font_path))
        self.top = MARGIN + num_lines * line_height(TITLE_SIZE) + (GAP if num_lines else 0)
        self.step = cell + line_height(NAME_SIZE) + (line_height(NOTE_SIZE) if has_notes else 0) + GAP
        self.page = Image.new("RGBA", (width, self.top + len(rows) * self.step + MARGIN // 2), (0, 0, 0, 0))
        self.surface = Surface(self.page, font_path)
        self.surface.text((MARGIN, MARGIN - 2), title, TITLE_SIZE, INK, width - 2 * MARGIN, 2)
        for row, name in enumerate(rows):
            y = self.top + row * self.step
            self.surface.text((MARGIN, y + 2), name.replace("_", " "), NAME_SIZE, INK, ROW_NAME_WIDTH - GAP, 3)

    def add(self, row: int, column: int, picture: Image.Image, note: str) -> None:
        """Put a picture, below it the column's name and the note."""
        x, y = self.left + (1 + column) * (self.cell + GAP), self.top + row * self.step
        self.page.paste(picture, (x, y))
        self.surface.text((x, y + self.cell + 3), self.columns[column].replace("_", " "), NAME_SIZE, INK, self.cell)
        if note:
            below = y + self.cell + 3 + line_height(NAME_SIZE)
            self.surface.text((x, below), note, NOTE_SIZE, QUIET, self.cell)


def crop_as_seen(image: Image.Image, sizes: Mapping[str, object]) -> Image.Image:
    """Return the part of an image that the model sees, in the image's own resolution.

    Args:
        image: Image.
        sizes: `processor.image_processor.to_dict()`: its `size`, `crop_size` and which of them are applied. Without
            `do_center_crop`, as SigLIP's, all of the image is seen.

    Raises:
        ValueError: an image processor that crops in another way than CLIP's.
    """
    if not sizes.get("do_center_crop"):
        return image
    size, crop = sizes.get("size"), sizes.get("crop_size")
    if not isinstance(size, Mapping) or not isinstance(crop, Mapping) or not sizes.get("do_resize"):
        raise ValueError(
            f"The sizes are {size} and {crop}; expected those of CLIP's image processor, with `do_resize`."
        )
    width, height = image.size
    if "shortest_edge" in size:
        across = down = min(image.size) / int(size["shortest_edge"])
    else:
        across, down = width / int(size["width"]), height / int(size["height"])
    half_width, half_height = int(crop["width"]) * across / 2, int(crop["height"]) * down / 2
    box = (width / 2 - half_width, height / 2 - half_height, width / 2 + half_width, height / 2 + half_height)
    return image.crop(tuple(round(edge) for edge in box))  # type: ignore[arg-type]


def strength(maps: Tensor) -> Tensor:
    """Measure how far each map (..., P) of attention rises above even attention: its greatest part, times P."""
    return maps.shape[-1] * maps.amax(dim=-1) / maps.sum(dim=-1)


def _ramp(value: float) -> tuple[int, int, int, int]:
    """Return red, green, blue, and how much of the image is covered, between the nearest two stops."""
    for (low, low_colour, low_cover), (high, colour, cover) in zip(RAMP, RAMP[1:], strict=False):
        if value <= high:
            share = (value - low) / (high - low)
            mixed = [round(a + share * (b - a)) for a, b in zip(low_colour, colour, strict=True)]
            return mixed[0], mixed[1], mixed[2], round(255 * (low_cover + share * (cover - low_cover)))
    raise AssertionError(value)


def _fitted(image: Image.Image, cell: int) -> Image.Image:
    """Fit a picture into a square of the cell's size: what the model sees is square too."""
    return on_background(image).convert("RGB").resize((cell, cell), Image.Resampling.LANCZOS)
