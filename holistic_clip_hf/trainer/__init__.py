# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Training: `transformers.Trainer` with the multi-to-multi loss, global negatives and retrieval recall."""

from .arguments import HolisticCLIPTrainingArguments
from .trainer import HolisticCLIPTrainer

__all__ = ["HolisticCLIPTrainer", "HolisticCLIPTrainingArguments"]
