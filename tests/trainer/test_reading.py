"""Streams: every row once per pass, in an order that a resumed run finds again, whoever reads; images undecoded."""

import json
import logging
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, load_dataset, load_from_disk
from datasets import Image as ImageFeature
from datasets import IterableDataset as DatasetsStream
from datasets.distributed import split_dataset_by_node
from PIL import Image
from torch.utils.data import IterableDataset

from holistic_clip_hf.images.tables import undecoded
from holistic_clip_hf.trainer import HolisticCLIPTrainer, HolisticCLIPTrainingArguments
from holistic_clip_hf.trainer import callbacks as logs
from holistic_clip_hf.trainer.augmentation import Augmentation
from holistic_clip_hf.trainer.callbacks import PLACE_NAME
from holistic_clip_hf.trainer.resuming import last_whole_checkpoint
from holistic_clip_hf.trainer.streams import PLACE, EndlessRows, Place, stream_loader

MakeTrainer = Callable[..., HolisticCLIPTrainer]
ROWS = 24


def stream(num_shards: int = 4, seed: int | None = 3) -> DatasetsStream:
    rows = Dataset.from_dict({"image_id": [str(index) for index in range(ROWS)]})
    return rows.to_iterable_dataset(num_shards=num_shards).shuffle(seed=seed, buffer_size=5)


def arguments(folder: Path, workers: int = 0, **others: Any) -> HolisticCLIPTrainingArguments:
    return HolisticCLIPTrainingArguments(str(folder), use_cpu=True, dataloader_num_workers=workers, **others)


def places_and_ids(rows: list[dict[str, Any] | None]) -> list[tuple[Place, str]]:
    return [(row[PLACE], row["image_id"]) for row in rows if row is not None]


@pytest.mark.parametrize(("num_shards", "world_size"), [(4, 1), (4, 2), (3, 2)], ids=str)
def test_ranks_share_each_pass(num_shards: int, world_size: int) -> None:
    """Also where shards cannot be shared equally; every pass comes in an order of its own, and again in the same."""
    share, orders = ROWS // world_size, []
    for number in range(3):
        order = []
        for rank in range(world_size):
            rows = EndlessRows(stream(num_shards), 4, rank, world_size)
            mine = list(islice(rows, 3 * share))[number * share :][:share]
            assert [(row[PLACE].number, row[PLACE].row) for row in mine] == [(number, i + 1) for i in range(share)]
            order += [row["image_id"] for row in mine]
            assert places_and_ids(mine) == places_and_ids(list(islice(rows, 3 * share))[number * share :][:share])
        assert sorted(order, key=int) == [str(index) for index in range(ROWS)]
        orders.append(order)
    assert len({tuple(order) for order in orders}) == 3


def ids_of_batches(batch: list[dict[str, Any] | None]) -> list[str]:
    return [row and (row["image_id"], row[PLACE]) for row in batch]


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("seen", [1, 4, 11])
def test_a_resumed_stream_goes_on_where_it_was(tmp_path: Path, workers: int, seen: int) -> None:
    def loader() -> Any:
        return stream_loader(stream(), ids_of_batches, arguments(tmp_path, workers), batch_size=4)

    whole = list(islice(loader(), 16))
    passes = {place.number for batch in whole for _, place in batch}
    assert len(passes) > 2
    resumed = loader()
    resumed.dataset.skipped_batches = seen
    last = {number % max(1, workers): whole[number][-1] for number in range(seen)}
    resumed.dataset.places = {worker: place for worker, (_, place) in last.items()}
    again = list(islice(resumed, 16))
    assert again[seen:] == whole[seen:]
    assert again[:seen] == [[None] * 4] * seen


@pytest.mark.parametrize("workers", [0, 1])
def test_reading_neither_makes_nor_follows_the_draws_of_a_model(tmp_path: Path, workers: int) -> None:
    """What the functions of a stream draw in a worker is the same whatever was drawn before, and nobody notices."""
    seeds = []
    for noise in (1, 2):
        torch.manual_seed(noise)
        before = torch.get_rng_state()
        rows = stream().map(lambda row: {**row, "seed": torch.initial_seed()})
        loader = stream_loader(rows, lambda batch: batch[0]["seed"], arguments(tmp_path, workers), batch_size=4)
        seeds.append(next(iter(loader)))
        assert torch.equal(torch.get_rng_state(), before)
    assert (seeds[0] == seeds[1]) == (workers == 1)


class Counted(IterableDataset):
    """Notes which passes are read."""

    def __init__(self) -> None:
        self.epoch = 0
        self.read: list[int] = []

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[dict[str, Any]]:
        self.read.append(self.epoch)
        yield from ({"image_id": f"{self.epoch}-{index}"} for index in range(8))


