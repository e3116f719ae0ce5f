"""Random weights of a size at which attention is far from uniform and no two branches are alike."""

import torch
from torch import nn


def fill(model: nn.Module, seed: int, spread: float) -> None:
    """Draw all weights, norms' gains near 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            is_gain = "norm" in name and name.endswith("weight")
            parameter.copy_(1 + 0.2 * noise if is_gain else spread * noise)
