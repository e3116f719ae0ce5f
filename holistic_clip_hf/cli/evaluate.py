# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Measure a checkpoint, print tables, and merge the records into --output.

  holistic-clip evaluate --model runs/emoji/holistic --corpus emoji
  holistic-clip evaluate --model runs/emoji/holistic --corpus emoji --tasks retrieval branches \\
      --branch-picture branches.png
  holistic-clip evaluate --model runs/emoji/holistic --corpus emoji --tasks classification probes --classes category
  holistic-clip evaluate --model me/mine --corpus coco=/data/coco --protocols standard paper
  holistic-clip evaluate --model me/mine --tasks classification --classes imagenet=/data/imagenet
  holistic-clip evaluate --model me/mine --tasks segmentation --masks voc21=/data/VOC2012 --short-side 336
  holistic-clip evaluate --model me/mine --tasks cases --cases coco-facet=/data/coco-facet

`retrieval`, `branches` and `answers` take --corpus, `classification` and `probes` take --classes, `segmentation` takes
--masks, `cases` takes --cases. docs/evaluation.md says what the folder of a benchmark holds. Records are saved after
each task, so an interrupted command keeps the finished tasks.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from .corpus import AFTER_SHARES

if TYPE_CHECKING:
    from datasets import Dataset

    from ..evaluation.benchmarks import CaseBenchmark, ClassifiedImages, SegmentationBenchmark
    from ..evaluation.calibration import Calibration
    from ..evaluation.encoded_folder import EncodedFolder
    from ..evaluation.probes import LabelledImages
    from ..evaluation.records import Provenance, Record
    from ..evaluation.retrieval import EmbeddedCorpus
    from ..modeling_holistic_clip import HolisticCLIPModel
    from ..processing_holistic_clip import HolisticCLIPProcessor

Task = Literal["retrieval", "branches", "answers", "classification", "probes", "segmentation", "cases"]
TRAIN = "train"
DRAWN = frozenset({"retrieval", "branches"})  # by which the pictures are drawn
ASKED = DRAWN | {"answers"}
CLASSIFIED = frozenset({"classification", "probes"})
SEGMENTED = frozenset({"segmentation"})
UNDIVIDED = SEGMENTED | {"cases"}  # among processes
READERS = {  # of an option, the tasks that read it
    **dict.fromkeys(("corpus", "split_column", "perspectives"), ASKED),
    **dict.fromkeys(("picture", "branch_picture"), DRAWN),
    **dict.fromkeys(("masks", "readouts", "short_side", "background_threshold"), SEGMENTED),
    "protocols": frozenset({"retrieval"}),
    "gallery_size": frozenset({"answers"}),
    "cases": frozenset({"cases"}),
    "classes": CLASSIFIED,
    "templates": frozenset({"classification", "segmentation"}),
    **dict.fromkeys(("most_train", "neighbours"), frozenset({"probes"})),
}


@dataclass(frozen=True)
class Texts:
    """Retrieval, branches and answers.

    Args:
        corpus: Folder of a corpus, the name of one in the cache, such as emoji, or a benchmark as coco=DIR.
        split_column: Column that holds the split's name. Default: the corpus's own.
        perspectives: Perspectives to ask from. Default: all that the split has.
        protocols: Ways to ask.
        gallery_size: Number of images of the galleries that answers are asked of, into which the split is dealt.
            Default: the whole split, or 4,096 of its images.
        picture: PNG file to draw a grid of results into; one that was drawn before is replaced.
        branch_picture: PNG file to draw the branch report into, likewise.
    """

    corpus: str | None = None
    split_column: str | None = None
    perspectives: tuple[str, ...] = ()
    protocols: tuple[Literal["per_perspective", "standard", "paper", "caption_sets"], ...] = ("per_perspective",)
    gallery_size: int | None = None
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
class Cases:
    """Cases.

    Args:
        cases: Benchmark as coco-facet=DIR, whose questions have candidates of their own.
    """

    cases: str | None = None


