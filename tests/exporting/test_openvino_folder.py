"""Graphs for OpenVINO, run by OpenVINO against the model."""

import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from holistic_clip_hf import HolisticCLIPModel, HolisticCLIPProcessor
from holistic_clip_hf.exporting import openvino_folder
from holistic_clip_hf.exporting.openvino_folder import EXACT, export_openvino
from holistic_clip_hf.exporting.verification import ExportError

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
NAMES = ["short", "style", "shape"]
FILES = {f"{graph}.{ending}" for graph in ("vision_model", "text_model", "model") for ending in ("xml", "bin")}
MISSING = "openvino is not installed. Run: pip install 'holistic-clip-hf[openvino]'"
MakeModel = Callable[..., HolisticCLIPModel]


@pytest.mark.slow
@torch.no_grad()
def test_openvino_gives_the_models_vectors(
    make_model: MakeModel, processor: HolisticCLIPProcessor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    openvino = pytest.importorskip("openvino", reason=MISSING)
    model = make_model(perspectives=NAMES)
    report = export_openvino(model, processor, tmp_path / "openvino")
    assert set(report.files) == FILES and max(report.differences.values()) < 1e-5
    names = {path.name for path in (tmp_path / "openvino").iterdir()}
    assert FILES | {"config.json", "export.json", "tokenizer.json", "preprocessor_config.json"} < names
    pixels, tokens = torch.randn(5, 3, 32, 32), processor(text=["a red square", "one circle"], return_tensors="pt")
    expected = model(pixel_values=pixels, **tokens)
    for graph, given in (("vision_model", {"pixel_values": pixels}), ("text_model", dict(tokens))):
        compiled = openvino.Core().compile_model(tmp_path / "openvino" / f"{graph}.xml", "CPU", EXACT)
        for output, value in compiled({name: each.numpy() for name, each in given.items()}).items():
            np.testing.assert_allclose(value, expected[output.any_name].numpy(), rtol=0, atol=1e-5)
    weights = sum(value.numel() for value in model.vision_model.state_dict().values())
    assert (tmp_path / "openvino" / "vision_model.bin").stat().st_size >= 4 * weights  # not 16 bits

    monkeypatch.setattr(openvino_folder, "TOLERANCE", 1e-12)
    with pytest.raises(ExportError, match="differs from the checkpoint in vision_model image_embeds"):
        export_openvino(model, processor, tmp_path / "wrong")
    assert not (tmp_path / "wrong").exists()


def test_without_openvino_it_is_one_sentence(
    make_model: MakeModel, processor: HolisticCLIPProcessor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ImportError, match=re.escape(MISSING)):
        export_openvino(make_model(perspectives=NAMES), processor, tmp_path / "openvino")
