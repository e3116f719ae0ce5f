# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Streams without end for the trainer, shared out between ranks and workers."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import count, repeat
from typing import Any, NamedTuple

import torch
from accelerate.data_loader import prepare_data_loader
from datasets import IterableDataset as DatasetsStream
from datasets.distributed import split_dataset_by_node
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from transformers import TrainingArguments

PLACE = "_place"  # the column in which a row of a stream says where it stands


class Place(NamedTuple):
    """Place of a row in a stream, as this process or worker reads it."""

    number: int  # of the pass, from 0
    row: int  # of the pass, from 1
    image_id: str


class EndlessRows(IterableDataset):
    """The rows of a stream, pass after pass; each says under `PLACE` where it stands.

    For the Trainer a stream is one long epoch. If it began each pass itself, ranks whose shares differ in length would
    disagree on the epoch, and a resumed run would look for its place in the first pass.

    A resumed run begins with the pass that was interrupted and reads up to its place; the stream's own `skip` would
    fix the order of shards in all passes, and its `state_dict` loses the rows in a shuffle buffer. Until then None
    stands for each row, so that the Trainer, which skips by counting batches, finds what it expects: no image is
    decoded, no caption tokenised, and no earlier pass read. What the stream's own functions draw at random is theirs
    to repeat.

    Args:
        rows: a stream of `datasets`, or any other `IterableDataset` of rows.
        batch_size: images per batch of a rank.
        rank, world_size: which share of the rows is this process's. Its workers share it further by themselves.

    Raises:
        ValueError: a pass, or a worker's share of it, that does not fill a batch; another row than before at the
            place of a resumed run.
    """

    def __init__(self, rows: Iterable[Mapping[str, Any]], batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        super().__init__()
        self.rows = rows
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size
        self.skipped_batches = 0
        self.places: dict[int, Place] = {}  # by worker

    def __iter__(self) -> Iterator[dict[str, Any] | None]:
        worker = get_worker_info()
        number, num_workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        # Workers take turns, a batch each, and none of them ever ends.
        num_batches = len(range(number, self.skipped_batches, num_workers))
        yield from repeat(None, num_batches * self.batch_size)
        yield from self._rows_after(self.places.get(number, Place(0, 0, "")))

    def _rows_after(self, place: Place) -> Iterator[dict[str, Any]]:
        rows = self.rows
        if isinstance(rows, DatasetsStream):
            # Besides, this makes a new object: the epoch of a stream is in memory that workers would share.
            rows = split_dataset_by_node(rows, self.rank, self.world_size)
        for number in count(place.number):
            if hasattr(rows, "set_epoch"):
                rows.set_epoch(number)
            here = Place(number, 0, "")
            for row in rows:
                here = Place(number, here.row + 1, row["image_id"])
                if here[:2] > place[:2]:
                    yield {**row, PLACE: here}
                elif here[:2] == place[:2] and here != place:
                    break
            self._require_whole_pass(here, place)

    def _require_whole_pass(self, last: Place, place: Place) -> None:
        if last.number == place.number and last != place and last[:2] <= place[:2]:
            raise ValueError(
                f"The stream is not as it was: row {place.row} of pass {place.number} was {place.image_id!r}, and now "
                f"row {last.row} is {last.image_id!r}. Give `shuffle` a seed and leave the files and the number of "
                f"processes as they were, or begin the stream anew with `ignore_data_skip=True`."
            )
        if last.row < self.batch_size:
            raise ValueError(
                f"Pass {last.number} of the stream has {last.row} rows for this process or worker, fewer than the "
                f"batch of {self.batch_size}. Give it more rows, or take smaller batches or fewer workers."
            )


def stream_loader(
    rows: IterableDataset, collator: Callable[..., Any], args: TrainingArguments, *, batch_size: int
) -> DataLoader:
    """Return batches without end of this rank's share of a stream.

    Raises:
        ValueError: more workers than shards, workers out of order, or a stream that does not say how to share it or
            was shared already.
    """
    _require_shares(rows, args)
    loader = DataLoader(
        EndlessRows(rows, batch_size, args.process_index, args.world_size),
        batch_size=batch_size,
        collate_fn=collator,
        num_workers=args.dataloader_num_workers,
        prefetch_factor=args.dataloader_prefetch_factor,
        pin_memory=args.dataloader_pin_memory,
        multiprocessing_context=args.dataloader_multiprocessing_context,
        # What a stream's own functions draw, and so that beginning to read draws nothing of the model's.
        generator=torch.Generator().manual_seed(args.seed if args.data_seed is None else args.data_seed),
    )
    # As if there were one process: accelerate would share the rows out a second time.
    return prepare_data_loader(
        loader, args.device, num_processes=1, process_index=0, put_on_device=True, dispatch_batches=False
    )


def _require_shares(rows: IterableDataset, args: TrainingArguments) -> None:
    workers = args.dataloader_num_workers
    if workers > 1 and not args.dataloader_in_order:
        raise ValueError(
            "`dataloader_in_order=False` with a stream: which rows a batch has would depend on which worker is fast, "
            "so a resumed run could not find its place. Leave it on."
        )
    if not isinstance(rows, DatasetsStream):
        if workers > 1 or args.world_size > 1:
            raise ValueError(
                f"`train_dataset` is a {type(rows).__name__}, which each of {args.world_size} processes with "
                f"{workers} workers would read whole; expected one process with at most one worker, or a stream that "
                f"can be shared out, from `datasets.IterableDataset.from_generator`."
            )
        return
    if getattr(rows, "_distributed", None) is not None:  # `datasets` offers no other way to ask
        raise ValueError(
            "`train_dataset` was split by node already; each process would read a share of its share, and the other "
            "rows would be lost. Give the whole stream."
        )
    num_shards = split_dataset_by_node(rows, args.process_index, args.world_size).num_shards
    if workers > num_shards:
        raise ValueError(
            f"`dataloader_num_workers` is {workers}, but the stream has {num_shards} shards for each process, and a "
            f"worker reads whole shards; expected at most {num_shards}, or a stream of more files or `num_shards`."
        )
