# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Checkpoints in the forms of other programs, verified after they are written."""

from .stock import to_clip, to_siglip
from .stock_folder import export_stock

__all__ = ["export_stock", "to_clip", "to_siglip"]
