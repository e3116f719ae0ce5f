# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Fit how the branches of a checkpoint become one score, and what scores are worth as probabilities.

  holistic-clip fit --model runs/emoji/holistic --corpus emoji --output runs/emoji/fitted
  holistic-clip fit --model runs/photos/holistic --corpus corpora/photos --fusion weighted \\
      --output runs/photos/weighted
  holistic-clip fit --model runs/emoji/holistic --corpus emoji --fusion current --replace

`weighted` and `softmax` are fitted so that texts of --split find their images, and want a split that was not trained
on. `routed` learns from captions alone which perspective a text has, and takes the training split. `best` fits all and
keeps the one by which texts of the validation split find their images best; `current` keeps the fusion as it is. A
checkpoint is changed in place only with --replace.

Then scores are calibrated on --calibrate-on, so that `holistic-clip search` and the page give a probability to each
image, and say so if nothing fits. The coefficients lie in calibration.json beside the checkpoint.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from datasets import Dataset

    from ..evaluation.calibration import Calibration
    from ..evaluation.retrieval import EmbeddedCorpus

FEWEST_ROWS = 10  # with less, one image more or less turns the weights round
FIELDS = ("fusion", "branch_weights", "fusion_scale")  # of a configuration, that are fitted


@dataclass(frozen=True)
class Command:
    """Fit a fusion, set it on a checkpoint, and calibrate its scores.

    Args:
        model: Folder of a checkpoint, or its name on the Hub.
        corpus: Folder of a corpus, or the name of one in the cache, such as emoji.
        fusion: Fusion to fit; `best` of all on the validation split, or the `current` one as it is.
        split_column: Column that holds the split's name. Default: the corpus's own.
        split: Split to fit on. Default: train for `routed`, else validation.
        calibrate_on: Split that scores are calibrated on, one that was not trained on.
        gallery_size: Number of images of the galleries that scores are calibrated for, into which the split is dealt.
            Default: the whole split, and parts of it.
        seed: Seed of the part that is drawn from a large split.
        output: Folder of the new checkpoint. Default: with --replace, the checkpoint itself.
        replace: Change a checkpoint that exists. Its weights stay, and what its fusion was is printed.
    """

    model: str
    corpus: str
    fusion: Literal["best", "weighted", "routed", "softmax", "current"] = "best"
    split_column: str | None = None
    split: str | None = None
    calibrate_on: str = "validation"
    gallery_size: int | None = None
    seed: int = 0
    output: Path | None = None
    replace: bool = False

    def __call__(self) -> None:
        """Fit, save, and print what the checkpoint answers with now.

        Raises:
            ValueError: no such checkpoint, corpus or split, a split of few rows, or an output folder that holds other
                things, or a checkpoint that is not to be replaced.
            InUseError: another command writes there.
        """
        from ..locks import LOCK, hold_lock

        output = self._output()
        self._require_free(output)
        with hold_lock(output / LOCK, keep=False):
            self._require_free(output)
            self._fit(output)

    def _fit(self, output: Path) -> None:
        from ..checkpoint_files import CALIBRATION_FILE, write_checkpoint
        from ..evaluation.calibration import save_calibration

        fitting = _Fitting(self)
        model, before = fitting.model, fitting.settings()
        said = fitting.fit()
        calibration = fitting.calibrate()
        with write_checkpoint(output) as partial:
            for part in (model, fitting.processor):
                part.save_pretrained(partial)
            if calibration:
                save_calibration(partial / CALIBRATION_FILE, calibration)
        print(f"{output} now answers with fusion={model.config.fusion!r}{said}.")
        print(f"Before, {self.model} had {', '.join(f'{name}={value!r}' for name, value in before.items())}.")
        if model.config.branch_weights is not None:
            for name, weight in zip(model.config.perspectives, model.config.branch_weights, strict=True):
                print(f"{name:16} {weight:.3f}")
        if model.config.fusion_scale is not None:
            print(f"scale {model.config.fusion_scale:.2f}")
        if calibration:
            texts = ", ".join(f"{name} ({each.num_texts:,} texts)" for name, each in calibration.scores.items())
            print(f"Scores are calibrated on {calibration.split}: {texts}.")

    def _output(self) -> Path:
        """Return the folder to write."""
        if self.output is None and not self.replace:
            raise ValueError(
                "`output` is missing; expected the folder of the new checkpoint. Name it, or change "
                f"{self.model} itself with `replace`."
            )
        return self.output or Path(self.model)

    def _require_free(self, output: Path) -> None:
        """Refuse a folder with something that is not to be replaced."""
        from ..publishing.checkpoint import require_checkpoint_folder

        require_checkpoint_folder(output)
        if not self.replace and (output / "config.json").is_file():
            raise ValueError(
                f"`output` is {output}, which holds a checkpoint; expected a new folder. Name another, or give "
                "`replace`."
            )


