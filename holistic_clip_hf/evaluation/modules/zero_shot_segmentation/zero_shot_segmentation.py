# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Intersection over union, for `evaluate`: one image's class indices, flattened, as one prediction."""

from typing import Any

import datasets
import evaluate
import torch

from holistic_clip_hf.evaluation.segmentation import confusion, intersection_over_union


class ZeroShotSegmentation(evaluate.Metric):
    """`compute(predictions=images, references=masks, num_classes=C)`: lists of class indices; 255 is ignored."""

    def _info(self) -> evaluate.MetricInfo:
        indices = datasets.List(datasets.Value("int64"))
        return evaluate.MetricInfo(
            description="Mean intersection over union of present classes, and of each class.",
            citation="",
            inputs_description=self.__doc__ or "",
            features=datasets.Features({"predictions": indices, "references": indices}),
        )

    def _compute(self, predictions: list[Any], references: list[Any], num_classes: int) -> dict[str, Any]:
        counts = torch.zeros(num_classes, num_classes, dtype=torch.int64)
        for predicted, mask in zip(predictions, references, strict=True):
            counts += confusion(torch.as_tensor(predicted), torch.as_tensor(mask), num_classes)
        overlap = intersection_over_union(counts)
        there = counts.sum(dim=1) > 0
        return {
            "mean_iou": overlap[there].mean().item(),
            "iou": [None if value.isnan() else value.item() for value in overlap],
            "pixel_accuracy": (counts.diagonal().sum() / counts.sum()).item(),
        }
