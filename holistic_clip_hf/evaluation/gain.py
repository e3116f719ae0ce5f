# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Recall gained by a model over another on the same queries: what fine-tuning was worth, with its interval.

Axes: N images, Q queries, H branches, D projection width.
"""

import torch
from torch import Tensor

from .encoding import DualEncoder
from .ranking import DIRECTIONS, bootstrap_interval
from .records import FUSED, PER_PERSPECTIVE, Provenance, Record, Recorder
from .retrieval import EmbeddedCorpus, ranks_by_question

TASK = "fine_tuning"


def measure_gain(
    base: tuple[DualEncoder, EmbeddedCorpus],
    tuned: tuple[DualEncoder, EmbeddedCorpus],
    *,
    provenance: Provenance,
    k: int = 5,
) -> list[Record]:
    """Measure recall@k before and after, and the difference, by the fused score over all perspectives' queries.

    Queries are paired, so that what is easy or hard for both does not widen the interval of the difference.

    Args:
        base: Model before, and the corpus as it sees it.
        tuned: Model after, and the same corpus and texts as it sees them.
        provenance: Origin of the run.
        k: Number of answers looked at.

    Returns:
        `recall_before`, `recall_after` and `recall_gain` for each direction.

    Raises:
        ValueError: the two saw different texts.
    """
    if base[1].plain_captions != tuned[1].plain_captions:
        raise ValueError("The two models read different texts. Encode the corpus with one processor for both.")
    if len(base[1].branch_embeds) != len(tuned[1].branch_embeds):
        raise ValueError("The two models saw different images. Encode the corpus with one processor for both.")
    recorder, records = Recorder(provenance, TASK, len({**base[1].left_out, **tuned[1].left_out})), []
    before, after = (_hits(*each, k) for each in (base, tuned))
    for direction in DIRECTIONS:
        values = {
            "recall_before": before[direction],
            "recall_after": after[direction],
            "recall_gain": after[direction] - before[direction],
        }
        for metric, value in values.items():
            records.append(
                recorder.record(
                    metric,
                    value.mean().item(),
                    {"branch": FUSED, "direction": direction, "k": k},
                    {"n_queries": len(value)},
                    confidence_interval=bootstrap_interval(value, seed=provenance.seed),
                )
            )
    return records


def _hits(model: DualEncoder, corpus: EmbeddedCorpus, k: int) -> dict[str, Tensor]:
    """Return for each direction which queries found an answer of theirs among the first k, (Q,)."""
    found: dict[str, list[Tensor]] = {direction: [] for direction in DIRECTIONS}
    for told, ranked in ranks_by_question(PER_PERSPECTIVE, model, corpus, with_branches=False):
        found[str(told["direction"])].append((torch.as_tensor(ranked.ranks) < k).double())
    return {direction: torch.cat(hits) for direction, hits in found.items()}
