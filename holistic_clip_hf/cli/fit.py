# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Fit how the branches of a checkpoint become one score.

  holistic-clip fit --model runs/emoji/holistic --corpus emoji --fusion routed
  holistic-clip fit --model runs/photos/holistic --corpus corpora/photos --fusion weighted \\
      --output runs/photos/weighted

`weighted` and `softmax` are fitted so that texts of --split find their images, and want a split that was not trained
on. `routed` learns from captions alone which perspective a text has, and takes the training split.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


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
        output: Folder of the new checkpoint. Default: the checkpoint itself is changed.
    """

    model: str
    fusion: Literal["weighted", "routed", "softmax"]
    corpus: str
    split_column: str | None = None
    split: str | None = None
    seed: int = 0
    output: Path | None = None

    def __call__(self) -> None:
        """Fit, save, and print what the checkpoint answers with now.

        Raises:
            ValueError: no such checkpoint, corpus or split, or an output folder that holds other things.
        """
        from ..corpus.build import find_corpus, open_split
        from ..evaluation.encoding import load_checkpoint
        from ..evaluation.fusion_fitting import fit_fusion
        from ..evaluation.retrieval import embed_corpus
        from ..publishing.checkpoint import require_checkpoint_folder

        if self.output is not None:
            require_checkpoint_folder(self.output)
        is_routed = self.fusion == "routed"
        split = self.split or ("train" if is_routed else "validation")
        dataset = open_split(find_corpus(self.corpus), split, split_column=self.split_column)
        model, processor = load_checkpoint(self.model)
        names = list(model.config.perspectives)
        corpus = embed_corpus(model, processor, dataset, perspectives=names, with_images=not is_routed, progress=True)
        fit_fusion(model, corpus, self.fusion, seed=self.seed)
        output = self.output or Path(self.model)
        for part in (model, processor):
            part.save_pretrained(output)
        print(f"{output} now answers with fusion={self.fusion!r}, fitted on {len(dataset):,} rows of {split}.")
        if model.config.branch_weights is not None:
            for name, weight in zip(names, model.config.branch_weights, strict=True):
                print(f"{name:16} {weight:.3f}")
        if model.config.fusion_scale is not None:
            print(f"scale {model.config.fusion_scale:.2f}")
