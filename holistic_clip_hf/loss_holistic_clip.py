# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""The multi-to-multi contrastive loss: H branch vectors of each image against M captions of each image.

- Pure functions of tensors: no model, no process group, no training step. Gathering happens at the edge.
- A caption is matched to a branch by name, by the best score, by an assignment that starves nobody, or to all of them
  by shares (`assign_branches`, `route`).
- Negatives come only from the *same slot* of other images, as in the paper.
- Logits are made block by block, with their gradients (`streaming_holistic_clip`).
- A missing caption is neither query nor candidate. What images with the same caption are to each other is an option.

Axes: N images in the batch, G images after gathering over ranks (G = N without), H branches, M caption slots,
K captions, D projection width.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .options_holistic_clip import (
    DIVERSITIES,
    LOSS_CHOICES,
    MATCHINGS,
    require_choice,
    require_numbers,
    require_prefixes,
)
from .streaming_holistic_clip import Contest, Objective, Side, sum_over_queries

FREE = -1
SINKHORN_ITERATIONS, SINKHORN_EPSILON = 3, 0.05  # SwAV's


def resolve_matching(matching: str, branch_of_slot: list[int] | None, num_branches: int, num_slots: int) -> list[int]:
    """Return the branch of each slot, -1 for free: M numbers."""
    require_choice("matching", matching, MATCHINGS)
    if matching != "aligned":
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
def assign_branches(
    branch_embeds: Tensor, text_embeds: Tensor, caption_mask: Tensor, slots: list[int], *, balanced: bool = False
) -> Tensor:
    """Choose the branch that each caption is held against: (G, M) int64, without meaning where a caption is missing.

    Args:
        branch_embeds: (G, H, D), unit length.
        text_embeds: (G, M, D), unit length.
        caption_mask: (G, M) bool.
        slots: M branch indices; -1 for a free slot.
        balanced: the captions of free slots, over all images and slots together, are shared out evenly between the
            branches (`balanced_branches`), so all ranks' rows must be here; else each goes to the branch of its image
            that is nearest to it.
    """
    fixed = torch.tensor(slots, device=text_embeds.device).expand(caption_mask.shape)
    if FREE not in slots:
        return fixed
    exact = torch.promote_types(text_embeds.dtype, torch.float32)
    similarity = torch.einsum("nhd,nmd->nmh", branch_embeds.to(exact), text_embeds.to(exact))
    nearest = similarity.argmax(dim=-1)
    if balanced:
        free = (fixed == FREE) & caption_mask
        nearest[free] = balanced_branches(similarity[free])
    return torch.where(fixed == FREE, nearest, fixed)


