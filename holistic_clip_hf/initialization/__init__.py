# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Other people's weights to ours: transformers' CLIP, open_clip's and OpenAI's, and the paper's released code.

- A CLIP of one branch becomes one of H: branch 0 is CLIP's own, the others start as its copies.
- Everything is accounted for. A source parameter without a place, or a place without a source parameter, is an error;
  what only `config_overrides` make new or leave out is named in one warning.
- Models come out as from `from_pretrained`: on the CPU, in float32, in evaluation mode. They share no memory with
  what they were made from, and the global random state is as before.
"""

from .clip import from_clip
from .open_clip import from_official, from_open_clip
from .positions import stretch_positions, stretch_text_positions

__all__ = ["from_clip", "from_official", "from_open_clip", "stretch_positions", "stretch_text_positions"]
