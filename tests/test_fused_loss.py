"""The one-to-many term on the mean of the branches, against plain loops."""

from typing import Any

import pytest
import torch

import reference
from holistic_clip_hf import multi_to_multi_loss
from test_loss import embeds, gradients, ragged


@pytest.mark.parametrize("duplicate_captions", ["positive", "ignore", "negative"])
def test_the_fused_term_is_one_to_many_training_of_the_mean(duplicate_captions: str) -> None:
    branches, texts, scale = embeds(3, 4)
    mask, ids = ragged(5, 4)
    options: dict[str, Any] = {"caption_mask": mask, "caption_ids": ids, "duplicate_captions": duplicate_captions}
    result = multi_to_multi_loss(branches, texts, scale, fused_weight=0.6, diversity_weight=0.0, **options)
    mean = [[sum(branch[d] for branch in image) / 3 for d in range(branches.shape[2])] for image in branches]
    length = [sum(value**2 for value in vector) ** 0.5 for vector in mean]
    one = [[[value / norm for value in vector]] for vector, norm in zip(mean, length, strict=True)]
    expected = reference.contrastive(one, texts, scale, [[0] * 4] * 5, mask, ids, duplicate_captions)
    torch.testing.assert_close(result.fused, expected, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(result.total, result.contrastive + 0.6 * result.fused)
    found, wanted = (gradients(each, branches, texts, scale) for each in (result.fused, expected))
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10)
    without = multi_to_multi_loss(branches, texts, scale, diversity_weight=0.0, **options)
    assert without.fused == 0 and torch.equal(without.total, result.contrastive)
