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

import copy
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, UseAppendAction, arg

from .corpus import BuildOptions, show_left_out
from .sources import CaptionOptions, Folder, Listed

if TYPE_CHECKING:
    from datasets import Dataset

    from ..evaluation.records import Record
    from ..images.sources import Source
    from ..modeling_holistic_clip import HolisticCLIPModel
    from ..processing_holistic_clip import HolisticCLIPProcessor
    from ..trainer.finetuning import Base, Choice

VALIDATION, TEST = 0.1, 0.2  # shares; of a few hundred photos less would say nothing
KS = (1, 5, 10)
GAIN_K = 5
BASE = "base"  # in records
CORPUS = "corpus"  # folder below the output


@dataclass(frozen=True)
class Settings:
    """Settings of the training. Those left out are chosen by the number of photos, and said.

    Args:
        epochs: Number of passes over the photos.
        batch_size: Number of photos of a step.
        learning_rate: Learning rate of the towers; branches learn faster.
        max_length: Tokens of a caption that are read. More than the base's stretch the positions of its text tower.
        freeze_tower: Leave the vision tower as it is, and train probes and texts on what it says of each photo. That
            is computed once, so that an epoch takes a fraction of the time. For a SigLIP, or a checkpoint with probes.
        seed: Seed of all that is random.
    """

    epochs: float | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    max_length: int | None = None
    freeze_tower: bool = False
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
            layout, or else every column of texts, as the perspective of its own name.
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
            InUseError: another command writes into the output.
        """
        from ..trainer.finetuning import RUN, require_space
        from ..trainer.recipes import load_recipe, train_run

        with self._opened() as (source, base):
            recipe = load_recipe(self._prepare(source, base))
            corpus, checkpoint = self.output / CORPUS, self.output / RUN
            if not any(self.output.glob(f"{RUN}*")):  # what has begun has its room
                require_space(self.output, base)
            train_run(recipe, RUN, corpus, checkpoint)
            self._measure(base, corpus, checkpoint)

    def prepare(self) -> Path:
        """Build the corpus and choose the settings as the command does, train nothing, and return the recipe's path.

        Raises:
            ValueError: photos, captions or a base that cannot be used.
            InUseError: another command writes into the output.
        """
        with self._opened() as opened:
            return self._prepare(*opened)

    @contextmanager
    def _opened(self) -> "Iterator[tuple[Source, Base]]":
        """Check what is given, and hold the output while it is written."""
        from datasets import disable_progress_bars
        from transformers import logging

        from ..locks import LOCK, hold_lock
        from ..trainer.finetuning import RUN, read_base, require_length, require_probes
        from ..trainer.recipes import require_own_run

        disable_progress_bars()
        logging.disable_progress_bar()
        source = self._source()
        require_own_run(self.output / RUN)
        base = read_base(self.base)
        require_length(base, self.settings.max_length)
        if self.settings.freeze_tower:
            require_probes(base)
        with hold_lock(self.output / LOCK):
            yield source, base

    def _prepare(self, source: "Source", base: "Base") -> Path:
        from ..corpus.build import read_manifest, remove_corpus
        from ..trainer.finetuning import (
            caption_lengths,
            choose_settings,
            make_recipe,
            order_of_branches,
            write_recipe,
        )

        corpus = self.output / CORPUS
        is_new = not corpus.exists()
        try:
            self._build(source, corpus)
            train = _usable_split(corpus)
        except ValueError:
            if is_new:  # with it, corrected captions from another file would be refused
                remove_corpus(corpus)
            raise
        perspectives = list(read_manifest(corpus)["perspectives"])
        branches = order_of_branches(base, perspectives)
        asked = {name: value for name, value in vars(self.settings).items() if name != "seed"}
        lengths = caption_lengths(base, train["captions"])
        choices = choose_settings(len(train), base, asked, lengths)
        _tell(base, branches, choices)
        path = self.output / "recipe.yaml"
        write_recipe(path, make_recipe(base, branches, choices, corpus, self.settings.seed))
        return path

    def _build(self, source: "Source", corpus: Path) -> None:
        from ..corpus.card import CorpusFacts
        from ..evaluation.records import CONSOLE_SCRIPT, shareable_command

        options = BuildOptions(rows=self.rows, validation=self.validation, test=self.test, report=False)
        name = self.output.resolve().name
        command = shareable_command([CONSOLE_SCRIPT, *sys.argv[1:]])
        options.build(source, corpus, CorpusFacts(title=name, command=command, name=name))

    def _source(self) -> "Source":
        """Open the photos and their captions; columns that nobody named are proposed, and said."""
        source = self._open(self.caption)
        proposed: dict[str, str] = {} if self.caption or self.rows else getattr(source, "propose", dict)()
        if not proposed:
            return source
        said = ", ".join(f"{column} as {name}" for column, name in proposed.items())
        print(f"captions are taken from the columns {said}; name others with --caption COLUMN=PERSPECTIVE")
        return self._open([f"{column}={name}" for column, name in proposed.items()])

    def _open(self, caption: Sequence[str]) -> "Source":
        if self.captions is None:
            return Folder(self.photos, caption=tuple(caption)).open()
        listed = Listed(
            self.captions,
            root=self.photos,
            image_column=self.image_column,
            caption=tuple(caption),
            encoding=self.encoding,
        )
        return listed.open()

    def _measure(self, base: "Base", corpus: Path, checkpoint: Path) -> None:
        """Measure base and result on photos that neither was trained on, print a table, and render the card."""
        from ..corpus.build import EmptySplitError, open_split
        from ..evaluation.branch_report import report_branches
        from ..evaluation.encoding import load_checkpoint
        from ..evaluation.gain import measure_gain
        from ..evaluation.records import capture_provenance, save_records
        from ..evaluation.retrieval import RETRIEVAL_PROTOCOLS, embed_alike, embed_corpus, measure_retrieval
        from ..initialization import stretch_text_positions
        from .tables import advice_on_few_images, results_table

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
        starting = _load_base(base)
        if self.settings.max_length and self.settings.max_length > base.max_length:
            stretch_text_positions(starting, self.settings.max_length)  # as training began
        before = embed_alike(starting, _as_base_asks(processor, base), rows, embedded)
        records += measure_retrieval(starting, before, provenance=replace(run, model=BASE), ks=KS, with_branches=False)
        gained = measure_gain((starting, before), (model, embedded), provenance=run, k=GAIN_K)
        records += gained
        save_records(checkpoint / "results.json", records)
        own = [record for record in records if record.model == name and record not in gained]
        print(results_table(own, names))
        print(_against_base(gained, name, len(embedded.branch_embeds)))
        if advice := advice_on_few_images(own):
            print(advice)
        _warn_of_copies(own)
        _write_card(checkpoint, base, name)


def _usable_split(corpus: Path) -> "Dataset":
    """Say what the corpus holds and what was left out of it, and return its training split.

    Raises:
        ValueError: much was left out as damaged, or the captions tell nothing.
    """
    from ..corpus.build import open_split, read_manifest, read_skipped
    from ..trainer.finetuning import require_few_left_out, require_telling_captions

    manifest = read_manifest(corpus)
    splits = ", ".join(f"{count:,} {name}" for name, count in manifest["columns"].get("split", {}).items())
    print(f"{manifest['rows']:,} photos with captions: {splits}")
    require_few_left_out(manifest["rows"], read_skipped(corpus))
    train = open_split(corpus, "train")
    require_telling_captions(train["captions"])
    show_left_out(corpus, manifest)
    return train


def _asked(rows: "Dataset", names: list[str]) -> list[str]:
    """Return the branches' perspectives that these rows have captions of."""
    from ..corpus.build import count_perspectives

    found = count_perspectives(rows)
    return [name for name in names if name in found]


