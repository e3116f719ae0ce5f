# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Fusion fitted to data, on embeddings of a trained model: a second, or a few, on a CPU.

- `weighted` and `softmax` make texts find their images, on a validation split: each minimises the text-to-image
  cross entropy over one weight per branch, or over the scale.
- `routed` learns which perspective a text is of, from texts whose perspective is known; images are not looked at, so
  the training split serves.

Perspectives count alike, however many texts each has.

Axes: N images, T texts, H branches, D projection width, R pairs.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ..fusion_holistic_clip import BranchRouter
from ..modeling_holistic_clip import HolisticCLIPModel
from .protocols import per_perspective
from .retrieval import EmbeddedCorpus

FITTED = ("weighted", "routed", "softmax")
MOST_TEXTS = 512  # of a perspective, and
MOST_IMAGES = 4_096  # H similarities of each pair: 50 MB at H = 6, perspective by perspective
INVERSE_REGULARISATION = 1.0  # scikit-learn's own default for logistic regression
STEPS = 200


def fit_fusion(model: HolisticCLIPModel, corpus: EmbeddedCorpus, fusion: str, *, seed: int = 0) -> None:
    """Fit `fusion` to an encoded corpus, and set it on the model; `save_pretrained` keeps it.

    Of a large corpus a part is drawn, by `seed`. Raises `ValueError` for a fusion that has nothing to fit, and where
    no caption is of a perspective that a branch is named after.
    """
    if fusion not in FITTED:
        raise ValueError(f"Got the fusion {fusion!r}. Those that can be fitted: {', '.join(FITTED)}.")
    weights = scale = None
    if fusion == "weighted":
        weights = fit_branch_weights(*_questions(corpus, seed))
    elif fusion == "softmax":
        scale = fit_fusion_scale(*_questions(corpus, seed))
    else:
        model.branch_fusion.router = _fit_router(model, corpus)
    model.config.update({"fusion": fusion, "branch_weights": weights, "fusion_scale": scale})


def fit_branch_weights(similarities: Sequence[Tensor], correct: Sequence[Tensor]) -> list[float]:
    """H weights of sum one, none negative, for which texts find their images.

    Shapes, for each perspective: `similarities` (T, N, H); `correct` (T, N), true where an image is right for a text.
    """
    num_branches = similarities[0].shape[-1]
    # Their size is a temperature, fitted too; only their proportion is kept. A weight of zero is a limit, not a value.
    (logarithms,) = _minimise(
        lambda given: _cross_entropy([each @ given.exp() for each in similarities], correct),
        torch.full((num_branches,), 3.0, dtype=torch.float64),
    )
    return logarithms.softmax(dim=0).tolist()


def fit_fusion_scale(similarities: Sequence[Tensor], correct: Sequence[Tensor]) -> float:
    """The scale of the softmax over branches for which texts find their images; shapes as in `fit_branch_weights`."""

    def loss(given: Tensor) -> Tensor:
        scale, temperature = given.exp()
        fused = [((scale * each).softmax(dim=-1) * each).sum(dim=-1) for each in similarities]
        return _cross_entropy([temperature * each for each in fused], correct)

    (logarithms,) = _minimise(loss, torch.full((2,), 3.0, dtype=torch.float64))
    return logarithms[0].exp().item()


def fit_router(text_embeds: Tensor, branch_of_text: Tensor, num_branches: int) -> BranchRouter:
    """Logistic regression with balanced classes, from texts (T, D) to the branches (T,) of their perspectives."""
    texts, targets = text_embeds.double(), branch_of_text.long()
    counts = targets.bincount(minlength=num_branches).double()
    balance = torch.where(counts > 0, len(targets) / (counts.clamp(min=1) * (counts > 0).sum()), 0.0)

    def loss(weight: Tensor, bias: Tensor) -> Tensor:
        errors = F.cross_entropy(F.linear(texts, weight, bias), targets, weight=balance, reduction="sum")
        return (errors + weight.square().sum() / (2 * INVERSE_REGULARISATION)) / len(targets)

    weight = torch.zeros(num_branches, texts.shape[1], dtype=torch.float64)
    weight, bias = _minimise(loss, weight, torch.zeros(num_branches, dtype=torch.float64))
    router = BranchRouter(texts.shape[1], num_branches)
    router.weight.copy_(weight)
    router.bias.copy_(bias)
    return router


def _fit_router(model: HolisticCLIPModel, corpus: EmbeddedCorpus) -> BranchRouter:
    names = model.config.perspectives
    # A text that stands for several perspectives teaches each of them.
    told = [
        (text, names.index(perspective))
        for perspective, owned in corpus.captions.items()
        if perspective in names
        for text in dict.fromkeys(text for each in owned for text in each)
    ]
    if not told:
        raise ValueError(
            f"The corpus has captions of {', '.join(corpus.captions)}; the branches are {', '.join(names)}. A router "
            "learns from captions of the branches' perspectives."
        )
    texts = corpus.embeds_of([text for text, _ in told])
    router = fit_router(texts, torch.tensor([branch for _, branch in told]), len(names))
    return router.to(model.device, model.dtype)


def _questions(corpus: EmbeddedCorpus, seed: int) -> tuple[list[Tensor], list[Tensor]]:
    """Similarities (T, N, H) and what is correct (T, N) of each perspective, or of as much of it as is drawn."""
    if len(corpus.branch_embeds) == 0:
        raise ValueError("The corpus was encoded without images, for which this fusion is fitted. Encode them too.")
    generator = torch.Generator().manual_seed(seed)
    similarities, correct = [], []
    for question in per_perspective(corpus.captions):
        right = torch.zeros(len(question.texts), len(question.images), dtype=torch.bool)
        right[question.pairs[:, 1], question.pairs[:, 0]] = True
        images = torch.randperm(len(question.images), generator=generator)[:MOST_IMAGES].sort().values
        found = right[:, images].any(dim=1).nonzero().squeeze(1)
        texts = found[torch.randperm(len(found), generator=generator)[:MOST_TEXTS]]
        embeds = corpus.embeds_of([question.texts[text] for text in texts])
        branches = corpus.branch_embeds[images]
        similarities.append(torch.einsum("td,nhd->tnh", embeds, branches).double())
        correct.append(right[texts][:, images])
    return similarities, correct


def _cross_entropy(logits: Sequence[Tensor], correct: Sequence[Tensor]) -> Tensor:
    """Of texts looking for images, several of which may be right; perspectives count alike."""
    losses = [
        (each.logsumexp(dim=1) - each.masked_fill(~right, -torch.inf).logsumexp(dim=1)).mean()
        for each, right in zip(logits, correct, strict=True)
    ]
    return torch.stack(losses).mean()


def _minimise(loss: Callable[..., Tensor], *start: Tensor) -> list[Tensor]:
    """The arguments of a smooth `loss` at its minimum, by L-BFGS."""
    given = [value.clone().requires_grad_() for value in start]
    optimizer = torch.optim.LBFGS(given, max_iter=STEPS, line_search_fn="strong_wolfe")

    def step() -> Tensor:
        optimizer.zero_grad()
        value = loss(*given)
        value.backward()
        return value

    optimizer.step(step)
    return [value.detach() for value in given]
