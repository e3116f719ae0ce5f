# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Fine-tune a checkpoint on your own photos: corpus, training, evaluation and card in one command.

  holistic-clip finetune photos --captions captions.csv --base openai/clip-vit-base-patch16 --output mine
  holistic-clip finetune photos --captions captions.csv --caption title=short --caption story=detail \\
      --base openai/clip-vit-base-patch16 --output mine
  holistic-clip finetune photos --rows captions --base mine/model --output finer

OUTPUT holds the corpus, the recipe with the settings that were chosen, and the checkpoint with its card, in `model`.
Each is as the single verbs make it, and what is finished is not made again: an interrupted command goes on when it is
given again. For photos without captions, `holistic-clip caption` writes them.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, UseAppendAction, arg

from .corpus import BuildOptions
from .sources import CaptionOptions, Folder, Listed

if TYPE_CHECKING:
    from datasets import Dataset

    from ..evaluation.records import Provenance, Record
    from ..images.sources import Source
    from ..processing_holistic_clip import HolisticCLIPProcessor
    from ..trainer.finetuning import Base, Choice

MOST_ALIKE = 0.95  # mean cosine between branches, from which they say the same
VALIDATION, TEST = 0.1, 0.1  # shares; of a few hundred photos less would say nothing
KS = (1, 5, 10)
BASE = "base"  # in records


@dataclass(frozen=True)
class Settings:
    """Settings of the training. Those left out are chosen by the number of photos, and said.

    Args:
        epochs: Number of passes over the photos.
        batch_size: Number of photos of a step.
        learning_rate: Learning rate of the towers; branches learn faster.
        seed: Seed of all that is random.
    """

    epochs: float | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    seed: int = 0


@dataclass(frozen=True)
class Command:
    """Fine-tune a checkpoint on photos of your own.

    Args:
        photos: Folder of the photos.
        base: Checkpoint to start from, a CLIP or one of this package, by its folder or its name on the Hub.
        output: Folder of the corpus, the recipe and the checkpoint.
        captions: File with the captions. Default: the list in the folder, or a .txt file beside each photo.
        caption: Column that holds captions, and their perspective, as `title=short`. Default: the columns of a known
            layout.
        image_column: Column of that file with the path of the photo. Default: one with a known name, such as image.
        encoding: Encoding of that file, unless it begins with a byte order mark.
        rows: Folder of caption rows, as `holistic-clip caption` writes them.
        validation: Share of the photos that choose the best epoch.
        test: Share of the photos that the result is measured on.
        settings: Settings of the training.
    """

    photos: Annotated[Positional[Path], arg(metavar="PHOTOS")]
    base: Annotated[str, arg(metavar="CHECKPOINT")]
    output: Path
    captions: Path | None = None
    caption: CaptionOptions = ()
    image_column: str | None = None
    encoding: str = "utf-8"
    rows: UseAppendAction[tuple[Path, ...]] = ()
    validation: float = VALIDATION
    test: float = TEST
    settings: Settings = field(default_factory=Settings)

    def __call__(self) -> None:
        """Build, train, measure and describe, each unless it is there.

        Raises:
            ValueError: photos, captions or a base that cannot be used.
        """
        from datasets import disable_progress_bars
        from transformers import logging

        from ..corpus.build import open_split, read_manifest
        from ..trainer.finetuning import RUN, choose_settings, make_recipe, order_of_branches, read_base, write_recipe
        from ..trainer.recipes import load_recipe, require_own_run, train_run

        disable_progress_bars()
        logging.disable_progress_bar()
        source, corpus, checkpoint = self._source(), self.output / "corpus", self.output / RUN
        require_own_run(checkpoint)
        base = read_base(self.base)
        self._build(source, corpus)
        perspectives = list(read_manifest(corpus)["perspectives"])
        branches = order_of_branches(base, perspectives)
        asked = {name: getattr(self.settings, name) for name in ("batch_size", "epochs", "learning_rate")}
        choices = choose_settings(len(open_split(corpus, "train")), base, asked)
        _tell(base, branches, choices)
        path = self.output / "recipe.yaml"
        write_recipe(path, make_recipe(base, branches, choices, corpus, self.settings.seed))
        recipe = load_recipe(path)
        train_run(recipe, RUN, corpus, checkpoint)
        self._measure(base, corpus, checkpoint)

    def _build(self, source: "Source", corpus: Path) -> None:
        from ..corpus.card import CorpusFacts

        options = BuildOptions(rows=self.rows, validation=self.validation, test=self.test, report=False)
        name = self.output.resolve().name
        options.build(source, corpus, CorpusFacts(title=name, command="holistic-clip finetune"))

    def _source(self) -> "Source":
        if self.captions is None:
            return Folder(self.photos, caption=self.caption).open()
        listed = Listed(
            self.captions,
            root=self.photos,
            image_column=self.image_column,
            caption=self.caption,
            encoding=self.encoding,
        )
        return listed.open()

    def _measure(self, base: "Base", corpus: Path, checkpoint: Path) -> None:
        """Measure base and result on photos that neither was trained on, print a table, and render the card."""
        from ..corpus.build import EmptySplitError, open_split
        from ..evaluation.branch_report import report_branches
        from ..evaluation.encoding import load_checkpoint
        from ..evaluation.records import capture_provenance, save_records
        from ..evaluation.retrieval import RETRIEVAL_PROTOCOLS, embed_corpus, measure_retrieval
        from .tables import results_table

        try:
            rows = open_split(corpus, "test")
        except EmptySplitError as error:
            print(f"Nothing is measured. {error}")
            return
        model, processor = load_checkpoint(checkpoint)
        names = list(model.config.perspectives)
        name = self.output.resolve().name
        run = capture_provenance(model=name, dataset=name, split="test", seed=self.settings.seed)
        embedded = embed_corpus(model, processor, rows, perspectives=_asked(rows, names))
        protocols = [name for name in RETRIEVAL_PROTOCOLS if name in ("per_perspective", "caption_sets")]
        records = measure_retrieval(model, embedded, provenance=run, protocols=protocols, ks=KS)
        if len(names) > 1:
            records += report_branches(model, embedded, provenance=run)
        records += _zero_shot(base, processor, rows, names, replace(run, model=BASE))
        save_records(checkpoint / "results.json", records)
        own = [record for record in records if record.model == name]
        print(results_table(own, names))
        print(_against_base(records, name, len(rows)))
        _warn_of_copies(own)
        _write_card(checkpoint, base, name)


