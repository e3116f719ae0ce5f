# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Initialization from other people's weights, a file for each family of them.

Branches start as copies of what the checkpoint has one of: a class token, a second MLP linear, a probe. Missing and
unexpected weights raise an error that lists them. Text positions are stretched as in Long-CLIP.
"""

from .backbone import from_backbone
from .checkpoint import from_checkpoint
from .clip import from_clip
from .holistic_clip import from_holistic_clip
from .open_clip import from_official, from_open_clip
from .positions import stretch_positions, stretch_text_positions
from .processors import load_image_processor, make_processor, saved_caption_form
from .siglip import from_siglip
from .tips import from_tips

__all__ = [
    "from_backbone",
    "from_checkpoint",
    "from_clip",
    "from_holistic_clip",
    "from_official",
    "from_open_clip",
    "from_siglip",
    "from_tips",
    "load_image_processor",
    "make_processor",
    "saved_caption_form",
    "stretch_positions",
    "stretch_text_positions",
]