@dataclass(frozen=True)
class Command:
    """Measure a checkpoint.

    Args:
        model: Folder of a checkpoint, or its name on the Hub.
        name: Name of the model in records. Default: that of its card, or the end of --model.
        tasks: Tasks to measure.
        split: Split to measure on.
        batch_size: Number of images that are encoded together.
        seed: Seed of confidence intervals and of all that is drawn.
        output: File of records that the new ones are merged into; a measurement that is repeated replaces the old one.
        encoded: Folder of vectors that processes with --shard encoded; what it has is not encoded again.
        shard: Share of images and texts for this process to encode into --encoded, as i/n, counted from 0.
        texts: Options of retrieval, branches and answers.
        labels: Options of classification and probes.
        pixels: Options of segmentation.
        questions: Options of cases.
    """

    model: str
    name: str | None = None
    tasks: tuple[Task, ...] = ("retrieval",)
    split: str = "test"
    batch_size: int = 64
    seed: int = 0
    output: Path = Path("results.json")
    encoded: Path | None = None
    shard: str = "0/1"
    texts: Texts = field(default_factory=Texts)
    labels: Classes = field(default_factory=Classes)
    pixels: Masks = field(default_factory=Masks)
    questions: Cases = field(default_factory=Cases)

    def __call__(self) -> None:
        """Measure task by task, print the tables, and say where the records are. Of a share, only encode it.

        Raises:
            ValueError: an option that a task needs is missing, or names nothing.
        """
        self.require_options()
        from ..drawing import save_picture
        from ..evaluation.branch_report import branch_picture
        from ..evaluation.records import save_records
        from ..sharding import ALL
        from ..visualization.result_grid import draw_results
        from .tables import advice_on_few_images, results_table

        evaluation, records = Evaluation(self), []
        evaluation.open_data()
        if evaluation.shard != ALL:
            count, total = evaluation.encode_share()
            print(f"{count:,} of {total:,} batches are in {self.encoded}. {AFTER_SHARES}")
            return
        todo = list(dict.fromkeys(self.tasks))
        for number, task in enumerate(todo):
            found = TASKS[task](evaluation)
            save_records(self.output, found)
            records += found
            print(results_table(found, evaluation.model.config.perspectives), end="\n\n", flush=True)
            if not DRAWN & {task} or DRAWN & set(todo[number + 1 :]):
                continue
            if path := self.texts.branch_picture:
                save_picture(branch_picture(records, names=evaluation.model.config.perspectives), path)
            if self.texts.picture:
                draw_results(
                    evaluation.model,
                    evaluation.processor,
                    evaluation.corpus[1],
                    self.texts.picture,
                    perspectives=evaluation.perspectives,
                    batch_size=self.batch_size,
                    seed=self.seed,
                )
        if advice := advice_on_few_images(records):
            print(advice)
        print(f"{len(records):,} records are in {self.output}.")

    def require_options(self) -> None:
        """Check the options, before a checkpoint is loaded or anything is computed.

        Raises:
            ValueError: an option is missing, is not used, or names a place that cannot be written.
        """
        for option, given in {
            "tasks": self.tasks,
            "protocols": self.texts.protocols,
            "readouts": self.pixels.readouts,
        }.items():
            if not given:
                raise ValueError(f"`--{option}` is empty; expected one or several. Name them, or leave it out.")
        self._require_needed()
        self._require_shares()
        self._require_used()
        self._require_numbers()
        self._require_places()

    def _require_needed(self) -> None:
        tasks = set(self.tasks)
        if self.texts.corpus is None and ASKED & tasks:
            raise ValueError(
                "`--corpus` is missing; retrieval, branches and answers expect the folder of a corpus, or a benchmark "
                "as coco=DIR."
            )
        if self.labels.classes is None and CLASSIFIED & tasks:
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
        if "cases" in tasks and "=" not in (self.questions.cases or ""):
            raise ValueError(
                f"`--cases` is {self.questions.cases!r}; cases expect a benchmark and its folder, as coco-facet=DIR."
            )

    def _require_shares(self) -> None:
        from ..sharding import ALL, Shard

        if Shard.parse(self.shard) == ALL:
            return
        if self.encoded is None:
            raise ValueError(
                f"`--encoded` is missing; `--shard {self.shard}` expects a folder for the vectors. Name one for all "
                "shares."
            )
        if whole := sorted(UNDIVIDED & set(self.tasks)):
            told = " and ".join(whole)
            raise ValueError(
                f"`--tasks` has {told}, which `--shard {self.shard}` does not divide; expected others. Measure {told} "
                "without --shard."
            )

    def _require_used(self) -> None:
        """Refuse an option that no task reads: its user believes that it counts."""
        for group in (self.texts, self.labels, self.pixels, self.questions):
            for option in fields(group):
                readers = READERS[option.name]
                if option.name in ("corpus", "split_column") and "=" not in (self.labels.classes or "="):
                    readers = readers | CLASSIFIED
                if getattr(group, option.name) != option.default and not readers & set(self.tasks):
                    name = f"--{option.name.replace('_', '-')}"
                    raise ValueError(
                        f"`{name}` is given without {' or '.join(sorted(readers))}, by which alone it is used. "
                        f"Add one to `--tasks`, or leave `{name}` out."
                    )

    def _require_numbers(self) -> None:
        from ..storage import require_count

        require_count("--batch-size", self.batch_size)
        require_count("--gallery-size", self.texts.gallery_size)
        require_count("--most-train", self.labels.most_train)
        require_count("--neighbours", self.labels.neighbours)
        require_count("--short-side", self.pixels.short_side)

    def _require_places(self) -> None:
        from ..drawing import require_picture
        from ..evaluation.records import load_records
        from ..storage import require_place

        require_place(self.output, "--output")
        if self.output.is_file():
            try:
                load_records(self.output)
            except ValueError as error:
                raise ValueError(
                    f"`--output` is {self.output}, which does not hold records; expected a new file, or one that this "
                    f"command wrote. Name another. ({error})"
                ) from error
        roots = [root for _, root in map(split_benchmark, self._sources()) if root is not None]
        for option in ("picture", "branch_picture"):
            if (path := getattr(self.texts, option)) is not None:
                require_picture(path, f"--{option.replace('_', '-')}", roots)
        if self.texts.picture and self.texts.picture == self.texts.branch_picture:
            raise ValueError(f"`--picture` and `--branch-picture` are both {self.texts.picture}. Name two files.")

    def _sources(self) -> list[str]:
        """Return the corpus and the benchmarks, each as NAME=FOLDER."""
        from ..corpus.build import find_corpus

        given = [self.texts.corpus, self.labels.classes, self.pixels.masks, self.questions.cases]
        found = [each for each in given if each and "=" in each]
        if (corpus := self.texts.corpus) and "=" not in corpus:
            found.append(f"corpus={find_corpus(corpus)}")
        return found


