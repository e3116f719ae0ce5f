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

Axes: R queries, of which B are in memory, C candidates, D projection width, H branches.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .options_holistic_clip import OBJECTIVES, require_choice

# 64 MB of float32. tests/benchmarks/loss.py compares sizes.
LOGITS_IN_MEMORY = 2**24


@dataclass
class Side:
    """Rows of one of the tensors given: `tensors[tensor][rows, place]`, (R, D).

    Args:
        tensor, place: which tensor, and where on its second axis (a branch, a slot).
        rows: (R,) int64, none twice.
        ids: (R,) int64; two rows, here and on the other side, are positives of each other where they are equal.
        ignored_ids: (R,) int64; two rows that are not positives are left out if these are equal. Default: no row is.
        routing: Position of the tensor (any, any, H) that says how much each branch answers, and the branch whose
            share each row is multiplied by. Default: none is.
    """

    tensor: int
    place: int
    rows: Tensor
    ids: Tensor
    ignored_ids: Tensor | None = None
    routing: tuple[int, int] | None = None

    def read(self, tensors: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        """Return the rows, (R, D)."""
        values = tensors[self.tensor][self.rows, self.place].to(dtype)
        return values if self.routing is None else values * self._shares(tensors, dtype)

    def give_back(self, gradients: Sequence[Tensor | None], tensors: Sequence[Tensor], gradient: Tensor) -> None:
        """Add the gradient of what was read to those of the tensors that it was made of."""
        at = (self.rows, self.place)
        if self.routing is None:
            _accumulate(gradients[self.tensor], at, gradient)
            return
        tensor, branch = self.routing
        _accumulate(gradients[tensor], (*at, branch), (gradient * tensors[self.tensor][at].to(gradient)).sum(dim=1))
        _accumulate(gradients[self.tensor], at, gradient * self._shares(tensors, gradient.dtype))

    def _shares(self, tensors: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        assert self.routing is not None
        tensor, branch = self.routing
        return tensors[tensor][self.rows, self.place, branch].to(dtype)[:, None]


@dataclass
class Contest:
    """Each query against all candidates; if `mutual`, two sides with the same ids, also each candidate as a query.

    A logit is the sum of the products of `parts`, pairs of queries and candidates with the same rows. Routed captions
    have one for each branch, since all branches side by side are H times as large as the captions.
    """

    parts: list[tuple[Side, Side]]
    mutual: bool = False

    @property
    def queries(self) -> Side:
        """Rows that ask."""
        return self.parts[0][0]

    @property
    def candidates(self) -> Side:
        """Rows that are asked for."""
        return self.parts[0][1]

    def left_out(self, block: slice) -> Tensor | None:
        """Mark pairs that are left out: (B, C) bool, or None if nothing is."""
        here, there = self.queries, self.candidates
        if here.ignored_ids is None:
            return None
        return (here.ignored_ids[block, None] == there.ignored_ids) & (here.ids[block, None] != there.ids)


@dataclass
class Objective:
    """Comparison of queries and candidates.

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
        require_choice("objective", self.name, OBJECTIVES)
        if (self.name == "sigmoid") != (self.logit_bias is not None):
            raise ValueError(
                f"`objective` is {self.name!r} and `logit_bias` is {self.logit_bias}. Give a bias with 'sigmoid' "
                f"(SigLIP starts from -10), and none with 'softmax'."
            )
        if self.chunk_size is not None and self.chunk_size < 1:
            raise ValueError(
                f"`chunk_size` is {self.chunk_size}; expected 1 or more queries, or None for the default."
            )

    def logits(self, contest: Contest, block: slice, parts: Sequence["_Part"]) -> Tensor:
        """Return the logits (B, C), -inf where a pair is left out."""
        queries, candidates = parts[0].rows()
        logits = (self.logit_scale * queries[block]) @ candidates.T
        for part in parts[1:]:
            queries, candidates = part.rows()
            logits.addmm_(self.logit_scale * queries[block], candidates.T)
        if self.logit_bias is not None:
            logits += self.logit_bias
        left_out = contest.left_out(block)
        return logits if left_out is None else logits.masked_fill_(left_out, -torch.inf)

    def blocks(self, contest: Contest) -> list[slice]:
        """Return slices of the queries."""
        size = self.chunk_size or max(1, LOGITS_IN_MEMORY // len(contest.candidates.rows))
        return [slice(start, start + size) for start in range(0, len(contest.queries.rows), size)]


def sum_over_queries(contests: list[Contest], objective: Objective, tensors: list[Tensor]) -> Tensor:
    """Return a scalar: the loss of every query of every contest, differentiable once.

    Args:
        contests: whose sides are rows of the tensors; each query has a positive among the candidates.
        objective: Comparison of the two.
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
        wanted = [grad_enabled and needed for needed in ctx.needs_input_grad[3:]]
        value, ctx.gradients = _value_and_gradients(contests, objective, (scale, bias, *tensors), wanted)
        ctx.again = partial(_value_and_gradients, contests, objective, wanted=wanted)
        ctx.save_for_backward(scale, bias, *tensors)
        return value

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        # torch's `once_differentiable` lets this pass, and the second derivative would be lost without a word.
        if torch.is_grad_enabled():
            raise RuntimeError(
                "The contrastive loss is differentiable once. Take its gradient without `create_graph`."
            )
        # They are multiplied in place, since a second copy would be the peak of the step. Where the graph is retained
        # and a second backward comes, they are computed again.
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            _, gradients = ctx.again(given=ctx.saved_tensors)
        return (None, None, None, *(None if one is None else one.mul_(grad_output) for one in gradients))


def _value_and_gradients(
    contests: list[Contest], objective: Objective, given: Sequence[Tensor | None], wanted: Sequence[bool]
) -> tuple[Tensor, list[Tensor | None]]:
    """Return the loss of all queries, and its gradients for (scale, bias, *tensors), which are `given`, as wanted."""
    scale, _, *rest = given
    tensors = [one for one in rest if one is not None]
    assert scale is not None
    exact = torch.promote_types(tensors[0].dtype, torch.float32)
    gradients = [
        None if one is None or not want else torch.zeros_like(one, dtype=exact)
        for one, want in zip(given, wanted, strict=True)
    ]
    value = torch.zeros((), dtype=exact, device=tensors[0].device)
    for contest in contests:
        parts = [_Part(pair, contest, scale, gradients, tensors, exact) for pair in contest.parts]
        value += _run(contest, objective, parts, gradients)
    return value, gradients


def _accumulate(total: Tensor | None, place: Any, part: Tensor) -> None:
    if total is not None:
        total[place] += part


class _Part:
    """One of the products that the logits of a contest are the sum of, and the gradients of its two sides.

    The only part of a contest stays in memory while it runs. Of several, one is there at a time.
    """

    def __init__(
        self,
        sides: tuple[Side, Side],
        contest: Contest,
        scale: Tensor,
        gradients: Sequence[Tensor | None],
        tensors: Sequence[Tensor],
        exact: torch.dtype,
    ) -> None:
        self._sides, self._scale, self._gradients = sides, scale, gradients
        self._tensors, self._exact, self._stays = tensors, exact, len(contest.parts) == 1
        self._rows: tuple[Tensor, Tensor] | None = None
        self._slopes: tuple[Tensor, Tensor] | None = None  # of both sides, which still lack the factor `logit_scale`

    def rows(self) -> tuple[Tensor, Tensor]:
        """Return queries (R, D) and candidates (C, D)."""
        if self._rows is not None:
            return self._rows
        queries, candidates = (side.read(self._tensors, self._exact) for side in self._sides)
        if self._stays:
            self._rows = queries, candidates
        return queries, candidates

    def pull(self, of_queries: Tensor, of_candidates: Tensor) -> None:
        """Take the gradients of what pulls together, (R, D) and (C, D)."""
        self._slopes = of_queries, of_candidates
        if not self._stays:
            self.give_back()

    def push(self, block: slice, push: Tensor) -> None:
        """Take the gradient (B, C) of the logits of a block of queries."""
        queries, candidates = self.rows()
        of_queries, of_candidates = self._slopes or (torch.zeros_like(queries), torch.zeros_like(candidates))
        of_queries[block].addmm_(push, candidates)
        of_candidates.addmm_(push.T, queries[block])
        self._slopes = of_queries, of_candidates
        if not self._stays:
            self.give_back()

    def give_back(self) -> None:
        """Add what was taken to the gradients of the tensors and of the scale."""
        if self._slopes is None:
            return
        _accumulate(self._gradients[0], ..., (self._slopes[0] * self.rows()[0]).sum())
        for side, slope in zip(self._sides, self._slopes, strict=True):
            side.give_back(self._gradients[2:], self._tensors, slope.mul_(self._scale))
        self._slopes = None


def _run(contest: Contest, objective: Objective, parts: Sequence[_Part], gradients: Sequence[Tensor | None]) -> Tensor:
    """Return the loss of a contest's queries, a scalar, and add to the gradients if any is wanted."""
    differentiate = any(gradient is not None for gradient in gradients)
    pulled = _pull_together(contest, objective, parts, gradients, differentiate)
    blocks, value = objective.blocks(contest), pulled.new_zeros(())
    columns = None
    if contest.mutual:
        columns = pulled.new_full(contest.candidates.rows.shape, -torch.inf)
        for block in blocks:
            logits = objective.logits(contest, block, parts)
            columns = torch.logaddexp(columns, logits.logsumexp(dim=0))
    for block in blocks:
        # A block that is the only one is still there.
        if columns is None or len(blocks) > 1:
            logits = objective.logits(contest, block, parts)
        rows, push = _push_softmax(logits, columns) if objective.name == "softmax" else _push_sigmoid(logits)
        if columns is not None:
            rows = rows + columns[block]
        value += (rows - pulled[block]).sum()
        if differentiate:
            for part in parts:
                part.push(block, push)
            if objective.logit_bias is not None:
                _accumulate(gradients[1], ..., push.sum())
    for part in parts:
        part.give_back()
    return value


def _pull_together(
    contest: Contest,
    objective: Objective,
    parts: Sequence[_Part],
    gradients: Sequence[Tensor | None],
    differentiate: bool,
) -> Tensor:
    """Return for each query the mean logit of its positives with softmax, their sum with sigmoid, (R,)."""
    # A group of equal ids is known by its first position among the sorted ones. Counting the groups, as `unique` does,
    # would make the processor wait for the accelerator.
    ids = contest.candidates.ids.sort().values
    members, mine = (torch.searchsorted(ids, side.ids) for side in (contest.candidates, contest.queries))
    counts = torch.zeros_like(ids).index_add_(0, members, torch.ones_like(members)).clamp_(min=1)
    pulled: Tensor | float = 0.0
    for part in parts:
        queries, candidates = part.rows()
        weights = torch.ones_like(counts, dtype=queries.dtype)[:, None]
        if objective.name == "softmax":
            # A mutual contest has two cross entropies, which draw the same pairs together.
            weights *= (2 if contest.mutual else 1) / counts.to(weights)[:, None]
        asked, asking = (queries.new_zeros(len(ids), queries.shape[1]) for _ in range(2))
        asked = asked.index_add_(0, members, candidates).mul_(weights)[mine]
        pulled = pulled + objective.logit_scale * (asked * queries).sum(dim=1)
        if differentiate:
            asking = asking.index_add_(0, mine, queries).mul_(weights)[members]
            part.pull(asked.neg_(), asking.neg_())
    assert isinstance(pulled, Tensor)
    if objective.logit_bias is not None:
        pulled += objective.logit_bias * counts[mine]
        if differentiate:
            _accumulate(gradients[1], ..., -counts[mine].sum())
    return pulled


def _push_softmax(logits: Tensor, columns: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the log-sum-exp of each row, (B,), and its gradient (B, C), to which that of the columns' is added."""
    largest = logits.amax(dim=1, keepdim=True)
    push = (logits - largest).exp_()
    total = push.sum(dim=1, keepdim=True)
    push /= total
    if columns is not None:
        push += logits.sub_(columns).exp_()
    return (total.log_() + largest).squeeze(1), push


def _push_sigmoid(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return the soft-plus of each row's logits, summed, (B,), and its gradient (B, C)."""
    return -F.logsigmoid(-logits).sum(dim=1), logits.sigmoid()
