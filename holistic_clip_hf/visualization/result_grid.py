# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Pictures of what a model finds: a grid of retrieved images, drawn with Pillow alone.

Takes texts, indices and images, never a model. A row is one question: at the left its label (a perspective or a
branch) and the text, at the right the images found, best first, the correct ones framed and ticked.
"""

import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset
from PIL import Image

from ..drawing import Surface, line_height, lines_of, save_picture
from ..evaluation.encoding import FusedVectors, encode_images, encode_texts, fuse, written_caption
from ..evaluation.ranking import caption_pairs, dot, swapped, top_candidates
from ..evaluation.records import FUSED
from ..evaluation.retrieval import captions_by_perspective
from ..images.decoding import read_image
from ..images.tables import undecoded
from ..modeling_holistic_clip import HolisticCLIPModel
from ..processing_holistic_clip import WHITE, HolisticCLIPProcessor, on_background

Images = Mapping[int, Image.Image] | Sequence[Image.Image]
Names = Mapping[int, str] | Sequence[str]
INK, QUIET, LINE, PAGE, CORRECT = "#2b2d33", "#85888f", "#e4e2dd", "#fbfaf8", "#4c9a6a"
# Muted and of like lightness; labels are told apart by their words, colour only helps. Repeated after six.
LABEL_COLOURS = ("#5b7aa6", "#b07d3f", "#7d6ba3", "#3f8f95", "#a8637d", "#6f7d46")
IMAGES_PER_ROW = 8
MARGIN, GAP, INDENT = 28, 12, 12
TEXT_WIDTH, LABEL_WIDTH = 240, 120  # of the left column, with and without queries in it
TITLE_SIZE, LABEL_SIZE, QUERY_SIZE, SMALL_SIZE = 20, 13, 15, 12
FRAME, CORNER = 3, 7
MAX_TITLE_LINES = 3
MIN_THUMBNAIL = 48  # below, the tick hides the image


@dataclass(frozen=True)
class ResultRow:
    """One question and its answer: `ranked` are indices of images, best first, of which `correct` are right."""

    label: str
    query: str
    ranked: Sequence[int]
    correct: Collection[int]


@dataclass(frozen=True)
class _Layout:
    """Sizes in pixels that follow from what is drawn."""

    columns: int
    thumbnail: int
    has_names: bool
    text_width: int

    @property
    def left(self) -> int:
        return MARGIN + INDENT + self.text_width + 2 * GAP

    @property
    def row_height(self) -> int:
        return self.thumbnail + (line_height(SMALL_SIZE) + 4 if self.has_names else 0) + 2 * GAP

    @property
    def width(self) -> int:
        return self.left + self.columns * (self.thumbnail + GAP) - GAP + MARGIN

    def column(self, index: int) -> int:
        return self.left + index * (self.thumbnail + GAP)


def result_grid(
    rows: Sequence[ResultRow],
    images: Images,
    *,
    title: str = "",
    names: Names | None = None,
    thumbnail: int = 96,
    font_path: str | None = None,
) -> Image.Image:
    """Draw one row of retrieved images for each question.

    Args:
        rows: the questions; a row may hold fewer images than another.
        images: Images by the indices that the rows use, of any mode; transparent ones are shown on white.
        title: above the grid, if not empty.
        names: printed under the images, such as the artist's, by the same indices.
        thumbnail: side of an image in pixels.
        font_path: a TrueType file, for texts beyond basic Latin; Pillow's own font has no more.

    Raises `ValueError` without rows, for a row without images, and for thumbnails too small to frame.

    >>> row = ResultRow("style", "a calm watercolour", ranked=[2, 0], correct={0})
    >>> result_grid([row], images, title="What the style branch finds").save("grid.png")
    """
    if not rows or not all(len(row.ranked) for row in rows):
        raise ValueError(
            f"The rows hold {[len(row.ranked) for row in rows]} images. Give one row or more, none empty."
        )
    if thumbnail < MIN_THUMBNAIL:
        raise ValueError(f"`thumbnail` is {thumbnail} pixels; expected {MIN_THUMBNAIL} or more.")
    text_width = TEXT_WIDTH if any(row.query for row in rows) else LABEL_WIDTH
    layout = _Layout(max(len(row.ranked) for row in rows), thumbnail, names is not None, text_width)
    title_width = layout.width - 2 * MARGIN
    num_title_lines = len(lines_of(title, TITLE_SIZE, title_width, MAX_TITLE_LINES, font_path))
    top = MARGIN + num_title_lines * line_height(TITLE_SIZE) + 2 * GAP + GAP // 2
    page = Image.new("RGB", (layout.width, top + len(rows) * layout.row_height + MARGIN // 2), PAGE)
    surface = Surface(page, font_path)
    surface.text((MARGIN, MARGIN - 6), title, TITLE_SIZE, INK, title_width, MAX_TITLE_LINES)
    _draw_head(surface, layout, top, any(row.correct for row in rows))
    labels = list(dict.fromkeys(row.label for row in rows))
    for index, row in enumerate(rows):
        y = top + index * layout.row_height
        _draw_question(surface, layout, y, row, LABEL_COLOURS[labels.index(row.label) % len(LABEL_COLOURS)])
        for column, found in enumerate(row.ranked):
            place = (layout.column(column), y + GAP)
            _draw_image(surface, place, images[found], found in row.correct, thumbnail)
            if names is not None:
                surface.text((place[0], place[1] + thumbnail + 4), names[found], SMALL_SIZE, QUIET, thumbnail)
    return page


def branch_grid(
    query: str,
    ranked_by_branch: Mapping[str, Sequence[int]],
    correct: Collection[int],
    images: Images,
    *,
    names: Names | None = None,
    thumbnail: int = 96,
    font_path: str | None = None,
) -> Image.Image:
    """Return the answers of each branch, and of the fused vector, to one text: a `result_grid` under that text.

    >>> branch_grid("a calm watercolour", {"fused": [2, 0], "style": [0, 1]}, correct={0}, images=images)
    """
    rows = [ResultRow(branch, "", ranked, correct) for branch, ranked in ranked_by_branch.items()]
    return result_grid(rows, images, title=f"“{query}”", names=names, thumbnail=thumbnail, font_path=font_path)


def _draw_head(surface: Surface, layout: _Layout, top: int, has_correct: bool) -> None:
    y = top - line_height(SMALL_SIZE) - 2
    for column in range(layout.columns):
        surface.text((layout.column(column), y), str(column + 1), SMALL_SIZE, QUIET, layout.thumbnail)
    if has_correct:
        surface.draw.rounded_rectangle((MARGIN, y + 2, MARGIN + 12, y + 14), 3, fill=WHITE, outline=CORRECT, width=2)
        surface.text((MARGIN + 20, y), "correct", SMALL_SIZE, QUIET, layout.text_width)


def _draw_question(surface: Surface, layout: _Layout, y: int, row: ResultRow, colour: str) -> None:
    surface.draw.line([(MARGIN, y), (layout.width - MARGIN, y)], fill=LINE)
    bar = (MARGIN, y + GAP, MARGIN + 3, y + layout.row_height - GAP)
    surface.draw.rounded_rectangle(bar, 1, fill=colour)
    x, top, bottom = MARGIN + INDENT, y + GAP, y + layout.row_height - GAP
    top += surface.text((x, top), row.label.replace("_", " "), LABEL_SIZE, colour, layout.text_width) + 4
    lines = max(1, (bottom - top) // line_height(QUERY_SIZE))
    surface.text((x, top), row.query, QUERY_SIZE, INK, layout.text_width, lines)


def _draw_image(surface: Surface, place: tuple[int, int], image: Image.Image, is_correct: bool, side: int) -> None:
    (x, y), inset = place, FRAME + 2
    box = (x, y, x + side - 1, y + side - 1)
    surface.draw.rounded_rectangle(box, CORNER, fill=WHITE, outline=None if is_correct else LINE)
    picture = on_background(image).convert("RGB")
    picture.thumbnail((side - 2 * inset, side - 2 * inset), Image.Resampling.LANCZOS)
    surface.page.paste(picture, (x + (side - picture.width) // 2, y + (side - picture.height) // 2))
    if is_correct:
        surface.draw.rounded_rectangle(box, CORNER, outline=CORRECT, width=FRAME)
        cx, cy, radius = x + side - 11, y + 11, 9
        surface.draw.ellipse((cx - radius, cy - radius, cx + radius, cy + radius), fill=CORRECT)
        tick = [(cx - 4, cy), (cx - 1, cy + 3), (cx + 4, cy - 3)]
        surface.draw.line(tick, fill=WHITE, width=2, joint="curve")


def draw_results(
    model: HolisticCLIPModel,
    processor: HolisticCLIPProcessor,
    dataset: Dataset,
    path: Path,
    *,
    perspectives: Sequence[str],
    batch_size: int = 64,
    seed: int,
) -> None:
    """Draw one text of each perspective, chosen at random and not for its result, and the images found for it.

    Each text is answered by the fused vector and, where there is one, by the branch of its own perspective.
    """
    picker, encoded = random.Random(seed), encode_images(model, processor, dataset, batch_size=batch_size)
    branches, dataset = encoded.branch_embeds, dataset.select(encoded.rows.tolist())
    by_branch = dict(zip(model.config.perspectives, branches.unbind(dim=1), strict=True))
    rows = []
    for perspective, captions in captions_by_perspective(dataset, perspectives).items():
        texts, pairs = caption_pairs(captions)
        index = picker.randrange(len(texts))
        correct = set(pairs[pairs[:, 1] == index, 0].tolist())
        query = encode_texts(
            model, processor, [written_caption(processor, texts[index], perspective)], batch_size=batch_size
        )
        asked = {FUSED: fuse(model, branches, query)}
        if perspective in by_branch:
            asked[perspective] = FusedVectors(by_branch[perspective], query, dot)
        for name, (images, query_vectors, score) in asked.items():
            found = min(IMAGES_PER_ROW, len(dataset))
            ranked = top_candidates(query_vectors, images, found, score=swapped(score))[0].tolist()
            label = f"{perspective}, by {'all branches' if name == FUSED else 'its branch'}"
            rows.append(ResultRow(label, texts[index], ranked, correct))
    undrawn = undecoded(dataset)
    shown = {index: read_image(undrawn[index]["image"]) for row in rows for index in row.ranked}
    title = "Texts of each perspective, drawn at random, and the images found"
    save_picture(result_grid(rows, shown, title=title), path)
