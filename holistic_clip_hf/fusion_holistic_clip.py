# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""How the similarities of a text to H branches become one score.

`mean`, `weighted` and `routed` are linear in the branches: there the score is one dot product, of a vector that the
image has by itself and a vector that the text has by itself. `max` and `softmax` need all H similarities.

Axes: N images, H branches, T texts, D projection width.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .configuration_holistic_clip import HolisticCLIPConfig
from .matching_holistic_clip import route


class BranchRouter(nn.Module):
    """Tells from a text how much each branch should answer: a softmax over H of a linear map of its vector.

    The vector is made of length sqrt(D), entries of about 1, which is what a linear layer learns from at the learning
    rate of the others.

    Averaging unlike perspectives hurts, since all branches but the right one answer with noise. The router is trained
    with the towers where `config.fused_weight` is above zero, or fitted once they are trained
    (`evaluation.fusion_fitting`); before that, all branches count alike.
    """

    def __init__(self, width: int, num_branches: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(num_branches, width))
        self.bias = nn.Parameter(torch.zeros(num_branches))

    def forward(self, text_embeds: Tensor) -> Tensor:
        """(..., D) to (..., H), of sum one."""
        return F.linear(text_embeds * text_embeds.shape[-1] ** 0.5, self.weight, self.bias).softmax(dim=-1)


class BranchFusion(nn.Module):
    """The fusion that `config.fusion` names."""

    def __init__(self, config: HolisticCLIPConfig) -> None:
        super().__init__()
        self.config = config
        self.router = None
        if self.is_routed:
            self.router = BranchRouter(config.projection_dim, config.num_branches)

    @property
    def is_routed(self) -> bool:
        return self.config.fusion == "routed"

    @property
    def is_linear(self) -> bool:
        """Whether the score is a dot product of `image_vectors` and `text_vectors`."""
        return self.config.fusion in ("mean", "weighted", "routed")

    def mean(self, branch_embeds: Tensor) -> Tensor:
        """(N, H, ...) to (N, ...): the mean over branches, weighted where the configuration has weights."""
        if self.config.branch_weights is None:
            return branch_embeds.mean(dim=1)
        weights = branch_embeds.new_tensor(self.config.branch_weights)
        return torch.einsum("nh...,h->n...", branch_embeds, weights / weights.sum())

    def image_vectors(self, branch_embeds: Tensor) -> Tensor:
        """(N, H, D) to (N, D), or (N, H * D) where texts are routed.

        Not of unit length: its dot product with a text's vector is the fused similarity. `max` and `softmax` have no
        vector of their own and take the mean here.
        """
        return branch_embeds.flatten(1) if self.is_routed else self.mean(branch_embeds)

    def text_vectors(self, text_embeds: Tensor) -> Tensor:
        """(T, D) of unit length to the same, or to (T, H * D): the text once for each branch, by its share."""
        routing = self.routing(text_embeds)
        return text_embeds if routing is None else route(text_embeds, routing)

    def routing(self, text_embeds: Tensor) -> Tensor | None:
        """(..., D) of unit length to (..., H), how much each branch answers; `None` where texts are not routed."""
        if not self.is_routed:
            return None
        if self.router is None:
            raise ValueError(
                "`fusion` was set to 'routed' on a model that has no router. Load the checkpoint with "
                "`from_pretrained(..., fusion='routed')`, then fit it (`holistic_clip_hf.evaluation.fusion_fitting`)."
            )
        return self.router(text_embeds)

    def similarity(self, branch_embeds: Tensor, text_embeds: Tensor, logit_scale: Tensor) -> Tensor:
        """(N, H, D) and (T, D) to (N, T): cosine similarity over branches, fused."""
        if self.is_linear:
            return self.image_vectors(branch_embeds) @ self.text_vectors(text_embeds).T
        similarity = torch.einsum("nhd,td->nht", branch_embeds, text_embeds)
        if self.config.fusion == "max":
            return similarity.amax(dim=1)
        scale = logit_scale.to(similarity) if self.config.fusion_scale is None else self.config.fusion_scale
        return ((scale * similarity).softmax(dim=1) * similarity).sum(dim=1)


__all__ = ["BranchFusion", "BranchRouter"]
