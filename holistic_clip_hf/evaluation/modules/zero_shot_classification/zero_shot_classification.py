# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Top-k and mean-per-class accuracy, for `evaluate`: the right class's rank in, so that ties have been decided."""

from typing import Any

import datasets
import evaluate
import torch

from holistic_clip_hf.evaluation.ranking import mean_per_class, recall_at


class ZeroShotClassification(evaluate.Metric):
    """`compute(predictions=ranks, references=labels, num_classes=C, ks=(1, 5))`.

    Ranks (N,) of each image's right class count from 0, as `holistic_clip_hf.evaluation.ranking.retrieval_ranks` gives
    them; labels (N,) say which class it is.
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Accuracy at k and mean accuracy per class, with what chance would give.",
            citation="",
            inputs_description=self.__doc__ or "",
            features=datasets.Features(
                {"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}
            ),
        )

    def _compute(
        self, predictions: list[int], references: list[int], num_classes: int, ks: tuple[int, ...] = (1, 5)
    ) -> dict[str, Any]:
        ranks, labels = torch.tensor(predictions), torch.tensor(references)
        if any(bool(((given < 0) | (given >= num_classes)).any()) for given in (ranks, labels)):
            raise ValueError(f"Labels or ranks lie beyond the {num_classes} classes; expected both to count from 0.")
        return {
            **{f"accuracy@{k}": value for k, value in recall_at(ranks, ks).items()},
            "mean_per_class_accuracy": mean_per_class(ranks < 1, labels),
            **{f"chance_accuracy@{k}": min(1.0, k / num_classes) for k in ks},
        }
