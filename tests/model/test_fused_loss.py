"""The one-to-many term on the fused score, against plain loops."""

from typing import Any

import pytest
import torch
from test_loss import embeds, gradients, ragged
from test_streaming import Operations
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import reference
from reference import loss_of


@pytest.mark.parametrize("duplicate_captions", ["positive", "ignore", "negative"])
@pytest.mark.parametrize("fusion", ["centroid", "mean", "weighted", "max", "softmax"])
def test_the_fused_term_is_one_to_many_training_of_the_served_vector(fusion: str, duplicate_captions: str) -> None:
    """Of `max` and `softmax`, which have no vector, it trains the centroid."""
    branches, texts, scale = embeds(3, 4)
    mask, ids = ragged(5, 4)
    options: dict[str, Any] = {"caption_mask": mask, "caption_ids": ids, "duplicate_captions": duplicate_captions}
    given = [0.5, 0.0, 1.5] if fusion == "weighted" else None
    options |= {"fusion": fusion, "branch_weights": given}
    result = loss_of(branches, texts, scale, fused_weight=0.6, diversity_weight=0.0, **options)
    shares = [0.25, 0.0, 0.75] if given else [1 / 3] * 3
    mean = [
        [sum(share * branch[d] for share, branch in zip(shares, image, strict=True)) for d in range(branches.shape[2])]
        for image in branches
    ]
    length = [sum(value**2 for value in vector) ** 0.5 for vector in mean]
    if fusion in ("mean", "weighted"):
        length = [torch.ones(())] * len(mean)
    one = [[[value / norm for value in vector]] for vector, norm in zip(mean, length, strict=True)]
    expected = reference.contrastive(one, texts, scale, [[0] * 4] * 5, mask, ids, duplicate_captions)
    torch.testing.assert_close(result.fused, expected, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(result.total, result.contrastive + 0.6 * result.fused)
    found, wanted = (gradients(each, branches, texts, scale) for each in (result.fused, expected))
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10)
    without = loss_of(branches, texts, scale, diversity_weight=0.0, **options)
    assert without.fused == 0 and torch.equal(without.total, result.contrastive)


@pytest.mark.parametrize("duplicate_captions", ["positive", "ignore", "negative"])
def test_routed_captions_are_trained_on_all_branches_by_their_shares(duplicate_captions: str) -> None:
    """One branch of all of them side by side, and captions of as many numbers."""
    branches, texts, scale = embeds(3, 4)
    mask, ids = ragged(5, 4)
    routing = torch.rand(5, 4, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    routing = (routing / routing.sum(dim=-1, keepdim=True)).requires_grad_()
    options: dict[str, Any] = {"caption_mask": mask, "caption_ids": ids, "duplicate_captions": duplicate_captions}
    result = loss_of(branches, texts, scale, fused_weight=0.6, routing=routing, **options)
    images = torch.stack([torch.cat(list(image)) for image in branches])[:, None]
    captions = torch.stack(
        [
            torch.stack([torch.cat([routing[n, m, h] * texts[n, m] for h in range(3)]) for m in range(4)])
            for n in range(5)
        ]
    )
    expected = reference.contrastive(images, captions, scale, [[0] * 4] * 5, mask, ids, duplicate_captions)
    torch.testing.assert_close(result.fused, expected, rtol=1e-9, atol=1e-10)
    given = (branches, texts, scale, routing)
    found, wanted = (gradients(each, *given) for each in (result.fused, expected))
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("objective", ["softmax", "sigmoid"])
def test_routed_captions_are_made_one_slot_at_a_time(objective: str) -> None:
    """Of all slots they are H times as many numbers as the captions themselves."""
    branches, texts, scale = embeds(3, 4, images=40, width=6)
    routing = torch.full((40, 4, 3), 1 / 3, dtype=torch.float64).requires_grad_()
    bias = torch.tensor(-10.0, dtype=torch.float64) if objective == "sigmoid" else None
    about: dict[str, Any] = {"routing": routing, "logit_bias": bias, "objective": objective}
    with Operations() as ran:
        loss_of(branches, texts, scale, fused_weight=1.0, chunk_size=8, **about).total.backward()
    assert routing.grad is not None and routing.grad.any()
    assert ran.largest == texts.numel(), "nothing is larger than the captions"


class Large(TorchDispatchMode):
    """Counts results of at least so many numbers."""

    def __init__(self, numbers: int) -> None:
        super().__init__()
        self.numbers, self.count = numbers, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for part in result if isinstance(result, (tuple, list)) else [result]:
            self.count += isinstance(part, Tensor) and part.numel() >= self.numbers
        return result


def test_routed_captions_need_no_more_large_tensors_than_the_mean() -> None:
    """Of one slot, captions once for each branch are as large as all branches."""
    branches, texts, scale = embeds(3, 1, images=40, width=6)
    routing = torch.full((40, 1, 3), 1 / 3, dtype=torch.float64).requires_grad_()
    counts = []
    for given in (routing, None):
        with Large(branches.numel()) as ran:
            loss_of(branches, texts, scale, fused_weight=1.0, chunk_size=8, routing=given).total.backward()
        counts.append(ran.count)
    assert 0 < counts[0] <= counts[1]


def test_routing_of_another_shape_is_refused() -> None:
    branches, texts, scale = embeds(3, 4)
    with pytest.raises(ValueError, match=r"`routing` must be \(N, M, H\) = \(5, 4, 3\); got \(5, 3, 4\)"):
        loss_of(branches, texts, scale, fused_weight=1.0, routing=torch.ones(5, 3, 4))
