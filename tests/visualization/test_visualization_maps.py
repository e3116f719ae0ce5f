"""Pictures and figures: what is drawn where, readable on light and dark; and the numbers that are read for them."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageColor
from torch import Tensor

from holistic_clip_hf import HolisticCLIPProcessor
from holistic_clip_hf.drawing import line_height
from holistic_clip_hf.trainer import HolisticCLIPTrainer
from holistic_clip_hf.visualization import (
    best_branches,
    crop_as_seen,
    map_over_image,
    map_sheet,
    matching_figure,
    part_matching,
    patch_agreement,
    training_curves,
    training_figure,
    words_of,
)
from holistic_clip_hf.visualization.maps import GAP, INK, MARGIN, NAME_SIZE, NOTE_SIZE, QUIET, strength, stretched

pytest.importorskip("matplotlib")

WHITE, DARK = "#ffffff", "#0d1117"


def luminance(colour: str) -> float:
    """https://www.w3.org/TR/WCAG21/#dfn-relative-luminance"""
    parts = [level / 255 for level in ImageColor.getrgb(colour)]
    red, green, blue = (p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("page", [WHITE, DARK])
@pytest.mark.parametrize("ink", [INK, QUIET])
def test_ink_reads_on_light_and_on_dark_pages(ink: str, page: str) -> None:
    light, dark = sorted((luminance(ink), luminance(page)), reverse=True)
    assert (light + 0.05) / (dark + 0.05) > 3.2


def test_agreement_by_loops() -> None:
    patches, texts = torch.randn(2, 3, 5, 4), torch.randn(6, 4)
    found, matched = patch_agreement(patches, texts), part_matching(patches[0, 0], texts)
    assert found.shape == (2, 3, 6, 5) and matched.shape == (5, 6)
    for image, branch, text, patch in ((0, 0, 0, 0), (1, 2, 5, 4), (0, 1, 3, 2)):
        one, two = patches[image, branch, patch].tolist(), texts[text].tolist()
        product = sum(a * b for a, b in zip(one, two, strict=True))
        expected = product / math.dist(one, [0] * 4) / math.dist(two, [0] * 4)
        assert found[image, branch, text, patch].item() == pytest.approx(expected, abs=1e-6)
        if (image, branch) == (0, 0):
            assert matched[patch, text].item() == pytest.approx(expected, abs=1e-6)


def test_the_best_branch_of_each_caption() -> None:
    assert best_branches(torch.tensor([[0.1, 0.9, 0.2], [0.3, 0.1, 0.1]]), ["a", "b"]) == ["b", "a", "a"]


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("A dog and a dog's ball, on the grass", ["dog", "dog's", "ball", "grass"]),
        ("Zwölf semi-détaché 2 houses_", ["zwölf", "semi-détaché", "2", "houses"]),
        ("of the", []),
    ],
)
def test_words_of_a_caption(caption: str, words: list[str]) -> None:
    assert words_of(caption) == words


def test_maps_are_stretched_and_measured_each_by_itself() -> None:
    maps = torch.tensor([[1.0, 3.0, 2.0, 2.0], [5.0, 5.0, 5.0, 5.0]])
    assert stretched(maps).tolist() == [[0, 1, 0.5, 0.5], [0, 0, 0, 0]]
    assert strength(maps).tolist() == [1.5, 1]


@pytest.mark.parametrize(
    ("size", "sizes", "expected"),
    [
        ((96, 64), {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}, (16, 0, 80, 64)),
        ((64, 96), {"size": {"shortest_edge": 64}, "crop_size": {"height": 32, "width": 32}}, (16, 32, 48, 64)),
        ((96, 64), {"size": {"height": 32, "width": 32}, "crop_size": {"height": 32, "width": 32}}, (0, 0, 96, 64)),
    ],
)
def test_the_crop_that_a_model_sees(size: tuple[int, int], sizes: dict, expected: tuple[int, ...]) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (*size[::-1], 3), dtype=np.uint8))
    found = crop_as_seen(image, {**sizes, "do_resize": True, "do_center_crop": True})
    assert np.array_equal(np.asarray(found), np.asarray(image.crop(expected)))


def test_the_crop_agrees_with_the_processor(processor: HolisticCLIPProcessor) -> None:
    processor.image_processor.size = {"shortest_edge": 40}
    image = Image.linear_gradient("L").resize((120, 80)).convert("RGB")
    pixels = processor(images=[image], return_tensors="pt", do_normalize=False)["pixel_values"][0]
    seen = crop_as_seen(image, processor.image_processor.to_dict()).resize((32, 32), Image.Resampling.BICUBIC)
    assert np.abs(np.asarray(seen) / 255 - pixels.permute(1, 2, 0).numpy()).max() < 0.05


def test_crops_of_other_processors_are_refused() -> None:
    with pytest.raises(ValueError, match="expected those of CLIP's image processor"):
        crop_as_seen(Image.new("RGB", (8, 8)), {"size": 32, "do_center_crop": True})


def redness(image: Image.Image) -> np.ndarray:
    pixels = np.asarray(image.convert("RGB")).astype(int)
    return pixels[..., 0] - pixels[..., 1]


