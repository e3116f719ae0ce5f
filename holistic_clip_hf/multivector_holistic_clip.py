# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Last module of a multi-vector encoder of sentence-transformers, in which an image has one vector for each branch.

It travels with an encoder that was saved, and imports nothing of sentence-transformers, which asks of a module no more
than what stands here.
"""

import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn


class BranchVectors(nn.Module):
    """Vectors in the form of tokens, all of which count: (N, H, D) of images, (T, 1, D) of texts."""

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Give texts an axis of tokens, and every vector a place in the mask."""
        vectors = features["token_embeddings"]
        features["token_embeddings"] = vectors = vectors[:, None] if vectors.ndim == 2 else vectors
        features["attention_mask"] = torch.ones(vectors.shape[:2], dtype=torch.bool, device=vectors.device)
        return features

    def save(self, output_path: str, *args: Any, **kwargs: Any) -> None:
        """Put this file into the folder of the whole encoder, where it is looked for; there are no weights."""
        shutil.copyfile(__file__, Path(output_path).parent / Path(__file__).name)

    @classmethod
    def load(cls, model_name_or_path: str, **kwargs: Any) -> "BranchVectors":
        """Return a module; no file is read."""
        return cls()
