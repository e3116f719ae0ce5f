"""Results in the Hub's own format, read again by the Hub's client, and what is refused."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from huggingface_hub import EvalResultEntry, parse_eval_result_entries
from test_model_card import CONFIG, FACTS, records

from holistic_clip_hf import HolisticCLIPModel, HolisticCLIPProcessor
from holistic_clip_hf.evaluation.records import save_records
from holistic_clip_hf.publishing.checkpoint import stage
from holistic_clip_hf.publishing.inventory import require_safe_folder
from holistic_clip_hf.publishing.model_card import CardFacts, ListedResult, load_facts, save_facts, write_model_card

DETAILS = {"perspective": "object", "direction": "text_to_image", "branch": "fused"}
RECALL = ListedResult("someone/drawings", "text-to-image", "drawings", "recall@1", details=DETAILS)
RANK = replace(RECALL, task_id="rank", metric="median_rank", split="test", revision="0" * 40)
ACCURACY = ListedResult("Some.Body/zero.shot", "default", "drawings", "accuracy", in_percent=True)
LISTED = replace(FACTS, listed_results=(RECALL, RANK, ACCURACY))
SOURCE = {
    "date": "2026-01-02T03:04:05+00:00",
    "source_url": "https://huggingface.co/someone/holistic-emoji/blob/main/results.json",
    "source_name": "Records of the evaluation",
}
# Read off the records: `value` 0.1 + 0.0173 for each before, 3.5, and half of one.
NOTES = "test: fused, text to image, object, per perspective"
EXPECTED = {
    "someone-drawings.yaml": [
        EvalResultEntry("someone/drawings", "text-to-image", 0.4287, notes=f"{NOTES}, recall@1", **SOURCE),
        EvalResultEntry(
            "someone/drawings", "rank", 3.5, dataset_revision="0" * 40, notes=f"{NOTES}, median_rank", **SOURCE
        ),
    ],
    "Some-Body-zero-shot.yaml": [
        EvalResultEntry("Some.Body/zero.shot", "default", 50.0, notes="test: accuracy", **SOURCE)
    ],
}


def written(folder: Path) -> dict[str, list[EvalResultEntry]]:
    """The files, as the Hub's client reads them."""
    files = sorted((folder / ".eval_results").glob("*"))
    return {path.name: parse_eval_result_entries(yaml.safe_load(path.read_text())) for path in files}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "card"
    CONFIG.save_pretrained(place)
    save_facts(place / "card_facts.json", LISTED)
    save_records(place / "results.json", records())
    return place


def test_a_card_lists_its_records_for_the_hub(folder: Path) -> None:
    write_model_card(folder)
    assert written(folder) == EXPECTED
    write_model_card(folder)
    assert written(folder) == EXPECTED


def test_what_is_published_lists_them_too(
    make_model: Callable[..., HolisticCLIPModel], processor: HolisticCLIPProcessor, tmp_path: Path
) -> None:
    for part in (make_model(), processor):
        part.save_pretrained(tmp_path / "checkpoint")
    save_records(tmp_path / "checkpoint" / "results.json", records())
    facts = replace(LISTED, pictures={})
    files = stage(tmp_path / "checkpoint", tmp_path / "staged", facts)
    assert {".eval_results/someone-drawings.yaml", ".eval_results/Some-Body-zero-shot.yaml"} < files.keys()
    assert written(tmp_path / "staged") == EXPECTED
    assert set(files) == set(require_safe_folder(tmp_path / "staged"))


def test_without_listed_results_there_is_no_folder(folder: Path) -> None:
    save_facts(folder / "card_facts.json", FACTS)
    write_model_card(folder)
    assert not (folder / ".eval_results").exists()


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        ([RECALL, RANK, RECALL], "the task 'text-to-image' of someone/drawings twice; expected once"),
        ([replace(RECALL, details={})], r"which 12 records are of \(test, .* \.\.\.\); expected one. Name `split`"),
        ([replace(RECALL, metric="recall@3")], "which 0 records are of; expected one"),
        ([replace(RECALL, split="train")], "which 0 records are of"),
        ([replace(RECALL, dataset="photos")], "recall@1 on photos for someone/drawings"),
    ],
)
def test_what_is_not_one_record_is_refused_before_anything_is_written(
    folder: Path, listed: list[ListedResult], message: str
) -> None:
    save_facts(folder / "card_facts.json", replace(LISTED, listed_results=tuple(listed)))
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ValueError, match=message):
        write_model_card(folder)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_facts_name_them_in_json(folder: Path) -> None:
    assert load_facts(folder / "card_facts.json").listed_results == (RECALL, RANK, ACCURACY)
    told = {"hub_id": "a/b", "task_id": "c", "dataset": "d", "metric": "recall@1"}
    for change, message in (
        ({"metric": 1}, "listed_results: `metric` is 1; expected a text"),
        ({"detail": {}}, "listed_results: unknown keys detail"),
        ({"hub_id": None}, "listed_results: `hub_id` is None"),
    ):
        facts = {"repo_id": "a/b", "model_name": "b", "listed_results": [{**told, **change}]}
        (folder / "card_facts.json").write_text(json.dumps(facts))
        with pytest.raises(ValueError, match=re.escape(message)):
            load_facts(folder / "card_facts.json")
    (folder / "card_facts.json").write_text(
        json.dumps({"repo_id": "a/b", "model_name": "b", "listed_results": [told]})
    )
    assert load_facts(folder / "card_facts.json") == CardFacts(
        "a/b", "b", training_data=(), listed_results=(ListedResult("a/b", "c", "d", "recall@1"),)
    )
