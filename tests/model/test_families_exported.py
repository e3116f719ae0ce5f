"""Towers of other families outside eager Python: half precision, `torch.compile` in one graph, ONNX Runtime."""

from pathlib import Path

import pytest
import torch
from test_export import export_onnx, run_onnx
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from torch.export import Dim
from torch.nn import functional as F

from families import BACKBONES, END, make_model, make_siglip, make_texts, side_of
from holistic_clip_hf import HolisticCLIPModel
from holistic_clip_hf.initialization import from_siglip

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
SOME = ("siglip", "dinov3", "resnet", "convnext")


def backbones(*fast: str) -> pytest.MarkDecorator:
    rare = [pytest.param(name, marks=pytest.mark.slow) for name in SOME if name not in fast]
    return pytest.mark.parametrize("name", [*fast, *rare])


@pytest.fixture(autouse=True)
def nothing_compiled() -> None:
    torch.compiler.reset()


def draw_images(name: str, count: int) -> Tensor:
    return torch.randn(count, 3, side_of(name), side_of(name), generator=torch.Generator().manual_seed(count))


def full_siglip(name: str) -> HolisticCLIPModel:
    """SigLIP itself, or another backbone beside CLIP's texts."""
    return from_siglip(make_siglip(), perspectives=["a", "b", "c"]) if name == "siglip" else make_model(name)


@backbones("siglip")
@torch.no_grad()
def test_image_features_of_backbones_are_one_graph(name: str) -> None:
    model, counter = full_siglip(name), CompileCounter()
    compiled = torch.compile(model.get_image_features, fullgraph=True, dynamic=True, backend=counter)
    for size in (4, 2, 5):
        images = draw_images(name, size)
        found, expected = compiled(images), model.get_image_features(images)
        torch.testing.assert_close(found.branch_embeds, expected.branch_embeds, **CLOSE)
        torch.testing.assert_close(found.pooler_output, expected.pooler_output, **CLOSE)
    assert counter.frame_count == 1


@torch.no_grad()
def test_siglips_texts_are_one_graph_for_every_length() -> None:
    model, counter = from_siglip(make_siglip(), perspectives=["a"]), CompileCounter()
    compiled = torch.compile(model.get_text_features, fullgraph=True, dynamic=True, backend=counter)
    for lengths in ([4, 9], [6, 12, 3], [5] * 7):
        ids, mask = make_texts(lengths)
        found, expected = compiled(ids, mask).pooler_output, model.get_text_features(ids, mask).pooler_output
        torch.testing.assert_close(found, expected, **CLOSE)
    assert counter.frame_count == 1


@backbones("resnet")
def test_training_step_of_backbones_is_one_graph(name: str) -> None:
    tower, images = full_siglip(name).vision_model, draw_images(name, 3)
    steps = []
    for forward in (tower, torch.compile(tower, fullgraph=True, backend="eager")):
        tower.zero_grad()
        branches = forward(images).branch_embeds
        branches.square().sum().backward()
        gradients = {key: value.grad.clone() for key, value in tower.named_parameters() if value.grad is not None}
        steps.append((branches.detach(), gradients))
    torch.testing.assert_close(steps[0], steps[1], **CLOSE)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", BACKBONES)
@torch.no_grad()
def test_half_precision_of_backbones(name: str, dtype: torch.dtype) -> None:
    images = draw_images(name, 4)
    expected = make_model(name).get_image_features(images).branch_embeds
    found = make_model(name).to(dtype).get_image_features(images).branch_embeds
    assert found.dtype == dtype and F.cosine_similarity(found.float(), expected, dim=-1).min() > 0.99


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@torch.no_grad()
def test_half_precision_of_siglips_texts(dtype: torch.dtype) -> None:
    ids, mask = make_texts([4, 9, 12])
    model = from_siglip(make_siglip(), perspectives=["a"])
    expected = model.get_text_features(ids, mask).text_embeds
    found = model.to(dtype).get_text_features(ids, mask).text_embeds
    assert found.dtype == dtype and F.cosine_similarity(found.float(), expected, dim=-1).min() > 0.99


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("name", SOME)
@torch.no_grad()
def test_image_tower_of_a_backbone_in_onnx(name: str, tmp_path: Path) -> None:
    model = full_siglip(name)
    some = {"pixel_values": {0: Dim("images")}}
    inputs = {"pixel_values": draw_images(name, 2)}
    path = export_onnx(model, inputs, tmp_path, dynamic=True, dynamic_shapes=some)
    for size in (2, 4, 1):
        images = draw_images(name, size)
        found, expected = run_onnx(path, {"pixel_values": images}), model(pixel_values=images)
        for output in ("image_embeds", "branch_embeds"):
            torch.testing.assert_close(found[output], expected[output], rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@torch.no_grad()
def test_siglips_texts_in_onnx_are_padding_proof(tmp_path: Path) -> None:
    model = from_siglip(make_siglip(), perspectives=["a"])
    ids, mask = make_texts([4, 9])
    some = dict.fromkeys(["input_ids", "attention_mask"], {0: Dim("texts"), 1: Dim("tokens", max=12)})
    path = export_onnx(model, {"input_ids": ids, "attention_mask": mask}, tmp_path, dynamic=True, dynamic_shapes=some)
    for lengths in ([4, 9], [6, 12, 3], [5]):
        ids, mask = make_texts(lengths)
        junk = ids.masked_fill(mask == 0, END)
        found = run_onnx(path, {"input_ids": junk, "attention_mask": mask})["text_embeds"]
        for row, length in enumerate(lengths):
            alone = model.get_text_features(ids[row : row + 1, :length]).text_embeds[0]
            torch.testing.assert_close(found[row], alone, rtol=1e-4, atol=1e-4)
