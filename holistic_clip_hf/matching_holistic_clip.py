# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Which branch is held against which caption: by name, by the best score, by an assignment that starves nobody, or
all of them by shares.

Axes: G images of all ranks, N of one, H branches, M caption slots, D projection width, K captions.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

FREE = -1
SINKHORN_ITERATIONS, SINKHORN_EPSILON = 3, 0.05  # SwAV's


def resolve_matching(matching: str, branch_of_slot: list[int] | None, num_branches: int, num_slots: int) -> list[int]:
    """The branch of each slot, -1 for free: M numbers."""
    if matching not in ("aligned", "free", "balanced"):
        raise ValueError(f"`matching` is {matching!r}. Valid: 'aligned', 'free', 'balanced'.")
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
    """(G, M) int64: the branch that each caption is held against. Where there is no caption it means nothing.

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
    """(K,) int64 from (K, H): a branch for each of K captions, such that every branch gets at least K // H of them.

    The plan is entropic optimal transport between captions and branches, all captions with equal shares and all
    branches with equal shares, by Sinkhorn's algorithm as in SwAV (https://arxiv.org/abs/2006.09882). It is rounded
    in H turns: each caption asks for the open branch of which it has most; the branch that most captions ask for
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
        branch = F.one_hot(asked[waiting], num_branches).sum(dim=0).argmax()
        strength = plan[:, branch].masked_fill(~waiting | (asked != branch), -torch.inf)
        kept = strength.argsort(descending=True, stable=True)[: num_captions // num_branches]
        assignment[kept], waiting[kept], is_open[branch] = branch, False, False
    return assignment


def route(text_embeds: Tensor, routing: Tensor) -> Tensor:
    """(..., D) and (..., H) to (..., H * D): each text once for each branch, times how much that branch answers.

    The dot product with an image's branches side by side is the sum of its similarities to them, weighted so.
    """
    return (routing[..., :, None] * text_embeds[..., None, :]).flatten(-2)


def branch_shares(assignment: Tensor, caption_mask: Tensor, num_branches: int) -> Tensor:
    """(H,) float32: of the captions that are there, the share that each branch met; zeros where there is none.

    Args:
        assignment: (N, M) int64, from `MultiToMultiLoss`.
        caption_mask: (N, M) bool.
        num_branches: H.
    """
    met = F.one_hot(assignment[caption_mask.bool()], num_branches)
    return met.sum(dim=0) / max(1, len(met))


__all__ = ["FREE", "assign_branches", "balanced_branches", "branch_shares", "resolve_matching", "route"]
