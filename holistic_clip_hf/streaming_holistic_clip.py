# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Contrastive objectives of which only some rows of logits exist at any time, forward and backward.

- A loss is what pushes apart (log-sum-exp, or soft-plus, of all logits of a query) less what pulls together (the
  logits of its positives). The latter is linear in the embeddings and needs no matrix of logits at all.
- The gradient of a block of rows needs nothing but its logits, so it is taken in the forward pass, while they are
  there (as Liger Kernel does for cross entropy, https://arxiv.org/abs/2410.10989). Backward only multiplies.
- Where queries and candidates are the same images, one similarity matrix serves both directions: one softmax runs
  over its rows, the other over its columns, whose normalisers are found in a pass of their own beforehand.
- Embeddings in half precision are converted one contest at a time: logits, sums and gradients are float32, or float64
  where the embeddings are.

Axes: R queries, of which B are in memory, C candidates, D projection width.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

# 64 MB of float32. tests/benchmarks/loss.py compares sizes.
LOGITS_IN_MEMORY = 2**24


@dataclass
class Side:
    """Rows of one of the tensors given: `tensors[tensor][rows, place]`, (R, D).

    Args:
        tensor, place: which tensor, and where on its second axis (a branch, a slot).
        rows: (R,) int64.
        ids: (R,) int64; two rows, here and on the other side, are positives of each other where they are equal.
        ignored_ids: (R,) int64; two rows that are no positives are left out where these are equal. Default: none are.
    """

    tensor: int
    place: int
    rows: Tensor
    ids: Tensor
    ignored_ids: Tensor | None = None


@dataclass
class Contest:
    """Each query against all candidates; if `mutual`, two sides with the same ids, also each candidate as a query."""

    queries: Side
    candidates: Side
    mutual: bool = False

    def left_out(self, block: slice) -> Tensor | None:
        """(B, C) bool, or None where nothing is."""
        here, there = self.queries, self.candidates
        if here.ignored_ids is None:
            return None
        return (here.ignored_ids[block, None] == there.ignored_ids) & (here.ids[block, None] != there.ids)


@dataclass
class Objective:
    """How queries and candidates are compared.

    Args:
        name: `"softmax"` or `"sigmoid"`.
        logit_scale, logit_bias: scalars; the bias belongs to sigmoid, since softmax would not feel it.
        chunk_size: B. Default: as many queries as make `LOGITS_IN_MEMORY` logits.

    Raises:
        ValueError: an unknown name, a bias that does not go with it, or a chunk of no queries.
    """

    name: str
    logit_scale: Tensor
    logit_bias: Tensor | None = None
    chunk_size: int | None = None

    def __post_init__(self) -> None:
        if self.name not in ("softmax", "sigmoid"):
            raise ValueError(f"`objective` is {self.name!r}. Valid: 'softmax', 'sigmoid'.")
        if (self.name == "sigmoid") != (self.logit_bias is not None):
            raise ValueError(
                f"`objective` is {self.name!r} and `logit_bias` is {self.logit_bias}. Give a bias with 'sigmoid' "
                f"(SigLIP starts from -10), and none with 'softmax'."
            )
        if self.chunk_size is not None and self.chunk_size < 1:
            raise ValueError(f"`chunk_size` is {self.chunk_size}. Valid: 1 or more queries, or None for the default.")

    def logits(self, contest: Contest, block: slice, queries: Tensor, candidates: Tensor) -> Tensor:
        """(B, C), -inf where a pair is left out."""
        logits = (self.logit_scale * queries[block]) @ candidates.T
        if self.logit_bias is not None:
            logits += self.logit_bias
        left_out = contest.left_out(block)
        return logits if left_out is None else logits.masked_fill_(left_out, -torch.inf)

    def blocks(self, contest: Contest) -> list[slice]:
        """Slices of the queries."""
        size = self.chunk_size or max(1, LOGITS_IN_MEMORY // len(contest.candidates.rows))
        return [slice(start, start + size) for start in range(0, len(contest.queries.rows), size)]


def sum_over_queries(contests: list[Contest], objective: Objective, tensors: list[Tensor]) -> Tensor:
    """Scalar: the loss of every query of every contest, differentiable once.

    Args:
        contests: whose sides are rows of the tensors; each query has a positive among the candidates.
        objective: how they are compared.
        tensors: (any, any, D) each, unit length.

    Raises:
        RuntimeError: in backward, if the gradient itself is to be differentiable.
    """
    given = (objective.logit_scale, objective.logit_bias, *tensors)
    return _SumOverQueries.apply(contests, objective, torch.is_grad_enabled(), *given)


class _SumOverQueries(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        contests: list[Contest],
        objective: Objective,
        grad_enabled: bool,
        scale: Tensor,
        bias: Tensor | None,
        *tensors: Tensor,
    ) -> Tensor:
        given = (scale, bias, *tensors)
        exact = torch.promote_types(tensors[0].dtype, torch.float32)
        wanted = [grad_enabled and needed for needed in ctx.needs_input_grad[3:]]
        gradients = [
            None if one is None or not want else torch.zeros_like(one, dtype=exact)
            for one, want in zip(given, wanted, strict=True)
        ]
        value = torch.zeros((), dtype=exact, device=tensors[0].device)
        for contest in contests:
            sides = contest.queries, contest.candidates
            queries, candidates = (tensors[side.tensor][side.rows, side.place].to(exact) for side in sides)
            sums = _run(contest, objective, queries, candidates, differentiate=any(wanted))
            value += sums.value
            _accumulate(gradients[0], ..., (sums.of_queries * queries).sum())
            _accumulate(gradients[1], ..., sums.of_bias)
            for side, gradient in zip(sides, (sums.of_queries, sums.of_candidates), strict=True):
                _accumulate(gradients[2 + side.tensor], (side.rows, side.place), scale * gradient)
        ctx.save_for_backward(*gradients)
        return value

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        # torch's `once_differentiable` lets this pass, and the second derivative would be lost without a word.
        if torch.is_grad_enabled():
            raise RuntimeError(
                "The contrastive loss is differentiable once. Take its gradient without `create_graph`."
            )
        gradients = (None if gradient is None else grad_output * gradient for gradient in ctx.saved_tensors)
        return (None, None, None, *gradients)


def _accumulate(total: Tensor | None, place: Any, part: Tensor) -> None:
    if total is not None:
        total[place] += part


@dataclass
class _Sums:
    """Of one contest: the value, and its gradients; those of the embeddings still lack the factor `logit_scale`."""

    value: Tensor
    of_queries: Tensor
    of_candidates: Tensor
    of_bias: Tensor


def _run(contest: Contest, objective: Objective, queries: Tensor, candidates: Tensor, *, differentiate: bool) -> _Sums:
    pulled, sums = _pull_together(contest, objective, queries, candidates)
    blocks = objective.blocks(contest)
    columns = None
    if contest.mutual:
        columns = queries.new_full(candidates.shape[:1], -torch.inf)
        for block in blocks:
            logits = objective.logits(contest, block, queries, candidates)
            columns = torch.logaddexp(columns, logits.logsumexp(dim=0))
    for block in blocks:
        # A block that is the only one is still there.
        if columns is None or len(blocks) > 1:
            logits = objective.logits(contest, block, queries, candidates)
        rows, push = _push_softmax(logits, columns) if objective.name == "softmax" else _push_sigmoid(logits)
        if columns is not None:
            rows = rows + columns[block]
        sums.value += (rows - pulled[block]).sum()
        if differentiate:
            sums.of_queries[block].addmm_(push, candidates)
            sums.of_candidates.addmm_(push.T, queries[block])
            if objective.logit_bias is not None:
                sums.of_bias += push.sum()
    return sums


def _pull_together(
    contest: Contest, objective: Objective, queries: Tensor, candidates: Tensor
) -> tuple[Tensor, _Sums]:
    """(R,): of each query the mean logit of its positives with softmax, their sum with sigmoid; and its gradients."""
    groups, members, counts = contest.candidates.ids.unique(return_inverse=True, return_counts=True)
    mine = torch.searchsorted(groups, contest.queries.ids)
    weights = torch.ones_like(counts, dtype=queries.dtype)[:, None]
    if objective.name == "softmax":
        # A mutual contest has two cross entropies, which draw the same pairs together.
        weights *= (2 if contest.mutual else 1) / counts.to(weights)[:, None]
    asked, asking = (queries.new_zeros(len(groups), queries.shape[1]) for _ in range(2))
    asked = asked.index_add_(0, members, candidates).mul_(weights)[mine]
    asking = asking.index_add_(0, mine, queries).mul_(weights)[members]
    pulled = objective.logit_scale * (asked * queries).sum(dim=1)
    of_bias = queries.new_zeros(())
    if objective.logit_bias is not None:
        pulled += objective.logit_bias * counts[mine]
        of_bias -= counts[mine].sum()
    return pulled, _Sums(queries.new_zeros(()), asked.neg_(), asking.neg_(), of_bias)


def _push_softmax(logits: Tensor, columns: Tensor | None) -> tuple[Tensor, Tensor]:
    """(B,), the log-sum-exp of each row, and (B, C), its gradient, to which that of the columns' is added."""
    largest = logits.amax(dim=1, keepdim=True)
    push = (logits - largest).exp_()
    total = push.sum(dim=1, keepdim=True)
    push /= total
    if columns is not None:
        push += logits.sub_(columns).exp_()
    return (total.log_() + largest).squeeze(1), push


def _push_sigmoid(logits: Tensor) -> tuple[Tensor, Tensor]:
    """(B,), the soft-plus of each row's logits, summed, and (B, C), its gradient."""
    return -F.logsigmoid(-logits).sum(dim=1), logits.sigmoid()
