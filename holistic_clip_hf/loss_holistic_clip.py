# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""The multi-to-multi contrastive loss: H branch vectors of each image against M captions of each image.

- Pure functions of tensors: no model, no process group, no training step. Gathering happens at the edge.
- Negatives come only from the *same slot* of other images, as in the paper.
- The logits themselves, and their gradients: `streaming_holistic_clip`. Which branch: `matching_holistic_clip`.
- A missing caption is neither query nor candidate; images with the same caption are not each other's negatives.

Axes: N images in the batch, G images after gathering over ranks (G = N without), H branches, M caption slots,
D projection width.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional as F

from .matching_holistic_clip import assign_branches, resolve_matching, route
from .streaming_holistic_clip import Contest, Objective, Side, sum_over_queries

LOSS_PARTS = ("contrastive", "fused", "diversity")
BRANCHES, TEXTS = 0, 1  # places among the tensors of a rank


@dataclass
class CaptionBatch:
    """What the rows of one rank, or of all, bring to the loss.

    Args:
        branch_embeds: (N, H, D), unit length.
        text_embeds: (N, M, D), unit length; rows of missing captions are ignored, whatever they hold.
        caption_mask: (N, M) bool, true where there is a caption.
        caption_ids: (N, M) int64, equal exactly where two captions are the same text.
        routing: (N, M, H), how much each branch answers for each caption; `None` where all count alike.
    """

    branch_embeds: Tensor
    text_embeds: Tensor
    caption_mask: Tensor
    caption_ids: Tensor
    routing: Tensor | None = None


@dataclass
class MultiToMultiLoss:
    """`total = contrastive + fused_weight * fused + diversity_weight * diversity`.

    `assignment` (N, M) is the branch that each caption met.
    """

    total: Tensor
    contrastive: Tensor
    fused: Tensor
    diversity: Tensor
    assignment: Tensor


