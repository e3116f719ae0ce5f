"""The road of docs/photos.md on real photographs: the Tux Paint stamps, from the quickstart's holistic model.

Fetches a Debian package and the packages of emoji unless they are cached, so it is skipped without a network.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from holistic_clip_hf.corpus.build import cache_root
from holistic_clip_hf.evaluation.branch_report import GAIN_BY_NAME
from holistic_clip_hf.evaluation.gain import TASK
from holistic_clip_hf.evaluation.ranking import DIRECTIONS
from holistic_clip_hf.evaluation.records import Record, load_records
from training.debian.corpora import open_debian
from training.debian.photos import write_photos
from training.emoji.build import build_emoji_corpus

ROOT = Path(__file__).parents[2]
NUM_PHOTOS = 326


def run(folder: Path, *words: str) -> str:
    """Run the command as a user would, in a folder."""
    done = subprocess.run(
        [sys.executable, "-m", "holistic_clip_hf", *words], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def road(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the photographs and the quickstart's holistic model, which knows drawings of emoji alone."""
    folder = tmp_path_factory.mktemp("road")
    try:
        stamps, _ = open_debian("tuxpaint", cache_root())
        corpus = build_emoji_corpus()
    except (OSError, ValueError) as error:
        pytest.skip(f"the pictures cannot be fetched: {error}")
    assert write_photos(stamps, folder / "photos") == NUM_PHOTOS
    recipe = ["--recipe", str(ROOT / "training/recipes/emoji.yaml"), "--corpus", str(corpus)]
    run(folder, "train", *recipe, "--run", "holistic")
    return folder


def of_direction(records: list[Record], metric: str, direction: str) -> Record:
    (found,) = (each for each in records if each.metric == metric and each.details["direction"] == direction)
    return found


@pytest.mark.slow
def test_by_default_settings_branches_part(road: Path) -> None:
    captions = ["--captions", "photos/captions.csv", "--caption", "title=short", "--caption", "kind=category"]
    said = run(road, "finetune", "photos", *captions, "--base", "runs/emoji/holistic", "--output", "mine")
    assert "The branches are alike" not in said
    records = load_records(road / "mine/model/results.json")
    tuned = [record for record in records if record.task == TASK]
    # Which way recall goes depends on the base's seed and on the photos (training/LOG.md). That it fell is not noise.
    for direction in DIRECTIONS:
        gain = of_direction(tuned, "recall_gain", direction)
        assert gain.confidence_interval is not None and gain.confidence_interval[1] > 0
    (similarity,) = (record.value for record in records if record.metric == "similarity")
    assert similarity <= 0.9, "branches have parted"
    by_name = {record.details["branch"]: record for record in records if record.metric == GAIN_BY_NAME}
    assert set(by_name) == {"short", "category"}
    for record in by_name.values():
        assert record.confidence_interval is not None and record.confidence_interval[1] > 0, (
            "no branch is the worse one"
        )
    assert (road / "mine/model/training.png").is_file()
    run(road, "search", "index", "photos", "--model", "mine/model", "--index", "photos.index")
    assert len(run(road, "search", "find", "short: a tomato", "--index", "photos.index").splitlines()) >= 5
    assert "mine" in run(road, "publish", "mine/model", "me/mine", "--dry-run")
