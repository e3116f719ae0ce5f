"""Near-duplicates among results stand behind the best of them, on the command line and on the page."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image, ImageOps

from conftest import COLOURS, SHAPES, draw
from holistic_clip_hf import HolisticCLIPModel, HolisticCLIPProcessor
from holistic_clip_hf.cli.main import parse
from holistic_clip_hf.search import FolderImages, SearchIndex, index_images
from holistic_clip_hf.search.folding import Fold, Folder
from photo_index import NAMES

QUERY = "a red square"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Eight drawings, three copies of one, and a mirrored copy of another."""
    folder = tmp_path / "photos"
    for colour in COLOURS:
        (folder / colour).mkdir(parents=True)
        for shape in SHAPES:
            draw(colour, shape, 128).save(folder / colour / f"{colour}-{shape}.png")
    red = Image.open(folder / "red" / "red-square.png")
    red.resize((80, 80), Image.Resampling.BICUBIC).save(folder / "small.png")
    red.convert("RGB").save(folder / "saved.jpg", quality=80)
    ImageOps.mirror(red).save(folder / "mirrored.png")
    ImageOps.mirror(Image.open(folder / "blue" / "blue-circle.png")).save(folder / "blue.png")
    return folder


@pytest.fixture
def index(
    photos: Path, make_model: Callable[..., HolisticCLIPModel], processor: HolisticCLIPProcessor, tmp_path: Path
) -> SearchIndex:
    model = make_model(perspectives=NAMES)
    for part in (model, processor):
        part.save_pretrained(tmp_path / "model")
    index_images(tmp_path / "index", FolderImages(photos), model, processor)
    return SearchIndex(tmp_path / "index", model, processor)


COPIES = [
    {"red/red-square.png", "small.png", "saved.jpg", "mirrored.png"},
    {"blue/blue-circle.png", "blue.png"},
]


def ids(fold: Fold) -> list[str]:
    return [hit.image_id for hit in (fold.hit, *fold.alike)]


def test_folds_are_the_results_with_copies_behind_the_best(index: SearchIndex) -> None:
    hits = index.search(QUERY, k=12)
    every = [hit.image_id for hit in hits]
    expected: list[list[str]] = []
    for image_id in every:
        group = next((group for group in COPIES if image_id in group), {image_id})
        known = next((fold for fold in expected if fold[0] in group), None)
        if known is None:
            expected.append([image_id])
        else:
            known.append(image_id)
    assert len(expected) == 8
    assert [ids(fold) for fold in Folder(index).fold(hits)] == expected
    assert Folder(index).fold([]) == []


def test_images_that_cannot_be_read_stand_alone(index: SearchIndex, photos: Path) -> None:
    for path in photos.glob("*.*"):
        path.unlink()
    folds = Folder(index).fold(index.search(QUERY, k=12))
    assert len(folds) == 12 and not any(fold.alike for fold in folds)


def test_the_command_says_how_many_are_alike(
    index: SearchIndex, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*options: str) -> list[str]:
        named = ["--index", str(tmp_path / "index"), "--model", str(tmp_path / "model")]
        parse("search", ["find", QUERY, *named, *options])()
        return capsys.readouterr().out.splitlines()

    said = run("-k", "12")
    (line,) = (line for line in said if "and 3 alike: " in line)
    above = said[said.index(line) - 1].split()[-1]
    assert {above, *line.strip().removeprefix("and 3 alike: ").split(", ")} == COPIES[0]
    assert len(said) == 8 + 2
    plain = run("-k", "12", "--no-fold")
    assert [line.split()[-1] for line in plain] == [hit.image_id for hit in index.search(QUERY, k=12)]


def test_the_page_folds_and_unfolds(index: SearchIndex, tmp_path: Path) -> None:
    pytest.importorskip("gradio")
    from holistic_clip_hf.demo.page import Page
    from holistic_clip_hf.demo.showcase import Showcase
    from holistic_clip_hf.evaluation.encoding import load_checkpoint

    page = Page(Showcase(index, *load_checkpoint(tmp_path / "model"), name="tiny"))
    found = page.search(QUERY, 1.0, 0.0, 0.0, 0.0)
    cards = re.findall(r'data-image-id="([^"]*)"', found)
    assert sorted(cards) == index.image_ids, "all are on the page, each once"
    assert sorted(re.findall(r"and (\d+) alike", found)) == ["1", "3"]
    (behind,) = re.findall(r"<summary>and 3 alike</summary>(.*?)</details>", found)
    assert len(COPIES[0] & set(re.findall(r'data-image-id="([^"]*)"', behind))) == 3
    assert "Show more" not in found