def balanced_branches(similarity: Tensor) -> Tensor:
    """Choose a branch for each of K captions, (K,) int64 of (K, H), so that every branch gets at least K // H of them.

    The plan is entropic optimal transport between captions and branches, all captions with equal shares and all
    branches with equal shares, by Sinkhorn's algorithm as in SwAV (https://arxiv.org/abs/2006.09882). It is rounded
    in H turns. Each caption asks for the open branch of which it has most. The branch that most captions ask for
    keeps K // H of them, those that have most of it, and closes. The K % H that are left choose among all branches.
    """
    plan = similarity / SINKHORN_EPSILON
    for _ in range(SINKHORN_ITERATIONS):
        plan = plan.log_softmax(dim=0).log_softmax(dim=1)
    num_captions, num_branches = plan.shape
    assignment = plan.argmax(dim=1)
    waiting = torch.ones_like(assignment, dtype=torch.bool)
    is_open = torch.ones(num_branches, dtype=torch.bool, device=plan.device)
    for _ in range(num_branches):
        asked = plan.masked_fill(~is_open, -torch.inf).argmax(dim=1)
        votes = asked.new_zeros(num_branches).index_add_(0, asked, waiting.to(asked.dtype))
        branch = votes.argmax(dim=0, keepdim=True)  # as an index of one number, which the processor need not know
        strength = plan.index_select(1, branch).squeeze(1).masked_fill(~waiting | (asked != branch), -torch.inf)
        kept = strength.argsort(descending=True, stable=True)[: num_captions // num_branches]
        assignment.index_copy_(0, kept, branch.expand_as(kept))
        waiting.index_fill_(0, kept, False)
        is_open.index_fill_(0, branch, False)
    return assignment


def route(text_embeds: Tensor, routing: Tensor) -> Tensor:
    """Repeat each text (..., D) once for each branch, times how much that branch answers (..., H): (..., H * D).

    The dot product with an image's branches side by side is the sum of its similarities to them, weighted so.
    """
    return (routing[..., :, None] * text_embeds[..., None, :]).flatten(-2)


def branch_shares(assignment: Tensor, caption_mask: Tensor, num_branches: int) -> Tensor:
    """Return the share of the present captions that each branch met: (H,) float32, zeros without any.

    Args:
        assignment: (N, M) int64, from `MultiToMultiLoss`.
        caption_mask: (N, M) bool.
        num_branches: H.
    """
    met = F.one_hot(assignment[caption_mask.bool()], num_branches)
    return met.sum(dim=0) / max(1, len(met))


# Fusions whose vector keeps the length that a mean of unit vectors has.
LINEAR_MEANS = ("mean", "weighted")
LOSS_PARTS = ("contrastive", "fused", "diversity")
BRANCHES, TEXTS, ROUTING = 0, 1, 2  # places among the tensors of a rank


@dataclass
class CaptionBatch:
    """Embeddings and captions that the rows of one rank, or of all, bring to the loss.

    Args:
        branch_embeds: (N, H, D), unit length.
        text_embeds: (N, M, D), unit length; rows of missing captions are ignored, whatever they hold.
        caption_mask: (N, M) bool, true where there is a caption.
        caption_ids: (N, M) int64, equal exactly where two captions are the same text.
        routing: (N, M, H), how much each branch answers for each caption; `None` where all count alike.
        image_mask: (N,) bool, false where an image only fills the place of another; `None` where none does.
    """

    branch_embeds: Tensor
    text_embeds: Tensor
    caption_mask: Tensor
    caption_ids: Tensor
    routing: Tensor | None = None
    image_mask: Tensor | None = None


@dataclass
class MultiToMultiLoss:
    """`total = contrastive + fused_weight * fused + diversity_weight * diversity`, each a mean over widths.

    `assignment` (N, M) is the branch that each caption met, by whole vectors.
    """

    total: Tensor
    contrastive: Tensor
    fused: Tensor
    diversity: Tensor
    assignment: Tensor


@dataclass(frozen=True)
class LossOptions:
    """Options of `multi_to_multi_loss`, refused at construction if they contradict each other.

    Args:
        objective: `"softmax"` (CLIP's cross entropy), or `"sigmoid"` (SigLIP, https://arxiv.org/abs/2303.15343), which
            asks of each caption and each image whether they belong together. It is the sum over images of -log
            sigmoid, the mean over captions. The image answers through the branch that the caption met, so that all
            images are asked the same, also in a free slot. A pair counts once, since it reads the same in both
            directions.
        matching: Each caption is matched to the branch of the same name (`"aligned"`, by `branch_of_slot`) or to the
            most similar branch (`"free"`, in all slots). `"balanced"` frees all slots too, but shares their captions,
            of the whole batch, out evenly between the branches.
        duplicate_captions: Relation of images whose caption in a slot has the same id: `"positive"` (the target is
            shared between them), `"ignore"` (left out) or `"negative"` (the paper). With softmax and aligned slots,
            `"positive"` and `"negative"` are the same loss, to the last digit, if captions of one id have one vector:
            over such a group, the means of their logits add up to what their own logits add up to. They differ in
            free slots, where each caption may meet another branch, and with sigmoid.
        fused_weight: Weight of a second contrastive term, the one-to-many loss of the fused score against all
            captions, so that the score used at inference is trained too. Not in the paper. Ignored if H = 1.
        fusion: Fused score that this term trains: `"centroid"` (the branches' mean, made of unit length), `"mean"` or
            `"weighted"`, which are not. Captions with `routing` are routed. `"max"` and `"softmax"` train the
            centroid.
        branch_weights: H weights of `"weighted"`.
        diversity: `"pairwise"` penalises each pair of branches whose mean cosine is above the threshold;
            `"official"` only the mean over all pairs, which two collapsed branches of five do not move.
        diversity_weight, diversity_threshold: Weight and threshold of that penalty, 1.0 and 0.7 in the paper's
            released code.
        matryoshka_dims: Numbers of leading dimensions that are to serve as vectors by themselves
            (https://arxiv.org/abs/2205.13147). Each such prefix of branches and texts, made of unit length, gets the
            same loss as the whole vectors, and all widths count alike. Default: the whole vectors alone.
        chunk_size: Queries whose logits are held at a time. The result does not depend on it. Default: as many as
            make 64 MB.

    Raises:
        ValueError: an unknown option, a weight below zero, a number that is not finite, or a prefix that is not one.
    """

    objective: str = "softmax"
    matching: str = "aligned"
    duplicate_captions: str = "positive"
    fused_weight: float = 0.0
    fusion: str = "centroid"
    branch_weights: Sequence[float] | None = None
    diversity: str = "pairwise"
    diversity_weight: float = 1.0
    diversity_threshold: float = 0.7
    matryoshka_dims: Sequence[int] = ()
    chunk_size: int | None = None

    def __post_init__(self) -> None:
        for name, valid in LOSS_CHOICES.items():
            require_choice(name, getattr(self, name), valid)
        require_numbers(vars(self))
        require_prefixes(self.matryoshka_dims)

    def widths(self, whole: int) -> list[int]:
        """Return the widths that have a loss: that of whole vectors, D, then those of their prefixes."""
        require_prefixes(self.matryoshka_dims, whole)
        return [whole, *(width for width in self.matryoshka_dims if width != whole)]


def prefix_of(embeds: Tensor, width: int) -> Tensor:
    """Cut vectors (..., D) to their first dimensions, made of unit length again: (..., width)."""
    if width == embeds.shape[-1]:
        return embeds
    exact = torch.promote_types(embeds.dtype, torch.float32)
    return F.normalize(embeds[..., :width].to(exact), dim=-1)


def multi_to_multi_loss(
    branch_embeds: Tensor,
    text_embeds: Tensor,
    logit_scale: Tensor,
    options: LossOptions = LossOptions(),
    *,
    logit_bias: Tensor | None = None,
    branch_of_slot: list[int] | None = None,
    caption_mask: Tensor | None = None,
    caption_ids: Tensor | None = None,
    routing: Tensor | None = None,
    image_mask: Tensor | None = None,
    gathered: CaptionBatch | None = None,
    offset: int = 0,
) -> MultiToMultiLoss:
    """Match, contrast, penalise (paper, section on multi-to-multi contrastive learning).

    The loss is the cross entropy of the true pair against the other images of the batch in the same slot m, averaged
    over present captions and both directions. With H = M = 1 this is CLIP's loss, with H = 1 the one-to-many baseline.
    The logits are never held whole: rows are streamed, forward and backward.

    Args:
        branch_embeds: (N, H, D), unit length.
        text_embeds: (N, M, D), unit length.
        logit_scale: the inverse temperature itself (exponentiated), a scalar.
        options: Options of the loss, by name.
        logit_bias: a scalar, added to the logits of `"sigmoid"`, which needs it; SigLIP starts from -10.
        branch_of_slot: M branch indices, -1 for a slot that is free. Default: slot m to branch m for m < H, the rest
            free. Unless balanced, a caption in a free slot takes the branch of its image that is nearest to it.
        caption_mask: (N, M) bool. Default: all captions are present.
        caption_ids: (N, M) int64. Default: all captions differ.
        routing: (N, M, H), how much each branch answers for each caption; the fused score is the similarity of
            branches weighted so. Default: the fused score is the one that `options.fusion` names.
        image_mask: (N,) bool, false for an image that only fills the place of another; it has no captions, and the
            penalty on alike branches leaves it out. Default: all images count.
        gathered: the rows of all ranks (G), in rank order. With them, the mean over ranks of this loss, and of its
            gradients, is the loss of one process that has the whole batch. Default: the rows given above.
        offset: Position of this rank's first row in `gathered`.

    Raises:
        ValueError: shapes that do not fit, an unknown option, a bias without sigmoid or the reverse, or no caption at
            all.

    Example:

    >>> branches, texts = F.normalize(torch.randn(8, 3, 16), dim=-1), F.normalize(torch.randn(8, 3, 16), dim=-1)
    >>> multi_to_multi_loss(branches, texts, torch.tensor(1 / 0.07)).total.shape
    torch.Size([])
    """
    local = _caption_batch(branch_embeds, text_embeds, caption_mask, caption_ids, routing, offset)
    local.image_mask = image_mask
    everyone = _of_all_ranks(gathered, local, offset)
    slots = resolve_matching(options.matching, branch_of_slot, branch_embeds.shape[1], text_embeds.shape[1])
    terms = Objective(options.objective, logit_scale, logit_bias, options.chunk_size)
    losses = []
    # Half precision cannot tell near logits apart.
    with torch.autocast(branch_embeds.device.type, enabled=False):
        for width in options.widths(branch_embeds.shape[-1]):
            mine = _prefixes(local, width)
            all_ranks = mine if everyone is local else _prefixes(everyone, width)
            losses.append(_loss(mine, all_ranks, slots, terms, options, offset))
    if len(losses) == 1:
        return losses[0]
    means = {name: torch.stack([getattr(each, name) for each in losses]).mean() for name in ("total", *LOSS_PARTS)}
    return replace(losses[0], **means)


def _prefixes(batch: CaptionBatch, width: int) -> CaptionBatch:
    """Cut branches and texts to their first dimensions; whole vectors are returned as they are."""
    if width == batch.branch_embeds.shape[-1]:
        return batch
    branches, texts = (prefix_of(each, width) for each in (batch.branch_embeds, batch.text_embeds))
    return replace(batch, branch_embeds=branches, text_embeds=texts)


def _loss(
    local: CaptionBatch, everyone: CaptionBatch, slots: list[int], terms: Objective, options: LossOptions, offset: int
) -> MultiToMultiLoss:
    """Return the loss of vectors of one width; `slots` are the M branch indices, -1 for a free slot."""
    mine = slice(offset, offset + len(local.branch_embeds))
    rows = everyone.branch_embeds, everyone.text_embeds, everyone.caption_mask
    assignment = assign_branches(*rows, slots, balanced=options.matching == "balanced")[mine]
    contrastive = _contrastive(local, everyone, assignment, terms, options.duplicate_captions, offset)
    fused = contrastive.new_zeros(())
    if options.fused_weight and local.branch_embeds.shape[1] > 1:
        alone = _fuse(local, options)
        together = alone if everyone is local else _fuse(everyone, options)
        first = torch.zeros_like(assignment)  # of the one branch that fusion leaves
        is_routed = local.routing is not None
        fused = _contrastive(alone, together, first, terms, options.duplicate_captions, offset, is_routed)
    counted = everyone.branch_embeds if everyone.image_mask is None else everyone.branch_embeds[everyone.image_mask]
    penalty = diversity_penalty(counted, options.diversity_threshold, form=options.diversity)
    total = contrastive + options.fused_weight * fused + options.diversity_weight * penalty
    return MultiToMultiLoss(total, contrastive, fused, penalty, assignment)


def branch_mean(branch_embeds: Tensor, weights: Sequence[float] | None = None) -> Tensor:
    """Average (N, H, ...) over branches to (N, ...), by H weights if they are given."""
    if weights is None:
        return branch_embeds.mean(dim=1)
    shares = branch_embeds.new_tensor(weights)
    return torch.einsum("nh...,h->n...", branch_embeds, shares / shares.sum())


def _fuse(batch: CaptionBatch, options: LossOptions) -> CaptionBatch:
    """Fuse branches to one vector; for routed captions all stay, to be read side by side (`Side`)."""
    if batch.routing is not None:
        return batch
    branches = batch.branch_embeds.to(torch.promote_types(batch.branch_embeds.dtype, torch.float32))
    mean = branch_mean(branches, options.branch_weights)[:, None]
    return replace(batch, branch_embeds=mean if options.fusion in LINEAR_MEANS else F.normalize(mean, dim=-1))


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
        rows.image_mask = gathered.image_mask
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
    is_routed: bool = False,
) -> Tensor:
    batches = [local] if everyone is local else [local, everyone]
    tensors = []
    for batch in batches:
        tensors += [batch.branch_embeds, batch.text_embeds]
        if is_routed and batch.routing is not None:
            tensors.append(batch.routing)
    contests = list(_contests(local, everyone, assignment, objective, duplicate_captions, offset, is_routed))
    directions = 2 if objective.name == "softmax" else 1
    # Every rank's loss is scaled so that the mean over ranks (what DDP takes of gradients) is the mean over captions.
    num_ranks = everyone.caption_mask.shape[0] / local.caption_mask.shape[0]
    return sum_over_queries(contests, objective, tensors) * num_ranks / directions / everyone.caption_mask.sum()