def multi_to_multi_loss(
    branch_embeds: Tensor,
    text_embeds: Tensor,
    logit_scale: Tensor,
    *,
    objective: str = "softmax",
    logit_bias: Tensor | None = None,
    matching: str = "aligned",
    branch_of_slot: list[int] | None = None,
    caption_mask: Tensor | None = None,
    caption_ids: Tensor | None = None,
    duplicate_captions: str = "positive",
    fused_weight: float = 0.0,
    routing: Tensor | None = None,
    diversity: str = "pairwise",
    diversity_weight: float = 1.0,
    diversity_threshold: float = 0.7,
    gathered: CaptionBatch | None = None,
    offset: int = 0,
    chunk_size: int | None = None,
) -> MultiToMultiLoss:
    """Match, contrast, penalise (paper, section on multi-to-multi contrastive learning).

    Per slot m, in both directions, the cross entropy of the true pair against the other images of the batch in the
    same slot; the mean over present captions; the mean of both directions. With H = M = 1 this is CLIP's loss, with
    H = 1 the one-to-many baseline. The logits are never held whole: rows are streamed, forward and backward.

    Args:
        branch_embeds: (N, H, D), unit length.
        text_embeds: (N, M, D), unit length.
        logit_scale: the inverse temperature itself (exponentiated), a scalar.
        objective: `"softmax"` (above); or `"sigmoid"` (SigLIP, https://arxiv.org/abs/2303.15343), which asks of each
            caption and each image whether they belong together: the sum over images of -log sigmoid, the mean over
            captions. The image answers through the branch that the caption met, so that all images are asked the
            same, also in a free slot; a pair counts once, since it reads the same in both directions.
        logit_bias: a scalar, added to the logits of `"sigmoid"`, which needs it; SigLIP starts from -10.
        matching: `"aligned"` holds slot m against branch `branch_of_slot[m]`; `"free"` frees all slots; `"balanced"`
            too, but shares their captions, of the whole batch, out evenly between the branches.
        branch_of_slot: M branch indices, -1 for a slot that is free. Default: slot m to branch m for m < H, the rest
            free. Unless balanced, a caption in a free slot takes the branch of its image that is nearest to it.
        caption_mask: (N, M) bool. Default: all captions are there.
        caption_ids: (N, M) int64. Default: all captions differ.
        duplicate_captions: images whose caption in a slot has the same id are to each other `"positive"` (the target
            is shared between them), `"ignore"` (left out) or `"negative"` (the paper).
        fused_weight: of a second contrastive term, the one-to-many loss of the fused score against all captions:
            what is asked later is trained and not only used. Not in the paper. Of one branch there is none.
        routing: (N, M, H), how much each branch answers for each caption; the fused score is the similarity of
            branches weighted so. Default: the fused score is that of the branches' mean, made of unit length.
        diversity: `"pairwise"` penalises each pair of branches whose mean cosine is above the threshold;
            `"official"` only the mean over all pairs, which two collapsed branches of five do not move.
        diversity_weight, diversity_threshold: 1.0 and 0.7 in the paper's released code.
        gathered: the rows of all ranks (G), in rank order. With them, the mean over ranks of this loss, and of its
            gradients, is the loss of one process that has the whole batch. Default: the rows given above.
        offset: where this rank's rows begin in `gathered`.
        chunk_size: queries whose logits are held at a time. The result does not depend on it. Default: as many as
            make 64 MB.

    Raises:
        ValueError: shapes that do not fit, an unknown option, a bias without sigmoid or the reverse, or no caption at
            all.

    Example:

    >>> branches, texts = F.normalize(torch.randn(8, 3, 16), dim=-1), F.normalize(torch.randn(8, 3, 16), dim=-1)
    >>> multi_to_multi_loss(branches, texts, torch.tensor(1 / 0.07)).total.shape
    torch.Size([])
    """
    local = _caption_batch(branch_embeds, text_embeds, caption_mask, caption_ids, routing, offset)
    everyone = _of_all_ranks(gathered, local, offset)
    slots = resolve_matching(matching, branch_of_slot, branch_embeds.shape[1], text_embeds.shape[1])
    terms = Objective(objective, logit_scale, logit_bias, chunk_size)
    mine = slice(offset, offset + len(branch_embeds))
    # Half precision cannot tell near logits apart.
    with torch.autocast(branch_embeds.device.type, enabled=False):
        rows = everyone.branch_embeds, everyone.text_embeds, everyone.caption_mask
        assignment = assign_branches(*rows, slots, balanced=matching == "balanced")[mine]
        contrastive = _contrastive(local, everyone, assignment, terms, duplicate_captions, offset)
        fused = contrastive.new_zeros(())
        if fused_weight and branch_embeds.shape[1] > 1:
            alone = _fuse(local)
            together = alone if everyone is local else _fuse(everyone)
            fused = _contrastive(alone, together, torch.zeros_like(assignment), terms, duplicate_captions, offset)
        penalty = diversity_penalty(everyone.branch_embeds, diversity_threshold, form=diversity)
    total = contrastive + fused_weight * fused + diversity_weight * penalty
    return MultiToMultiLoss(total, contrastive, fused, penalty, assignment)


def _fuse(batch: CaptionBatch) -> CaptionBatch:
    """The same captions for images of one branch: the mean of theirs, or, of routed captions, all side by side."""
    exact = torch.promote_types(batch.branch_embeds.dtype, torch.float32)
    branches = batch.branch_embeds.to(exact)
    if batch.routing is None:
        return replace(batch, branch_embeds=F.normalize(branches.mean(dim=1, keepdim=True), dim=-1))
    texts = route(batch.text_embeds.to(exact), batch.routing.to(exact))
    return replace(batch, branch_embeds=branches.flatten(1)[:, None], text_embeds=texts)


