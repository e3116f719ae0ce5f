# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Figures of matplotlib, on light and dark pages alike: captions against branches, and how training went.

Axes: H branches, M captions.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from torch import Tensor

from ..drawing import COLOURS, INK, draw_matrix, frame_cell, new_figure, quiet_axes
from ..evaluation.ranking import TEXT_TO_IMAGE
from ..processing_holistic_clip import on_background
from ..storage import parse_json

Curve = list[tuple[int, float]]
STATE_NAME = "trainer_state.json"
NO_CURVES = {"step", "epoch"}


def training_curves(path: str | Path) -> dict[str, Curve]:
    """Read a trainer's state, or the folder that holds one, as name → (step, value) in order of steps.

    What is said once, at the end of training, is not a curve and left out.

    Raises:
        ValueError: no such file, or one without a log.

    >>> training_curves("runs/emoji/holistic")["eval_loss"]
    [(210, 3.42), (420, 3.07)]
    """
    path = Path(path)
    file = path / STATE_NAME if path.is_dir() else path
    if not file.is_file():
        raise ValueError(f"No trainer's state at {file}. Give a checkpoint trained here, or its {STATE_NAME}.")
    history = parse_json(file.read_text(encoding="utf-8")).get("log_history")
    if not history:
        raise ValueError(f"{file} holds no log. Train with `logging_steps` below the number of steps.")
    curves: dict[str, dict[int, float]] = {}
    for entry in history:
        if "train_runtime" in entry:
            continue
        for name, value in entry.items():
            if name not in NO_CURVES and isinstance(value, int | float):
                curves.setdefault(name, {})[entry["step"]] = value
    return {name: sorted(curve.items()) for name, curve in curves.items()}


if TYPE_CHECKING:
    from matplotlib.figure import Figure


# As the trainer calls them; without a perspective, the mean over all.
RECALL = re.compile(rf"eval_(?:(?P<perspective>.+)_)?{TEXT_TO_IMAGE}_(?P<metric>recall@\d+)")
LONGEST_CAPTION = 64  # characters, on a line of its own
ROW, LINE, PICTURE = 0.42, 0.26, 2.9  # inches: of a branch, of a caption below, of the image's side


def matching_figure(
    image: Image.Image,
    similarity: Tensor,
    branches: Sequence[str],
    captions: Sequence[str],
    *,
    perspectives: Sequence[str] | None = None,
) -> "Figure":
    """Return the image, and beside it how much each branch agrees with each caption; the best of each caption is
    framed.

    Args:
        similarity: (H, M), `agreement.part_matching` of the image's branches and its captions.
        branches: H names.
        captions: M texts, written out below the matrix.
        perspectives: M names, above the columns.

    Raises:
        ValueError: names or captions that do not count with the matrix.
        ImportError: matplotlib is not installed.
    """
    if similarity.ndim != 2 or tuple(similarity.shape) != (len(branches), len(captions)) or not similarity.numel():
        raise ValueError(
            f"`similarity` has the shape {tuple(similarity.shape)} for {len(branches)} branches and {len(captions)} "
            f"captions; expected (H, M), a name for each branch and a text for each caption."
        )
    names = [str(number) for number in range(1, len(captions) + 1)]
    if perspectives is not None:
        names = [f"{number} {name.replace('_', ' ')}" for number, name in zip(names, perspectives, strict=True)]
    height = max(PICTURE, ROW * len(branches) + 0.9) + LINE * len(captions) + 0.2
    width = PICTURE + 2.2 + 0.95 * len(captions)
    figure = new_figure(max(width, 7.5), height)
    grid = figure.add_gridspec(
        2,
        2,
        width_ratios=(PICTURE, width - PICTURE),
        height_ratios=(height - LINE * len(captions), LINE * len(captions)),
    )
    picture, matrix, below = (figure.add_subplot(grid[place]) for place in ((0, 0), (0, 1), (1, slice(None))))
    picture.imshow(on_background(image).convert("RGB"))
    picture.set_axis_off()
    _draw_matrix(matrix, similarity.detach().float().cpu().numpy(), branches, names)
    below.set_axis_off()
    for number, caption in enumerate(captions):
        text = caption if len(caption) <= LONGEST_CAPTION else f"{caption[:LONGEST_CAPTION].rstrip()}…"
        place = (0.01, 1 - (number + 0.5) / len(captions))
        below.text(*place, f"{number + 1}   {text}", color=INK, fontsize=10, va="center", parse_math=False)
    return figure


def training_figure(curves: Mapping[str, Curve], *, recall: str = "recall@5", title: str = "") -> "Figure":
    """Draw the loss at the left, recall of texts that look for their image at the right, as far as they were logged.

    Args:
        curves: `training_curves` of a checkpoint.
        recall: which recall is drawn, a curve for each perspective.
        title: above both, if not empty.

    Raises:
        ValueError: neither loss nor recall was logged.
        ImportError: matplotlib is not installed.

    >>> training_figure(training_curves("runs/emoji/holistic")).savefig("training.png")
    """
    losses = {name: curve for name, curve in curves.items() if name in ("loss", "eval_loss")}
    found = {name: RECALL.fullmatch(name) for name in curves}
    recalls = {
        (match["perspective"] or "all").replace("_", " "): curves[name]
        for name, match in found.items()
        if match and match["metric"] == recall
    }
    panels = [(name, chosen) for name, chosen in (("loss", losses), (recall, recalls)) if chosen]
    if not panels:
        raise ValueError(f"`curves` has {sorted(curves)}; expected `loss`, `eval_loss`, or {recall} among them.")
    figure = new_figure(5.2 * len(panels), 3.4)
    for axes, (name, chosen) in zip(np.atleast_1d(figure.subplots(1, len(panels))), panels, strict=True):
        _draw_curves(axes, chosen)
        axes.set_title(name, color=INK, fontsize=11)
        axes.set_xlabel("step", color=INK, fontsize=9)
    if title:
        figure.suptitle(title, color=INK, fontsize=13, parse_math=False)
    return figure


def _draw_matrix(axes: Any, similarity: np.ndarray, branches: Sequence[str], names: Sequence[str]) -> None:
    low, high = similarity.min(), max(similarity.max(), similarity.min() + 1e-6)
    draw_matrix(axes, similarity, limits=(low, high))
    for column, row in enumerate(similarity.argmax(axis=0)):
        frame_cell(axes, row, column)
    axes.set_xticks(range(len(names)), names, rotation=0 if max(map(len, names)) < 12 else 18)
    axes.set_yticks(range(len(branches)), [name.replace("_", " ") for name in branches])
    axes.xaxis.tick_top()
    quiet_axes(axes)


def _draw_curves(axes: Any, curves: Mapping[str, Curve]) -> None:
    axes.grid(color=INK, alpha=0.25, linewidth=0.6)
    for number, (name, curve) in enumerate(curves.items()):
        steps, values = zip(*curve, strict=True)
        marker = "o" if len(curve) < 12 else None
        axes.plot(steps, values, color=COLOURS[number % len(COLOURS)], linewidth=1.8, marker=marker, label=name)
    legend = axes.legend(frameon=False, fontsize=8, labelcolor=INK, loc="center left", bbox_to_anchor=(1.0, 0.5))
    for text in legend.get_texts():
        text.set_parse_math(False)
    quiet_axes(axes)
