# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""What each branch is good for: how alike branches are, which one wins, and what is lost without one.

The recall of every branch on every perspective is in the records of retrieval already.

Axes: N images, T texts, H branches, D projection width.
"""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..fusion_holistic_clip import BranchFusion
from .encoding import DualEncoder, fuse_by
from .metrics import bootstrap_interval, recall_at
from .protocols import Question, per_perspective
from .ranking import TIE_TOLERANCE, rank_both_directions
from .records import FUSED, PER_PERSPECTIVE, Provenance, Record
from .retrieval import EmbeddedCorpus

TASK = "branches"
PAIRS_AT_ONCE = 4_096  # H vectors of each: 50 MB at H = 6 and D = 512


def report_branches(
    model: DualEncoder, corpus: EmbeddedCorpus, *, provenance: Provenance, ks: Sequence[int] = (1, 5)
) -> list[Record]:
    """Records of `similarity` between two branches, `wins` of each, and the fused `recall` without each.

    - `similarity`: mean over images of the cosine of two branches' vectors.
    - `wins`: share of true pairs of image and text for which this branch is the most similar of all, by perspective;
      branches that tie share the pair, so that those of a collapsed model win alike.
    - `recall`: as `retrieval` measures it, the branch left out of fusion; by perspective and direction.

    Raises `ValueError` for a model of one branch.
    """
    names = list(model.config.perspectives)
    if len(names) < 2:
        raise ValueError("The model has one branch. A report compares several.")
    corpus.require_images()
    records = _similarity_records(corpus.branch_embeds, names, provenance)
    for question in per_perspective(corpus.captions):
        records += _win_records(corpus, question, names, provenance)
        for branch in range(len(names)):
            records += _removal_records(model, corpus, question, branch, provenance, ks)
    return records


def without_branch(fusion: BranchFusion, branch: int) -> BranchFusion:
    """A copy that fuses the other H - 1 branches."""
    reduced = copy.deepcopy(fusion)
    kept = [index for index in range(len(fusion.config.perspectives)) if index != branch]
    reduced.config.perspectives = [fusion.config.perspectives[index] for index in kept]
    if fusion.config.branch_weights is not None:
        weights = [fusion.config.branch_weights[index] for index in kept]
        reduced.config.branch_weights = weights if any(weights) else None  # all on the one that is gone
    if reduced.router is not None:
        reduced.router.weight = nn.Parameter(reduced.router.weight[kept])
        reduced.router.bias = nn.Parameter(reduced.router.bias[kept])
    return reduced


def _similarity_records(branch_embeds: Tensor, names: Sequence[str], provenance: Provenance) -> list[Record]:
    similarity = torch.einsum("nhd,ngd->nhg", branch_embeds, branch_embeds).double().mean(dim=0)
    return [
        Record(
            **vars(provenance),
            metric="similarity",
            value=similarity[first, second].item(),
            task=TASK,
            details={"branch": names[first], "other": names[second]},
            counts={"n_images": len(branch_embeds)},
        )
        for first in range(len(names))
        for second in range(first + 1, len(names))
    ]


def _win_records(
    corpus: EmbeddedCorpus, question: Question, names: Sequence[str], provenance: Provenance
) -> list[Record]:
    pairs = question.pairs.unique(dim=0)
    shares = torch.stack([_shares_of(corpus, question, part) for part in pairs.split(PAIRS_AT_ONCE)]).sum(dim=0)
    return [
        Record(
            **vars(provenance),
            metric="wins",
            value=(shares[branch] / len(pairs)).item(),
            task=TASK,
            details={"perspective": question.perspective, "branch": name},
            counts={"n_pairs": len(pairs)},
            chance=1 / len(names),
        )
        for branch, name in enumerate(names)
    ]


def _shares_of(corpus: EmbeddedCorpus, question: Question, pairs: Tensor) -> Tensor:
    """(H,): of pairs (R, 2), how many each branch wins."""
    texts = corpus.embeds_of([question.texts[index] for index in pairs[:, 1].tolist()])
    branches = corpus.branch_embeds[question.images[pairs[:, 0]]]
    similarity = torch.einsum("rhd,rd->rh", branches, texts).double()
    wins = (similarity >= similarity.amax(dim=1, keepdim=True) - TIE_TOLERANCE).double()
    return (wins / wins.sum(dim=1, keepdim=True)).sum(dim=0)


def _removal_records(
    model: DualEncoder,
    corpus: EmbeddedCorpus,
    question: Question,
    branch: int,
    provenance: Provenance,
    ks: Sequence[int],
) -> list[Record]:
    others = torch.arange(corpus.branch_embeds.shape[1]) != branch
    vectors = fuse_by(
        without_branch(model.branch_fusion, branch),
        model.logit_scale,
        corpus.branch_embeds[:, others],
        corpus.embeds_of(question.texts),
    )
    both = rank_both_directions(vectors.images, vectors.texts, question.pairs, score=vectors.score)
    told = {
        "protocol": PER_PERSPECTIVE,
        "perspective": question.perspective,
        "branch": FUSED,
        "fusion": model.config.fusion,
        "without": model.config.perspectives[branch],
    }
    return [
        Record(
            **vars(provenance),
            metric="recall",
            value=recall,
            task=TASK,
            details={**told, "direction": direction, "k": k},
            counts={"n_queries": len(result.ranks), "n_candidates": result.num_candidates},
            confidence_interval=bootstrap_interval(result.ranks < k, seed=provenance.seed),
        )
        for direction, result in both.items()
        for k, recall in recall_at(result.ranks, ks).items()
    ]
