# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Zero-shot classification: an image is given the class whose name, put into templates, is the most similar text.

A class's vector is the mean of its templates' unit vectors, made unit length again, as CLIP does
(https://arxiv.org/abs/2103.00020, section 3.1.4). Ties count against the model, as in retrieval: of two classes with
the same name neither is found first. Classes without an image are candidates all the same.

Axes: N images, C classes, H branches, D projection width.
"""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from datasets import Dataset
from torch import Tensor
from torch.nn import functional as F

from ..images.left_out import row_names
from ..processing_holistic_clip import clean_caption, is_blank
from ..storage import read_yaml
from .encoding import DualEncoder, Processor, encode_images, encode_texts, vectors_by_name, written_caption
from .ranking import bootstrap_interval, mean_per_class, recall_at, retrieval_ranks
from .records import Detail, Provenance, Record, Recorder

logger = logging.getLogger(__name__)

TASK = "zero_shot_classification"
ACCURACY_KS = (1, 5)  # the field's top-1 and top-5
TEMPLATES_FILE = Path(__file__).with_name("templates.yaml")
NAME_SLOT = "{}"  # of the class name in a template


@dataclass(frozen=True)
class Templates:
    """Texts with one `{}` each, where the class name goes; `name` is what records call them.

    >>> Templates("sketches", ["a sketch of a {}.", "{}, drawn in ink"])
    """

    name: str
    texts: Sequence[str]

    def __post_init__(self) -> None:
        if not self.texts or any(text.count(NAME_SLOT) != 1 for text in self.texts):
            raise ValueError(
                f"The templates {self.name!r} are {list(self.texts)}; expected one or more texts, each with one "
                f"{NAME_SLOT}."
            )

    def of(self, class_name: str) -> list[str]:
        return [text.replace(NAME_SLOT, class_name) for text in self.texts]


def load_templates(name: str) -> Templates:
    """Load templates of this package: `openai-80`, `openai-7`, `photo` ("a photo of a ..."), or `plain`, the name
    alone.

    Raises `ValueError` for another name.
    """
    known = read_yaml(TEMPLATES_FILE)
    if name not in known:
        raise ValueError(f"`templates` is {name!r}; expected one of {', '.join(known)}, or `Templates` of your own.")
    return Templates(name, known[name])


def encode_classes(
    model: DualEncoder,
    processor: Processor,
    class_names: Sequence[str],
    templates: Templates,
    *,
    perspective: str | None = None,
    batch_size: int = 64,
    progress: bool = False,
) -> Tensor:
    """Encode each name: (C, D) of unit length. Raises `ValueError` for a class without a name.

    Args:
        model: the model.
        processor: Processor of the model.
        class_names: C names.
        templates: Texts that names are put into.
        perspective: Perspective whose captions the names are, in whose form the texts are written. Default: none.
        batch_size: Number of texts that are encoded together.
        progress: Show a bar of progress.
    """
    names = checked_names(class_names)
    texts = [written_caption(processor, text, perspective) for name in names for text in templates.of(name)]
    embeds = encode_texts(model, processor, texts, batch_size=batch_size, progress=progress)
    return F.normalize(embeds.unflatten(0, (len(names), len(templates.texts))).mean(dim=1), dim=-1)


def evaluate_classification(
    model: DualEncoder,
    processor: Processor,
    dataset: Dataset,
    *,
    provenance: Provenance,
    class_names: Sequence[str],
    templates: Templates,
    ks: Sequence[int] = ACCURACY_KS,
    batch_size: int = 64,
    progress: bool = False,
) -> list[Record]:
    """Measure accuracy at each of `ks` and mean accuracy per class, fused and by each branch.

    Args:
        dataset: N rows of `image` and `label`, a place in `class_names`.
        class_names: C names.

    Raises:
        ValueError: no rows, a class without a name, a label without a class.
    """
    labels = checked_labels(dataset, class_names)
    classes = encode_classes(model, processor, class_names, templates, batch_size=batch_size, progress=progress)
    images = encode_images(model, processor, dataset, batch_size=batch_size, progress=progress)
    return measure_classification(
        model,
        images.branch_embeds,
        labels[images.rows],
        classes,
        provenance=provenance,
        templates=templates.name,
        num_unusable=len(images.left_out),
        ks=ks,
    )


def measure_classification(
    model: DualEncoder,
    branch_embeds: Tensor,
    labels: Tensor,
    class_embeds: Tensor,
    *,
    provenance: Provenance,
    templates: str,
    num_unusable: int = 0,
    ks: Sequence[int] = ACCURACY_KS,
) -> list[Record]:
    """Return the same of images (N, H, D) and classes (C, D) that are encoded already; `labels` (N,).

    `num_unusable` counts the rows that were left out, as their image cannot be used.
    """
    pairs = torch.stack([torch.arange(len(labels)), labels], dim=1)
    recorder, records = Recorder(provenance, TASK, num_unusable), []
    for told, vectors in vectors_by_name(model, branch_embeds, class_embeds):
        ranks = retrieval_ranks(vectors.images, vectors.texts, pairs, score=vectors.score)
        details = {**told, "templates": templates}
        chance = {k: min(1.0, k / len(class_embeds)) for k in ks}
        counts = {"n_images": len(labels), "n_classes": len(class_embeds)}
        records += accuracy_records(ranks, labels, recorder, details, counts, chance)
    return records


def accuracy_records(
    ranks: Tensor,
    labels: Tensor,
    recorder: Recorder,
    details: Mapping[str, Detail],
    counts: Mapping[str, int],
    chance: Mapping[int, float],
) -> list[Record]:
    """Return accuracy at each k of `chance`, and mean accuracy per class, by the ranks (N,) of the right classes."""
    counts = {**counts, "n_classes_seen": len(labels.unique())}
    accuracies = [
        recorder.record(
            "accuracy",
            accuracy,
            {**details, "k": k},
            counts,
            chance=chance[k],
            confidence_interval=bootstrap_interval(ranks < k, seed=recorder.provenance.seed),
        )
        for k, accuracy in recall_at(ranks, list(chance)).items()
    ]
    mean = mean_per_class(ranks == 0, labels)
    return [
        *accuracies,
        recorder.record("mean_per_class_accuracy", mean, details, counts, chance=1 / counts["n_classes"]),
    ]


def checked_labels(dataset: Dataset, class_names: Sequence[str]) -> Tensor:
    """Read the column `label`: (N,). Raises `ValueError` for no rows and for a label without a class."""
    if "label" not in dataset.column_names:
        raise ValueError(f"The dataset has the columns {', '.join(dataset.column_names)}; expected image and label.")
    found = list(dataset["label"])
    if not found:
        raise ValueError("The dataset has no rows. Evaluate on a split that holds images.")
    wrong = [row for row, label in enumerate(found) if not _is_place(label, len(class_names))]
    if wrong:
        raise ValueError(
            f"{len(wrong)} of {len(found)} rows have a label without a name, such as {found[wrong[0]]!r} of "
            f"{row_names(dataset)[wrong[0]]}; expected indices of {len(class_names)} class names. Name every class, "
            "or leave such rows out."
        )
    return torch.tensor(found)


def _is_place(label: object, num_classes: int) -> bool:
    return isinstance(label, int) and not isinstance(label, bool) and 0 <= label < num_classes


def checked_names(class_names: Sequence[str]) -> list[str]:
    """Return the names, cleaned as texts are. Raises `ValueError` for a class without one."""
    names = [clean_caption(name) if isinstance(name, str) else "" for name in class_names]
    if not names:
        raise ValueError("There are no class names. Pass one for each class.")
    if nameless := [index for index, name in enumerate(names) if is_blank(name)]:
        raise ValueError(
            f"`class_names` has {class_names[nameless[0]]!r} for class {nameless[0]}, and {len(nameless)} of "
            f"{len(names)} "
            "have no name; expected one for each. Name every class, since its name is all that is known of it."
        )
    if shared := sorted(name for name, times in Counter(names).items() if times > 1):
        logger.warning("Several classes are called %s; they tie, and none of them is found first.", ", ".join(shared))
    return names
