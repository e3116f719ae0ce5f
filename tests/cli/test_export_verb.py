"""The verb: a checkpoint becomes a folder for other programs, or one sentence."""

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from transformers import AutoModel, CLIPModel

from exported_pages import fill_node_modules
from holistic_clip_hf import HolisticCLIPModel, HolisticCLIPProcessor
from holistic_clip_hf.cli.main import main

NAMES = ["short", "style", "shape"]


@pytest.fixture
def checkpoint(make_model: Callable[..., HolisticCLIPModel], processor: HolisticCLIPProcessor, tmp_path: Path) -> Path:
    for part in (make_model(perspectives=NAMES, vision={"branch_type": "mlp"}), processor):
        part.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_branch_leaves_as_stock_clip(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "style"
    main(["export", str(checkpoint), "--layout", "clip", "--branch", "style", "--output", str(output)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{output} holds the branch 'style' as a stock model."
    assert lines[1] == "Left out: the branches short, shape, and the fused vector."
    assert [line.split()[:2] for line in lines[2:]] == [["image", "vectors"], ["text", "vectors"], ["logits", "over"]]
    assert type(AutoModel.from_pretrained(output)) is CLIPModel


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--layout clip", "`--branch` is None; expected one of 'short', 'style', 'shape', since what all"),
        (
            "--layout clip --branch colour",
            "`--branch` is 'colour'; expected one of 'short', 'style', 'shape'",
        ),
        ("--layout siglip --branch style", "The model has a vision tower that is CLIP's; expected SigLIP's"),
        (
            "--layout onnx --branch style",
            "`--branch` is style and `--layout` onnx; expected it with clip or siglip",
        ),
        ("--layout clip --branch style --int8", "`--int8` is True and `--layout` clip; expected it with onnx or"),
        (
            "--layout onnx --index photos.index",
            "`--index` is photos.index and `--layout` onnx; expected it",
        ),
        (
            "--layout browser",
            "`--index` is missing; expected the folder of an index. Make one",
        ),
        (
            "--layout onnx --verify-images nowhere",
            "`--verify-images` is nowhere, which is not a folder; expected",
        ),
        ("--layout coreml", "coreml"),
    ],
)
def test_what_cannot_be_exported_is_one_sentence(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: str, message: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["export", str(checkpoint), *options.split(), "--output", str(tmp_path / "out")])
    said = capsys.readouterr().err.strip().splitlines()
    assert ended.value.code == 2 and message in said[-1], said
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
def test_a_page_over_an_index(
    checkpoint: Path, red_square: Image.Image, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "photos").mkdir()
    red_square.save(tmp_path / "photos" / "red.png")
    index, output, modules = tmp_path / "index", tmp_path / "page", tmp_path / "node_modules"
    main(["search", "index", str(tmp_path / "photos"), "--model", str(checkpoint), "--index", str(index)])
    capsys.readouterr()
    given = ["export", str(checkpoint), "--layout", "browser", "--index", str(index), "--output", str(output)]
    with pytest.raises(SystemExit):
        main([*given, "--node-modules", str(modules)])
    assert "`--node-modules` is " in capsys.readouterr().err
    fill_node_modules(modules)
    main([*given, "--node-modules", str(modules), "--half"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{output} holds a page of 1 images, ")
    assert lines[1].startswith("text_model text_embeds ") and lines[-1].endswith(f"--directory {output}")
    assert (output / "vectors.bin").stat().st_size == 3 * 16 * 2
    for path in output.rglob("*.json"):
        assert str(tmp_path) not in path.read_text(), path  # no path of this machine leaves it
