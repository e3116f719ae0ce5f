# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""The multi-to-multi contrastive loss: H branch vectors of each image against M captions of each image.

- Pure functions of tensors: no model, no process group, no training step. Gathering happens at the edge.
- Negatives come only from the *same slot* of other images, as in the paper.
- A missing caption is neither query nor candidate; images with the same caption are not each other's negatives.

Axes: N images in the batch, G images after gathering over ranks (G = N without), H branches, M caption slots,
D projection width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

FREE = -1


@dataclass
class CaptionBatch:
    """What the rows of one rank, or of all, bring to the loss.

    Args:
        branch_embeds: (N, H, D), unit length.
        text_embeds: (N, M, D), unit length; rows of missing captions are ignored, whatever they hold.
        caption_mask: (N, M) bool, true where there is a caption.
        caption_ids: (N, M) int64, equal exactly where two captions are the same text.
    """

    branch_embeds: Tensor
    text_embeds: Tensor
    caption_mask: Tensor
    caption_ids: Tensor


@dataclass
class MultiToMultiLoss:
    """`total = contrastive + diversity_weight * diversity`; `assignment` (N, M): the branch that each caption met."""

    total: Tensor
    contrastive: Tensor
    diversity: Tensor
    assignment: Tensor


def multi_to_multi_loss(
    branch_embeds: Tensor,
    text_embeds: Tensor,
    logit_scale: Tensor,
    *,
    matching: str = "aligned",
    branch_of_slot: list[int] | None = None,
    caption_mask: Tensor | None = None,
    caption_ids: Tensor | None = None,
    duplicate_captions: str = "positive",
    diversity: str = "pairwise",
    diversity_weight: float = 1.0,
    diversity_threshold: float = 0.7,
    gathered: CaptionBatch | None = None,
    offset: int = 0,
) -> MultiToMultiLoss:
    """Match, contrast, penalise (paper, section on multi-to-multi contrastive learning).

    Per slot m, in both directions, the cross entropy of the true pair against the other images of the batch in the
    same slot; the mean over present captions; the mean of both directions. With H = M = 1 this is CLIP's loss, with
    H = 1 the one-to-many baseline.

    Args:
        branch_embeds: (N, H, D), unit length.
        text_embeds: (N, M, D), unit length.
        logit_scale: the inverse temperature itself (exponentiated), a scalar.
        matching: `"aligned"` holds slot m against branch `branch_of_slot[m]`; `"free"` frees all slots.
        branch_of_slot: M branch indices, -1 for a slot that is free. Default: slot m to branch m for m < H, the rest
            free. A free slot takes, for each image, the branch that scores the true pair highest.
        caption_mask: (N, M) bool. Default: all captions are there.
        caption_ids: (N, M) int64. Default: all captions differ.
        duplicate_captions: images whose caption in a slot has the same id are to each other `"positive"` (the target
            is shared between them), `"ignore"` (left out) or `"negative"` (the paper).
        diversity: `"pairwise"` penalises each pair of branches whose mean cosine is above the threshold;
            `"official"` only the mean over all pairs, which two collapsed branches of five do not move.
        diversity_weight, diversity_threshold: 1.0 and 0.7 in the paper's released code.
        gathered: the rows of all ranks (G), in rank order. With them, the mean over ranks of this loss, and of its
            gradients, is the loss of one process that has the whole batch. Default: the rows given above.
        offset: where this rank's rows begin in `gathered`.

    Raises:
        ValueError: shapes that do not fit, an unknown option, or no caption at all.

    Example:

    >>> branches, texts = F.normalize(torch.randn(8, 3, 16), dim=-1), F.normalize(torch.randn(8, 3, 16), dim=-1)
    >>> multi_to_multi_loss(branches, texts, torch.tensor(1 / 0.07)).total.shape
    torch.Size([])
    """
    local = _caption_batch(branch_embeds, text_embeds, caption_mask, caption_ids, offset)
    everyone = local
    if gathered is not None:
        rows = gathered
        everyone = _caption_batch(rows.branch_embeds, rows.text_embeds, rows.caption_mask, rows.caption_ids, 0)
    num_branches, num_slots = branch_embeds.shape[1], text_embeds.shape[1]
    slots = resolve_matching(matching, branch_of_slot, num_branches, num_slots)
    assignment = assign_branches(local.branch_embeds, local.text_embeds, slots)
    contrastive = _contrastive(local, everyone, assignment, slots, logit_scale, duplicate_captions, offset)
    penalty = diversity_penalty(everyone.branch_embeds, diversity_threshold, form=diversity)
    return MultiToMultiLoss(contrastive + diversity_weight * penalty, contrastive, penalty, assignment)


