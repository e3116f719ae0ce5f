# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Measure a checkpoint, print tables, and merge the records into --output.

  holistic-clip evaluate --model runs/emoji/holistic --corpus emoji
  holistic-clip evaluate --model runs/emoji/holistic --corpus emoji --tasks retrieval branches \\
      --branch-picture branches.png
  holistic-clip evaluate --model runs/emoji/holistic --corpus emoji --tasks classification probes --classes category
  holistic-clip evaluate --model me/mine --corpus coco=/data/coco --protocols standard paper
  holistic-clip evaluate --model me/mine --tasks classification --classes imagenet=/data/imagenet
  holistic-clip evaluate --model me/mine --tasks segmentation --masks voc21=/data/VOC2012 --short-side 336

`retrieval` and `branches` take --corpus, `classification` and `probes` take --classes, `segmentation` takes --masks.
docs/evaluation.md says what the folder of a benchmark holds. Records are saved after each task, so an interrupted
command keeps the finished tasks.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from datasets import Dataset

    from ..evaluation.benchmarks import ClassifiedImages
    from ..evaluation.probes import LabelledImages
    from ..evaluation.records import Provenance, Record
    from ..evaluation.retrieval import EmbeddedCorpus
    from ..modeling_holistic_clip import HolisticCLIPModel
    from ..processing_holistic_clip import HolisticCLIPProcessor

Task = Literal["retrieval", "branches", "classification", "probes", "segmentation"]
TRAIN = "train"


@dataclass(frozen=True)
class Texts:
    """Retrieval and branches.

    Args:
        corpus: Folder of a corpus, the name of one in the cache, such as emoji, or a benchmark as coco=DIR.
        split_column: Column that holds the split's name. Default: the corpus's own.
        perspectives: Perspectives to ask from. Default: all that the split has.
        protocols: Ways to ask.
        picture: PNG file to draw a grid of results into.
        branch_picture: PNG file to draw the branch report into.
    """

    corpus: str | None = None
    split_column: str | None = None
    perspectives: tuple[str, ...] = ()
    protocols: tuple[Literal["per_perspective", "standard", "paper", "caption_sets"], ...] = ("per_perspective",)
    picture: Path | None = None
    branch_picture: Path | None = None


@dataclass(frozen=True)
class Classes:
    """Classification and probes.

    Args:
        classes: Perspective or column of the corpus, or a benchmark as imagenet=DIR.
        templates: Templates of the class texts: plain, photo, openai-7 or openai-80.
        most_train: Largest number of training rows of the probes. Default: all.
        neighbours: Number of neighbours that vote on a class.
    """

    classes: str | None = None
    templates: str = "openai-80"
    most_train: int | None = None
    neighbours: int = 20


@dataclass(frozen=True)
class Masks:
    """Segmentation.

    Args:
        masks: Benchmark as voc21=DIR.
        readouts: Ways to read classes off patches.
        short_side: Pixels of the shorter side. Default: the model's image size.
        background_threshold: Probability below which a pixel is background. Default: the background's own text.
    """

    masks: str | None = None
    readouts: tuple[Literal["class_path", "value"], ...] = ("class_path", "value")
    short_side: int | None = None
    background_threshold: float | None = None


