"""The verb: from a folder to answers on the screen."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from datasets import Dataset
from PIL import Image

from holistic_clip_hf import HolisticCLIPModel, HolisticCLIPProcessor
from holistic_clip_hf.checkpoint_files import CALIBRATION_FILE
from holistic_clip_hf.cli.main import parse
from holistic_clip_hf.cli.search import Index, parse_conditions
from holistic_clip_hf.evaluation.calibration import Calibration, ScoreCalibration, fusion_facts, save_calibration
from holistic_clip_hf.evaluation.fingerprints import fingerprint
from holistic_clip_hf.search import FolderImages, index_images
from photo_index import NAMES, write_photos

Run = Callable[..., list[str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Lines that the verb prints."""

    def call(*arguments: str) -> list[str]:
        parse("search", arguments)()
        return capsys.readouterr().out.splitlines()

    return call


def test_from_a_folder_to_answers(
    make_model: Callable[..., HolisticCLIPModel],
    processor: HolisticCLIPProcessor,
    corpus: Dataset,
    tmp_path: Path,
    run: Run,
) -> None:
    photos, index = write_photos(corpus, tmp_path / "photos"), str(tmp_path / "index")
    for part in (make_model(perspectives=NAMES), processor):
        part.save_pretrained(tmp_path / "model")
    build = ["index", str(photos), "--model", str(tmp_path / "model"), "--index", index]
    assert run(*build, "--shard", "1/2")[1].startswith("0 of 1 segments of")  # eight images are one segment
    assert run(*build, "--shard", "0/2")[1].startswith("1 of 1 segments of")
    said = run(*build)
    assert said[0].startswith("8 images: the index will take about 0.0 MB") and said[1].startswith("8 images")
    query = "main object: a red square; not style: drawing^0.5"
    said = run("find", query, "--index", index, "-k", "3", "--path", "*circle*", "--why")
    assert [line.split()[-1].endswith("-circle.png") for line in said[::3]] == [True] * 3
    assert "main_object: a red square (main_object " in said[1] and "not style: drawing (style " in said[2]
    example, picture = str(photos / "red" / "red-circle.png"), tmp_path / "found.png"
    said = run("find", "--like", example, "--index", index, "-k", "2", "--picture", str(picture))
    assert said[0].split() == ["1.000", "red/red-circle.png"]
    assert Image.open(picture).width > 300
    said = run("find", "but main object: a red square", "--like", example, "--index", index, "-k", "1", "--why")
    assert "an example image (short " in said[1] and "main_object" not in said[1] and "main_object " in said[2]
    assert run("check", "--index", index) == [f"{index}: 1 files, all as they were written."]
    with pytest.raises(ValueError, match="no column 'artist'"):
        run("find", "a circle", "--index", index, "--where", "artist=noto")


def test_the_forecast_is_that_of_the_index_that_exists(
    make_model: Callable[..., HolisticCLIPModel], processor: HolisticCLIPProcessor, corpus: Dataset, tmp_path: Path
) -> None:
    """Three vectors of 8 or 16 numbers of four bytes, and 80 bytes of a row; of int8, four times a byte a number."""
    photos, index = write_photos(corpus, tmp_path / "photos"), tmp_path / "index"
    model = make_model(perspectives=NAMES, matryoshka_dims=[8])
    verb = Index(str(photos), "model", index)
    assert "about 272.0 MB" in verb.forecast(model.config, 1_000_000)
    index_images(index, FolderImages(photos), model, processor, dimensions=8)
    assert "about 176.0 MB" in verb.forecast(model.config, 1_000_000)
    assert "about 272.0 MB" in replace(verb, dimensions=16).forecast(model.config, 1_000_000)
    assert "about 272.0 MB" in replace(verb, rebuild=True).forecast(model.config, 1_000_000)
    pytest.importorskip("faiss")
    index_images(index, FolderImages(photos), model, processor, precision="int8")
    said = verb.forecast(model.config, 1_000_000)
    assert "about 208.0 MB" in said and "Queries keep 32.0 MB of it in memory, in int8" in said


