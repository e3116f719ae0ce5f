# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Where an interrupted run goes on: the last checkpoint that was saved to its end, and the same place in the data."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader
from transformers import TrainerCallback, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..distributed import gather_objects, rank, world_size
from ..reading import EndlessRows, Place

PLACE_NAME = "stream-{}.json"


def last_whole_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that all ranks have saved to its end, if any; to be called on all ranks, which agree."""
    mine = {path.name for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*") if _is_whole(path)}
    whole = set.intersection(*gather_objects(mine))
    return folder / max(whole, key=lambda name: int(name.split("-")[-1])) if whole else None


def _is_whole(checkpoint: Path) -> bool:
    """As far as this rank knows: it saves its random numbers last, and the first rank then the state of the run."""
    numbers = f"rng_state_{rank()}.pth" if world_size() > 1 else "rng_state.pth"
    if not (checkpoint / numbers).is_file():
        return False
    try:
        json.loads((checkpoint / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return False
    return True


class StreamPlace(TrainerCallback):
    """Where in a stream each worker of this rank is; saved with a checkpoint, and told to the stream on resuming."""

    def __init__(self) -> None:
        self.places: dict[int, Place] = {}
        self.num_batches = 0
        self.num_workers = 1

    def note(self, batch: Mapping[str, Any]) -> None:
        """Take up where a batch ends, if it is of a stream. Workers take turns, a batch each."""
        if "place" in batch:
            self.places[self.num_batches % self.num_workers] = Place(*batch["place"])
            self.num_batches += 1

    def save(self, checkpoint: Path) -> None:
        """Put this rank's places beside the weights."""
        if self.places:
            checkpoint.mkdir(parents=True, exist_ok=True)
            record = {"workers": self.num_workers, "places": self.places}
            (checkpoint / PLACE_NAME.format(rank())).write_text(json.dumps(record), encoding="utf-8")

    def load(self, checkpoint: Path, args: TrainingArguments) -> None:
        """The places saved with a checkpoint, unless the stream is to begin anew.

        Raises:
            ValueError: a checkpoint without them, or of another number of workers.
        """
        if args.ignore_data_skip:
            return
        path, num_workers = checkpoint / PLACE_NAME.format(rank()), max(1, args.dataloader_num_workers)
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        if record.get("workers") != num_workers:
            raise ValueError(
                f"{path}: got {record.get('workers', 'no')} workers that read the stream for this process, expected "
                f"{num_workers} as now. Resume with the processes and workers of the interrupted run, or "
                f"begin the stream anew with `ignore_data_skip=True`."
            )
        self.places = {int(worker): Place(*place) for worker, place in record["places"].items()}

    def on_train_begin(
        self, args: Any, state: Any, control: Any, train_dataloader: DataLoader | None = None, **kwargs: Any
    ) -> None:
        self.num_workers = max(1, args.dataloader_num_workers)
        self.num_batches = 0 if args.ignore_data_skip else state.global_step * args.gradient_accumulation_steps
        if self.num_batches == 0:
            self.places = {}
        if train_dataloader is not None and isinstance(stream := train_dataloader.dataset, EndlessRows):
            stream.skipped_batches, stream.places = self.num_batches, dict(self.places)