@dataclass(frozen=True)
class Command:
    """Measure a checkpoint.

    Args:
        model: Folder of a checkpoint, or its name on the Hub.
        name: Name of the model in records. Default: the end of --model.
        tasks: Tasks to measure.
        split: Split to measure on.
        batch_size: Number of images that are encoded together.
        seed: Seed of confidence intervals and of all that is drawn.
        output: File of records that the new ones are merged into.
        texts: Options of retrieval and branches.
        labels: Options of classification and probes.
        pixels: Options of segmentation.
    """

    model: str
    name: str | None = None
    tasks: tuple[Task, ...] = ("retrieval",)
    split: str = "test"
    batch_size: int = 64
    seed: int = 0
    output: Path = Path("results.json")
    texts: Texts = field(default_factory=Texts)
    labels: Classes = field(default_factory=Classes)
    pixels: Masks = field(default_factory=Masks)

    def __call__(self) -> None:
        """Measure task by task, print the tables, and say where the records are.

        Raises:
            ValueError: an option that a task needs is missing, or names nothing.
        """
        self.require_options()
        from ..evaluation.branch_report import branch_picture
        from ..evaluation.encoding import load_checkpoint
        from ..evaluation.records import save_records
        from ..visualization.result_grid import draw_results
        from .tables import results_table

        model, processor = load_checkpoint(self.model)
        evaluation, records = Evaluation(model, processor, self), []
        for task in dict.fromkeys(self.tasks):
            found = TASKS[task](evaluation)
            save_records(self.output, found)
            records += found
        names = model.config.perspectives
        print(results_table(records, names))
        if self.texts.branch_picture:
            self.texts.branch_picture.parent.mkdir(parents=True, exist_ok=True)
            branch_picture(records, names=names).save(self.texts.branch_picture)
        if self.texts.picture:
            draw_results(
                model,
                processor,
                evaluation.corpus[1],
                self.texts.picture,
                perspectives=evaluation.perspectives,
                batch_size=self.batch_size,
                seed=self.seed,
            )
        print(f"\n{len(records):,} records are in {self.output}.")

    def require_options(self) -> None:
        """Check what the tasks need, before a checkpoint is loaded.

        Raises:
            ValueError: an option is missing.
        """
        tasks = set(self.tasks)
        if self.texts.corpus is None and {"retrieval", "branches"} & tasks:
            raise ValueError(
                "`--corpus` is missing; retrieval and branches expect the folder of a corpus, or a benchmark as "
                "coco=DIR."
            )
        if self.labels.classes is None and {"classification", "probes"} & tasks:
            raise ValueError(
                "`--classes` is missing; classification and probes expect a perspective or a column of the corpus, or "
                "a benchmark as imagenet=DIR."
            )
        if self.labels.classes and "=" not in self.labels.classes and self.texts.corpus is None:
            raise ValueError(f"`--corpus` is missing; `--classes {self.labels.classes}` expects one that has it.")
        if "segmentation" in tasks and "=" not in (self.pixels.masks or ""):
            raise ValueError(
                f"`--masks` is {self.pixels.masks!r}; segmentation expects a benchmark and its folder, as voc21=DIR."
            )
        for option in ("picture", "branch_picture"):
            if getattr(self.texts, option) and not {"retrieval", "branches"} & tasks:
                raise ValueError(
                    f"`--{option.replace('_', '-')}` is given without retrieval or branches, from which it is drawn. "
                    "Add one to `--tasks`."
                )


def split_benchmark(text: str) -> tuple[str, Path | None]:
    """Split `coco=/data/coco` into the benchmark's name and its folder; anything else has no folder."""
    name, found, root = text.partition("=")
    return (name, Path(root)) if found else (text, None)


