"""Graphs of both towers in one folder, run by ONNX Runtime and by transformers.js, against the model."""

import copy
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, SiglipImageProcessorPil

from conftest import COLOURS, SHAPES, draw, make_processor
from exported_pages import NODE_MODULES, needs_node, needs_npm
from families import make_naflex, make_siglip, naflex_images
from holistic_clip_hf import HolisticCLIPModel, HolisticCLIPProcessor
from holistic_clip_hf.exporting import graphs
from holistic_clip_hf.exporting.onnx_folder import OnnxExport, export_onnx
from holistic_clip_hf.exporting.verification import ExportError
from holistic_clip_hf.initialization import from_siglip
from siglip_tokenizers import LENGTH, first_kind, second_kind

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning"),
]
NAMES = ["short", "style", "shape"]
GRAPHS = {"vision_model.onnx", "text_model.onnx", "model.onnx"}
TEXTS = ["a red square", "drawn flat on white, all green", "one circle"]
MakeModel = Callable[..., HolisticCLIPModel]


@pytest.fixture(scope="module")
def model(make_model: MakeModel) -> HolisticCLIPModel:
    return make_model(perspectives=NAMES, vision={"branch_type": "mlp"})


@pytest.fixture(scope="module")
def stock_processor(session_tokenizer: Any) -> HolisticCLIPProcessor:
    return make_processor(session_tokenizer)


@pytest.fixture(scope="module")
def exported(
    model: HolisticCLIPModel, stock_processor: HolisticCLIPProcessor, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, OnnxExport]:
    folder = tmp_path_factory.mktemp("export") / "browser"
    return folder, export_onnx(model, stock_processor, folder, layout="transformers.js", int8=True)


def run(path: Path, **inputs: torch.Tensor) -> dict[str, np.ndarray]:
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(path)
    names = [output.name for output in session.get_outputs()]
    values = session.run(None, {name: value.numpy() for name, value in inputs.items()})
    return dict(zip(names, values, strict=True))


@torch.no_grad()
def test_both_towers_stand_in_one_folder(
    exported: tuple[Path, OnnxExport], model: HolisticCLIPModel, stock_processor: HolisticCLIPProcessor
) -> None:
    folder, report = exported
    quantised = {name.replace(".onnx", "_quantized.onnx") for name in GRAPHS}
    assert {path.name for path in (folder / "onnx").iterdir()} == GRAPHS | quantised
    assert {"preprocessor_config.json", "processor_config.json", "tokenizer.json"} < {p.name for p in folder.iterdir()}
    config = json.loads((folder / "config.json").read_text())
    assert (config["model_type"], config["perspectives"]) == ("clip", NAMES) and "auto_map" not in config
    assert json.loads((folder / "export.json").read_text())["differences"] == report.differences
    pixels = torch.randn(5, 3, 32, 32)
    tokens = stock_processor(text=TEXTS, padding=True, return_tensors="pt")
    ids, mask = tokens["input_ids"], tokens["attention_mask"]
    expected = model(input_ids=ids, attention_mask=mask, pixel_values=pixels)
    images = run(folder / "onnx" / "vision_model.onnx", pixel_values=pixels)
    texts = run(folder / "onnx" / "text_model.onnx", input_ids=ids, attention_mask=mask)
    both = run(folder / "onnx" / "model.onnx", input_ids=ids, attention_mask=mask, pixel_values=pixels)
    assert set(images) == {"image_embeds", "branch_embeds"} and set(texts) == {"text_embeds"}
    for name, found in (*images.items(), *texts.items(), *both.items()):
        np.testing.assert_allclose(found, expected[name].numpy(), rtol=1e-4, atol=1e-4)
    assert max(report.differences.values()) < 1e-5
    assert all(0.9 < cosine <= 1.0001 for cosine in report.cosines.values()) and len(report.cosines) == 6


def test_large_weights_stand_beside_each_graph(
    model: HolisticCLIPModel, stock_processor: HolisticCLIPProcessor, tmp_path: Path
) -> None:
    report = export_onnx(model, stock_processor, tmp_path / "graphs", most_bytes=10)
    assert set(report.files) == GRAPHS | {f"{name}_data" for name in GRAPHS}
    (tmp_path / "graphs").rename(tmp_path / "moved")
    run(tmp_path / "moved" / "vision_model.onnx", pixel_values=torch.randn(1, 3, 32, 32))
    with pytest.raises(ValueError, match="which holds .*; expected a new or empty folder"):
        export_onnx(model, stock_processor, tmp_path / "moved")


