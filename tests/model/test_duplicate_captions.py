"""Images with the same caption: where `duplicate_captions` makes a difference, and where it cannot.

With softmax, each query is pulled to the mean of its positives and pushed from all candidates. Over a group of equal
captions these means add up to what each caption's own logit adds up to, so that "positive" is "negative" to the last
digit. That ends where captions of a group are not asked alike: where each may meet another branch, and with sigmoid.
"""

from typing import Any

import pytest
import torch
from test_loss import gradients, ragged, unit
from torch import Tensor

from holistic_clip_hf.loss_holistic_clip import CaptionBatch, MultiToMultiLoss
from reference import loss_of

IMAGES, BRANCHES, SLOTS, WIDTH = 7, 3, 4, 5


class Batch:
    """Seven images of which captions are equal, as vectors and ids, in some slots of some."""

    def __init__(self) -> None:
        self.mask, self.ids = ragged(IMAGES, SLOTS)
        self.branches = unit(IMAGES, BRANCHES, WIDTH).requires_grad_()
        self.distinct = unit(10, WIDTH, seed=1).requires_grad_()  # the vector of each id
        self.scale = torch.tensor(7.0, dtype=torch.float64).requires_grad_()
        self.bias = torch.tensor(-2.0, dtype=torch.float64).requires_grad_()
        shares = torch.rand(10, BRANCHES, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
        self.routing = (shares / shares.sum(dim=1, keepdim=True)).requires_grad_()

    def loss(self, duplicate_captions: str, **options: Any) -> MultiToMultiLoss:
        bias = self.bias if options.get("objective") == "sigmoid" else None
        routing = self.routing[self.ids] if options.pop("is_routed", False) else None
        about: dict[str, Any] = {"caption_mask": self.mask, "caption_ids": self.ids, "logit_bias": bias}
        about |= {"duplicate_captions": duplicate_captions, "fused_weight": 0.5, "routing": routing}
        return loss_of(self.branches, self.distinct[self.ids], self.scale, **(about | options))

    def gradients(self, loss: Tensor) -> list[Tensor]:
        return gradients(loss, self.branches, self.distinct, self.scale)


ALIKE: dict[str, dict[str, Any]] = {
    "aligned": {},
    "reordered": {"branch_of_slot": [2, 0, 1, 1]},
    "without fused term": {"fused_weight": 0.0},
    "mean": {"fusion": "mean"},
    "weighted": {"fusion": "weighted", "branch_weights": [0.5, 0.0, 1.5]},
    "routed": {"is_routed": True},
    "in chunks": {"chunk_size": 2},
}
DIFFERENT: dict[str, dict[str, Any]] = {
    "free": {"matching": "free"},
    "balanced": {"matching": "balanced"},
    "a free slot": {"branch_of_slot": [0, 1, 2, -1]},
    "sigmoid": {"objective": "sigmoid"},
}


@pytest.mark.parametrize("options", ALIKE.values(), ids=ALIKE)
def test_with_softmax_and_aligned_matching_a_shared_target_is_a_negative(options: dict[str, Any]) -> None:
    """Loss and gradients; "ignore" alone is another loss."""
    if "branch_of_slot" not in options:
        options = {**options, "branch_of_slot": [0, 1, 2, 0]}
    batch = Batch()
    positive, negative, ignore = (batch.loss(name, **options) for name in ("positive", "negative", "ignore"))
    torch.testing.assert_close(positive.total, negative.total, rtol=1e-14, atol=1e-14)
    found, expected = batch.gradients(positive.total), batch.gradients(negative.total)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)
    assert all(gradient.abs().max() > 1e-3 for gradient in found)
    assert ignore.total < negative.total - 1e-2, "fewer candidates"


@pytest.mark.parametrize("options", DIFFERENT.values(), ids=DIFFERENT)
def test_elsewhere_the_three_are_three_losses(options: dict[str, Any]) -> None:
    batch = Batch()
    losses = [batch.loss(name, **options) for name in ("positive", "negative", "ignore")]
    for place, one in enumerate(losses):
        for other in losses[place + 1 :]:
            assert (one.contrastive - other.contrastive).abs() > 1e-3


def test_captions_of_another_vector_are_told_apart() -> None:
    """Ids may be equal where vectors are not, such as those of two texts that were said to be one."""
    batch = Batch()
    texts = unit(IMAGES, SLOTS, WIDTH, seed=2)
    about: dict[str, Any] = {"caption_mask": batch.mask, "caption_ids": batch.ids, "branch_of_slot": [0, 1, 2, 0]}
    positive, negative = (
        loss_of(batch.branches, texts, batch.scale, duplicate_captions=name, **about)
        for name in ("positive", "negative")
    )
    assert (positive.total - negative.total).abs() > 1e-3


def test_a_shared_target_is_a_negative_over_ranks_too() -> None:
    """The captions of a group may be on different ranks, whose losses then differ, and whose mean does not."""
    batch, means = Batch(), []
    for name in ("positive", "negative"):
        texts, parts = batch.distinct[batch.ids], []
        for rank in range(IMAGES):
            mine = slice(rank, rank + 1)
            everyone = CaptionBatch(batch.branches * 1, texts * 1, batch.mask, batch.ids)
            about: dict[str, Any] = {"caption_mask": batch.mask[mine], "caption_ids": batch.ids[mine]}
            about |= {"branch_of_slot": [0, 1, 2, 0], "gathered": everyone, "offset": rank}
            rows = batch.branches[mine], texts[mine]
            parts.append(loss_of(*rows, batch.scale, duplicate_captions=name, fused_weight=0.5, **about).total)
        means.append(sum(parts) / IMAGES)
    positive, negative = means
    torch.testing.assert_close(positive, negative, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(batch.gradients(positive), batch.gradients(negative), rtol=1e-12, atol=1e-13)