class Evaluation:
    """A checkpoint and the options of the command. What two tasks need is encoded once."""

    def __init__(self, model: "HolisticCLIPModel", processor: "HolisticCLIPProcessor", options: Command) -> None:
        self.model, self.processor, self.options = model, processor, options

    @cached_property
    def corpus(self) -> tuple[str, "Dataset"]:
        """Name of the corpus, and its split."""
        from ..evaluation.benchmarks import open_retrieval

        name, root = split_benchmark(self.options.texts.corpus or "")
        if root is not None:
            return name, open_retrieval(name, root, split=self.options.split)
        return self._split_of_corpus(self.options.split)

    @cached_property
    def perspectives(self) -> list[str]:
        """Perspectives to ask from."""
        from ..corpus.build import count_perspectives

        return list(self.options.texts.perspectives) or sorted(count_perspectives(self.corpus[1]))

    @cached_property
    def _embedded(self) -> "EmbeddedCorpus":
        from ..evaluation.retrieval import embed_corpus

        return embed_corpus(
            self.model,
            self.processor,
            self.corpus[1],
            perspectives=self.perspectives,
            batch_size=self.options.batch_size,
            progress=True,
        )

    @cached_property
    def _classified(self) -> tuple[str, dict[str, "ClassifiedImages"]]:
        """Name of the images with classes, and the splits that the tasks need."""
        from ..evaluation.benchmarks import classify_by, open_classification

        needed = list(dict.fromkeys([self.options.split, *([TRAIN] if "probes" in self.options.tasks else [])]))
        kind, root = split_benchmark(self.options.labels.classes or "")
        if root is not None:
            return kind, {split: open_classification(kind, root, split=split) for split in needed}
        opened = [self._split_of_corpus(split) for split in needed]
        found = dict(zip(needed, classify_by(kind, *(rows for _, rows in opened)), strict=True))
        if left_out := {split: each.num_left_out for split, each in found.items() if each.num_left_out}:
            print(f"left out, as they have no {kind}: {left_out}")
        return f"{opened[0][0]}, by {kind}", found

    @cached_property
    def _test_images(self) -> "LabelledImages":
        return self._encoded(self._classified[1][self.options.split])

    def retrieval(self) -> "list[Record]":
        """Measure retrieval by each protocol."""
        from ..evaluation.retrieval import measure_retrieval

        provenance = self._provenance(self.corpus[0])
        protocols = self.options.texts.protocols
        return measure_retrieval(self.model, self._embedded, provenance=provenance, protocols=protocols)

    def branches(self) -> "list[Record]":
        """Measure what each branch is good for."""
        from ..evaluation.branch_report import report_branches

        return report_branches(self.model, self._embedded, provenance=self._provenance(self.corpus[0]))

    def classification(self) -> "list[Record]":
        """Measure zero-shot classification."""
        from ..evaluation.classification import encode_classes, load_templates, measure_classification

        name, splits = self._classified
        templates, names = load_templates(self.options.labels.templates), splits[self.options.split].class_names
        classes = encode_classes(
            self.model, self.processor, names, templates, batch_size=self.options.batch_size, progress=True
        )
        return measure_classification(
            self.model,
            self._test_images.branch_embeds,
            self._test_images.labels,
            classes,
            provenance=self._provenance(name),
            templates=templates.name,
        )

    def probes(self) -> "list[Record]":
        """Measure linear probes and nearest neighbours."""
        import torch

        from ..evaluation.probes import measure_probes

        name, splits = self._classified
        train, most = splits[TRAIN], self.options.labels.most_train
        if most is not None and len(train.dataset) > most:
            generator = torch.Generator().manual_seed(self.options.seed)
            drawn = torch.randperm(len(train.dataset), generator=generator)[:most]
            train = train._replace(dataset=train.dataset.select(drawn.sort().values.tolist()))
        return measure_probes(
            self.model,
            self._encoded(train),
            self._test_images,
            provenance=self._provenance(name),
            num_classes=len(train.class_names),
            neighbours=self.options.labels.neighbours,
            progress=True,
        )

    def segmentation(self) -> "list[Record]":
        """Measure zero-shot segmentation by each readout."""
        from ..evaluation.benchmarks import open_segmentation
        from ..evaluation.classification import encode_classes, load_templates
        from ..evaluation.segmentation import PixelClasses, Windows, evaluate_segmentation

        options = self.options.pixels
        name, root = split_benchmark(options.masks or "")
        benchmark, records = open_segmentation(name, root or Path()), []
        templates = load_templates(self.options.labels.templates)
        embeds = encode_classes(self.model, self.processor, benchmark.class_names, templates)
        classes = PixelClasses(benchmark.class_names, embeds, benchmark.background, options.background_threshold)
        for readout in options.readouts:
            records += evaluate_segmentation(
                self.model,
                self.processor,
                benchmark.dataset,
                provenance=self._provenance(name, "validation"),
                classes=classes,
                windows=None if options.short_side is None else Windows(options.short_side),
                readout=readout,
                progress=True,
            )
        return records

    def _encoded(self, images: "ClassifiedImages") -> "LabelledImages":
        from ..evaluation.classification import checked_labels
        from ..evaluation.encoding import encode_images
        from ..evaluation.probes import LabelledImages

        labels = checked_labels(images.dataset, images.class_names)
        branches = encode_images(
            self.model, self.processor, images.dataset, batch_size=self.options.batch_size, progress=True
        )
        return LabelledImages(branches, labels)

    def _split_of_corpus(self, split: str) -> tuple[str, "Dataset"]:
        from ..corpus.build import find_corpus, open_split

        directory = find_corpus(self.options.texts.corpus or "")
        return directory.name, open_split(directory, split, split_column=self.options.texts.split_column)

    def _provenance(self, dataset: str, split: str | None = None) -> "Provenance":
        from ..evaluation.records import capture_provenance

        name = self.options.name or Path(self.options.model).name
        return capture_provenance(
            model=name, dataset=dataset, split=split or self.options.split, seed=self.options.seed
        )


TASKS: dict[str, "Callable[[Evaluation], list[Record]]"] = {
    "retrieval": Evaluation.retrieval,
    "branches": Evaluation.branches,
    "classification": Evaluation.classification,
    "probes": Evaluation.probes,
    "segmentation": Evaluation.segmentation,
}
