"""The card of a corpus: what the Hub reads in it, and that its numbers are those of the corpus."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import DatasetCard
from PIL import Image

from holistic_clip_hf.corpus.build import read_manifest
from holistic_clip_hf.corpus.card import CorpusFacts, render_card
from holistic_clip_hf.corpus.from_sources import build_from_sources
from holistic_clip_hf.corpus.plan import BuildSettings
from holistic_clip_hf.images.folders import ListedImages

FACTS = CorpusFacts("Blocks", "Drawn here.", "cc0-1.0", ("en",), "python -m training.build_corpus --folder blocks")
TEXTS = [("a red | block", "A block of red."), ("a red | block", "Nothing but red."), ("green", "")]


@pytest.fixture
def source(tmp_path: Path) -> ListedImages:
    lines = []
    for number, (short, detail) in enumerate(TEXTS):
        Image.new("RGB", (9, 9)).save(tmp_path / f"{number}.png")
        lines.append({"file_name": f"{number}.png", "short": short, "detail": detail})
    (tmp_path / "blocks.jsonl").write_text("\n".join(map(json.dumps, [*lines, {"file_name": "no.png", "short": "x"}])))
    return ListedImages(tmp_path / "blocks.jsonl", {"short": "short", "detail": "detail"}, name="blocks")


def test_the_card_has_the_diversity_report(tmp_path: Path, source: ListedImages) -> None:
    settings = BuildSettings(validation=0, test=0)
    build_from_sources(tmp_path / "corpus", [source], settings, facts=FACTS)
    card = DatasetCard.load(tmp_path / "corpus/README.md")
    assert (card.data.license, card.data.language, card.data.pretty_name) == ("cc0-1.0", ["en"], "Blocks")
    assert card.data.configs == [
        {"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*"}]}
    ]
    text = card.text
    for line in (
        "3 images with 5 captions from 2 perspectives.",
        "| short | 3 | a red \\| block |",
        "3 train.",
        "| no such file | 1 |",
        "![Lengths, distinct words, and similarity between perspectives](diversity.png)",
        FACTS.description,
        FACTS.command,
    ):
        assert line in text
    (row,) = (line for line in text.splitlines() if line.startswith("| short | 3 | 2.3 |"))
    assert " 66.7% " in row, "two of three have the same text"
    report = json.loads((tmp_path / "corpus/diversity.json").read_text())
    assert (report["images"], report["captions"]) == (3, 5)
    picture = Image.open(io.BytesIO((tmp_path / "corpus/diversity.png").read_bytes()))
    assert picture.width > 500
    about = read_manifest(tmp_path / "corpus")["about"]
    assert (about["title"], about["sources"], about["settings"]["limits"]["min_side"]) == ("Blocks", ["blocks"], 8)


def test_of_many_reasons_the_most_frequent_are_named(tmp_path: Path, source: ListedImages) -> None:
    build_from_sources(tmp_path / "corpus", [source], facts=FACTS, diversity=False)
    manifest = read_manifest(tmp_path / "corpus")
    reasons = {f"reason {number}": 100 - number for number in range(30)}
    text = render_card({**manifest, "reasons": reasons, "num_skipped": 1}, FACTS, None, [])
    assert "| reason 19 | 81 |" in text and "reason 20" not in text
    assert f"| 10 other reasons | {sum(range(71, 81))} |" in text


def test_without_a_report_nothing_is_said_of_diversity(tmp_path: Path, source: ListedImages) -> None:
    build_from_sources(tmp_path / "corpus", [source], facts=CorpusFacts("Blocks"), diversity=False)
    card = DatasetCard.load(tmp_path / "corpus/README.md")
    assert "iversity" not in card.text and "Rebuild" not in card.text and card.data.license is None
    assert not list((tmp_path / "corpus").glob("diversity*"))


def test_similarity_by_a_text_model_is_in_the_report(tmp_path: Path, source: ListedImages) -> None:
    def embed(texts: list[str]) -> np.ndarray:
        return np.ones((len(texts), 2))

    build_from_sources(tmp_path / "corpus", [source], facts=FACTS, embed=embed)
    assert "text similarity (cosine) 1.00" in (tmp_path / "corpus/README.md").read_text()