def test_passes_before_the_place_are_not_read() -> None:
    rows = EndlessRows(Counted(), batch_size=4)
    rows.skipped_batches, rows.places = 500, {0: Place(250, 4, "250-3")}
    found = next(row for row in rows if row is not None)
    assert found == {"image_id": "250-4", PLACE: (250, 5, "250-4")}
    assert rows.rows.read == [250]


@pytest.mark.parametrize("place", [Place(1, 4, "other"), Place(1, 9, "1-8"), Place(1, 8, "other")], ids=str)
def test_another_stream_than_before_is_refused(place: Place) -> None:
    rows = EndlessRows(Counted(), batch_size=4)
    rows.places = {0: place}
    with pytest.raises(ValueError, match="The stream is not as it was: row .* Give `shuffle` a seed"):
        next(iter(rows))


def test_a_pass_that_ends_at_the_place() -> None:
    rows = EndlessRows(Counted(), batch_size=4)
    rows.places = {0: Place(1, 8, "1-7")}
    assert next(iter(rows))["image_id"] == "2-0"


def test_what_cannot_be_shared_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`dataloader_num_workers` is 3, but the stream has 2 shards for each"):
        stream_loader(stream(2), list, arguments(tmp_path, 3), batch_size=4)
    with pytest.raises(ValueError, match="is a Counted, which each of 1 processes with 2 workers would read whole"):
        stream_loader(Counted(), list, arguments(tmp_path, 2), batch_size=4)
    with pytest.raises(ValueError, match="was split by node already"):
        stream_loader(split_dataset_by_node(stream(), 0, 2), list, arguments(tmp_path), batch_size=4)
    with pytest.raises(ValueError, match="`dataloader_in_order=False` with a stream"):
        stream_loader(stream(), list, arguments(tmp_path, 2, dataloader_in_order=False), batch_size=4)
    with pytest.raises(ValueError, match="Pass 0 of the stream has 8 rows .* fewer than the batch of 9"):
        list(islice(EndlessRows(Counted(), batch_size=9), 9))
    with pytest.raises(ValueError, match="would read and decode all images in the first process"):
        arguments(tmp_path, accelerator_config={"dispatch_batches": True})


def test_images_come_undecoded(corpus: Dataset) -> None:
    streamed = corpus.to_iterable_dataset()
    for dataset in (corpus, streamed):
        one, other = undecoded({"a": dataset, "b": dataset}).values()
        assert next(iter(one)).keys() == next(iter(dataset)).keys()
        assert isinstance(next(iter(other))["image"]["bytes"], bytes)
        assert isinstance(next(iter(dataset))["image"], Image.Image), "the dataset that was given is as it was"
    left = [Counted(), None, corpus.remove_columns("image")]
    assert [undecoded(dataset) for dataset in left] == left


def test_images_that_stay_decoded_are_decoded_as_before(corpus: Dataset, tmp_path: Path) -> None:
    grey = corpus.cast_column("image", ImageFeature(mode="L"))
    for dataset in (
        corpus.with_transform(lambda rows: rows),
        corpus.with_format("numpy"),
        grey,
        corpus.to_iterable_dataset().cast_column("image", ImageFeature(mode="L")),
    ):
        one, other = (np.asarray(next(iter(each))["image"]) for each in (dataset, undecoded(dataset)))
        assert one.dtype == other.dtype and np.array_equal(one, other)
    undecoded(grey).save_to_disk(tmp_path / "grey")
    assert type(load_from_disk(tmp_path / "grey").features["image"]) is ImageFeature, "files hold no name of ours"


@pytest.mark.parametrize("workers", [0, 1])
def test_passes_over_a_stream_are_epochs(
    make_trainer: MakeTrainer, corpus: Dataset, tmp_path: Path, workers: int
) -> None:
    """One file, read in its order, gives the weights that the corpus gives in its order."""
    corpus.to_parquet(tmp_path / "rows.parquet")
    files = {"data_files": str(tmp_path / "rows.parquet"), "features": corpus.features, "split": "train"}
    rows = load_dataset("parquet", streaming=True, cache_dir=str(tmp_path), **files)
    options: dict[str, Any] = {"max_steps": 4, "captions_per_image": 1, "dataloader_num_workers": workers}
    options["augmentation"] = Augmentation(size=32, scale=(0.3, 0.9))
    streamed = make_trainer(train=rows, **options)
    in_order = make_trainer(train=corpus, train_sampling_strategy="sequential", **options)
    for trainer in (streamed, in_order):
        trainer.train()
    expected = dict(in_order.model.named_parameters())
    assert [
        name for name, weight in streamed.model.named_parameters() if not torch.equal(weight, expected[name])
    ] == []