def _contests(
    local: CaptionBatch,
    everyone: CaptionBatch,
    assignment: Tensor,
    objective: Objective,
    duplicate_captions: str,
    offset: int,
    is_routed: bool,
) -> Iterator[Contest]:
    """Yield, per slot and branch, the captions that met it against the images, and these against the captions."""
    whole, softmax = everyone is local, objective.name == "softmax"
    shift = 0 if whole else 2 + is_routed  # where the tensors of all ranks begin
    num_slots, num_branches = local.text_embeds.shape[1], local.branch_embeds.shape[1]
    answering = [range(num_branches)] if is_routed else [[branch] for branch in range(num_branches)]
    rows_of, columns_of_slot = _rows_of_contests(local, everyone, assignment, len(answering))
    for slot, (met, branches) in product(range(num_slots), enumerate(answering)):
        rows, columns = rows_of[slot * len(answering) + met], columns_of_slot[slot]
        if len(rows) == 0:
            continue
        images = (offset + rows, columns)
        captions = (local.caption_ids[rows, slot], everyone.caption_ids[columns, slot])
        ids = captions if duplicate_captions == "positive" else images
        ignored = captions if duplicate_captions == "ignore" else (None, None)
        here, there = (rows, ids[0], ignored[0]), (columns, ids[1], ignored[1])
        mutual = whole and softmax and len(rows) == len(columns)
        asks, answers = [], []
        for branch in branches:
            routing = [(place, branch) if is_routed else None for place in (ROUTING, shift + ROUTING)]
            asks.append((Side(TEXTS, slot, *here, routing[0]), Side(shift + BRANCHES, branch, *there)))
            answers.append((Side(BRANCHES, branch, *here), Side(shift + TEXTS, slot, *there, routing[1])))
        yield Contest(asks, mutual)
        if softmax and not mutual:
            yield Contest(answers)