class _Fitting:
    """A checkpoint and the options of the command. Each split is encoded once."""

    def __init__(self, options: Command) -> None:
        from ..evaluation.encoding import load_checkpoint

        self.options = options
        self._opened: dict[str, Dataset] = {}
        self._encoded: dict[tuple[str, bool], EmbeddedCorpus] = {}
        for split in self._splits():  # before a checkpoint is loaded
            self._open(split)
        self.model, self.processor = load_checkpoint(options.model)

    def settings(self) -> dict[str, object]:
        """Return what of the configuration is fitted."""
        return {name: getattr(self.model.config, name) for name in FIELDS}

    def fit(self) -> str:
        """Fit the fusion, and return what to say of it.

        Raises:
            ValueError: no such split, or one of few rows.
        """
        from ..evaluation.fusion_fitting import fit_best_fusion, fit_fusion

        options = self.options
        if options.fusion == "current":
            return ", as before"
        if options.fusion == "best":
            split, train = self._splits()
            validation, texts = self._corpus(split), self._corpus(train, with_images=False)
            found = fit_best_fusion(self.model, validation, texts, seed=options.seed)
            scores = ", ".join(f"{fusion} {100 * value:.1f}" for fusion, value in found.items())
            return f", the best of {len(found)} by mean average precision in % ({scores})"
        (split,) = self._splits()
        corpus = self._corpus(split, with_images=options.fusion != "routed")
        fit_fusion(self.model, corpus, options.fusion, seed=options.seed)
        return f", fitted on {len(self._open(split)):,} rows of {split}"

    def calibrate(self) -> "Calibration | None":
        """Calibrate the scores, as they are now; if that cannot be done, say why, since the fusion needs it not.

        Raises:
            ValueError: it cannot be done, and is all that was asked for.
        """
        from ..corpus.build import corpus_name, find_corpus
        from ..evaluation.calibration import FEWEST_TEXTS, Calibration, fit_calibration, fusion_facts
        from ..evaluation.fingerprints import fingerprint
        from ..evaluation.records import FUSED

        options = self.options
        try:
            corpus = self._corpus(options.calibrate_on)
        except ValueError as error:
            if options.fusion == "current":
                raise
            print(f"Scores are not calibrated: {error}")
            return None
        scores = fit_calibration(self.model, corpus, gallery_size=options.gallery_size, seed=options.seed)
        names = list(self.model.config.perspectives)
        if missing := [name for name in (FUSED, *(names if len(names) > 1 else ())) if name not in scores]:
            print(
                f"Not calibrated: {', '.join(missing)}. {options.calibrate_on} has fewer than {FEWEST_TEXTS} texts of "
                "theirs. Build the corpus with a larger share."
            )
        if not scores and options.fusion == "current":
            raise ValueError(
                f"`calibrate_on` is {options.calibrate_on}, which has too few texts to calibrate any score; expected "
                f"{FEWEST_TEXTS} or more. Name another split, or build the corpus with a larger share."
            )
        if not scores:
            return None
        checkpoint = fingerprint(self.model, self.processor, with_fusion=False)
        dataset = corpus_name(find_corpus(options.corpus))
        return Calibration(checkpoint, fusion_facts(self.model), dataset, options.calibrate_on, scores)

    def _splits(self) -> list[str]:
        """Return the splits that are needed: that of the fusion, and that of captions for a router."""
        options = self.options
        if options.fusion == "current":
            return [options.calibrate_on]
        if options.fusion == "routed":
            return [options.split or "train"]
        return [options.split or "validation", *(["train"] if options.fusion == "best" else [])]

    def _open(self, split: str) -> "Dataset":
        from ..corpus.build import find_corpus, open_split

        if split not in self._opened:
            dataset = open_split(find_corpus(self.options.corpus), split, split_column=self.options.split_column)
            if len(dataset) < FEWEST_ROWS:
                raise ValueError(
                    f"`split` is {split}, of which the corpus has {len(dataset)} rows; expected {FEWEST_ROWS} or "
                    "more, or what is fitted is chance. Name another split, or build the corpus with a larger share."
                )
            self._opened[split] = dataset
        return self._opened[split]

    def _corpus(self, split: str, *, with_images: bool = True) -> "EmbeddedCorpus":
        from ..evaluation.retrieval import embed_corpus

        if (split, with_images) not in self._encoded:
            dataset = self._open(split)
            self._encoded[split, with_images] = embed_corpus(
                self.model,
                self.processor,
                dataset,
                perspectives=self._perspectives(dataset),
                with_images=with_images,
                progress=True,
            )
        return self._encoded[split, with_images]

    def _perspectives(self, dataset: "Dataset") -> list[str]:
        """Return the perspectives of the branches, or, to calibrate alone, those that the rows have captions of."""
        from ..corpus.build import count_perspectives

        names = list(self.model.config.perspectives)
        if self.options.fusion != "current":
            return names
        counts = count_perspectives(dataset)
        return [name for name in names if name in counts] or sorted(counts)
