"""A corpus built from sources, to a Hub on loopback: unmodified `datasets` finds its splits, whole and as streams."""

import json
from pathlib import Path

import pytest
from PIL import Image

from holistic_clip_hf.corpus.build import load_corpus, read_manifest
from holistic_clip_hf.corpus.card import CorpusFacts
from holistic_clip_hf.corpus.from_sources import build_from_sources
from holistic_clip_hf.corpus.plan import BuildSettings
from holistic_clip_hf.images.folders import ImageFolder
from holistic_clip_hf.publishing.hub import publish_corpus, pull_corpus
from holistic_clip_hf.publishing.push import Destination
from hub_answers import TOKEN
from hub_server import LoopbackHub, connect, run_client

READ = """
import json
from datasets import load_dataset
whole = load_dataset("ada/squares")
streams = load_dataset("ada/squares", streaming=True)
first = next(iter(streams["test"]))
print(json.dumps({
    "whole": {split: rows["image_id"] for split, rows in whole.items()},
    "streamed": {split: [row["image_id"] for row in rows] for split, rows in streams.items()},
    "first": [first["image_id"], first["image"].size, first["captions"], first["split"]],
}, default=list))
"""


@pytest.mark.slow
def test_splits_come_back_to_everybody(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    connect(hub, monkeypatch, tmp_path)
    images, built = tmp_path / "images", tmp_path / "built"
    images.mkdir()
    for number in range(30):
        Image.new("RGB", (10, 9), (number, 0, 0)).save(images / f"{number:02}.png")
        (images / f"{number:02}.txt").write_text(f"square {number}")
    (images / "torn.png").write_bytes(b"torn")
    (images / "torn.txt").write_text("torn")
    settings = BuildSettings(validation=0.2, test=0.3, rows_per_shard=4)
    build_from_sources(
        built, [ImageFolder(images, name="mine")], settings, facts=CorpusFacts("Squares", license="mit")
    )
    published = publish_corpus(built, Destination("ada/squares", kind="dataset", token=TOKEN))
    assert {"README.md", "corpus.json", "diversity.png", "diversity.json"} < set(published.files)
    found = json.loads(run_client(hub, READ, home=tmp_path / "home").splitlines()[-1])
    corpus = load_corpus(built)
    expected: dict[str, list[str]] = {}
    for image_id, split in zip(corpus["image_id"], corpus["split"], strict=True):
        expected.setdefault(split, []).append(image_id)
    assert len(expected) == 3 and found["whole"] == found["streamed"] == expected
    name = expected["test"][0]
    text = {"perspective": "short", "text": f"square {int(name[:2])}", "source": "mine"}
    assert found["first"] == [name, [10, 9], [text], "test"]
    pulled = pull_corpus("ada/squares", tmp_path / "pulled", token=TOKEN)
    assert pulled.to_dict() == corpus.to_dict() and read_manifest(tmp_path / "pulled") == read_manifest(built)