def _rows_of_contests(
    local: CaptionBatch, everyone: CaptionBatch, assignment: Tensor, num_met: int
) -> tuple[list[Tensor], list[Tensor]]:
    """Return the rows of the captions of each slot and branch, slot by slot, and the columns of each slot.

    Raises:
        ValueError: no caption at all.
    """
    num_slots = assignment.shape[1]
    slots = torch.arange(num_slots, device=assignment.device)
    rows, sizes = _sorted_rows(slots * num_met + assignment, local.caption_mask, num_slots * num_met)
    columns, others = _sorted_rows(slots.expand_as(everyone.caption_mask), everyone.caption_mask, num_slots)
    # The one time that the processor waits for the accelerator: asked for one by one, it would for each of them.
    counts = torch.cat([sizes, others]).tolist()
    if not sum(counts[len(sizes) : -1]):
        raise ValueError("The batch has no caption in any slot. Check the corpus against the slots trained on.")
    return list(rows.split(counts[: len(sizes)]))[:-1], list(columns.split(counts[len(sizes) :]))[:-1]


def _sorted_rows(groups: Tensor, mask: Tensor, num_groups: int) -> tuple[Tensor, Tensor]:
    """Return the rows of the entries of (N, M), group by group, and the sizes of the groups; masked ones come last."""
    keys = groups.masked_fill(~mask, num_groups).T.flatten()
    sizes = keys.new_zeros(num_groups + 1).index_add_(0, keys, torch.ones_like(keys))
    return keys.argsort(stable=True) % len(mask), sizes


