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
from transformers import AutoProcessor

from conftest import make_processor
from families import make_naflex, naflex_images
from holistic_clip_hf import HolisticCLIPModel, HolisticCLIPProcessor
from holistic_clip_hf.exporting import onnx_folder
from holistic_clip_hf.exporting.onnx_folder import OnnxExport, export_onnx
from holistic_clip_hf.exporting.stock_folder import ExportError
from holistic_clip_hf.initialization import from_siglip

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning"),
]
ROOT = Path(__file__).resolve().parents[2]
# npm install --prefix build/npm @huggingface/transformers
NODE_MODULES = ROOT / "build" / "npm" / "node_modules"
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


def test_towers_that_share_a_file_are_caught(
    model: HolisticCLIPModel,
    stock_processor: HolisticCLIPProcessor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Weights of all graphs are written to one file, as exporters do, each over those before."""
    write = onnx_folder._write

    def write_over(graph: Any, inputs: Any, path: Path, most_bytes: int) -> bool:
        import onnx

        write(graph, inputs, path, most_bytes)
        shared = path.with_name("model.onnx.data")
        before = shared.read_bytes() if shared.exists() else b""
        shared.unlink(missing_ok=True)
        onnx.save_model(onnx.load(path), path, save_as_external_data=True, location="model.onnx.data")
        after = shared.read_bytes()
        shared.write_bytes(after + before[len(after) :])  # no graph reads beyond the end
        return True

    monkeypatch.setattr(onnx_folder, "_write", write_over)
    with pytest.raises(ExportError, match="differs from the checkpoint in vision_model image_embeds by"):
        export_onnx(model, stock_processor, tmp_path / "poisoned", layout="transformers.js")
    assert not (tmp_path / "poisoned").exists()


@pytest.mark.skipif(not NODE_MODULES.is_dir() or not shutil.which("node"), reason="needs transformers.js in build/npm")
@torch.no_grad()
def test_transformers_js_gives_the_same_vectors(
    exported: tuple[Path, OnnxExport],
    model: HolisticCLIPModel,
    stock_processor: HolisticCLIPProcessor,
    red_square: Image.Image,
    tmp_path: Path,
) -> None:
    folder, _ = exported
    picture, script = tmp_path / "red.png", tmp_path / "embed.mjs"
    red_square.save(picture)
    (tmp_path / "node_modules").symlink_to(NODE_MODULES)
    shutil.copy(Path(__file__).with_name("embed.mjs"), script)
    command = ["node", str(script), str(folder), str(picture), json.dumps(TEXTS)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert ran.returncode == 0, ran.stderr[-3000:]
    found = json.loads(ran.stdout.splitlines()[-1])
    tokens = stock_processor(text=TEXTS, padding=True, return_tensors="pt")
    pixels = stock_processor(images=red_square, return_tensors="pt")
    expected = model(**tokens, **pixels)
    assert found["ids"] == tokens["input_ids"].flatten().tolist()
    for name in ("text_embeds", "image_embeds", "branch_embeds"):
        np.testing.assert_allclose(found[name], expected[name].flatten().numpy(), rtol=0, atol=1e-5)
    scores = expected.logits_per_image.softmax(dim=-1)[0].tolist()
    assert [found["scores"][text] for text in TEXTS] == pytest.approx(scores, abs=1e-4)


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
