# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Gradient caching: the loss and gradients of a large batch at the memory of a small one.

The method is GradCache (https://arxiv.org/abs/2101.06983): encode the batch in pieces without a graph, take the loss
of all embeddings and its gradients with respect to them, encode each piece again, now with a graph and the same random
draws, and send those gradients through it. Every piece is encoded twice, and one piece's activations exist at a time.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

Batch = dict[str, Any]
# What the loss reads of a batch's rows, then the scalars that it reads, which every piece gives alike.
Embeddings = tuple[list[Tensor], list[Tensor]]


def split_batch(batch: Batch, size: int) -> Iterator[Batch]:
    """Split into pieces of at most `size` rows: tensors and lists are cut along their first axis, everything else is
    repeated.
    """
    rows = next(len(value) for value in batch.values() if isinstance(value, Tensor))
    for start in range(0, rows, size):
        yield {
            name: value[start : start + size] if isinstance(value, (Tensor, list)) else value
            for name, value in batch.items()
        }


class RandomState:
    """The state of torch's random numbers on the CPU and on `device`, to be put back."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.cpu = torch.get_rng_state()
        self.accelerator = None if device.type == "cpu" else torch.get_device_module(device).get_rng_state(device)

    def restore(self) -> None:
        torch.set_rng_state(self.cpu)
        if self.accelerator is not None:
            torch.get_device_module(self.device).set_rng_state(self.accelerator, self.device)


def cached_backward(
    pieces: list[Batch],
    embed: Callable[[Batch], Embeddings],
    backward: Callable[[list[Tensor], list[Tensor]], Tensor],
    *,
    device: torch.device,
    no_sync: Callable[[], AbstractContextManager] = nullcontext,
) -> Tensor:
    """Accumulate the gradients of the whole batch's loss in the model's parameters.

    Args:
        pieces: Pieces of the batch.
        embed: encodes one piece.
        backward: takes the rows of all pieces, joined, and the scalars; calls `backward` on their loss, which it
            returns.
        device: Device of the model, whose random draws are repeated.
        no_sync: within it, gradients stay on this rank. All pieces but the last are in it, so that ranks exchange
            gradients once.
    """
    encoded, states = _encode_without_graph(pieces, embed, device)
    loss, cached, of_scalars = _gradients_of_embeddings(encoded, backward)
    _encode_again(pieces, states, embed, cached, of_scalars, no_sync)
    return loss


def _encode_without_graph(
    pieces: list[Batch], embed: Callable[[Batch], Embeddings], device: torch.device
) -> tuple[list[Embeddings], list[RandomState]]:
    """Take the first step: all embeddings, and the random numbers that each piece began with."""
    encoded, states = [], []
    with torch.no_grad():
        for piece in pieces:
            states.append(RandomState(device))
            encoded.append(embed(piece))
    return encoded, states


def _gradients_of_embeddings(
    encoded: list[Embeddings], backward: Callable[[list[Tensor], list[Tensor]], Tensor]
) -> tuple[Tensor, list[list[Tensor | None]], list[Tensor | None]]:
    """Take the second step: the loss, its gradients for the rows of each piece, and those for the scalars."""
    rows = [torch.cat(parts).requires_grad_() for parts in zip(*(rows for rows, _ in encoded), strict=True)]
    scalars = [scalar.detach().clone().requires_grad_() for scalar in encoded[-1][1]]
    loss = backward(rows, scalars)
    lengths = [len(part[0]) for part, _ in encoded]
    by_row = [torch.zeros_like(row).split(lengths) if row.grad is None else row.grad.split(lengths) for row in rows]
    return loss, [list(piece) for piece in zip(*by_row, strict=True)], [scalar.grad for scalar in scalars]


def _encode_again(
    pieces: list[Batch],
    states: list[RandomState],
    embed: Callable[[Batch], Embeddings],
    cached: list[list[Tensor | None]],
    of_scalars: list[Tensor | None],
    no_sync: Callable[[], AbstractContextManager],
) -> None:
    """Take the third step: each piece with a graph and the same random draws, and its gradients sent through it."""
    for number, (piece, state, gradients) in enumerate(zip(pieces, states, cached, strict=True)):
        is_last = number == len(pieces) - 1
        state.restore()
        with nullcontext() if is_last else no_sync():
            again, scalars = embed(piece)
            # Scalars take part in the last piece alone: each rank must exchange them exactly once.
            _send_back(again + (scalars if is_last else []), gradients + (of_scalars if is_last else []))


def _send_back(outputs: list[Tensor], gradients: list[Tensor | None]) -> None:
    reached = [
        (output, gradient)
        for output, gradient in zip(outputs, gradients, strict=True)
        if output.requires_grad and gradient is not None  # a frozen tower has no graph
    ]
    if reached:
        torch.autograd.backward([output for output, _ in reached], [gradient for _, gradient in reached])