def diversity_penalty(branch_embeds: Tensor, threshold: float, *, form: str = "pairwise") -> Tensor:
    """Return a scalar hinge on the cosine between branches of the same image, averaged over the batch.

    Args:
        branch_embeds: (N, H, D), unit length.
        threshold: cosine above which branches count as saying the same.
        form: `"pairwise"` is the hinge of each pair's mean cosine, averaged over pairs. `"official"` is the hinge of
            the mean over all pairs (the released code).
    """
    require_choice("diversity", form, DIVERSITIES)
    num_branches = branch_embeds.shape[1]
    if num_branches == 1:
        return branch_embeds.new_zeros((), dtype=torch.float32)
    branch_embeds = branch_embeds.to(torch.promote_types(branch_embeds.dtype, torch.float32))
    cosines = _MeanCosines.apply(branch_embeds)
    above, other = torch.triu_indices(num_branches, num_branches, offset=1, device=branch_embeds.device)
    pairs = cosines[above, other]
    return F.relu(pairs - threshold).mean() if form == "pairwise" else F.relu(pairs.mean() - threshold)


class _MeanCosines(torch.autograd.Function):
    """Products of branches (N, H, D) with each other, averaged over images: (H, H).

    Its gradient takes as much memory as the branches. That of a matrix product takes twice as much, since torch does
    not know that both of its sides are the same.
    """

    @staticmethod
    def forward(ctx: Any, branch_embeds: Tensor) -> Tensor:
        ctx.save_for_backward(branch_embeds)
        return (branch_embeds @ branch_embeds.mT).mean(dim=0)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        (branch_embeds,) = ctx.saved_tensors
        return ((grad_output + grad_output.mT) / len(branch_embeds)) @ branch_embeds


__all__ = [
    "LossOptions",
    "CaptionBatch",
    "FREE",
    "LOSS_PARTS",
    "MultiToMultiLoss",
    "assign_branches",
    "balanced_branches",
    "branch_shares",
    "diversity_penalty",
    "multi_to_multi_loss",
    "prefix_of",
    "resolve_matching",
    "route",
]