def test_a_stream_needs_a_number_of_steps(make_trainer: MakeTrainer, corpus: Dataset) -> None:
    with pytest.raises(ValueError, match="max_steps has to be specified"):
        make_trainer(train=corpus.to_iterable_dataset(), max_steps=-1)
    with pytest.raises(ValueError, match=r"`train_dataset` has no column \['captions'\]; it has \['image'"):
        make_trainer(train=corpus.to_iterable_dataset().remove_columns("captions"))


def test_evaluation_on_a_stream(make_trainer: MakeTrainer, corpus: Dataset) -> None:
    seven = corpus.select(range(7))
    expected, found = (
        make_trainer(evaluation=rows).evaluate() for rows in (seven, seven.to_iterable_dataset(num_shards=2))
    )
    names = [name for name in expected if "recall" in name]
    assert len(names) == 24
    assert {name: found[name] for name in names} == {name: expected[name] for name in names}


def test_evaluation_on_a_stream_by_several_processes_is_refused(
    make_trainer: MakeTrainer, corpus: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(HolisticCLIPTrainingArguments, "world_size", 2)
    with pytest.raises(ValueError, match="`eval_dataset` is a stream, and there are 2 processes"):
        make_trainer(evaluation=corpus.to_iterable_dataset())


def test_resuming_a_stream_changes_nothing(make_trainer: MakeTrainer, corpus: Dataset, tmp_path: Path) -> None:
    rows = corpus.to_iterable_dataset(num_shards=2).shuffle(seed=1, buffer_size=3)
    options = {"train": rows, "max_steps": 6, "save_strategy": "steps", "save_steps": 1, "captions_per_image": 1}
    whole = make_trainer(**options, gradient_accumulation_steps=2)
    whole.train()
    resumed = make_trainer({"seed": 5}, **options, gradient_accumulation_steps=2)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    expected = dict(whole.model.named_parameters())
    assert [name for name, weight in resumed.model.named_parameters() if not torch.equal(weight, expected[name])] == []
    assert json.loads((tmp_path / "checkpoint-3" / PLACE_NAME.format(0)).read_text())["places"]["0"][:2] == [2, 8]
    with pytest.raises(ValueError, match="got 1 workers .* expected 2 as now"):
        make_trainer(**options, dataloader_num_workers=2).train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    unseeded = {**options, "train": corpus.to_iterable_dataset(num_shards=2).shuffle(seed=2, buffer_size=3)}
    with pytest.raises(ValueError, match="The stream is not as it was"):
        make_trainer(**unseeded, gradient_accumulation_steps=2).train(
            resume_from_checkpoint=str(tmp_path / "checkpoint-2")
        )


def test_a_checkpoint_that_was_cut_short_is_passed_over(
    make_trainer: MakeTrainer, corpus: Dataset, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"max_steps": 4, "save_strategy": "steps", "save_steps": 1}
    make_trainer(**options).train()
    assert last_whole_checkpoint(tmp_path).name == "checkpoint-4"
    (tmp_path / "checkpoint-4" / "rng_state.pth").unlink()
    (tmp_path / "checkpoint-3" / "trainer_state.json").write_text('{"epoch": ')
    (tmp_path / "checkpoint-10").mkdir()
    assert last_whole_checkpoint(tmp_path).name == "checkpoint-2"
    resumed = make_trainer(**options)
    resumed.train(resume_from_checkpoint=True)
    assert [entry["step"] for entry in resumed.state.log_history if "loss" in entry] == [1, 2, 3, 4]
    assert last_whole_checkpoint(tmp_path).name == "checkpoint-4"
    (tmp_path / "checkpoint-10").rmdir()
    (tmp_path / "checkpoint-4").rename(tmp_path / "checkpoint-10")
    assert last_whole_checkpoint(tmp_path).name == "checkpoint-10", "by number"
    assert last_whole_checkpoint(tmp_path / "elsewhere") is None


def test_a_slot_that_a_stream_never_fills_is_named(
    make_trainer: MakeTrainer, corpus: Dataset, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "ENOUGH_IMAGES", 8)
    rows = corpus.map(lambda row: {"captions": row["captions"][:2]}).to_iterable_dataset()
    with caplog.at_level(logging.WARNING):
        make_trainer(train=rows, max_steps=1).train()
        assert "has a caption for the slots" not in caplog.text
        make_trainer(train=rows, max_steps=4).train()
    assert caplog.text.count("None of the first") == 1
    assert "None of the first 8 images of this process has a caption for the slots ['shape']" in caplog.text
