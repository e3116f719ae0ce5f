# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Branch report: how alike branches are, which one wins, what is lost without one, and a picture of it from records.

The recall of every branch on every perspective is in the records of retrieval already. The picture shows matrices of
perspectives and branches, on a transparent page and in colours for light and dark ones. What was not measured is not
drawn.

Axes: N images, T texts, H branches, D projection width.
"""

import copy
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ..drawing import HIGH, INK, LOST, LOW, draw_matrix, frame_cell, new_figure, quiet_axes
from ..images.decoding import open_image
from ..modeling_holistic_clip import BranchFusion
from .encoding import DualEncoder, fuse_by
from .ranking import TEXT_TO_IMAGE, TIE_TOLERANCE, bootstrap_interval, rank_both_directions, recall_at
from .records import FUSED, PER_PERSPECTIVE, Detail, Provenance, Record, Recorder
from .retrieval import TASK as RETRIEVAL
from .retrieval import EmbeddedCorpus, TextSet, per_perspective

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TASK = "branches"
GAIN_BY_NAME = "gain_by_name"
PAIRS_AT_ONCE = 4_096  # H vectors of each: 50 MB at H = 6 and D = 512


def report_branches(
    model: DualEncoder, corpus: EmbeddedCorpus, *, provenance: Provenance, ks: Sequence[int] = (1, 5)
) -> list[Record]:
    """Make records of `similarity` between two branches, `wins` of each, what is gained by name, and the fused
    `recall` without each.

    - `similarity`: mean over images of the cosine of two branches' vectors.
    - `wins`: share of true pairs of image and text for which this branch is the most similar of all, by perspective;
      branches that tie share the pair, so that those of a collapsed model win alike.
    - `gain_by_name`: average precision of the branch that a perspective names, less that of another branch, the mean
      over the queries of both directions. Queries are paired, and each counts by the ranks of its answers, so that a
      few dozen images say more than by recall@k, which changes only where an answer crosses rank k.
    - `recall`: as `retrieval` measures it, the branch left out of fusion; by perspective and direction.

    Raises `ValueError` for a model of one branch.
    """
    names = list(model.config.perspectives)
    if len(names) < 2:
        raise ValueError("The model has one branch. A report compares several.")
    corpus.require_images()
    recorder = Recorder(provenance, TASK, len(corpus.left_out))
    records = _similarity_records(corpus.branch_embeds, names, recorder)
    for question in per_perspective(corpus.captions):
        records += _win_records(corpus, question, names, recorder)
        records += _name_records(corpus, question, names, recorder)
        for branch in range(len(names)):
            records += _removal_records(model, corpus, question, branch, recorder, ks)
    return records


def without_branch(fusion: BranchFusion, branch: int) -> BranchFusion:
    """Return a copy that fuses the other H - 1 branches."""
    reduced = copy.deepcopy(fusion)
    kept = [index for index in range(len(fusion.config.perspectives)) if index != branch]
    reduced.config.perspectives = [fusion.config.perspectives[index] for index in kept]
    if fusion.config.branch_weights is not None:
        weights = [fusion.config.branch_weights[index] for index in kept]
        # If all weight was on the one that is gone, the others count alike.
        reduced.config.branch_weights = weights if any(weights) else [1.0] * len(kept)
    if reduced.router is not None:
        reduced.router.weight = nn.Parameter(reduced.router.weight[kept])
        reduced.router.bias = nn.Parameter(reduced.router.bias[kept])
    return reduced


def _similarity_records(branch_embeds: Tensor, names: Sequence[str], recorder: Recorder) -> list[Record]:
    similarity = torch.einsum("nhd,ngd->nhg", branch_embeds, branch_embeds).double().mean(dim=0)
    return [
        recorder.record(
            "similarity",
            similarity[first, second].item(),
            {"branch": names[first], "other": names[second]},
            {"n_images": len(branch_embeds)},
        )
        for first in range(len(names))
        for second in range(first + 1, len(names))
    ]


def _win_records(corpus: EmbeddedCorpus, question: TextSet, names: Sequence[str], recorder: Recorder) -> list[Record]:
    pairs = question.pairs.unique(dim=0)
    shares = torch.stack([_shares_of(corpus, question, part) for part in pairs.split(PAIRS_AT_ONCE)]).sum(dim=0)
    return [
        recorder.record(
            "wins",
            (shares[branch] / len(pairs)).item(),
            {"perspective": question.perspective, "branch": name},
            {"n_pairs": len(pairs)},
            chance=1 / len(names),
        )
        for branch, name in enumerate(names)
    ]


def _shares_of(corpus: EmbeddedCorpus, question: TextSet, pairs: Tensor) -> Tensor:
    """Count for pairs (R, 2) how many each branch wins, as shares (H,)."""
    texts = corpus.embeds_of([question.texts[index] for index in pairs[:, 1].tolist()])
    branches = corpus.branch_embeds[question.images[pairs[:, 0]]]
    similarity = torch.einsum("rhd,rd->rh", branches, texts).double()
    wins = (similarity >= similarity.amax(dim=1, keepdim=True) - TIE_TOLERANCE).double()
    return (wins / wins.sum(dim=1, keepdim=True)).sum(dim=0)


def _name_records(corpus: EmbeddedCorpus, question: TextSet, names: Sequence[str], recorder: Recorder) -> list[Record]:
    if question.perspective not in names:
        return []
    images, texts = corpus.branch_embeds[question.images], corpus.embeds_of(question.texts)
    precision = {
        name: torch.cat(
            [each.precision for each in rank_both_directions(images[:, branch], texts, question.pairs).values()]
        )
        for branch, name in enumerate(names)
    }
    own = precision.pop(question.perspective)
    return [
        recorder.record(
            GAIN_BY_NAME,
            (own - theirs).mean().item(),
            {"perspective": question.perspective, "branch": question.perspective, "other": other},
            {"n_queries": len(own)},
            confidence_interval=bootstrap_interval(own - theirs, seed=recorder.provenance.seed),
        )
        for other, theirs in precision.items()
    ]


def _removal_records(
    model: DualEncoder,
    corpus: EmbeddedCorpus,
    question: TextSet,
    branch: int,
    recorder: Recorder,
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
    told: dict[str, Detail] = {
        "protocol": PER_PERSPECTIVE,
        "perspective": question.perspective,
        "branch": FUSED,
        "fusion": model.config.fusion,
        "without": model.config.perspectives[branch],
    }
    return [
        recorder.record(
            "recall",
            recall,
            {**told, "direction": direction, "k": k},
            {"n_queries": len(result.ranks), "n_candidates": result.num_candidates},
            confidence_interval=bootstrap_interval(result.ranks < k, seed=recorder.provenance.seed),
        )
        for direction, result in both.items()
        for k, recall in recall_at(result.ranks, ks).items()
    ]


CELL, LABELS, HEAD = 0.78, 1.25, 1.15  # inches: of a cell's width, of the rows' names, of title and columns' names
ROW = 0.42  # inches
Cells = Mapping[tuple[str, str], float]


class Panel(NamedTuple):
    """One matrix: what its cells say, by row and column.

    `signed` where less than zero means something; `most` is the value of the darkest shade, or what is the most here.
    """

    title: str
    rows: Sequence[str]
    columns: Sequence[str]
    cells: Cells
    form: str
    signed: bool = False
    frames_best: bool = False
    most: float | None = None


def branch_picture(records: Sequence[Record], *, names: Sequence[str] | None = None, k: int = 5) -> Image.Image:
    """Draw the recall@k of each branch on each perspective, what is lost without one and gained by name over another,
    wins, and similarity between branches.

    Recalls are of texts that look for their image, in percent. Of records of other kinds none is used.

    Args:
        records: Records of one model on one split of a data set, as `evaluate_retrieval` and `report_branches` give
            them.
        names: Order of branches and of the perspectives of the same names. Default: the alphabet's.

    Raises:
        ValueError: records of several models or data sets, or nothing in them to draw.
        ImportError: matplotlib is not installed.

    >>> branch_picture(load_records("results.json"), names=model.config.perspectives).save("branches.png")
    """
    used = [record for record in records if record.task in (TASK, RETRIEVAL)]
    sources = sorted({f"{record.model} on {record.dataset}, {record.split}" for record in used})
    if len(sources) > 1:
        raise ValueError(f"The records are of {'; '.join(sources)}. Pass those of one model on one split.")
    panels = [panel for panel in branch_panels(used, names=names, k=k) if panel.cells]
    if not panels:
        raise ValueError(
            f"None of {len(records)} records is of a branch's {TEXT_TO_IMAGE} recall@{k}, or of its similarity, wins "
            "or loss. Measure `retrieval` and `branches` of a model with several branches."
        )
    widths = [LABELS + CELL * len(panel.columns) for panel in panels]
    height = HEAD + ROW * max(len(panel.rows) for panel in panels)
    figure = new_figure(sum(widths), height)
    for axes, panel in zip(
        figure.subplots(1, len(panels), width_ratios=widths, squeeze=False)[0], panels, strict=True
    ):
        _draw(axes, panel)
    file = io.BytesIO()
    figure.savefig(file, format="png", transparent=True)
    return open_image(file)


def branch_panels(records: Sequence[Record], *, names: Sequence[str] | None = None, k: int = 5) -> list[Panel]:
    """Return the numbers of the five matrices, in percent but for similarities; one without records has no cells."""
    recall: dict[tuple[str, str], float] = {}
    without, wins, similarity, by_name = dict(recall), dict(recall), dict(recall), dict(recall)
    for record in records:
        said = {name: str(value) for name, value in record.details.items()}
        if record.label == f"recall@{k}" and said["protocol"] == PER_PERSPECTIVE:
            if said["direction"] == TEXT_TO_IMAGE:
                target = without if "without" in said else recall
                target[said["perspective"], said.get("without", said["branch"])] = 100 * record.value
        elif record.task == TASK and record.metric == "wins":
            wins[said["perspective"], said["branch"]] = 100 * record.value
        elif record.task == TASK and record.metric == GAIN_BY_NAME:
            by_name[said["perspective"], said["other"]] = 100 * record.value
        elif record.task == TASK and record.metric == "similarity":
            similarity[said["branch"], said["other"]] = similarity[said["other"], said["branch"]] = record.value
    lost = {
        (perspective, branch): recall[perspective, FUSED] - value
        for (perspective, branch), value in without.items()
        if (perspective, FUSED) in recall
    }
    found = {branch for _, branch in (*recall, *wins, *lost)} | {branch for branch, _ in similarity}
    branches = _ordered(found - {FUSED}, names)
    perspectives = _ordered({perspective for perspective, _ in (*recall, *wins, *lost)}, names)
    if not branches:
        recall = {}
    return [
        Panel(f"recall@{k}, %", perspectives, [FUSED, *branches], recall, "{:.0f}", frames_best=True),
        Panel(f"lost without, points of recall@{k}", perspectives, branches, lost, "{:+.1f}", signed=True),
        Panel("gained by name, points of mAP", perspectives, branches, by_name, "{:+.1f}", signed=True),
        Panel("wins true pairs, %", perspectives, branches, wins, "{:.0f}", most=100.0),
        Panel("similarity", branches, branches, similarity, "{:.2f}", most=1.0),
    ]


def _ordered(found: set[str], names: Sequence[str] | None) -> list[str]:
    first = [name for name in names or () if name in found]
    return [*first, *sorted(found - set(first))]


def _draw(axes: "Axes", panel: Panel) -> None:
    values = np.array([[panel.cells.get((row, column), np.nan) for column in panel.columns] for row in panel.rows])
    high = panel.most or max(float(np.nanmax(np.abs(values))), 1e-9)
    low, shades = (-high, (LOST, LOW, HIGH)) if panel.signed else (0.0, (LOW, HIGH))
    draw_matrix(axes, values, limits=(low, high), form=panel.form, shades=shades)
    if panel.frames_best:
        for row, cells in enumerate(values):
            if np.isfinite(cells).any():
                frame_cell(axes, row, int(np.nanargmax(cells)))
    axes.set_title(panel.title, color=INK, fontsize=11, pad=10)
    axes.set_xticks(range(len(panel.columns)), [_shown(name) for name in panel.columns], rotation=30, ha="left")
    axes.set_yticks(range(len(panel.rows)), [_shown(name) for name in panel.rows])
    axes.xaxis.tick_top()
    quiet_axes(axes)


def _shown(name: str) -> str:
    return name.replace("_", " ")
