# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Rows of all ranks in one tensor, with gradients, so that negatives are global.

`torch.distributed.nn.functional.all_gather` is deprecated in favour of a private module, hence our own function.

Axes: N rows of this rank, G rows of all ranks, in rank order.
"""

from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

Thing = TypeVar("Thing")


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.num_rows = rows.shape[0]
        return _gather(rows)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        # Every rank's loss depends on these rows: their gradients add up.
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total[dist.get_rank() * ctx.num_rows :][: ctx.num_rows]


def _gather(rows: Tensor) -> Tensor:
    parts = [torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, rows.contiguous())
    return torch.cat(parts)


def world_size() -> int:
    """Return the number of ranks; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return this process's rank; 0 without a process group."""
    return dist.get_rank() if world_size() > 1 else 0


def rank_offset(num_rows: int) -> int:
    """Return where this rank's rows begin among all."""
    return rank() * num_rows


def sum_over_ranks(values: Tensor) -> Tensor:
    """Return the sum of what all ranks give, of any one shape; without gradients."""
    total = values.detach().clone()
    if world_size() > 1:
        dist.all_reduce(total)
    return total


def gather_objects(thing: Thing) -> list[Thing]:
    """Return what each rank gives, in rank order."""
    things = [thing] * world_size()
    if len(things) > 1:
        dist.all_gather_object(things, thing)
    return things


def gather_rows(rows: Tensor) -> Tensor:
    """Gather (N, ...) of this rank to (G, ...) of all ranks. Gradients flow back to the rank that a row came from.

    Raises:
        ValueError: on every rank, if ranks bring different numbers of rows.
    """
    if world_size() == 1:
        return rows
    counts = _gather(torch.tensor([rows.shape[0]], device=rows.device)).tolist()
    if len(set(counts)) > 1:
        raise ValueError(
            f"Ranks bring different numbers of images: {counts}. Global negatives need equal batches: set "
            f"`dataloader_drop_last=True`, or a batch size that divides the dataset."
        )
    return _GatherRows.apply(rows) if rows.requires_grad else _gather(rows)
