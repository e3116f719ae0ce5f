"""A run that was killed and goes on ends with the same weights, bit for bit, as one that was never killed.

The processes are real and are killed with SIGKILL in the middle of an epoch. All that is random is on: the order of
rows, augmentation, which captions and which of their sentences are read, and dropout.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from holistic_clip_hf import HolisticCLIPModel, HolisticCLIPProcessor
from holistic_clip_hf.trainer.resuming import find_lack
from training_ranks import run_jobs

STEPS, SAVED, STALLED = 8, 4, 5
ROWS, BATCH = 24, 4
QUICK = [("map", 2, 1), ("stream", 2, 2)]
ALL = [(kind, ranks, workers) for kind in ("map", "stream") for ranks in (1, 2) for workers in (0, 1, 2)]


def long_corpus(corpus: Dataset) -> Dataset:
    """24 rows, whose captions have three sentences."""

    def lengthen(row: dict[str, Any], index: int) -> dict[str, Any]:
        captions = [{**one, "text": f"{one['text']}. It is flat. Drawn on white."} for one in row["captions"]]
        return {"image_id": f"{index}", "captions": captions}

    return corpus.select([index % len(corpus) for index in range(ROWS)]).map(lengthen, with_indices=True)


def jobs_of(kind: str, ranks: int, workers: int) -> dict[str, dict[str, Any]]:
    name = f"{kind}_{ranks}_{workers}"
    arguments = {
        "max_steps": STEPS,
        "per_device_train_batch_size": BATCH,
        "learning_rate": 1e-2,
        "captions_per_image": 2,
        "sentences_per_caption": 2,
        "dataloader_num_workers": workers,
    }
    job = {"ranks": ranks, "augmented": True, "arguments": arguments, "shards": 4 if kind == "stream" else None}
    saving = {"output": f"{name}_states", "arguments": {**arguments, "save_strategy": "steps", "save_steps": SAVED}}
    whole, killed, resumed = (f"{name}_{what}" for what in ("whole", "killed", "resumed"))
    return {whole: job, killed: {**job, **saving, "stall": STALLED}, resumed: {**job, **saving, "resume": True}}


def check(folder: Path, cases: list[tuple[str, int, int]]) -> None:
    results = run_jobs(folder, {name: job for case in cases for name, job in jobs_of(*case).items()})
    for kind, ranks, workers in cases:
        name = f"{kind}_{ranks}_{workers}"
        whole, killed, resumed = (results[f"{name}_{what}"] for what in ("whole", "killed", "resumed"))
        assert killed == [], "it was killed before its end"
        assert len(whole) == len(resumed) == ranks
        assert len(resumed[0]["syncs"]) == STEPS - SAVED, "it went on from the checkpoint"
        for rank in range(ranks):
            expected, found = whole[rank]["weights"], resumed[rank]["weights"]
            moved = [key for key in expected if not torch.equal(found[key], expected[key])]
            assert moved == [], (name, rank)
        logged = [entry["loss"] for entry in resumed[0]["logs"] if "loss" in entry]
        assert logged == [entry["loss"] for entry in whole[0]["logs"] if "loss" in entry], name
        assert len(set(logged)) == STEPS
        if (kind, ranks, workers) == ("stream", 2, 2):
            # In the first pass, each of two workers of a rank has a quarter of the rows: its first batch and a half.
            seen = [row for rank in whole for row in (*rank["images"][0], *rank["images"][1])]
            seen += [row for rank in whole for batch in rank["images"][2:4] for row in batch[:2]]
            assert sorted(seen, key=int) == [str(index) for index in range(ROWS)]


@pytest.fixture
def folder(
    make_model: Callable[..., HolisticCLIPModel], processor: HolisticCLIPProcessor, corpus: Dataset, tmp_path: Path
) -> Path:
    tower = {"attention_dropout": 0.2}
    model = make_model(vision={**tower, "patch_dropout": 0.3}, text=tower, perspectives=["short", "colour", "shape"])
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "processor")
    long_corpus(corpus).save_to_disk(tmp_path / "corpus")
    return tmp_path


def test_a_killed_run_goes_on_as_if_it_never_was(folder: Path) -> None:
    check(folder, QUICK)


def test_a_signal_to_one_rank_stops_all_after_the_same_step(folder: Path) -> None:
    jobs = jobs_of("stream", 2, 1)
    whole, killed, resumed = jobs
    del jobs[killed]["stall"]
    jobs[killed] |= {"signal": [1, 5]}
    results = run_jobs(folder, jobs)
    place = folder / "stream_2_1_states" / "checkpoint-6"
    said = f"Stopped after step 6 of {STEPS}, which is saved as {place}. Give the same command"
    assert [each["stopped"].startswith(said) for each in results[killed]] == [True, True]
    assert find_lack(place) == "rng_state.pth is missing, since 2 process(es) saved it"
    for before, after in zip(results[whole], results[resumed], strict=True):
        assert all(torch.equal(after["weights"][key], weight) for key, weight in before["weights"].items())
        assert len(after["syncs"]) == STEPS - 6


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["map", "stream"])
def test_a_killed_run_goes_on_with_any_number_of_processes_and_workers(folder: Path, kind: str) -> None:
    check(folder, [case for case in ALL if case[0] == kind])
