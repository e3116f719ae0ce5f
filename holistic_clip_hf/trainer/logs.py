# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""What the loss consists of, averaged over steps and ranks: ranks log what one process with the whole batch would.

Axes: N images of this rank, H branches, M caption slots.
"""

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from ..distributed import sum_over_ranks
from ..loss_holistic_clip import LOSS_PARTS, MultiToMultiLoss
from ..matching_holistic_clip import branch_shares

logger = logging.getLogger(__name__)

# A slot of which so many images have no caption has one on fewer than 0.3 % of images, with 95 % confidence: the "rule
# of three" (Hanley and Lippman-Hand, 1983, https://doi.org/10.1001/jama.1983.03330370053031).
ENOUGH_IMAGES = 1000


class LossLog:
    """Collects the parts of the loss between two logs.

    Args:
        branches: H names, or none where captions do not choose their branch.
        slots: M names.
    """

    def __init__(self, branches: Sequence[str], slots: Sequence[str]) -> None:
        self.branches = list(branches)
        self.slots = list(slots)
        self.steps: list[Tensor] = []
        self.captions = torch.zeros(len(self.slots), dtype=torch.long)
        self.images = 0

    def note(self, loss: MultiToMultiLoss, mask: Tensor) -> None:
        """Take up a step of this rank; `mask` (N, M) is the batch's `caption_mask`. Nothing waits for the device."""
        terms = [getattr(loss, name).detach().float() for name in LOSS_PARTS]
        parts = torch.stack([*terms, mask.sum().float()])
        if self.branches:
            parts = torch.cat([parts, branch_shares(loss.assignment, mask, len(self.branches)) * mask.sum()])
        self.steps.append(parts)
        if self.slots:
            self.captions = self.captions.to(mask.device) + mask.sum(dim=0)
            self.images += len(mask)

    def take(self) -> dict[str, float]:
        """The means of all ranks since the last call; nothing where nothing was noted. To be called on all ranks."""
        if not self.steps:
            return {}
        steps = self.steps[0].new_tensor([len(self.steps)])
        summed = sum_over_ranks(torch.cat([steps, torch.stack(self.steps).sum(dim=0)]))
        self.steps.clear()
        num_steps, *terms = summed[: 1 + len(LOSS_PARTS)].tolist()
        captions, *met = summed[1 + len(LOSS_PARTS) :].tolist()
        shares = {name: count / max(1, captions) for name, count in zip(self.branches, met, strict=True)}
        parts = {name: term / num_steps for name, term in zip(LOSS_PARTS, terms, strict=True)}
        return parts | {f"share_of_{name}": share for name, share in shares.items()}

    def warn_of_empty_slots(self) -> None:
        """Once, if a slot had no caption at all: a stream cannot be asked beforehand what it holds."""
        if self.images < ENOUGH_IMAGES or not self.slots:
            return
        empty = [name for name, count in zip(self.slots, self.captions.tolist(), strict=True) if count == 0]
        self.slots = []
        if empty:
            logger.warning(
                "None of the first %d images of this process has a caption for the slots %s: they train nothing. "
                "Compare `slots` with the perspectives of the corpus.",
                self.images,
                empty,
            )