def test_graphs_are_run_on_the_users_images(
    model: HolisticCLIPModel,
    stock_processor: HolisticCLIPProcessor,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(11):
        draw(list(COLOURS)[number % 4], SHAPES[number % 2], 30 + 7 * number).save(photos / f"{number:02d}.png")
    (photos / "broken.jpg").write_bytes(b"no image")
    report = export_onnx(model, stock_processor, tmp_path / "graphs", verify_images=photos)
    assert report.images == 11 and "broken.jpg is left out" in caplog.text
    assert json.loads((tmp_path / "graphs" / "export.json").read_text())["images"] == 11
    for path in photos.glob("*.png"):
        path.unlink()
    with pytest.raises(ValueError, match="`verify_images` is .*photos, in which no image can be read"):
        export_onnx(model, stock_processor, tmp_path / "none", verify_images=photos)
    assert not (tmp_path / "none").exists()


def test_towers_that_share_a_file_are_caught(
    model: HolisticCLIPModel,
    stock_processor: HolisticCLIPProcessor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Weights of all graphs are written to one file, as exporters do, each over those before."""
    write = graphs.write_graph

    def write_over(graph: Any, inputs: Any, path: Path, most_bytes: int) -> None:
        import onnx

        write(graph, inputs, path, most_bytes)
        shared = path.with_name("model.onnx.data")
        before = shared.read_bytes() if shared.exists() else b""
        shared.unlink(missing_ok=True)
        onnx.save_model(onnx.load(path), path, save_as_external_data=True, location="model.onnx.data")
        after = shared.read_bytes()
        shared.write_bytes(after + before[len(after) :])  # no graph reads beyond the end

    monkeypatch.setattr(graphs, "write_graph", write_over)
    with pytest.raises(ExportError, match="differs from the checkpoint in vision_model image_embeds by"):
        export_onnx(model, stock_processor, tmp_path / "poisoned", layout="transformers.js")
    assert not (tmp_path / "poisoned").exists()


def embedded_by_transformers_js(folder: Path, picture: Image.Image, scratch: Path) -> Any:
    """What `embed.mjs` prints of a picture and `TEXTS`."""
    picture.save(scratch / "picture.png")
    (scratch / "node_modules").symlink_to(NODE_MODULES)
    shutil.copy(Path(__file__).with_name("embed.mjs"), scratch)
    command = ["node", str(scratch / "embed.mjs"), str(folder), str(scratch / "picture.png"), json.dumps(TEXTS)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert ran.returncode == 0, ran.stderr[-3000:]
    return json.loads(ran.stdout.splitlines()[-1])


@torch.no_grad()
def assert_gives(found: Any, model: HolisticCLIPModel, processor: HolisticCLIPProcessor, picture: Image.Image) -> None:
    """Token ids, vectors and the pipeline's scores are the model's."""
    tokens = processor(text=TEXTS, padding=True, return_tensors="pt")
    expected = model(**tokens, **processor(images=picture, return_tensors="pt"))
    assert found["ids"] == tokens["input_ids"].flatten().tolist()
    for name in ("text_embeds", "image_embeds", "branch_embeds"):
        np.testing.assert_allclose(found[name], expected[name].flatten().numpy(), rtol=0, atol=1e-5)
    logits = expected.logits_per_image[0]
    scores = logits.sigmoid() if model.config.objective == "sigmoid" else logits.softmax(dim=-1)
    assert [found["scores"][text] for text in TEXTS] == pytest.approx(scores.tolist(), abs=1e-4)


@needs_npm
@needs_node
def test_transformers_js_gives_the_same_vectors(
    exported: tuple[Path, OnnxExport],
    model: HolisticCLIPModel,
    stock_processor: HolisticCLIPProcessor,
    red_square: Image.Image,
    tmp_path: Path,
) -> None:
    found = embedded_by_transformers_js(exported[0], red_square, tmp_path)
    assert_gives(found, model, stock_processor, red_square)


@needs_npm
@needs_node
@pytest.mark.parametrize("make_tokenizer", [first_kind, second_kind])
def test_transformers_js_takes_siglips_texts_and_sigmoids(
    make_tokenizer: Callable[[], Any], red_square: Image.Image, tmp_path: Path
) -> None:
    tokenizer = make_tokenizer()
    pad, end = tokenizer.pad_token_id, tokenizer.eos_token_id
    text = {"vocab_size": len(tokenizer), "max_position_embeddings": LENGTH, "pad_token_id": pad, "eos_token_id": end}
    model = from_siglip(make_siglip(**text), perspectives=NAMES, pad_token_id=pad).eval()
    processor = HolisticCLIPProcessor(SiglipImageProcessorPil(size={"height": 32, "width": 32}), tokenizer)
    report = export_onnx(model, processor, tmp_path / "siglip", layout="transformers.js")
    assert max(report.differences.values()) < 1e-5
    config = json.loads((tmp_path / "siglip" / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == ("siglip", ["SiglipModel"])
    assert_gives(embedded_by_transformers_js(tmp_path / "siglip", red_square, tmp_path), model, processor, red_square)


@torch.no_grad()
def test_images_of_any_shape_are_exported(session_tokenizer: Any, tmp_path: Path) -> None:
    ends = {"pad_token_id": session_tokenizer.pad_token_id, "eos_token_id": session_tokenizer.eos_token_id}
    model = from_siglip(
        make_naflex(vocab_size=len(session_tokenizer), bos_token_id=0, **ends), perspectives=["short", "style"]
    )
    processor = HolisticCLIPProcessor(naflex_images(), copy.deepcopy(session_tokenizer))
    processor.tokenizer.model_max_length = model.config.text_config.max_position_embeddings
    with pytest.raises(ValueError, match="takes images of any shape .*Take 'onnx'"):
        export_onnx(model, processor, tmp_path / "browser", layout="transformers.js")
    assert not (tmp_path / "browser").exists()
    export_onnx(model, processor, tmp_path / "graphs")
    pictures = [Image.new("RGB", size, "red") for size in ((40, 20), (16, 64), (30, 30))]
    made = dict(processor(images=pictures, return_tensors="pt"))
    found, expected = run(tmp_path / "graphs" / "vision_model.onnx", **made), model.get_image_features(**made)
    np.testing.assert_allclose(found["branch_embeds"], expected.branch_embeds.numpy(), rtol=1e-4, atol=1e-4)
    # By itself, since the call of the stock processor says 256 patches of 16 pixels, whatever its image processor has.
    stock = AutoProcessor.from_pretrained(tmp_path / "graphs").image_processor
    torch.testing.assert_close(stock(pictures, return_tensors="pt")["pixel_values"], made["pixel_values"])