def split_benchmark(text: str) -> tuple[str, Path | None]:
    """Split `coco=/data/coco` into the benchmark's name and its folder; anything else has no folder."""
    name, found, root = text.partition("=")
    return (name, Path(root)) if found else (text, None)


class Evaluation:
    """A checkpoint and the options of the command. What two tasks need is encoded once."""

    def __init__(self, options: Command) -> None:
        from ..sharding import Shard

        self.options = options
        self.shard = Shard.parse(options.shard)

    def open_data(self) -> None:
        """Open all that the tasks read, so that what is wrong with it is told before anything is computed.

        Raises:
            ValueError: no such corpus, split, perspective, classes, templates or benchmark.
        """
        from ..corpus.build import require_perspectives
        from ..evaluation.classification import load_templates

        tasks = set(self.options.tasks)
        if "answers" in tasks:
            _ = self._calibration
        if ASKED & tasks:
            require_perspectives(self.corpus[1], self.perspectives, name=self.options.texts.corpus or "")
        if CLASSIFIED & tasks:
            _ = self._classified
        if SEGMENTED & tasks:
            _ = self._segmented
        if "cases" in tasks:
            _ = self._cases
        load_templates(self.options.labels.templates)

    @cached_property
    def _loaded(self) -> "tuple[HolisticCLIPModel, HolisticCLIPProcessor]":
        from ..evaluation.encoding import load_checkpoint

        return load_checkpoint(self.options.model)

    def encode_share(self) -> tuple[int, int]:
        """Encode a share of the images and texts of all tasks; return the numbers of its batches and of all.

        Raises:
            ValueError: `encoded` is a folder of other files.
        """
        from ..evaluation.encoding import encode_share
        from ..evaluation.retrieval import texts_to_encode

        tasks, rows, texts = set(self.options.tasks), [], []
        size = self.options.batch_size
        if ASKED & tasks:
            rows.append(self.corpus[1])
            texts = texts_to_encode(self.processor, self.corpus[1], perspectives=self.perspectives, batch_size=size)
        if CLASSIFIED & tasks:
            rows.append(self._classified[1][self.options.split].dataset)
        if "probes" in tasks:
            rows.append(self._train_images.dataset)
        assert self._encoded_folder is not None
        return encode_share(
            self.model, self.processor, rows, texts, self._encoded_folder, batch_size=size, progress=True
        )

    @cached_property
    def _encoded_folder(self) -> "EncodedFolder | None":
        from ..evaluation.encoded_folder import EncodedFolder

        if self.options.encoded is None:
            return None
        return EncodedFolder(self.options.encoded, self._fingerprint, self.shard)

    @cached_property
    def _fingerprint(self) -> str:
        from ..evaluation.fingerprints import fingerprint

        return fingerprint(self.model, self.processor, with_fusion=False)

    @property
    def model(self) -> "HolisticCLIPModel":
        """Checkpoint that is measured."""
        return self._loaded[0]

    @property
    def processor(self) -> "HolisticCLIPProcessor":
        """Processor of the checkpoint."""
        return self._loaded[1]

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
            encoded=self._encoded_folder,
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
    def _segmented(self) -> "tuple[str, SegmentationBenchmark]":
        from ..evaluation.benchmarks import open_segmentation

        name, root = split_benchmark(self.options.pixels.masks or "")
        return name, open_segmentation(name, root or Path())

    @cached_property
    def _cases(self) -> "tuple[str, CaseBenchmark]":
        from ..evaluation.benchmarks import open_cases

        name, root = split_benchmark(self.options.questions.cases or "")
        return name, open_cases(name, root or Path())

    @cached_property
    def _train_images(self) -> "ClassifiedImages":
        import torch

        train, most = self._classified[1][TRAIN], self.options.labels.most_train
        if most is None or len(train.dataset) <= most:
            return train
        generator = torch.Generator().manual_seed(self.options.seed)
        drawn = torch.randperm(len(train.dataset), generator=generator)[:most]
        return train._replace(dataset=train.dataset.select(drawn.sort().values.tolist()))

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

    def answers(self) -> "list[Record]":
        """Measure calibrated answers."""
        from ..evaluation.calibration import measure_answers

        scores, size = self._calibration.scores, self.options.texts.gallery_size
        provenance = self._provenance(self.corpus[0])
        return measure_answers(self.model, self._embedded, scores, provenance=provenance, gallery_size=size)

    @cached_property
    def _calibration(self) -> "Calibration":
        from ..evaluation.calibration import fusion_facts, load_calibration

        found = load_calibration(self.options.model)
        remedy = f"Fit it with `holistic-clip fit --model {self.options.model} --fusion current`."
        if found is None:
            raise ValueError(
                f"`--model` is {self.options.model}, which has no calibration; answers expect one. {remedy}"
            )
        if (found.checkpoint, found.fusion) != (self._fingerprint, fusion_facts(self.model)):
            raise ValueError(
                f"`--model` is {self.options.model}, whose calibration is that of another checkpoint or fusion; "
                f"answers expect its own. {remedy}"
            )
        return found

    def classification(self) -> "list[Record]":
        """Measure zero-shot classification."""
        from ..evaluation.classification import encode_classes, load_templates, measure_classification

        name, splits = self._classified
        templates, names = load_templates(self.options.labels.templates), splits[self.options.split].class_names
        classes = encode_classes(
            self.model,
            self.processor,
            names,
            templates,
            perspective=self.options.labels.classes,
            batch_size=self.options.batch_size,
            progress=True,
        )
        return measure_classification(
            self.model,
            self._test_images.branch_embeds,
            self._test_images.labels,
            classes,
            provenance=self._provenance(name),
            templates=templates.name,
            num_unusable=self._test_images.num_unusable,
        )

    def probes(self) -> "list[Record]":
        """Measure linear probes and nearest neighbours."""
        from ..evaluation.probes import measure_probes

        return measure_probes(
            self.model,
            self._encoded(self._train_images),
            self._test_images,
            provenance=self._provenance(self._classified[0]),
            num_classes=len(self._train_images.class_names),
            neighbours=self.options.labels.neighbours,
            progress=True,
        )

    def segmentation(self) -> "list[Record]":
        """Measure zero-shot segmentation by each readout."""
        from ..evaluation.classification import encode_classes, load_templates
        from ..evaluation.segmentation import PixelClasses, Windows, evaluate_segmentation

        options, records = self.options.pixels, []
        name, benchmark = self._segmented
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

    def cases(self) -> "list[Record]":
        """Measure questions with candidates of their own."""
        from ..evaluation.cases import measure_cases

        name, benchmark = self._cases
        return measure_cases(
            self.model,
            self.processor,
            benchmark,
            provenance=self._provenance(name),
            batch_size=self.options.batch_size,
            progress=True,
        )

    def _encoded(self, images: "ClassifiedImages") -> "LabelledImages":
        from ..evaluation.classification import checked_labels
        from ..evaluation.encoding import encode_images
        from ..evaluation.probes import LabelledImages

        labels = checked_labels(images.dataset, images.class_names)
        encoded = encode_images(
            self.model,
            self.processor,
            images.dataset,
            batch_size=self.options.batch_size,
            progress=True,
            encoded=self._encoded_folder,
        )
        return LabelledImages.of(encoded, labels)

    def _split_of_corpus(self, split: str) -> tuple[str, "Dataset"]:
        from ..corpus.build import corpus_name, find_corpus, open_split

        directory = find_corpus(self.options.texts.corpus or "")
        return corpus_name(directory), open_split(directory, split, split_column=self.options.texts.split_column)

    def _provenance(self, dataset: str, split: str | None = None) -> "Provenance":
        from ..evaluation.records import capture_provenance
        from ..publishing.model_card import known_facts

        name = self.options.name or known_facts(Path(self.options.model)).model_name
        return capture_provenance(
            model=name, dataset=dataset, split=split or self.options.split, seed=self.options.seed
        )


TASKS: dict[str, "Callable[[Evaluation], list[Record]]"] = {
    "retrieval": Evaluation.retrieval,
    "branches": Evaluation.branches,
    "answers": Evaluation.answers,
    "classification": Evaluation.classification,
    "probes": Evaluation.probes,
    "segmentation": Evaluation.segmentation,
    "cases": Evaluation.cases,
}
