# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Checkpoints that training goes on from: which of them are whole, who may write them, and a stop that saves one.

A checkpoint says itself that it is whole, by a marker that is written last and lists all files with their sizes.
"""

import json
import logging
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import TrainerCallback
from transformers.trainer import SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME

from ..locks import LOCK, InUseError, hold_lock
from ..stopping import Stopped, StopRequest
from ..storage import parse_json, write_json
from .distributed import gather_objects, rank, sum_over_ranks, world_size

logger = logging.getLogger(__name__)

WHOLE_NAME = "whole.json"
# Beginnings of names, by what a checkpoint needs. A file or, of sharded training, a folder.
WEIGHTS = ("model.", "model-", "adapter_model.", "pytorch_model", "global_step")
OPTIMIZER = ("optimizer", "global_step")
DEEPSPEED = "global_step"  # whose folder holds the scheduler, too


def begin_saving(checkpoint: Path) -> None:
    """Take a checkpoint that is about to be written again for unfinished until `mark_whole`.

    The first rank calls it, before any rank writes.
    """
    for name in (WHOLE_NAME, TRAINER_STATE_NAME):  # without either, it is not whole
        (checkpoint / name).unlink(missing_ok=True)


def mark_whole(checkpoint: Path) -> None:
    """List all files of a checkpoint with their sizes, as the last of them, after all ranks have written theirs."""
    files = {name: size for name, size in sizes_of(checkpoint).items() if name != WHOLE_NAME}
    write_json(checkpoint / WHOLE_NAME, {"processes": world_size(), "files": files}, indent=1)


def sizes_of(checkpoint: Path) -> dict[str, int]:
    """Return the files of a checkpoint, with their sizes in bytes."""
    return {
        path.relative_to(checkpoint).as_posix(): path.stat().st_size
        for path in sorted(checkpoint.rglob("*"))
        if path.is_file()
    }


def find_lack(checkpoint: Path) -> str:
    """Say why this rank cannot go on from a checkpoint; empty if it is whole.

    Checkpoints of earlier versions have no marker. Of these, each file is opened.
    """
    files = sizes_of(checkpoint)
    if lack := _find_missing(files):
        return lack
    if WHOLE_NAME not in files:
        return next((f"{name} is cut short" for name in files if _is_cut(checkpoint / name)), "")
    try:
        listed = parse_json((checkpoint / WHOLE_NAME).read_bytes())["files"]
    except (ValueError, KeyError, TypeError):
        return f"{WHOLE_NAME} is damaged"
    if not isinstance(listed, dict):
        return f"{WHOLE_NAME} is damaged"
    for name, size in listed.items():
        if name not in files:
            return f"{name} is missing"
        if files[name] != size:
            return f"{name} has {files[name]:,} bytes instead of {size:,}"
    return ""


def _find_missing(files: Mapping[str, int]) -> str:
    """Say which of the files that this rank needs is missing."""
    numbers = f"rng_state_{rank()}.pth" if world_size() > 1 else "rng_state.pth"
    is_deepspeed = any(name.startswith(DEEPSPEED) for name in files)
    if not any(name.startswith(WEIGHTS) for name in files):
        return "the weights are missing"
    if not any(name.startswith(OPTIMIZER) for name in files):
        return "optimizer.pt is missing"
    if SCHEDULER_NAME not in files and not is_deepspeed:
        return f"{SCHEDULER_NAME} is missing"
    if numbers not in files:
        others = sum(name.startswith("rng_state") for name in files)
        return f"{numbers} is missing" + (f", since {others} process(es) saved it" if others else "")
    return "" if TRAINER_STATE_NAME in files else f"{TRAINER_STATE_NAME} is missing"


def _is_cut(path: Path) -> bool:
    """Tell whether a file of a checkpoint ends too early, by its format."""
    try:
        if path.name == SAFE_WEIGHTS_INDEX_NAME:
            shards = set(json.loads(path.read_bytes())["weight_map"].values())
            return not all((path.parent / shard).is_file() for shard in shards)
        if path.suffix == ".json":
            json.loads(path.read_bytes())
        elif path.suffix == ".safetensors":
            with safe_open(path, framework="pt"):
                pass
        elif path.suffix in (".pt", ".pth", ".bin"):  # whose list of contents stands at the end
            return not zipfile.is_zipfile(path)
    except (ValueError, KeyError, SafetensorError, OSError):
        return True
    return False


def last_whole_checkpoint(folder: Path) -> Path | None:
    """Return the newest checkpoint that all ranks have saved to its end, if any; to be called on all ranks, which
    agree.

    Newer ones that are passed over are named in a warning each.
    """
    mine = {path.name: find_lack(path) for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*") if _is_numbered(path)}
    lacks: dict[str, str] = {}
    for theirs in (all_lacks := gather_objects(mine)):
        for name, lack in theirs.items():
            lacks[name] = lacks.get(name) or lack
    for name in sorted(lacks, key=lambda name: -int(name.split("-")[-1])):
        if not lacks[name] and all(name in theirs for theirs in all_lacks):
            return folder / name
        if rank() == 0:
            logger.warning("%s is not whole and is passed over: %s.", folder / name, lacks[name] or "a rank lacks it")
    return None


def _is_numbered(path: Path) -> bool:
    return path.is_dir() and path.name.split("-")[-1].isdecimal()


def require_whole(checkpoint: Path) -> None:
    """Refuse to go on from a checkpoint that is not whole. Call it on all ranks.

    Raises:
        ValueError: a file is missing or was cut short, as one sentence.
    """
    lack = find_lack(checkpoint) if checkpoint.is_dir() else "there is no such folder"
    if found := next(filter(None, gather_objects(lack)), ""):
        raise ValueError(
            f"`resume_from_checkpoint` is {checkpoint}, which is not whole ({found}); expected a checkpoint that was "
            "saved to its end. Name another, or give True for the last whole one."
        )


@contextmanager
def hold_output(folder: Path) -> Iterator[None]:
    """Hold the lock of an output for all ranks. Call it on all ranks.

    Raises:
        InUseError: another process writes there; on every rank, with who it is.
    """
    with ExitStack() as stack:
        refusal = ""
        if rank() == 0:
            try:
                stack.enter_context(hold_lock(folder / LOCK))
            except InUseError as error:
                refusal = str(error)
        if refusal := gather_objects(refusal)[0]:
            raise InUseError(refusal)
        yield


class SaveOnStop(TrainerCallback):
    """A stop by Ctrl-C or SIGTERM after the present step, with a checkpoint to go on from.

    The last step of an epoch is followed by what belongs to its end, such as an evaluation, before it is saved. The
    checkpoint has the optimizer's state also with `save_only_model`.
    """

    def __init__(self) -> None:
        self.request = StopRequest()
        self.signum = 0  # of a signal that any rank has got
        self.stopped: Stopped | None = None  # once its checkpoint is saved; other callbacks are still to hear of that
        self.is_of_model_alone = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.signum, self.stopped = 0, None
        self.is_of_model_alone = args.save_only_model

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.signum = self._agreed(args.device)
        if self.signum:
            args.save_only_model = False
        if self.signum and not control.should_training_stop and state.epoch != int(state.epoch):
            control.should_save = True

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.signum:
            control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note that the training is to end, now that the checkpoint is whole."""
        if self.signum:
            args.save_only_model = self.is_of_model_alone
            name = f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
            self.stopped = Stopped(
                self.signum,
                f"Stopped after step {state.global_step:,} of {state.max_steps:,}, which is saved as "
                f"{Path(args.output_dir) / name}. Give the same command again to go on, or, in Python, "
                "`train(resume_from_checkpoint=True)`.",
            )

    def _agreed(self, device: torch.device) -> int:
        """Return the highest number of a signal on any rank: ranks get them between different steps."""
        mine = self.request.signum or 0
        if world_size() == 1:
            return mine
        slots = torch.zeros(world_size(), device=device)
        slots[rank()] = mine
        return int(sum_over_ranks(slots).max())
