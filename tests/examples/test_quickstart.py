"""The quickstart from a corpus to a card, on drawn squares: what it leaves, and what it does not repeat."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from datasets import Value
from PIL import Image

from holistic_clip_hf.corpus.build import build_corpus, corpus_features, open_split
from holistic_clip_hf.evaluation.records import load_records
from holistic_clip_hf.trainer.recipes import Recipe, is_finished, load_recipe
from training import quickstart

ROOT = Path(__file__).parents[2]
COLOURS = {"red": (220, 30, 30), "green": (30, 160, 60), "blue": (40, 60, 220), "yellow": (230, 210, 40)}


def rows() -> Iterator[dict[str, object]]:
    """Four colours by three painters, one painter for each split."""
    for painter, split in enumerate(("train", "validation", "test")):
        for colour, rgb in COLOURS.items():
            captions = [{"perspective": "short", "text": f"{colour} thing", "source": "drawn"}]
            captions.append({"perspective": "palette", "text": f"all {colour}", "source": "drawn"})
            image = Image.new("RGB", (20 + painter, 20), rgb)
            row = {"image_id": f"{painter}/{colour}", "image": image, "captions": captions}
            yield {**row, "artist_split": split}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("corpus")
    features = corpus_features(artist_split=Value("string"))
    build_corpus(directory, {"all": rows}, features, fingerprint="1", counted=("artist_split",))
    return directory


@pytest.fixture(scope="module")
def recipe_path(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped recipe, made tiny."""
    recipe = yaml.safe_load((ROOT / "training/recipes/emoji.yaml").read_text())
    recipe["corpus"], recipe["image_size"] = str(corpus), 16
    recipe["tokenizer"] = {"vocab_size": 520, "max_length": 16}
    recipe["model"]["text_config"] |= {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    recipe["model"]["vision_config"]["backbone_config"] |= {"hidden_sizes": [32, 32], "depths": [1, 1]}
    recipe["training"] |= {"max_steps": 2, "per_device_train_batch_size": 4, "eval_steps": 1, "logging_steps": 1}
    slots = ["short", "palette"]
    recipe["runs"] = {
        "one_to_many": {"perspectives": ["all"], "slots": slots},
        "holistic": {"perspectives": slots, "slots": slots},
    }
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def run_quickstart(recipe: Path, output_dir: Path) -> str:
    command = [sys.executable, "-m", "training.quickstart", "--recipe", str(recipe), "--output-dir", str(output_dir)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(output_dir / "cache")}
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_from_corpus_to_card_and_again(recipe_path: Path, tmp_path: Path) -> None:
    shown = run_quickstart(recipe_path, tmp_path)
    checkpoint = tmp_path / "tiny" / "holistic"
    loading = f'from_pretrained("{checkpoint}")'
    for expected in ("one_to_many", "holistic, own branch", "(chance)", "all at once", loading):
        assert expected in shown
    assert Image.open(checkpoint / "results.png").size[0] > 300
    records = load_records(checkpoint / "results.json")
    assert {record.details["branch"] for record in records} == {"fused", "short", "palette", "by name"}
    assert {record.split for record in records} == {"test"}
    card = (checkpoint / "README.md").read_text()
    assert "results.png" in card and "one_to_many" in card
    written = {file: file.stat().st_mtime_ns for file in checkpoint.parent.glob("*/model.safetensors")}
    assert len(written) == 2
    again = run_quickstart(recipe_path, tmp_path)
    assert {file: file.stat().st_mtime_ns for file in written} == written
    assert again.split("== results")[1].splitlines()[:5] == shown.split("== results")[1].splitlines()[:5]


def changed(recipe: Recipe, **training: object) -> Recipe:
    recipe.training.update(training)
    return recipe


def test_a_run_is_found_again_only_if_nothing_changed(recipe_path: Path, tmp_path: Path) -> None:
    def fingerprint(recipe: Recipe, run: str = "holistic", corpus: str = "1") -> str:
        return recipe.fingerprint(run, corpus)

    first = fingerprint(load_recipe(recipe_path))
    assert first == fingerprint(load_recipe(shutil.copy(recipe_path, tmp_path / "other_name.yaml")))
    others = {
        fingerprint(load_recipe(recipe_path), run="one_to_many"),
        fingerprint(load_recipe(recipe_path), corpus="2"),
        fingerprint(changed(load_recipe(recipe_path), seed=1)),
    }
    assert len(others) == 3 and first not in others
    assert not is_finished(tmp_path, first)
    (tmp_path / "finished.json").write_text(f'{{"fingerprint": "{first}"}}')
    assert not is_finished(tmp_path, first), "a marker without weights"
    (tmp_path / "model.safetensors").touch()
    assert is_finished(tmp_path, first) and not is_finished(tmp_path, "other")


def test_bad_input_says_what_is_valid(recipe_path: Path, corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`recipe` is .*missing.yaml, which is not a file"):
        load_recipe(tmp_path / "missing.yaml")
    (tmp_path / "bad.yaml").write_text(recipe_path.read_text() + "\nlearning_rate: 3\n")
    with pytest.raises(ValueError, match="`learning_rate` does not belong here; expected it under `training`"):
        load_recipe(tmp_path / "bad.yaml")
    with pytest.raises(ValueError, match="is 'painter', which it does not have; expected one of image_id"):
        open_split(corpus, "test", split_column="painter")
    with pytest.raises(ValueError, match="expected test, train, validation"):
        open_split(corpus, "holdout", split_column="artist_split")


@pytest.mark.parametrize("name", ["README.md", "config.json", "results.png", "photos/cat.jpg"])
def test_a_card_is_not_put_among_files_of_others(
    recipe_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    theirs = tmp_path / "card" / name
    theirs.parent.mkdir(parents=True)
    theirs.write_text("mine")
    options = [
        "--recipe",
        str(recipe_path),
        "--output-dir",
        str(tmp_path / "runs"),
        "--card-dir",
        str(tmp_path / "card"),
    ]
    monkeypatch.setattr(sys, "argv", ["quickstart", *options])
    with pytest.raises(ValueError, match=f"`output` is .*card, which holds {name}; expected .*or a model card made"):
        quickstart.main()
    assert theirs.read_text() == "mine" and not (tmp_path / "runs").exists()
