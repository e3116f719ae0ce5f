"""The tour runs: its ten cells, one after the other, as they stand in the document."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from conftest import draw
from holistic_clip_hf import HolisticCLIPModel, HolisticCLIPProcessor

pytest.importorskip("matplotlib")

TOUR = Path(__file__).resolve().parents[2] / "docs" / "tour.md"
CELL = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PICTURES = ["attention", "relevance", "words", "matching", "results", "training"]


def test_the_ten_cells_run(
    make_model: Callable[..., HolisticCLIPModel],
    processor: HolisticCLIPProcessor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    checkpoint = tmp_path / "runs" / "emoji" / "holistic"
    make_model(perspectives=["short", "palette", "gloss"]).save_pretrained(checkpoint)
    processor.save_pretrained(checkpoint)
    (checkpoint / "trainer_state.json").write_text(json.dumps({"log_history": [{"step": 1, "loss": 2.0}]}))
    (tmp_path / "pictures").mkdir()
    for name, colour, shape in (("dog-face", "yellow", "circle"), ("car", "red", "square"), ("sea", "blue", "square")):
        draw(colour, shape).save(tmp_path / "pictures" / f"{name}.png")
    monkeypatch.chdir(tmp_path)

    text = TOUR.read_text(encoding="utf-8")
    cells, names = CELL.findall(text), {}
    assert len(cells) == 10
    for cell in cells:
        line = text[: text.index(cell)].count("\n")
        exec(compile("\n" * line + cell, str(TOUR), "exec"), names)  # an error names the document's line
    printed = capsys.readouterr().out
    assert "['short', 'palette', 'gloss']" in printed and "(1, 3, 16) (1, 16)" in printed
    assert "3 images" in printed and "palette: cream, brown" in printed
    for name in PICTURES:
        assert min(Image.open(f"{name}.png").size) > 100


def test_its_pictures_are_there() -> None:
    for name in re.findall(r"\]\((tour/[^)]+)\)", TOUR.read_text(encoding="utf-8")):
        assert Image.open(TOUR.parent / name).format == "PNG"
