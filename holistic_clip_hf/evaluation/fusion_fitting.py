# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Fusion fitted to data, on embeddings of a trained model: a second, or a few, on a CPU.

- `weighted` and `softmax` make texts find their images, on a validation split: each minimises the text-to-image
  cross entropy over one weight per branch, or over the scale.
- `routed` learns which perspective a text is of, from texts whose perspective is known; images are not looked at, so
  the training split serves.

Perspectives count alike, however many texts each has.

Axes: N images, T texts, H branches, D projection width, R pairs.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..modeling_holistic_clip import BranchRouter, HolisticCLIPModel
from ..options_holistic_clip import FUSIONS
from .probes import fit_logistic_regression, minimise
from .ranking import TEXT_TO_IMAGE
from .records import PER_PERSPECTIVE
from .retrieval import EmbeddedCorpus, per_perspective, ranks_by_question

FITTED = ("weighted", "routed", "softmax")
MOST_TEXTS = 512  # of a perspective, and
MOST_IMAGES = 4_096  # H similarities of each pair: 50 MB at H = 6, perspective by perspective
INVERSE_REGULARISATION = 1.0  # scikit-learn's own default for logistic regression
MOST_STEPS = 200


def fit_fusion(model: HolisticCLIPModel, corpus: EmbeddedCorpus, fusion: str, *, seed: int = 0) -> None:
    """Fit `fusion` to an encoded corpus, and set it on the model; `save_pretrained` keeps it.

    Of a large corpus a part is drawn, by `seed`. Raises `ValueError` for a fusion that has nothing to fit, and where
    no caption is of a perspective that a branch is named after.
    """
    if fusion not in FITTED:
        raise ValueError(f"`fusion` is {fusion!r}; expected one of {', '.join(FITTED)}, which can be fitted.")
    weights = scale = router = None
    if fusion == "weighted":
        weights = fit_branch_weights(*_questions(corpus, seed))
    elif fusion == "softmax":
        scale = fit_fusion_scale(*_questions(corpus, seed))
    else:
        router = _fit_router(model, corpus)
    _set_fusion(model, fusion, weights=weights, scale=scale, router=router)


def _set_fusion(
    model: HolisticCLIPModel,
    fusion: str,
    *,
    weights: list[float] | None = None,
    scale: float | None = None,
    router: BranchRouter | None = None,
) -> None:
    """Make a model answer by a fusion. Nothing of another is left, which a checkpoint would hold without a use."""
    model.branch_fusion.router = router
    model.config.update({"fusion": fusion, "branch_weights": weights, "fusion_scale": scale})


def fit_best_fusion(
    model: HolisticCLIPModel, validation: EmbeddedCorpus, texts: EmbeddedCorpus, *, seed: int = 0
) -> dict[str, float]:
    """Fit every fusion, and set the one by which texts find their images best.

    Each is judged by mean average precision, text to image, over perspectives that count alike. What is fitted on
    images is fitted on one half of them and judged on the other, both ways round, then fitted on all.

    Args:
        model: Model, of several branches.
        validation: Corpus that it was not trained on, encoded.
        texts: Captions for the router, encoded; those of the training split serve.
        seed: Seed of the part that is drawn from a large split.

    Returns:
        Mean average precision by fusion, the chosen one first.

    Raises:
        ValueError: a model of one branch, which has nothing to fuse.
    """
    if len(model.config.perspectives) < 2:
        raise ValueError("The model has one branch; expected several, of which one score is to be made. Leave it out.")
    halves = [_every_second(validation, start) for start in range(2)]

    def fit(fusion: str, corpus: EmbeddedCorpus) -> None:
        if fusion in FITTED:
            fit_fusion(model, texts if fusion == "routed" else corpus, fusion, seed=seed)
        else:
            _set_fusion(model, fusion)

    found = {}
    for fusion in FUSIONS:
        scores = []
        for fitted, judged in (halves, halves[::-1]):
            fit(fusion, fitted)
            scores.append(_mean_precision(model, judged))
        found[fusion] = sum(scores) / 2
    ordered = dict(sorted(found.items(), key=lambda each: -each[1]))  # of equal ones, the simpler comes first
    fit(next(iter(ordered)), validation)
    return ordered


