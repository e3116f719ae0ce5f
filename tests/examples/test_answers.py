"""Answers of a tiny recipe: what is done is not done again, and the table has the seeds side by side."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from datasets import Value
from PIL import Image

from holistic_clip_hf.corpus.build import build_corpus, corpus_features
from holistic_clip_hf.evaluation.records import load_records
from training import answers

ROOT = Path(__file__).parents[2]
SPLITS = {"train": 8, "validation": 40, "test": 41}


def rows() -> Iterator[dict[str, object]]:
    """Images of a colour each, told by their number."""
    for split, count in SPLITS.items():
        for number in range(count):
            captions = [{"perspective": "short", "text": f"{split} {number}", "source": "drawn"}]
            image = Image.new("RGB", (16, 16), (6 * number, 0, 90))
            yield {"image_id": f"{split}/{number}", "image": image, "captions": captions, "artist_split": split}


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    corpus = tmp_path / "numbers"
    build_corpus(corpus, {"all": rows}, corpus_features(artist_split=Value("string")), fingerprint="1")
    content = yaml.safe_load((ROOT / "training/studies/emoji_recipe.yaml").read_text())
    content |= {"corpus": str(corpus), "image_size": 16, "tokenizer": {"vocab_size": 520, "max_length": 16}}
    for tower in ("text_config", "vision_config"):
        content["model"][tower] |= {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    content["training"] |= {"max_steps": 1, "warmup_steps": 0, "per_device_train_batch_size": 8, "eval_strategy": "no"}
    content["training"]["dataloader_num_workers"] = 0
    content["runs"] = {"clip": {"perspectives": ["short"], "slots": ["short"]}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content))
    return tmp_path / "recipe.yaml"


def test_each_seed_is_trained_calibrated_and_asked_once(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = ["--output-dir", str(tmp_path / "runs"), "--records", str(tmp_path)]

    def run(*arguments: str) -> str:
        monkeypatch.setattr("sys.argv", ["answers", "--recipe", str(recipe), *folders, *arguments])
        answers.main()
        return capsys.readouterr().out

    run("--seeds", "0", "1")
    records = [each for name in ("results", "results_seed_1") for each in load_records(tmp_path / f"{name}.json")]
    assert {(record.model, record.dataset, record.split, record.seed) for record in records} == {
        ("clip", "numbers", "test", 0),
        ("clip", "numbers", "test", 1),
    }
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    table = run("--seeds", "0", "1")
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == before
    told = [f"{100 * record.value:.1f}" for record in records if record.metric == "told_nothing"]
    assert "== clip" not in table and "| clip | fused | " in table and f" | {told[0]}, {told[1]} | " in table
    run("--seeds", "0", "--gallery-size", "20")
    others = [record for record in load_records(tmp_path / "results.json") if "gallery_size" in record.details]
    assert others and {record.counts["n_candidates"] for record in others} == {20}


def test_the_table_has_the_numbers_of_each_seed_in_its_order(recipe: Path, tmp_path: Path) -> None:
    (record,) = [
        each
        for each in load_records(ROOT / answers.RECORDS / "results.json")
        if each.model == "holistic" and each.seed == 0 and each.label == "told_nothing"
        if each.details == {"branch": "short"}
    ]
    shown = [
        replace(record, seed=seed, value=value, metric=metric, details={"branch": branch})
        for seed, branch, metric, value in (
            (1, "short", "told_nothing", 0.5),
            (0, "short", "told_nothing", 0.25),
            (0, "fused", "answers_lost", 0.125),
        )
    ]
    assert answers.answers_table(shown, ["short"]).splitlines()[2:] == [
        "| holistic | fused |  |  | 12.5 |",
        "| holistic | short |  | 25.0, 50.0 |  |",
    ]
