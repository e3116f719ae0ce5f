# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Recall, median rank and their chance, for `evaluate`: ranks in, since score matrices do not fit into its cache."""

from typing import Any

import datasets
import evaluate
import torch

from holistic_clip_hf.evaluation.ranking import PAPER_KS, chance_median_rank, chance_recall_at, median_rank, recall_at

CITATION = """@inproceedings{wang2025holism,
  title = {Advancing Myopia To Holism: Fully Contrastive Language-Image Pre-training},
  booktitle = {CVPR},
  year = {2025}
}"""


class ImageTextRetrieval(evaluate.Metric):
    """`compute(predictions=ranks, references=num_correct, num_candidates=K, ks=(1, 5, 10))`.

    Ranks (Q,) count from 0, as `holistic_clip_hf.evaluation.ranking.retrieval_ranks` gives them; `num_correct` (Q,) is
    how many candidates are correct for each query.
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Recall@k and median rank of image-text retrieval, with what chance would give.",
            citation=CITATION,
            inputs_description=self.__doc__ or "",
            features=datasets.Features(
                {"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}
            ),
        )

    def _compute(
        self, predictions: list[int], references: list[int], num_candidates: int, ks: tuple[int, ...] = PAPER_KS
    ) -> dict[str, Any]:
        ranks, num_correct = torch.tensor(predictions), torch.tensor(references)
        chances = chance_recall_at(num_correct, num_candidates, ks)
        return {
            **{f"recall@{k}": value for k, value in recall_at(ranks, ks).items()},
            "median_rank": median_rank(ranks),
            **{f"chance_recall@{k}": value for k, value in chances.items()},
            "chance_median_rank": chance_median_rank(num_correct, num_candidates),
        }
