# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""What an index will weigh, and how its vectors are looked up, before anything is encoded."""

import math
from typing import Any

from .manifest import BRANCHES, VECTORS

EXACT_UP_TO = 1_000_000  # images; beyond, reading every vector takes seconds
LOOKUPS = ("auto", "exact", "ivf", "hnsw")
HNSW_NEIGHBOURS = 32  # of each vector; twice as many on the lowest level
_FLOAT, _HALF, _LINK = 4, 2, 4  # bytes
_ROW_BYTES = 80  # of an image id, a stamp and their places, about


def choose_lookup(lookup: str, num_images: int) -> str:
    """`auto` made `exact` or, above a million images, `ivf`.

    Raises:
        ValueError: an unknown one.
    """
    if lookup not in LOOKUPS:
        raise ValueError(f"`lookup` is {lookup!r}. Valid: {', '.join(LOOKUPS)}.")
    if lookup != "auto":
        return lookup
    return "exact" if num_images <= EXACT_UP_TO else "ivf"


def num_lists(num_images: int) -> int:
    """Of an IVF index: 4 sqrt(N), but none so short that k-means could not place it."""
    return max(1, min(round(4 * math.sqrt(num_images)), num_images // 39))


def estimate_bytes(config: Any, num_images: int, *, vectors: str = BRANCHES, lookup: str = "auto") -> int:
    """The size on disk of an index of `num_images` images with a model of this configuration.

    Raises:
        ValueError: an unknown kind of vectors or look-up.

    Example: `estimate_bytes(model.config, 1_000_000) / 1e9`, in gigabytes.
    """
    if vectors not in VECTORS:
        raise ValueError(f"`vectors` is {vectors!r}. Valid: {', '.join(VECTORS)}.")
    lookup, width = choose_lookup(lookup, num_images), config.projection_dim
    num_kinds = config.num_branches if vectors == BRANCHES else 1
    rows = num_images * (_ROW_BYTES + num_kinds * width * _FLOAT)
    if lookup == "exact":
        return rows
    # The fused vector, too, has an approximate index of its own.
    num_indexes = num_kinds + 1 if vectors == BRANCHES and num_kinds > 1 else num_kinds
    if lookup == "ivf":
        each = num_images * (width * _HALF + 8) + num_lists(num_images) * width * _FLOAT
    else:
        each = num_images * (width * _HALF + 2 * HNSW_NEIGHBOURS * _LINK + 12)
    return rows + num_indexes * each
