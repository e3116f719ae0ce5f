# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Train a run of a recipe.

  holistic-clip train --recipe training/recipes/emoji.yaml --run holistic
  holistic-clip train --recipe training/recipes/cc3m.yaml --run holistic --corpus corpora/cc3m
  holistic-clip train --recipe training/recipes/cc12m.yaml --run holistic --tiny

On several GPUs, `accelerate launch` or `torchrun` start the same as a module:

  accelerate launch --config_file training/accelerate/ddp.yaml -m holistic_clip_hf train \\
      --recipe training/recipes/cc3m.yaml --run holistic

The result lies in OUTPUT_DIR/<recipe>/<run>. An interrupted run goes on when the same command is given again. --tiny
makes the recipe so small that a CPU runs it offline in seconds, to show that the file can be run.
"""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Command:
    """Train a run of a recipe.

    Args:
        recipe: YAML file of the recipe.
        run: Name of a run in the recipe.
        corpus: Folder of a corpus. Default: the recipe's.
        tiny: Run the recipe at its smallest, on drawings, on the CPU.
        output_dir: Folder for runs.
    """

    recipe: Path
    run: str
    corpus: str | None = None
    tiny: bool = False
    output_dir: Path = Path("runs")

    def __call__(self) -> None:
        """Train unless it is finished, and print where the checkpoint lies.

        Raises:
            ValueError: a recipe or corpus that cannot be used, or a run that the recipe lacks.
        """
        from dataclasses import replace

        from accelerate import PartialState
        from datasets import disable_progress_bars
        from transformers import logging

        from ..corpus.build import find_corpus
        from ..trainer.recipes import load_recipe, train_run
        from ..trainer.tiny import changes, make_tiny

        disable_progress_bars()  # reading and writing takes a second, and training has a bar of its own
        logging.disable_progress_bar()
        recipe = load_recipe(self.recipe)
        if self.run not in recipe.runs:
            raise ValueError(
                f"`--run` is {self.run!r}; expected one of {', '.join(recipe.runs)}, which {self.recipe} has."
            )
        if self.tiny and self.corpus is not None:
            raise ValueError("`--corpus` is given with `--tiny`, which draws its own. Leave one of them out.")
        if self.corpus is not None:
            recipe = replace(recipe, corpus=self.corpus)
        output_dir = self.output_dir / ("tiny" if self.tiny else "") / recipe.name
        if self.tiny:
            whole, recipe = recipe, make_tiny(recipe, output_dir, self.run)
            if PartialState().is_main_process:
                print("\n".join(["Made tiny, to show that the recipe runs:", *changes(whole, recipe)]), flush=True)
        train_run(recipe, self.run, find_corpus(recipe.corpus), output_dir / self.run)
        if PartialState().is_main_process:
            print(output_dir / self.run)
