# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Where an interrupted run goes on: the last checkpoint that was saved to its end, and the same place in the data."""

import json
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader
from transformers import TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from .reading import EndlessRows


def last_whole_checkpoint(folder: Path, num_ranks: int) -> Path:
    """The newest checkpoint that all ranks have saved; one that was cut short is passed over.

    Raises:
        ValueError: none.
    """
    whole = [path for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*") if _is_whole(path, num_ranks)]
    if not whole:
        raise ValueError(
            f"{folder} holds no whole checkpoint of {num_ranks} processes. Start afresh, or name a checkpoint."
        )
    return max(whole, key=lambda path: int(path.name.split("-")[-1]))


def _is_whole(checkpoint: Path, num_ranks: int) -> bool:
    # The first rank writes the state of the run after everything else, the others their random state last.
    if len(list(checkpoint.glob("rng_state*.pth"))) < num_ranks:
        return False
    try:
        json.loads((checkpoint / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return False
    return True


class FindPlace(TrainerCallback):
    """Tells a stream how many batches an interrupted run has read of it."""

    def on_train_begin(
        self, args: Any, state: Any, control: Any, train_dataloader: DataLoader | None = None, **kwargs: Any
    ) -> None:
        assert train_dataloader is not None
        if isinstance(train_dataloader.dataset, EndlessRows) and not args.ignore_data_skip:
            train_dataloader.dataset.skipped_batches = state.global_step * args.gradient_accumulation_steps
