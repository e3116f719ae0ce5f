"""The verb: from a folder to answers on the screen."""

from collections.abc import Callable
from pathlib import Path

import pytest
from datasets import Dataset
from PIL import Image

from holistic_clip_hf import HolisticCLIPModel, HolisticCLIPProcessor
from holistic_clip_hf.cli.main import parse
from photo_index import NAMES, write_photos


def test_from_a_folder_to_answers(
    make_model: Callable[..., HolisticCLIPModel],
    processor: HolisticCLIPProcessor,
    corpus: Dataset,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    photos, index = write_photos(corpus, tmp_path / "photos"), str(tmp_path / "index")
    for part in (make_model(perspectives=NAMES), processor):
        part.save_pretrained(tmp_path / "model")

    def run(*arguments: str) -> list[str]:
        parse("search", arguments)()
        return capsys.readouterr().out.splitlines()

    said = run("index", str(photos), "--model", str(tmp_path / "model"), "--index", index)
    assert said[0].startswith("8 images: the index will take about 0.0 MB") and said[1].startswith("8 images")
    query = "main object: a red square; not style: drawing^0.5"
    said = run("find", query, "--index", index, "-k", "3", "--path", "*circle*", "--why")
    assert [line.split()[-1].endswith("-circle.png") for line in said[::3]] == [True] * 3
    assert "main_object: a red square (main_object " in said[1] and "not style: drawing (style " in said[2]
    example, picture = str(photos / "red" / "red-circle.png"), tmp_path / "found.png"
    said = run("find", "--like", example, "--index", index, "-k", "2", "--picture", str(picture))
    assert said[0].split() == ["1.000", "red/red-circle.png"]
    assert Image.open(picture).width > 300
    assert run("check", "--index", index) == [f"{index}: 1 files, all as they were written."]
    with pytest.raises(ValueError, match="no column 'artist'"):
        run("find", "a circle", "--index", index, "--where", "artist=noto")
