# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Fit how the branches of a checkpoint become one score.

  holistic-clip fit --model runs/emoji/holistic --corpus emoji --fusion routed --output runs/emoji/routed
  holistic-clip fit --model runs/photos/holistic --corpus corpora/photos --fusion weighted \\
      --output runs/photos/weighted

`weighted` and `softmax` are fitted so that texts of --split find their images, and want a split that was not trained
on. `routed` learns from captions alone which perspective a text has, and takes the training split. A checkpoint is
changed in place only with --replace.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

FEWEST_ROWS = 10  # with less, one image more or less turns the weights round
FIELDS = ("fusion", "branch_weights", "fusion_scale")  # of a configuration, that are fitted


@dataclass(frozen=True)
class Command:
    """Fit a fusion and set it on a checkpoint.

    Args:
        model: Folder of a checkpoint, or its name on the Hub.
        fusion: Fusion to fit.
        corpus: Folder of a corpus, or the name of one in the cache, such as emoji.
        split_column: Column that holds the split's name. Default: the corpus's own.
        split: Split to fit on. Default: train for `routed`, else validation.
        seed: Seed of the part that is drawn from a large split.
        output: Folder of the new checkpoint. Default: with --replace, the checkpoint itself.
        replace: Change a checkpoint that exists. Its weights stay, and what its fusion was is printed.
    """

    model: str
    fusion: Literal["weighted", "routed", "softmax"]
    corpus: str
    split_column: str | None = None
    split: str | None = None
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
        from ..storage import LOCK, hold_lock

        output = self._output()
        self._require_free(output)
        with hold_lock(output / LOCK, keep=False):
            self._require_free(output)
            self._fit(output)

    def _fit(self, output: Path) -> None:
        from ..checkpoint_files import write_checkpoint
        from ..corpus.build import find_corpus, open_split
        from ..evaluation.encoding import load_checkpoint
        from ..evaluation.fusion_fitting import fit_fusion
        from ..evaluation.retrieval import embed_corpus

        is_routed = self.fusion == "routed"
        split = self.split or ("train" if is_routed else "validation")
        dataset = open_split(find_corpus(self.corpus), split, split_column=self.split_column)
        if len(dataset) < FEWEST_ROWS:
            raise ValueError(
                f"`split` is {split}, of which the corpus has {len(dataset)} rows; expected {FEWEST_ROWS} or more, or "
                "what is fitted is chance. Name another split, or build the corpus with a larger share."
            )
        model, processor = load_checkpoint(self.model)
        before = {name: getattr(model.config, name) for name in FIELDS}
        names = list(model.config.perspectives)
        corpus = embed_corpus(model, processor, dataset, perspectives=names, with_images=not is_routed, progress=True)
        fit_fusion(model, corpus, self.fusion, seed=self.seed)
        with write_checkpoint(output) as partial:
            for part in (model, processor):
                part.save_pretrained(partial)
        print(f"{output} now answers with fusion={self.fusion!r}, fitted on {len(dataset):,} rows of {split}.")
        print(f"Before, {self.model} had {', '.join(f'{name}={value!r}' for name, value in before.items())}.")
        if model.config.branch_weights is not None:
            for name, weight in zip(names, model.config.branch_weights, strict=True):
                print(f"{name:16} {weight:.3f}")
        if model.config.fusion_scale is not None:
            print(f"scale {model.config.fusion_scale:.2f}")

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