def _caption_batch(
    branch_embeds: Tensor, text_embeds: Tensor, mask: Tensor | None, ids: Tensor | None, offset: int
) -> CaptionBatch:
    if branch_embeds.ndim != 3 or text_embeds.ndim != 3 or branch_embeds.shape[::2] != text_embeds.shape[::2]:
        raise ValueError(
            f"`branch_embeds` must be (N, H, D) and `text_embeds` (N, M, D); got {tuple(branch_embeds.shape)} and "
            f"{tuple(text_embeds.shape)}."
        )
    rows, slots = text_embeds.shape[:2]
    if mask is None:
        mask = torch.ones(rows, slots, dtype=torch.bool, device=text_embeds.device)
    if ids is None:
        ids = (offset + torch.arange(rows, device=text_embeds.device))[:, None].expand(rows, slots)
    if mask.shape != (rows, slots) or ids.shape != (rows, slots):
        raise ValueError(
            f"`caption_mask` and `caption_ids` must be (N, M) = {(rows, slots)}; got {tuple(mask.shape)} and "
            f"{tuple(ids.shape)}."
        )
    mask = mask.bool()
    # Not even NaN may reach a gradient from a row that is not there.
    return CaptionBatch(branch_embeds, torch.where(mask[..., None], text_embeds, 0.0), mask, ids)


def resolve_matching(matching: str, branch_of_slot: list[int] | None, num_branches: int, num_slots: int) -> list[int]:
    """The branch of each slot, -1 for free: M numbers."""
    if matching not in ("aligned", "free"):
        raise ValueError(f"`matching` is {matching!r}. Valid: 'aligned', 'free'.")
    if matching == "free":
        return [FREE] * num_slots
    if branch_of_slot is None:
        return [slot if slot < num_branches else FREE for slot in range(num_slots)]
    if len(branch_of_slot) != num_slots or not all(FREE <= branch < num_branches for branch in branch_of_slot):
        raise ValueError(
            f"`branch_of_slot` needs {num_slots} numbers, each -1 (free) or a branch below {num_branches}; got "
            f"{list(branch_of_slot)}."
        )
    return list(branch_of_slot)


@torch.no_grad()
def assign_branches(branch_embeds: Tensor, text_embeds: Tensor, slots: list[int]) -> Tensor:
    """(N, M) int64: the branch that each caption is held against; for a free slot the one nearest to the caption."""
    fixed = torch.tensor(slots, device=branch_embeds.device).expand(text_embeds.shape[:2])
    if FREE not in slots:
        return fixed
    nearest = torch.einsum("nhd,nmd->nmh", branch_embeds, text_embeds).argmax(dim=-1)
    return torch.where(fixed == FREE, nearest, fixed)


def _contrastive(
    local: CaptionBatch,
    everyone: CaptionBatch,
    assignment: Tensor,
    slots: list[int],
    logit_scale: Tensor,
    duplicate_captions: str,
    offset: int,
) -> Tensor:
    num_captions = everyone.caption_mask.sum()
    if num_captions == 0:
        raise ValueError("The batch has no caption in any slot. Check the corpus against the slots trained on.")
    # (N, M, D): the branch of each image that meets its own caption
    met = local.branch_embeds.gather(1, assignment[..., None].expand(-1, -1, local.branch_embeds.shape[-1]))
    image_to_text = logit_scale * torch.einsum("nmd,gmd->mng", met, everyone.text_embeds)
    text_to_image = logit_scale * _text_to_image_similarity(local, everyone, assignment, slots)
    targets, candidates = _targets(local, everyone, duplicate_captions, offset)
    rows = sum(_cross_entropy(logits, targets, candidates) for logits in (image_to_text, text_to_image)) / 2  # (M, N)
    # Every rank's loss is scaled so that the mean over ranks (what DDP takes of gradients) is the mean over captions.
    num_ranks = everyone.caption_mask.shape[0] / local.caption_mask.shape[0]
    return torch.where(local.caption_mask.T, rows, 0.0).sum() * num_ranks / num_captions