def _caption_batch(
    branch_embeds: Tensor,
    text_embeds: Tensor,
    mask: Tensor | None,
    ids: Tensor | None,
    routing: Tensor | None,
    offset: int,
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
    if routing is not None and routing.shape != (rows, slots, branch_embeds.shape[1]):
        raise ValueError(
            f"`routing` must be (N, M, H) = {(rows, slots, branch_embeds.shape[1])}; got {tuple(routing.shape)}."
        )
    return CaptionBatch(branch_embeds, text_embeds, mask.bool(), ids, routing)


def _of_all_ranks(gathered: CaptionBatch | None, local: CaptionBatch, offset: int) -> CaptionBatch:
    rows = local
    # Where there is one rank, its rows and those of all ranks are the same tensors.
    if gathered is not None and gathered.text_embeds is not local.text_embeds:
        rows = _caption_batch(
            gathered.branch_embeds,
            gathered.text_embeds,
            gathered.caption_mask,
            gathered.caption_ids,
            gathered.routing,
            offset=0,
        )
    if (local.routing is None) != (rows.routing is None):
        raise ValueError("`routing` must be given for this rank and in `gathered`, or in neither.")
    mine, whole = ([tuple(one.shape) for one in (each.branch_embeds, each.text_embeds)] for each in (local, rows))
    if [shape[1:] for shape in mine] != [shape[1:] for shape in whole] or not 0 <= offset <= whole[0][0] - mine[0][0]:
        raise ValueError(
            f"`gathered` must hold the rows of this rank, from `offset` on; got embeddings of shapes {whole} for "
            f"{mine} at offset {offset}."
        )
    return rows


def _contrastive(
    local: CaptionBatch,
    everyone: CaptionBatch,
    assignment: Tensor,
    objective: Objective,
    duplicate_captions: str,
    offset: int,
) -> Tensor:
    num_captions = everyone.caption_mask.sum()
    if num_captions == 0:
        raise ValueError("The batch has no caption in any slot. Check the corpus against the slots trained on.")
    batches = [local] if everyone is local else [local, everyone]
    tensors = [tensor for batch in batches for tensor in (batch.branch_embeds, batch.text_embeds)]
    contests = list(_contests(local, everyone, assignment, objective, duplicate_captions, offset))
    directions = 2 if objective.name == "softmax" else 1
    # Every rank's loss is scaled so that the mean over ranks (what DDP takes of gradients) is the mean over captions.
    num_ranks = everyone.caption_mask.shape[0] / local.caption_mask.shape[0]
    return sum_over_queries(contests, objective, tensors) * num_ranks / directions / num_captions


def _contests(
    local: CaptionBatch,
    everyone: CaptionBatch,
    assignment: Tensor,
    objective: Objective,
    duplicate_captions: str,
    offset: int,
) -> Iterator[Contest]:
    """Per slot and branch, the captions that met it against the images, and their images against the captions."""
    if duplicate_captions not in ("positive", "ignore", "negative"):
        raise ValueError(f"`duplicate_captions` is {duplicate_captions!r}. Valid: 'positive', 'ignore', 'negative'.")
    whole, softmax = everyone is local, objective.name == "softmax"
    shift = 0 if whole else 2  # where the tensors of all ranks begin
    num_slots, num_branches = local.text_embeds.shape[1], local.branch_embeds.shape[1]
    columns_of_slot = [everyone.caption_mask[:, slot].nonzero().squeeze(1) for slot in range(num_slots)]
    for slot, branch in product(range(num_slots), range(num_branches)):
        rows = (local.caption_mask[:, slot] & (assignment[:, slot] == branch)).nonzero().squeeze(1)
        if len(rows) == 0:
            continue
        columns = columns_of_slot[slot]
        images = (offset + rows, columns)
        captions = (local.caption_ids[rows, slot], everyone.caption_ids[columns, slot])
        ids = captions if duplicate_captions == "positive" else images
        ignored = captions if duplicate_captions == "ignore" else (None, None)
        here, there = (rows, ids[0], ignored[0]), (columns, ids[1], ignored[1])
        mutual = whole and softmax and len(rows) == len(columns)
        yield Contest(Side(TEXTS, slot, *here), Side(shift + BRANCHES, branch, *there), mutual)
        if softmax and not mutual:
            yield Contest(Side(BRANCHES, branch, *here), Side(shift + TEXTS, slot, *there))


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
    cosines = (branch_embeds @ branch_embeds.mT).mean(dim=0)
    above, other = torch.triu_indices(num_branches, num_branches, offset=1, device=branch_embeds.device)
    pairs = cosines[above, other]
    return F.relu(pairs - threshold).mean() if form == "pairwise" else F.relu(pairs.mean() - threshold)


__all__ = ["LOSS_PARTS", "CaptionBatch", "MultiToMultiLoss", "diversity_penalty", "multi_to_multi_loss"]
