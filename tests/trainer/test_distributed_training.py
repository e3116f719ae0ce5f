"""Two processes train to the weights, the logs and the recall of one process that has the whole batch."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from datasets import Image as ImageFeature
from transformers import CLIPImageProcessor

from holistic_clip_hf import HolisticCLIPModel, HolisticCLIPProcessor
from training_ranks import run_jobs

ROWS, STEPS = 24, 3
EMPTY = range(4, 8), range(12, 16)
BROKEN = (5, 14, 23)  # with eight rows per step, four of each rank: on the second rank only, the first, the second
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "cached": {"config": {"matching": "free"}, "arguments": {"gradient_cache_size": 2}},
    "routed": {"config": {"fusion": "routed", "fused_weight": 1.0}, "arguments": {"gradient_cache_size": 2}},
    # The stand-in of a broken image is another on two ranks than on one, so nothing may see it.
    "broken": {"corpus": "broken", "arguments": {"gradient_cache_size": 2}},
    # The second rank draws blank captions only in the first step, and broken images only in the second.
    "empty": {"corpus": "empty"},
    "sigmoid": {"config": {"objective": "sigmoid"}},
    "one_branch": {
        "config": {"vision_config": {"num_branches": 1}, "perspectives": ["all"], "fusion": "routed"},
        "arguments": {"slots": ["short", "colour", "shape"]},
    },
}


def ragged_corpus(corpus: Dataset) -> Dataset:
    """24 rows; captions are missing here and there, and all those of the second rank's first piece of two."""
    lost = {0: {1}, 4: {0, 1, 2}, 5: {0, 1, 2}, 10: {2}, 13: {0}, 20: {0, 1}}

    def drop(row: dict[str, Any], index: int) -> dict[str, Any]:
        captions = [one for place, one in enumerate(row["captions"]) if place not in lost.get(index, set())]
        return {"image_id": f"{index}", "captions": captions}

    return corpus.select([index % len(corpus) for index in range(ROWS)]).map(drop, with_indices=True)


def broken_corpus(corpus: Dataset) -> Dataset:
    def truncate(row: dict[str, Any], index: int) -> dict[str, Any]:
        image = row["image"]
        return {"image": {"path": None, "bytes": image["bytes"][:80] if index in BROKEN else image["bytes"]}}

    undecoded = ragged_corpus(corpus).cast_column("image", ImageFeature(decode=False))
    return undecoded.map(truncate, with_indices=True).cast_column("image", ImageFeature())


def empty_corpus(corpus: Dataset) -> Dataset:
    def spoil(row: dict[str, Any], index: int) -> dict[str, Any]:
        captions = [{**each, "text": "&nbsp;"} if index in EMPTY[0] else each for each in row["captions"]]
        return {
            "captions": captions,
            "image": {"path": None, "bytes": b"" if index in EMPTY[1] else row["image"]["bytes"]},
        }

    undecoded = ragged_corpus(corpus).cast_column("image", ImageFeature(decode=False))
    return undecoded.map(spoil, with_indices=True).cast_column("image", ImageFeature())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("training")