def _asked(rows: "Dataset", names: list[str]) -> list[str]:
    """Return the branches' perspectives that these rows have captions of."""
    from ..corpus.build import count_perspectives

    found = count_perspectives(rows)
    return [name for name in names if name in found]


def _tell(base: "Base", branches: list[str], choices: "list[Choice]") -> None:
    kept = [name for name in branches if name in base.branches]
    said = f"; {', '.join(kept)} of them the base's" if kept else ""
    print(f"branches {', '.join(branches)}{said}")
    for choice in choices:
        print(choice)


def _zero_shot(
    base: "Base", processor: "HolisticCLIPProcessor", rows: "Dataset", names: list[str], run: "Provenance"
) -> "list[Record]":
    """Measure the base as it is; a CLIP has one vector, and the processor of what was made of it."""
    from ..evaluation.encoding import load_checkpoint
    from ..evaluation.retrieval import embed_corpus, measure_retrieval
    from ..initialization import from_checkpoint

    if base.branches:
        model, processor = load_checkpoint(base.name)
    else:
        model = from_checkpoint(base.name, perspectives=["all"])
    embedded = embed_corpus(model, processor, rows, perspectives=_asked(rows, names))
    return measure_retrieval(model, embedded, provenance=run, ks=KS, with_branches=False)


def _against_base(records: "list[Record]", name: str, num_rows: int) -> str:
    """Say how recall changed from the base to the result, mean over perspectives, by the fused score."""
    from ..evaluation.ranking import DIRECTIONS
    from ..evaluation.records import FUSED, PER_PERSPECTIVE

    def mean(model: str, direction: str) -> float:
        found = [
            record.value
            for record in records
            if record.model == model
            and record.label == "recall@5"
            and record.details.get("protocol") == PER_PERSPECTIVE
            and record.details.get("branch") == FUSED
            and "without" not in record.details
            and record.details.get("direction") == direction
        ]
        return 100 * sum(found) / len(found)

    said = "; ".join(
        f"{direction.replace('_', ' ')} {mean(BASE, direction):.1f} -> {mean(name, direction):.1f}"
        for direction in DIRECTIONS
    )
    return f"recall@5 in % on {num_rows:,} photos not trained on, base -> {name}: {said}"


def _warn_of_copies(records: "list[Record]") -> None:
    alike = [record.value for record in records if record.metric == "similarity"]
    if alike and sum(alike) / len(alike) > MOST_ALIKE:
        print(
            f"The branches are alike (mean cosine {sum(alike) / len(alike):.3f}), so that naming one changes little. "
            "Train longer (`--epochs`), or raise `learning_rate_multipliers` in a copy of recipe.yaml and train by it."
        )


def _write_card(checkpoint: Path, base: "Base", name: str) -> None:
    from ..publishing.model_card import FACTS_FILE, CardFacts, save_facts, write_model_card

    if not (checkpoint / FACTS_FILE).is_file():
        on_hub = "" if Path(base.name).exists() else base.name
        save_facts(checkpoint / FACTS_FILE, CardFacts(f"me/{name}", model_name=name, base_model=on_hub))
    print(f"{write_model_card(checkpoint)}\n{checkpoint}")
