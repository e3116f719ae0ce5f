# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Checkpoints of other people by their model type."""

from os import PathLike
from typing import Any

from ..modeling_holistic_clip import HolisticCLIPModel
from .assembly import type_of
from .clip import from_clip
from .siglip import from_siglip

CONVERTERS = {"clip": from_clip, "metaclip_2": from_clip, "siglip": from_siglip, "siglip2": from_siglip}


def from_checkpoint(source: str | PathLike, **options: Any) -> HolisticCLIPModel:
    """Return a checkpoint of CLIP, MetaCLIP 2 or SigLIP as a Holistic CLIP.

    Args:
        source: Folder of the checkpoint, or its name on the Hub.
        options: Options of `from_clip` or `from_siglip`.

    Raises:
        ValueError: a checkpoint of another kind, and what these raise.
    """
    return CONVERTERS.get(type_of(source), from_clip)(source, **options)  # which refuses what it does not know