def _tell(base: "Base", branches: list[str], choices: "list[Choice]") -> None:
    kept = [name for name in branches if name in base.branches]
    said = "; all are the base's" if kept == branches else f"; of the base: {', '.join(kept)}" if kept else ""
    print(f"branches {', '.join(branches)}{said}")
    if base.caption_form:
        print(f"captions keep the form of the base, {base.caption_form!r}")
    for choice in choices:
        print(choice)


def _load_base(base: "Base") -> "HolisticCLIPModel":
    """Load the base as it is; a CLIP has one vector."""
    from ..evaluation.encoding import load_checkpoint
    from ..initialization import from_checkpoint

    return load_checkpoint(base.name)[0] if base.branches else from_checkpoint(base.name, perspectives=["all"])


def _as_base_asks(processor: "HolisticCLIPProcessor", base: "Base") -> "HolisticCLIPProcessor":
    """Return the processor of the result with the base's own form of captions."""
    from ..initialization import saved_caption_form

    asking = copy.copy(processor)
    asking.caption_form, asking.caption_perspectives = saved_caption_form(base.name) if base.branches else (None, [])
    return asking


def _against_base(gained: "list[Record]", name: str, num_rows: int) -> str:
    """Say how recall changed from the base to the result, by the fused score."""
    from ..evaluation.ranking import DIRECTIONS

    told = {(record.metric, record.details["direction"]): record for record in gained}
    lines = [f"recall@{GAIN_K} in %, base -> {name}, on {num_rows:,} photos not trained on:"]
    for direction in DIRECTIONS:
        before, after, gain = (told[f"recall_{metric}", direction] for metric in ("before", "after", "gain"))
        low, high = gain.confidence_interval or (0.0, 0.0)
        lines.append(
            f"  {direction.replace('_', ' ')}  {100 * before.value:.1f} -> {100 * after.value:.1f}, gained "
            f"{100 * gain.value:+.1f} (95 % interval {100 * low:+.1f} to {100 * high:+.1f}), "
            f"{gain.counts['n_queries']} queries"
        )
    return "\n".join(lines)


def _warn_of_copies(records: "list[Record]") -> None:
    from ..trainer.callbacks import MOST_ALIKE

    alike = [record.value for record in records if record.metric == "similarity"]
    if alike and sum(alike) / len(alike) > MOST_ALIKE:
        print(
            f"The branches are alike (mean cosine {sum(alike) / len(alike):.3f}), so that naming one changes little. "
            "Train longer (`--epochs`), or raise `learning_rate_multipliers` in a copy of recipe.yaml and train by it."
        )


def _write_card(checkpoint: Path, base: "Base", name: str) -> None:
    from ..publishing.model_card import FACTS_FILE, CardFacts, save_facts, write_model_card
    from ..trainer.recipes import CURVES

    if not (checkpoint / FACTS_FILE).is_file():
        on_hub = "" if Path(base.name).exists() else base.name
        pictures = {"Loss and recall during training": CURVES} if (checkpoint / CURVES).is_file() else {}
        facts = CardFacts(f"me/{name}", model_name=name, base_model=on_hub, pictures=pictures)
        save_facts(checkpoint / FACTS_FILE, facts)
    print(f"{write_model_card(checkpoint)}\n{checkpoint}")