def test_smaller_vectors_another_model_and_a_collection(
    make_model: Callable[..., HolisticCLIPModel],
    processor: HolisticCLIPProcessor,
    corpus: Dataset,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    run: Run,
) -> None:
    pytest.importorskip("faiss"), pytest.importorskip("qdrant_client")
    photos, index = write_photos(corpus, tmp_path / "photos"), str(tmp_path / "index")
    for seed, name in enumerate(("model", "better")):
        for part in (make_model(perspectives=NAMES, seed=seed, matryoshka_dims=[8]), processor):
            part.save_pretrained(tmp_path / name)

    def make(model: str, *options: str) -> list[str]:
        return run("index", str(photos), "--model", str(tmp_path / model), "--index", index, *options)

    said = make("model", "--precision", "int8", "--dimensions", "8")
    assert "Queries keep 0.0 MB of it in memory, in int8, which proposed 100.0% of the 10 nearest" in said[0]
    assert "exact, int8, recall@10 1.000: 8 new" in said[1]
    first = run("find", "a red square", "--index", index)
    with pytest.raises(ValueError, match="made by another checkpoint.*--rebuild"):
        make("better")
    capsys.readouterr()
    assert run("find", "a red square", "--index", index) == first
    assert "exact, int8" in make("better", "--rebuild", "--dimensions", "8")[1]
    second = run("find", "a red square", "--index", index)
    assert second != first

    there = ("--qdrant", str(tmp_path / "qdrant"), "--collection", "photos")
    assert run("export", "--index", index, *there) == [f"photos at {tmp_path / 'qdrant'}: 8 images."]
    index = str(tmp_path / "copy")
    said = run("import", str(photos), "--model", str(tmp_path / "better"), "--index", index, *there)
    assert said[0] == f"{index}: 8 images from photos." and said[1].startswith("8 images")
    assert run("find", "a red square", "--index", index) == second

    damaged = next((tmp_path / "copy" / "segments").iterdir())
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with pytest.raises(ValueError, match=f"{damaged.name}.*Run the indexing again"):
        run("find", "a red square", "--index", index, "--skip-damaged")  # its only segment


