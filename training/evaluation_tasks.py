"""What `training.evaluate` can measure, each task from its own kind of data; what two tasks need is encoded once."""

from argparse import Namespace
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import torch
from datasets import Dataset

from holistic_clip_hf import HolisticCLIPModel, HolisticCLIPProcessor
from holistic_clip_hf.corpus.schema import count_perspectives
from holistic_clip_hf.evaluation.branch_report import report_branches
from holistic_clip_hf.evaluation.classification import (
    checked_labels,
    encode_classes,
    load_templates,
    measure_classification,
)
from holistic_clip_hf.evaluation.encoding import encode_images
from holistic_clip_hf.evaluation.linear_probe import LabelledImages, measure_probes
from holistic_clip_hf.evaluation.records import Provenance, Record, capture_provenance
from holistic_clip_hf.evaluation.retrieval import EmbeddedCorpus, embed_corpus, measure_retrieval
from holistic_clip_hf.evaluation.segmentation import Windows, evaluate_segmentation
from training.benchmarks.classification import ClassifiedImages, classify_by, open_classification
from training.benchmarks.retrieval import open_retrieval
from training.benchmarks.segmentation import open_segmentation
from training.corpora.opening import corpus_directory, open_split

TRAIN = "train"


def split_source(text: str) -> tuple[str, Path | None]:
    """`coco=/data/coco` to the benchmark's name and its root; anything else to itself and nothing."""
    name, found, root = text.partition("=")
    return (name, Path(root)) if found else (text, None)


class Evaluation:
    """A checkpoint and the options of the command; each of TASKS is a method that returns its records."""

    def __init__(self, model: HolisticCLIPModel, processor: HolisticCLIPProcessor, options: Namespace) -> None:
        self.model, self.processor, self.options = model, processor, options

    @cached_property
    def corpus(self) -> tuple[str, Dataset]:
        """The name of the corpus and its split."""
        name, root = split_source(self.options.corpus)
        if root is not None:
            return name, open_retrieval(name, root, split=self.options.split)
        return self._split_of_corpus(self.options.split)

    @cached_property
    def perspectives(self) -> list[str]:
        return self.options.perspectives or sorted(count_perspectives(self.corpus[1]))

    @cached_property
    def _embedded(self) -> EmbeddedCorpus:
        return embed_corpus(
            self.model,
            self.processor,
            self.corpus[1],
            perspectives=self.perspectives,
            batch_size=self.options.batch_size,
            progress=True,
        )

    @cached_property
    def _classified(self) -> tuple[str, dict[str, ClassifiedImages]]:
        """The name of the images with classes, and the splits that the tasks need."""
        needed = list(dict.fromkeys([self.options.split, *([TRAIN] if "probes" in self.options.tasks else [])]))
        kind, root = split_source(self.options.classes)
        if root is not None:
            return kind, {split: open_classification(kind, root, split=split) for split in needed}
        opened = [self._split_of_corpus(split) for split in needed]
        found = dict(zip(needed, classify_by(kind, *(rows for _, rows in opened)), strict=True))
        if left_out := {split: each.num_left_out for split, each in found.items() if each.num_left_out}:
            print(f"left out, as they have no {kind}: {left_out}")
        return f"{opened[0][0]}, by {kind}", found

    @cached_property
    def _test_images(self) -> LabelledImages:
        return self._encoded(self._classified[1][self.options.split])

    def retrieval(self) -> list[Record]:
        provenance = self._provenance(self.corpus[0])
        return measure_retrieval(self.model, self._embedded, provenance=provenance, protocols=self.options.protocols)

    def branches(self) -> list[Record]:
        return report_branches(self.model, self._embedded, provenance=self._provenance(self.corpus[0]))

    def classification(self) -> list[Record]:
        name, splits = self._classified
        templates = load_templates(self.options.templates)
        classes = encode_classes(
            self.model,
            self.processor,
            splits[self.options.split].class_names,
            templates,
            batch_size=self.options.batch_size,
            progress=True,
        )
        images = self._test_images
        return measure_classification(
            self.model,
            images.branch_embeds,
            images.labels,
            classes,
            provenance=self._provenance(name),
            templates=templates.name,
        )

    def probes(self) -> list[Record]:
        name, splits = self._classified
        train = splits[TRAIN]
        if self.options.most_train is not None and len(train.dataset) > self.options.most_train:
            generator = torch.Generator().manual_seed(self.options.seed)
            drawn = torch.randperm(len(train.dataset), generator=generator)[: self.options.most_train]
            train = train._replace(dataset=train.dataset.select(drawn.sort().values.tolist()))
        return measure_probes(
            self.model,
            self._encoded(train),
            self._test_images,
            provenance=self._provenance(name),
            num_classes=len(train.class_names),
            neighbours=self.options.neighbours,
            progress=True,
        )

    def segmentation(self) -> list[Record]:
        name, root = split_source(self.options.masks)
        if root is None:
            raise ValueError(f"Got the masks {self.options.masks!r}; expected a benchmark and its root, as voc21=DIR.")
        benchmark, records = open_segmentation(name, root), []
        classes = encode_classes(
            self.model, self.processor, benchmark.class_names, load_templates(self.options.templates)
        )
        for readout in self.options.readouts:
            records += evaluate_segmentation(
                self.model,
                self.processor,
                benchmark.dataset,
                provenance=self._provenance(name, "validation"),
                class_embeds=classes,
                class_names=benchmark.class_names,
                windows=None if self.options.short_side is None else Windows(self.options.short_side),
                readout=readout,
                background=benchmark.background,
                background_threshold=self.options.background_threshold,
                progress=True,
            )
        return records

    def _encoded(self, images: ClassifiedImages) -> LabelledImages:
        labels = checked_labels(images.dataset, images.class_names)
        branches = encode_images(
            self.model, self.processor, images.dataset, batch_size=self.options.batch_size, progress=True
        )
        return LabelledImages(branches, labels)

    def _split_of_corpus(self, split: str) -> tuple[str, Dataset]:
        directory = corpus_directory(self.options.corpus)
        return directory.name, open_split(directory, split, split_column=self.options.split_column)

    def _provenance(self, dataset: str, split: str | None = None) -> Provenance:
        name = self.options.name or Path(self.options.model).name
        return capture_provenance(
            model=name, dataset=dataset, split=split or self.options.split, seed=self.options.seed
        )


TASKS: dict[str, Callable[[Evaluation], list[Record]]] = {
    "retrieval": Evaluation.retrieval,
    "branches": Evaluation.branches,
    "classification": Evaluation.classification,
    "probes": Evaluation.probes,
    "segmentation": Evaluation.segmentation,
}
