# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Multinomial logistic regression by L-BFGS on the whole data: what probes of vectors and routers of texts are.

Axes: N rows, D width, C classes.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

MOST_STEPS = 1_000  # as for CLIP's linear probes (https://arxiv.org/abs/2103.00020, appendix A.3)


def fit_logistic_regression(
    vectors: Tensor,
    labels: Tensor,
    num_classes: int,
    *,
    inverse_regularisation: float,
    balanced: bool = False,
    start: tuple[Tensor, Tensor] | None = None,
    most_steps: int = MOST_STEPS,
) -> tuple[Tensor, Tensor]:
    """Weight (C, D) and bias (C,), in float64, from vectors (N, D) and labels (N,).

    The objective is scikit-learn's: cross entropy summed over rows, times `inverse_regularisation`, and half the
    square of the weight, not of the bias. With `balanced`, classes count alike, however many rows each has. A class
    without rows is given a bias so low that it is not predicted. A `start`, such as the solution for a little more
    regularisation, saves steps; the minimum is one.
    """
    rows, targets = vectors.double(), labels.long().to(vectors.device)
    counts = targets.bincount(minlength=num_classes).double()
    shares = torch.ones_like(counts)
    if balanced:
        shares = torch.where(counts > 0, len(targets) / (counts.clamp(min=1) * (counts > 0).sum()), 0.0)

    def loss(weight: Tensor, bias: Tensor) -> Tensor:
        errors = F.cross_entropy(F.linear(rows, weight, bias), targets, weight=shares, reduction="sum")
        return (errors + weight.square().sum() / (2 * inverse_regularisation)) / len(targets)

    weight, bias = start or (rows.new_zeros(num_classes, rows.shape[1]), rows.new_zeros(num_classes))
    weight, bias = minimise(loss, weight, bias, most_steps=most_steps)
    return weight, bias


def minimise(loss: Callable[..., Tensor], *start: Tensor, most_steps: int) -> list[Tensor]:
    """The arguments of a smooth `loss` at its minimum, by L-BFGS."""
    given = [value.clone().requires_grad_() for value in start]
    optimizer = torch.optim.LBFGS(given, max_iter=most_steps, line_search_fn="strong_wolfe")

    def step() -> Tensor:
        optimizer.zero_grad()
        value = loss(*given)
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(step)
    return [value.detach() for value in given]
