# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Picture of the diversity report, for light and dark pages: lengths, distinct words, and how alike the slots are."""

from typing import TYPE_CHECKING, Any

import numpy as np

from ..drawing import INK, draw_matrix, new_figure, quiet_axes
from .diversity import DiversityReport, SlotReport

if TYPE_CHECKING:
    from matplotlib.figure import Figure


BAR, MEDIAN, SHADES = "#5b8bc4", "#d9822b", ("#b9d3ee", "#8fb3da", "#5b8bc4")
ROW, TOP, WIDTH = 0.42, 0.9, 12.0  # inches: of a slot, of titles and axes, of the page
LONGEST_NAME = 30  # characters
MOST_BINS = 28
TICKS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000)
MOST_COLUMN_NUMBERS = 20  # below the matrix; beyond, every second or third is left
MOST_NUMBERED = 12  # slots; beyond, the numbers in the matrix would touch
TAIL = 0.99  # of the captions; the few longest would squeeze all others together


def draw_diversity(report: DiversityReport) -> "Figure":
    """Draw the lengths of each slot, distinct-1 to 3, and similarity between slots, by embeddings where they were
    measured.

    Example: `draw_diversity(report).savefig("diversity.png")`.

    Raises:
        ImportError: matplotlib is not installed.
    """
    figure = new_figure(WIDTH, TOP + ROW * max(3, len(report.slots)), extra="captions")
    lengths, distinct, between = figure.subplots(1, 3, width_ratios=(1.25, 0.8, 1.15))
    _draw_lengths(lengths, report.slots)
    _draw_distinct(distinct, report.slots)
    _draw_between(between, report)
    for axes in (lengths, distinct, between):
        axes.title.set(color=INK, fontsize=10)
        quiet_axes(axes, size=8)
    return figure


def _draw_lengths(axes: Any, slots: list[SlotReport]) -> None:
    """Draw a histogram on each slot's line, each to its own height, on a logarithmic axis, or `detail` would hide
    `short`.
    """
    longest = max(_quantile(slot.lengths, TAIL) for slot in slots)
    edges = np.unique(np.geomspace(1, longest + 1, min(MOST_BINS, longest + 1)).round()) - 0.5
    for place, slot in enumerate(slots):
        shares, _ = np.histogram(list(slot.lengths), bins=edges, weights=list(slot.lengths.values()))
        densities = shares / np.diff(np.log(edges))
        heights = 0.8 * densities / max(densities.max(), 1)
        axes.bar(edges[:-1], -heights, np.diff(edges), bottom=place + 0.4, align="edge", color=BAR)
        axes.plot([max(slot.median_words, 0.5)] * 2, [place + 0.4, place - 0.4], color=MEDIAN, linewidth=1.5)
    axes.set(title="length in words (line: median)", xscale="log", xlim=(0.5, longest + 0.5))
    _one_line_each(axes, len(slots))
    axes.set_xticks([tick for tick in TICKS if tick <= longest], [f"{tick:,}" for tick in TICKS if tick <= longest])
    axes.set_xticks([], minor=True)
    axes.set_yticks(range(len(slots)), [f"{_short(slot.name)}   {place + 1}" for place, slot in enumerate(slots)])


def _draw_distinct(axes: Any, slots: list[SlotReport]) -> None:
    for order, shade in enumerate(SHADES):
        places = np.arange(len(slots)) + 0.26 * (order - 1)
        axes.barh(places, [slot.distinct[order] for slot in slots], 0.24, color=shade)
    axes.set(title="distinct-1, 2 and 3 (light to dark)", xlim=(0, 1))
    _one_line_each(axes, len(slots))
    axes.set_yticks(range(len(slots)), [""] * len(slots))


def _draw_between(axes: Any, report: DiversityReport) -> None:
    found, kind = (report.words, "shared words") if report.embeddings is None else (report.embeddings, "cosine")
    matrix = np.array([[np.nan if value is None else value for value in row] for row in found.between])
    places = range(len(matrix))
    columns = places[:: -(-len(matrix) // MOST_COLUMN_NUMBERS)]
    axes.set_title(f"alike within an image ({kind})")
    axes.set_xticks(columns, [place + 1 for place in columns])
    axes.set_yticks(places, [place + 1 for place in places])
    draw_matrix(axes, matrix, limits=(0, 1), form="{:.2f}" if len(matrix) <= MOST_NUMBERED else None, size=8)
    if found.mean is None:
        axes.text(0.5, 0.5, "no image has two captions", ha="center", color=INK, transform=axes.transAxes)


def _one_line_each(axes: Any, count: int) -> None:
    axes.set_ylim(count - 0.5, -0.5)
    axes.grid(axis="x", color=INK, alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)


def _quantile(lengths: dict[int, int], share: float) -> int:
    """Return the shortest length, 1 or more, that `share` of the captions do not exceed; `lengths` are in order."""
    ends = np.cumsum(list(lengths.values()))
    return max(1, list(lengths)[int(np.searchsorted(ends, share * ends[-1]))])


def _short(name: str) -> str:
    """Shorten the middle of a long name: captioners and perspectives often differ in their ends."""
    name = name.replace("_", " ")
    if len(name) > LONGEST_NAME:
        half = LONGEST_NAME // 2 - 1
        name = f"{name[:half].rstrip()} … {name[-half:].lstrip()}"
    return name