def _every_second(corpus: EmbeddedCorpus, start: int) -> EmbeddedCorpus:
    """Return every second image with its captions."""
    captions = {name: owned[start::2] for name, owned in corpus.captions.items()}
    return EmbeddedCorpus(corpus.branch_embeds[start::2], captions, corpus.text_embeds)


def _mean_precision(model: HolisticCLIPModel, corpus: EmbeddedCorpus) -> float:
    asked = {name: owned for name, owned in corpus.captions.items() if any(owned)}
    found = [
        ranks.precision.mean().item()
        for told, ranks in ranks_by_question(
            PER_PERSPECTIVE, model, EmbeddedCorpus(corpus.branch_embeds, asked, corpus.text_embeds), False
        )
        if told["direction"] == TEXT_TO_IMAGE
    ]
    return sum(found) / len(found)


def fit_branch_weights(similarities: Sequence[Tensor], correct: Sequence[Tensor]) -> list[float]:
    """Find H weights of sum one, none negative, for which texts find their images.

    Shapes, for each perspective: `similarities` (T, N, H); `correct` (T, N), true where an image is right for a text.
    """
    num_branches = similarities[0].shape[-1]
    # Their size is a temperature, fitted too; only their proportion is kept. A weight of zero is a limit, not a value.
    (logarithms,) = minimise(
        lambda given: _cross_entropy([each @ given.exp() for each in similarities], correct),
        torch.full((num_branches,), 3.0, dtype=torch.float64),
        most_steps=MOST_STEPS,
    )
    return logarithms.softmax(dim=0).tolist()


def fit_fusion_scale(similarities: Sequence[Tensor], correct: Sequence[Tensor]) -> float:
    """Return the scale of the softmax over branches for which texts find their images; shapes as in
    `fit_branch_weights`.
    """

    def loss(given: Tensor) -> Tensor:
        scale, temperature = given.exp()
        fused = [((scale * each).softmax(dim=-1) * each).sum(dim=-1) for each in similarities]
        return _cross_entropy([temperature * each for each in fused], correct)

    (logarithms,) = minimise(loss, torch.full((2,), 3.0, dtype=torch.float64), most_steps=MOST_STEPS)
    return logarithms[0].exp().item()


def fit_router(text_embeds: Tensor, branch_of_text: Tensor, num_branches: int) -> BranchRouter:
    """Fit a logistic regression with balanced classes: unit vectors of texts (T, D), and the branch of each (T,)."""
    weight, bias = fit_logistic_regression(
        text_embeds,
        branch_of_text,
        num_branches,
        inverse_regularisation=INVERSE_REGULARISATION,
        balanced=True,
        most_steps=MOST_STEPS,
    )
    width = text_embeds.shape[1]
    router = BranchRouter(width, num_branches)
    router.load_state_dict({"weight": weight / width**0.5, "bias": bias})
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
    """Return the similarities (T, N, H) and what is correct (T, N) of each perspective, or of as much of it as is
    drawn.
    """
    corpus.require_images()
    generator = torch.Generator().manual_seed(seed)
    similarities, correct = [], []
    for question in per_perspective(corpus.captions):
        right = question.right
        drawn = torch.randperm(len(question.images), generator=generator)
        # Images that own a text come first, or a rare perspective might be drawn without any.
        owners_first = drawn[right.any(dim=0)[drawn].logical_not().long().argsort(stable=True)]
        images = owners_first[:MOST_IMAGES].sort().values
        found = right[:, images].any(dim=1).nonzero().squeeze(1)
        texts = found[torch.randperm(len(found), generator=generator)[:MOST_TEXTS]]
        embeds = corpus.embeds_of([question.texts[text] for text in texts])
        branches = corpus.branch_embeds[images]
        similarities.append(torch.einsum("td,nhd->tnh", embeds, branches).double())
        correct.append(right[texts][:, images])
    return similarities, correct


def _cross_entropy(logits: Sequence[Tensor], correct: Sequence[Tensor]) -> Tensor:
    """Average the cross entropy of texts looking for images, several of them right. Perspectives count alike."""
    losses = [
        (each.logsumexp(dim=1) - each.masked_fill(~right, -torch.inf).logsumexp(dim=1)).mean()
        for each, right in zip(logits, correct, strict=True)
    ]
    return torch.stack(losses).mean()