def test_probabilities_and_nothing_found(
    make_model: Callable[..., HolisticCLIPModel],
    processor: HolisticCLIPProcessor,
    corpus: Dataset,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    photos, index, checkpoint = write_photos(corpus, tmp_path / "photos"), tmp_path / "index", tmp_path / "model"
    model = make_model(perspectives=NAMES)
    for part in (model, processor):
        part.save_pretrained(checkpoint)
    parse("search", ["index", str(photos), "--model", str(checkpoint), "--index", str(index)])()
    capsys.readouterr()

    def find(*options: str, least: float) -> list[str]:
        scores = {"short": ScoreCalibration(0.0, 0.0, 0.0, 0.0, 50, 8, least)}  # an even chance for each
        print_of = fingerprint(model, processor, with_fusion=False)
        found = Calibration(print_of, fusion_facts(model), "photos", "validation", scores)
        save_calibration(checkpoint / CALIBRATION_FILE, found)
        parse("search", ["find", "short: red", "--index", str(index), "-k", "2", *options])()
        return capsys.readouterr().out.splitlines()

    said = find(least=0.4)
    assert len(said) == 2 and [line.split()[1] for line in said] == ["50.0%"] * 2
    nothing = find("--picture", str(tmp_path / "found.png"), least=0.6)
    assert nothing[0].startswith("Nothing found: the best of the images fits with a probability of 50.0%")
    assert "--nearest" in nothing[1] and len(nothing) == 2 and not (tmp_path / "found.png").exists()
    assert find("--nearest", least=0.6) == [nothing[0], *said]
    like = ["find", "--like", str(next((tmp_path / "photos").rglob("*.png"))), "--index", str(index), "-k", "2"]
    parse("search", like)()
    *shown, told = capsys.readouterr().out.splitlines()
    assert told.startswith("Queries with an example have no probabilities") and not any("%" in line for line in shown)
    (checkpoint / CALIBRATION_FILE).write_text("{")
    parse("search", like)()
    assert capsys.readouterr().out.splitlines() == shown
    parse("search", ["find", "short: red", "--index", str(index), "-k", "2"])()
    assert capsys.readouterr().out.splitlines() == [line.replace("  50.0%  ", "") for line in said]
    assert "Images are found without probabilities: " in caplog.text


def test_what_a_search_refuses(
    make_model: Callable[..., HolisticCLIPModel],
    processor: HolisticCLIPProcessor,
    corpus: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    photos, other = write_photos(corpus, tmp_path / "photos"), tmp_path / "elsewhere"
    for part in (make_model(perspectives=NAMES), processor):
        part.save_pretrained(tmp_path / "model")
    other.mkdir()
    (other / "text.txt").write_text("no image")
    monkeypatch.chdir(tmp_path)
    parse("search", ["index", "photos", "--model", "model", "--index", "ix"])()

    monkeypatch.chdir(other)  # the index names its checkpoint and its images by their whole paths
    index = ["--index", str(tmp_path / "ix")]
    capsys.readouterr()
    parse("search", ["find", "a square", *index, "-k", "1", "--picture", "found.png"])()
    assert len(capsys.readouterr().out.splitlines()) == 1
    parse("search", ["find", "a circle", *index, "--picture", "found.png"])()  # our own picture may be replaced

    photo = photos / "red" / "red-square.png"
    before, outside = photo.read_bytes(), other / "mine.png"
    outside.write_bytes(before)
    (tmp_path / "model").rename(tmp_path / "gone")  # so all of these are told before it is loaded
    refused = {
        f"--picture {photo}": "`--picture` is .*red-square.png, among the images of .*photos; expected",
        f"--picture {photos}/new.png": "new.png, among the images of",
        f"--picture {tmp_path}/ix/new.png": "new.png, among the images of",
        f"--picture {outside}": "mine.png, a file that was not drawn by this command; expected a new one",
        "--picture found.jpg": "`--picture` is found.jpg; expected a file that ends in .png",
        "--picture text.txt/found.png": "text.txt, which is a file; expected a folder there",
        "--like nosuch.png": r"`--like` is nosuch.png, which cannot be read \(No such file or directory\)",
        "--like text.txt": r"`--like` is text.txt, which cannot be read \(.*cannot identify",
        "--perspective short": "`--perspective` is short, that of an image; expected `--like`",
        "-k 0": "`-k` is 0; expected 1 or more",
        "": r"ix was made by .*/model, which cannot be loaded; .*Name it with `--model`",
    }
    for options, message in refused.items():
        with pytest.raises(ValueError, match=message):
            parse("search", ["find", "a_square", *index, *options.split()])()
    with pytest.raises(ValueError, match=r"holds an index of .*photos; expected a new folder for .*others. Name"):
        write_photos(corpus, tmp_path / "others")
        for number, path in enumerate(sorted((tmp_path / "others").rglob("*.png"))):
            Image.new("RGB", (8, 8), (number, 0, 0)).save(path)
        parse("search", ["index", str(tmp_path / "others"), "--model", "none", *index])()
    with pytest.raises(ValueError, match="leaves out style; expected that of an example image of all branches"):
        options = ["--like", str(photo), "--perspective", "short", "--model", str(tmp_path / "gone")]
        parse("search", ["find", "but style: flat", *index, *options])()
    with pytest.raises(ValueError, match="The query is missing"):
        parse("search", ["find", *index])()
    assert photo.read_bytes() == before and outside.read_bytes() == before and not (photos / "new.png").exists()

    model = ["--model", str(tmp_path / "gone")]
    with pytest.raises(ValueError, match=r"No image of .*ix matches `--path nope/\*`. Correct the filter"):
        parse("search", ["find", "a square", *index, *model, "--path", "nope/*"])()


def test_conditions_on_one_column_add_up() -> None:
    assert parse_conditions(("split=train", "split=test", "n=1")) == {"split": ["train", "test"], "n": ["1"]}
