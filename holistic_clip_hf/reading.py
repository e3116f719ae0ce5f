# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""How the trainer reads a corpus: images undecoded, and streams without end, shared out between ranks and workers."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import count
from typing import Any

import torch
from accelerate.data_loader import prepare_data_loader
from datasets import Dataset, Image
from datasets import IterableDataset as DatasetsStream
from datasets.distributed import split_dataset_by_node
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from transformers import TrainingArguments

from .collator import PASS, HolisticCLIPCollator


def undecoded(dataset: Any) -> Any:
    """The same rows with the bytes of their images: the collator decodes them, and can leave one out that it cannot.

    Left as it is: what is not of `datasets`, what a transform makes of rows, and images for which a mode is asked. Of
    several datasets by name, each.
    """
    if isinstance(dataset, dict):
        return {name: undecoded(each) for name, each in dataset.items()}
    if not isinstance(dataset, (Dataset, DatasetsStream)):
        return dataset
    if isinstance(dataset, Dataset) and dataset.format["type"] is not None:
        return dataset
    feature = (dataset.features or {}).get("image")
    if not isinstance(feature, Image) or not feature.decode or feature.mode is not None:
        return dataset
    return dataset.cast_column("image", Image(decode=False))


class EndlessRows(IterableDataset):
    """The rows of a stream, pass after pass; a row says under `PASS` which pass it is of.

    For the Trainer a stream is one long epoch. If it began each pass itself, ranks whose shares differ in length would
    disagree on the epoch, and a resumed run would look for its place in the first pass.

    The place is found by reading, and not by the stream's own `skip`, which fixes the order of shards in all passes,
    nor by its `state_dict`, which loses the rows in a shuffle buffer. Until then None stands for each row: no image is
    decoded and no caption tokenised, and the Trainer's count of batches to skip holds as it is.

    Args:
        rows: a stream of `datasets`, or any other `IterableDataset` of rows.
        batch_size: images per batch of a rank.
        rank, world_size: which share of the rows is this process's. Its workers share it further by themselves.

    Raises:
        ValueError: a pass, or a worker's share of it, that does not fill a batch.
    """

    def __init__(self, rows: Iterable[Mapping[str, Any]], batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        super().__init__()
        self.rows = rows
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size
        self.skipped_batches = 0

    def __iter__(self) -> Iterator[dict[str, Any] | None]:
        worker = get_worker_info()
        number, num_workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        # Workers take turns, a batch each, and none of them ever ends.
        skipped = len(range(number, self.skipped_batches, num_workers)) * self.batch_size
        for place, row in enumerate(self._passes()):
            yield None if place < skipped else row

    def _passes(self) -> Iterator[dict[str, Any]]:
        rows = self.rows
        if isinstance(rows, DatasetsStream):
            # Besides, this makes a new object: the epoch of a stream is in memory that workers would share.
            rows = split_dataset_by_node(rows, self.rank, self.world_size)
        for number in count():
            if hasattr(rows, "set_epoch"):
                rows.set_epoch(number)
            num_rows = 0
            for row in rows:
                num_rows += 1
                yield {**row, PASS: number}
            if num_rows < self.batch_size:
                raise ValueError(
                    f"Pass {number} of the stream has {num_rows} rows for this process or worker, fewer than the "
                    f"batch of {self.batch_size}. Give it more rows, or take smaller batches or fewer workers."
                )


def stream_loader(
    rows: IterableDataset, collator: HolisticCLIPCollator, args: TrainingArguments, *, batch_size: int
) -> DataLoader:
    """Batches without end of this rank's share of a stream.

    Raises:
        ValueError: more workers than shards, workers out of order, or a stream that does not say how to share it.
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
                f"{workers} workers would read whole. Valid: one process with at most one worker, or a stream that "
                f"can be shared out: `datasets.IterableDataset.from_generator`."
            )
        return
    num_shards = split_dataset_by_node(rows, args.process_index, args.world_size).num_shards
    if workers > num_shards:
        raise ValueError(
            f"`dataloader_num_workers` is {workers}, but the stream has {num_shards} shards for each process, and a "
            f"worker reads whole shards. Valid: at most {num_shards}, or a stream of more files or `num_shards`."
        )
