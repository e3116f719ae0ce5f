# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""What cannot be right about a training run: refused before it begins, or stopped."""

import logging
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from torch.utils.data import IterableDataset

from ..configuration_holistic_clip import HolisticCLIPConfig
from ..corpus.schema import require_perspectives
from ..distributed import gather_objects, sum_over_ranks
from ..matching_holistic_clip import FREE
from .arguments import HolisticCLIPTrainingArguments

logger = logging.getLogger(__name__)

COLUMNS = ("image_id", "image", "captions")


def datasets_of(given: Any) -> list[Any]:
    """One dataset, several by name, or none, as `Trainer` takes them."""
    return [each for each in (given.values() if isinstance(given, dict) else [given]) if each is not None]


def require_corpus(given: Any, slots: list[str], *, name: str) -> None:
    """Raise `ValueError` unless every dataset has the columns of a corpus and captions for all slots.

    Of a stream, only its columns are known, where it says them.
    """
    for dataset in datasets_of(given):
        columns = getattr(dataset, "column_names", None) or COLUMNS
        if absent := [column for column in COLUMNS if column not in columns]:
            raise ValueError(
                f"`{name}` has no column {absent}; it has {sorted(columns)}. A corpus has {list(COLUMNS)}: rename, or "
                f"build one with `holistic_clip_hf.corpus`."
            )
        if isinstance(dataset, Dataset):
            require_perspectives(dataset, slots, name=name)


def require_countable(given: Any, args: HolisticCLIPTrainingArguments) -> None:
    """Raise `ValueError` for an evaluation stream on several ranks, which would bring different numbers of rows."""
    if args.world_size > 1 and any(isinstance(dataset, IterableDataset) for dataset in datasets_of(given)):
        raise ValueError(
            f"`eval_dataset` is a stream, and there are {args.world_size} processes: their shares of it need not be "
            f"equal. Valid: a `datasets.Dataset`, such as the stream's first rows in `Dataset.from_list`."
        )


def require_checkpoint(found: Path | None, args: HolisticCLIPTrainingArguments) -> Path:
    """Raise `ValueError` where there is nothing to resume from."""
    if found is None:
        raise ValueError(
            f"{args.output_dir} holds no checkpoint that all {args.world_size} processes have saved to its end. Start "
            f"afresh, or name a checkpoint."
        )
    return found


def require_one_device(args: HolisticCLIPTrainingArguments) -> None:
    """Raise `ValueError` for one process with several GPUs."""
    if args.n_gpu > 1:
        raise ValueError(
            f"One process sees {args.n_gpu} GPUs. Start one process per GPU: `accelerate launch` or "
            f"`torchrun --nproc-per-node {args.n_gpu}`."
        )


def require_slots_for_all_branches(config: HolisticCLIPConfig, slots: list[str]) -> None:
    """Raise `ValueError` for a branch that no slot would train."""
    if config.matching != "aligned" or FREE in config.branch_of_slot(slots):
        return
    idle = [name for name in config.perspectives if name not in slots]
    if idle:
        raise ValueError(
            f"No slot trains the branches {idle}; the slots are {slots}. Add slots of these names, or build the model "
            f"with `perspectives={slots}`."
        )


def require_scale(args: HolisticCLIPTrainingArguments, *, sharded: bool, deepspeed: bool) -> None:
    """Raise `ValueError` for what sharded weights do not go with; say what gradient accumulation does not do."""
    if args.ema_decay is not None and sharded:
        raise ValueError("`ema_decay` needs whole weights on every rank. Leave it out with FSDP and DeepSpeed.")
    if args.gradient_cache_size is not None and deepspeed:
        raise ValueError("`gradient_cache_size` and DeepSpeed do not go together. Use DDP or FSDP.")
    if args.gradient_accumulation_steps > 1 and args.gradient_cache_size is None:
        logger.warning(
            "gradient_accumulation_steps=%d: an image is told only from those of its own micro-batch of %d. To have "
            "the negatives of a large batch at the memory of a small one, raise `per_device_train_batch_size` and set "
            "`gradient_cache_size` instead.",
            args.gradient_accumulation_steps,
            args.per_device_train_batch_size * args.world_size,
        )


def require_finite(loss: Tensor, image_ids: list[str], *, step: int) -> None:
    """Raise `ValueError` on all ranks if any rank's loss is not: else the others would wait for it for ever."""
    if torch.isfinite(sum_over_ranks(loss)):
        return
    theirs = gather_objects([] if torch.isfinite(loss) else image_ids)
    raise ValueError(
        f"The loss is {loss.item()} at step {step}, on the images {', '.join(chain(*theirs))}. Lower the learning "
        f"rate or clip gradients (`max_grad_norm`); a resumed run begins at the last checkpoint."
    )