@pytest.fixture(scope="module")
def results(
    folder: Path, make_model: Callable[..., HolisticCLIPModel], session_tokenizer: Any, corpus: Dataset
) -> dict[str, list[dict[str, Any]]]:
    size = {"height": 32, "width": 32}
    processor = HolisticCLIPProcessor(CLIPImageProcessor(size=size, crop_size=size), session_tokenizer)
    processor.save_pretrained(folder / "processor")
    model = make_model(perspectives=["short", "colour", "shape"], diversity_threshold=0.0)
    model.save_pretrained(folder / "model")
    ragged_corpus(corpus).save_to_disk(folder / "corpus")
    broken_corpus(corpus).save_to_disk(folder / "broken")
    empty_corpus(corpus).save_to_disk(folder / "empty")
    common = {"max_steps": STEPS, "optim": "sgd", "learning_rate": 0.1, "weight_decay": 0.0}
    common["train_sampling_strategy"] = "sequential"
    jobs = {}
    for name, case in CASES.items():
        for ranks in (1, 2):
            arguments = {**common, **case.get("arguments", {}), "per_device_train_batch_size": 8 // ranks}
            arguments["per_device_eval_batch_size"] = 4 // ranks
            if ranks == 1:
                arguments["gradient_cache_size"] = None
            job = {**case, "ranks": ranks, "arguments": arguments, "evaluate": True}
            jobs[f"{name}_{ranks}"] = job
    return run_jobs(folder, jobs)


def numbers(logs: list[dict[str, Any]]) -> list[dict[str, float]]:
    return [entry for entry in logs if "loss" in entry]


@pytest.mark.parametrize("case", CASES)
def test_weights_are_those_of_one_process(results: dict[str, list[dict[str, Any]]], folder: Path, case: str) -> None:
    start = HolisticCLIPModel.from_pretrained(folder / "model").state_dict()
    (one,), two = results[f"{case}_1"], results[f"{case}_2"]
    assert len(two) == 2
    # A router is new, and begins with zeros.
    moved = {name: (weight - start.get(name, 0.0)).abs().max() for name, weight in one["weights"].items()}
    assert moved["visual_projection.weight"] > 1e-3 and moved["text_projection.weight"] > 1e-3
    assert ("branch_fusion.router.weight" in moved) == (case in ("routed", "one_branch"))
    if case in ("routed", "one_branch"):  # a router of one branch has nothing to learn
        assert (moved["branch_fusion.router.weight"] > 1e-3) == (case == "routed")
    assert (moved.get("logit_bias", torch.zeros(())) - -10.0).abs() > 1e-3
    for rank in two:
        torch.testing.assert_close(rank["weights"], one["weights"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_ranks_log_what_one_process_would(results: dict[str, list[dict[str, Any]]], case: str) -> None:
    """The loss is logged with four digits after the point, hence the tolerance."""
    (one,), (first, second) = results[f"{case}_1"], results[f"{case}_2"]
    expected, found, same = (numbers(run["logs"]) for run in (one, first, second))
    assert len(expected) == STEPS
    assert ("share_of_short" in expected[0]) == (case == "cached")
    # Of the captions of rows 4 to 7, six are missing.
    left_out = {"broken": [1, 2, 3], "empty": [6, 10, 10]}.get(case, [0, 0, 0])
    assert [entry["left_out"] for entry in found] == left_out
    assert same == found
    for entry, other in zip(found, expected, strict=True):
        assert entry == pytest.approx(other, abs=2e-4)


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_exchanged_once_per_step(results: dict[str, list[dict[str, Any]]], case: str) -> None:
    assert [rank["syncs"] for rank in results[f"{case}_2"]] == [[1] * STEPS] * 2


def test_recall_is_that_of_one_process(results: dict[str, list[dict[str, Any]]]) -> None:
    """Of nine rows, which two ranks cannot share equally."""
    (one,), two = results["plain_1"], results["plain_2"]
    names = [name for name in one["metrics"] if "recall" in name]
    assert len(names) == 24 and 0 < one["metrics"]["eval_text_to_image_recall@1"] < 1
    for rank in two:
        assert {name: rank["metrics"][name] for name in names} == {name: one["metrics"][name] for name in names}


@pytest.mark.parametrize("case", CASES)
def test_held_out_loss_is_that_of_one_process(results: dict[str, list[dict[str, Any]]], case: str) -> None:
    """The last batch of four holds one row; three that two ranks fill it up with are seen for the second time."""
    (one,), two = results[f"{case}_1"], results[f"{case}_2"]
    assert one["metrics"]["eval_loss"] > 0.1
    for rank in two:
        assert rank["metrics"]["eval_loss"] == pytest.approx(one["metrics"]["eval_loss"], rel=1e-5)


def test_unreadable_images_of_all_ranks_are_listed(results: dict[str, list[dict[str, Any]]], folder: Path) -> None:
    listed = json.loads((folder / "broken_2" / "left_out.json").read_text())
    assert listed.keys() == {str(index) for index in BROKEN}
    assert not (folder / "plain_2" / "left_out.json").exists()


def test_a_checkpoint_that_lacks_a_file_of_one_rank_is_not_whole(
    results: dict[str, list[dict[str, Any]]], folder: Path
) -> None:
    """The run goes on from the checkpoint before it, on both ranks, and ends as if it never was."""
    arguments = {"max_steps": STEPS, "per_device_train_batch_size": 4, "optim": "sgd", "learning_rate": 0.1}
    arguments |= {"save_strategy": "steps", "save_steps": 1, "weight_decay": 0.0}
    arguments |= {"train_sampling_strategy": "sequential"}
    job = {"ranks": 2, "arguments": arguments, "output": "saved"}
    whole = run_jobs(folder, {"saved": job})["saved"]
    (folder / "saved" / f"checkpoint-{STEPS}" / "rng_state_1.pth").unlink()
    resumed = run_jobs(folder, {"resumed": {**job, "resume": True}})["resumed"]
    assert [len(rank["images"]) for rank in whole + resumed] == [STEPS, STEPS, 1, 1]
    for before, after in zip(whole, resumed, strict=True):
        torch.testing.assert_close(after["weights"], before["weights"], rtol=0, atol=0)
    assert results["plain_2"]


ROW_COUNTS = (5, 7, 9, 17)
MEASURED = {name: CASES[name] for name in ("plain", "routed", "broken", "sigmoid", "one_branch")}


@pytest.mark.slow
@pytest.mark.parametrize("case", MEASURED)
def test_any_number_of_rows_is_measured_alike_by_any_number_of_ranks(
    results: dict[str, list[dict[str, Any]]], folder: Path, case: str
) -> None:
    """Loss and recall; a batch of twelve rows is shared by all ranks."""
    assert results
    about = MEASURED[case]
    jobs: dict[str, dict[str, Any]] = {}
    for ranks in (1, 2, 3, 4):
        arguments = {"max_steps": 1, "per_device_train_batch_size": 4, "per_device_eval_batch_size": 12 // ranks}
        arguments |= {name: value for name, value in about.get("arguments", {}).items() if name == "slots"}
        jobs[f"rows_{case}_{ranks}"] = {**about, "ranks": ranks, "arguments": arguments, "eval_rows": ROW_COUNTS}
    (one,), *others = run_jobs(folder, jobs).values()
    assert {rank for rank, metrics in enumerate(others) if len(metrics) != rank + 2} == set()
    for rows in ROW_COUNTS:
        names = [name for name in one[rows] if name == "eval_loss" or "_recall@" in name]
        assert len(names) == 25 and 0 < one[rows]["eval_text_to_image_recall@1"] < 1 and one[rows]["eval_loss"] > 0.1
        for metrics in others:
            for rank in metrics:
                found = {name: rank[rows][name] for name in names}
                assert found == pytest.approx({name: one[rows][name] for name in names}, rel=2e-5)


def test_a_loss_that_is_no_number_stops_all_ranks(results: dict[str, list[dict[str, Any]]]) -> None:
    for rank in results["plain_2"]:
        assert "on the images c, d." in rank["error"]
