# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Pictures of what a model sees and finds, and the numbers behind them."""

from ..words import words_of
from .attention import (
    best_branches,
    branch_attention,
    branch_relevance,
    part_matching,
    patch_agreement,
    patch_grid,
)
from .figures import matching_figure, training_curves, training_figure
from .maps import crop_as_seen, map_over_image, map_sheet
from .result_grid import ResultRow, branch_grid, result_grid

__all__ = [
    "ResultRow",
    "best_branches",
    "branch_attention",
    "branch_grid",
    "branch_relevance",
    "crop_as_seen",
    "map_over_image",
    "map_sheet",
    "matching_figure",
    "part_matching",
    "patch_agreement",
    "patch_grid",
    "result_grid",
    "training_curves",
    "training_figure",
    "words_of",
]