def _text_to_image_similarity(
    local: CaptionBatch, everyone: CaptionBatch, assignment: Tensor, slots: list[int]
) -> Tensor:
    """(M, N, G): each local caption against every image, through the branch that the caption was assigned."""
    per_slot = []
    for slot, branch in enumerate(slots):
        texts = local.text_embeds[:, slot]
        if branch != FREE:
            per_slot.append(texts @ everyone.branch_embeds[:, branch].T)
            continue
        every_branch = torch.einsum("nd,ghd->ngh", texts, everyone.branch_embeds)
        chosen = assignment[:, slot, None, None].expand(-1, every_branch.shape[1], 1)
        per_slot.append(every_branch.gather(2, chosen).squeeze(2))
    return torch.stack(per_slot)


def _targets(
    local: CaptionBatch, everyone: CaptionBatch, duplicate_captions: str, offset: int
) -> tuple[Tensor, Tensor]:
    """(M, N, G) each: the target distribution of every row, and which columns take part in it."""
    rows, columns = local.caption_mask.shape[0], everyone.caption_mask.shape[0]
    own = torch.arange(columns, device=local.caption_mask.device) == (
        offset + torch.arange(rows, device=local.caption_mask.device)[:, None]
    )
    candidates = everyone.caption_mask.T[:, None, :].expand(-1, rows, -1)
    same = (local.caption_ids.T[:, :, None] == everyone.caption_ids.T[:, None, :]) & candidates
    if duplicate_captions == "positive":
        positives = same | own
    elif duplicate_captions == "ignore":
        positives, candidates = own.expand_as(same), candidates & (~same | own)
    elif duplicate_captions == "negative":
        positives = own.expand_as(same)
    else:
        raise ValueError(f"`duplicate_captions` is {duplicate_captions!r}. Valid: 'positive', 'ignore', 'negative'.")
    return positives / positives.sum(dim=-1, keepdim=True), candidates | own


def _cross_entropy(logits: Tensor, targets: Tensor, candidates: Tensor) -> Tensor:
    """(M, N) from (M, N, G): in float32 or better, since half precision cannot tell near logits apart."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    log_probabilities = logits.masked_fill(~candidates, float("-inf")).log_softmax(dim=-1)
    return -torch.where(targets > 0, targets * log_probabilities, 0.0).sum(dim=-1)


def diversity_penalty(branch_embeds: Tensor, threshold: float, *, form: str = "pairwise") -> Tensor:
    """Scalar hinge on the cosine between branches of the same image, averaged over the batch.

    Args:
        branch_embeds: (N, H, D), unit length.
        threshold: cosine above which branches count as saying the same.
        form: `"pairwise"`: the hinge of each pair's mean cosine, averaged over pairs; `"official"`: the hinge of the
            mean over all pairs (the released code).
    """
    if form not in ("pairwise", "official"):
        raise ValueError(f"`diversity` is {form!r}. Valid: 'pairwise', 'official'.")
    num_branches = branch_embeds.shape[1]
    if num_branches == 1:
        return branch_embeds.new_zeros((), dtype=torch.float32)
    branch_embeds = branch_embeds.to(torch.promote_types(branch_embeds.dtype, torch.float32))
    cosines = torch.einsum("nhd,nkd->hk", branch_embeds, branch_embeds) / branch_embeds.shape[0]
    above, other = torch.triu_indices(num_branches, num_branches, offset=1, device=branch_embeds.device)
    pairs = cosines[above, other]
    return F.relu(pairs - threshold).mean() if form == "pairwise" else F.relu(pairs.mean() - threshold)


__all__ = ["CaptionBatch", "MultiToMultiLoss", "assign_branches", "diversity_penalty", "multi_to_multi_loss"]