def test_a_map_is_hot_where_its_numbers_are_high_and_leaves_the_rest() -> None:
    values = torch.zeros(4, 4)
    values[1, 2] = 1
    drawn = map_over_image(Image.new("RGB", (80, 80), (20, 40, 60)), values)
    hot = redness(drawn)
    assert np.unravel_index(hot.argmax(), hot.shape)[0] // 20 == 1
    assert np.unravel_index(hot.argmax(), hot.shape)[1] // 20 == 2
    assert hot.max() > 120
    corner = drawn.getpixel((5, 75))
    assert corner[0] == corner[1] == corner[2] > 96  # grey and pale: no colour of its own


def test_a_sheet_has_each_map_in_its_place() -> None:
    maps = torch.zeros(2, 3, 4, 4)
    for row in range(2):
        for column in range(3):
            maps[row, column, row, column] = 1
    names, rows, notes = ["short", "main_object", "style"], ["a", "b"], [["x"] * 3] * 2
    sheet = map_sheet(Image.new("RGB", (50, 50)), maps, names, rows=rows, notes=notes, title="Maps", cell=80)
    assert sheet.mode == "RGBA" and sheet.getpixel((1, 1))[3] == 0  # the page is transparent
    page = Image.new("RGBA", sheet.size, "white")
    page.alpha_composite(sheet)
    below, (width, height) = line_height(NAME_SIZE) + line_height(NOTE_SIZE) + GAP, sheet.size
    for row in range(2):
        for column in range(3):
            x = width - MARGIN - (3 - column) * (80 + GAP) + GAP
            y = height - MARGIN // 2 - (2 - row) * (80 + below)
            hot = redness(page.crop((x, y, x + 80, y + 80)))
            hottest = np.unravel_index(hot.argmax(), hot.shape)
            assert (hottest[0] // 20, hottest[1] // 20) == (row, column) and hot.max() > 120


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda image: map_over_image(image, torch.full((2, 2), 1.5)), "from 0 to 1, as `stretched`"),
        (lambda image: map_over_image(image, torch.rand(4)), r"shape \(4,\)"),
        (lambda image: map_sheet(image, torch.rand(1, 2, 3, 3), ["one"]), "a name for each row and column"),
        (lambda image: map_sheet(image, torch.rand(1, 1, 3, 3), ["one"], cell=10), "expected 48 or more"),
        (lambda image: matching_figure(image, torch.rand(2, 3), ["a", "b"], ["c"]), r"\(H, M\), a name for each"),
        (lambda image: training_figure({"epoch": [(1, 1.0)]}), "recall@5 among them"),
    ],
)
def test_misuse_is_refused(draw: Callable[[Image.Image], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw(Image.new("RGB", (50, 50)))


def test_a_matching_shows_every_number_and_frames_the_best() -> None:
    similarity: Tensor = torch.tensor([[0.11, 0.92, 0.33], [0.74, 0.25, 0.36]])
    captions = ["costs $5, or $6", "a_{b} " * 40, "<b>bold</b>"]
    figure = matching_figure(
        Image.new("RGBA", (20, 20)), similarity, ["main_object", "style"], captions, perspectives=["a", "b$c$", "d"]
    )
    _, matrix, below = figure.axes
    assert [text.get_text() for text in matrix.texts] == ["0.11", "0.92", "0.33", "0.74", "0.25", "0.36"]
    framed = [(round(frame.get_y() + 0.47), round(frame.get_x() + 0.47)) for frame in matrix.patches]
    assert framed == [(1, 0), (0, 1), (1, 2)]
    assert [label.get_text() for label in matrix.get_xticklabels()] == ["1 a", "2 b$c$", "3 d"]
    assert [text.get_text()[:8] for text in below.texts] == ["1   cost", "2   a_{b", "3   <b>b"]
    figure.canvas.draw()  # a formula in a caption would raise here
    assert figure.get_facecolor()[3] == 0


def test_curves_are_read_step_by_step(tmp_path: Path) -> None:
    history = [
        {"step": 20, "epoch": 2.0, "loss": 1.0},
        {"step": 10, "epoch": 1.0, "loss": 2.0},
        {"step": 20, "epoch": 2.0, "eval_loss": 1.5, "note": "text"},
        {"step": 20, "epoch": 2.0, "train_runtime": 9.0, "train_loss": 1.5},
    ]
    file = tmp_path / "trainer_state.json"
    file.write_text(json.dumps({"log_history": history}))
    expected = {"loss": [(10, 2.0), (20, 1.0)], "eval_loss": [(20, 1.5)]}
    assert training_curves(tmp_path) == training_curves(file) == expected
    file.write_text("{}")
    with pytest.raises(ValueError, match="holds no log"):
        training_curves(tmp_path)
    with pytest.raises(ValueError, match="No trainer's state at"):
        training_curves(tmp_path / "elsewhere")


def test_what_the_trainer_logs_is_drawn(make_trainer: Callable[..., HolisticCLIPTrainer], corpus, tmp_path) -> None:
    trainer = make_trainer(evaluation=corpus, eval_strategy="steps", eval_steps=1)
    trainer.train()
    trainer.state.save_to_json(str(tmp_path / "trainer_state.json"))
    loss, recall = training_figure(training_curves(tmp_path), title="$two$ steps").axes
    assert [line.get_label() for line in loss.lines] == ["loss", "eval_loss"]
    assert sorted(line.get_label() for line in recall.lines) == ["all", "colour", "shape", "short"]
    assert [list(line.get_xdata()) for line in recall.lines] == [[1, 2]] * 4
