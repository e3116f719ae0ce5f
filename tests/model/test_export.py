"""The towers outside eager Python: `torch.compile` in one graph, ONNX in ONNX Runtime, and int8 weights."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch.export import Dim
from torch.nn import functional as F
from transformers.exporters import DynamoConfig, DynamoExporter

from holistic_clip_hf import HolisticCLIPModel

MakeModel = Callable[..., HolisticCLIPModel]
MakeTokens = Callable[..., tuple[Tensor, Tensor]]
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
VISIONS: dict[str, dict[str, Any]] = {
    "isolated": {},
    "mlp": {"branch_type": "mlp"},
    "cls, branched": {"branched_token_mlp": True, "num_branch_layers": 1},
    "probe": {"branch_type": "probe", "branched_head_mlp": True},
    "strict": {"branch_isolation": "strict"},
    "open": {"branch_isolation": "open"},
    "official": {"branch_isolation": "official"},
    "convolutional": {"patch_stem": "convolutional"},
}


def visions(*fast: str, slow: tuple[str, ...] = ()) -> pytest.MarkDecorator:
    rare = [pytest.param(VISIONS[name], marks=pytest.mark.slow, id=name) for name in slow]
    return pytest.mark.parametrize("vision", [*(pytest.param(VISIONS[name], id=name) for name in fast), *rare])


@pytest.fixture(autouse=True)
def nothing_compiled() -> None:
    torch.compiler.reset()


def texts(make_tokens: MakeTokens, lengths: list[int]) -> dict[str, Tensor]:
    ids, mask = make_tokens(lengths)
    return {"input_ids": ids, "attention_mask": mask}


@visions("isolated", "mlp", "probe", slow=("strict", "open", "official", "convolutional"))
@torch.no_grad()
def test_image_features_are_one_graph_for_every_batch_size(make_model: MakeModel, vision: dict[str, Any]) -> None:
    model, counter = make_model(vision=vision), CompileCounter()
    compiled = torch.compile(model.get_image_features, fullgraph=True, dynamic=True, backend=counter)
    for size in (4, 2, 5):
        images = torch.randn(size, 3, 32, 32)
        found, expected = compiled(images), model.get_image_features(images)
        torch.testing.assert_close(found.branch_embeds, expected.branch_embeds, **CLOSE)
        torch.testing.assert_close(found.pooler_output, expected.pooler_output, **CLOSE)
    assert counter.frame_count == 1


@visions("mlp", slow=("isolated",))
@torch.no_grad()
def test_the_tower_with_its_patches_is_one_graph(
    make_model: MakeModel, pixel_values: Tensor, vision: dict[str, Any]
) -> None:
    tower = make_model(vision=vision).vision_model
    found, expected = torch.compile(tower, fullgraph=True, backend="eager")(pixel_values), tower(pixel_values)
    torch.testing.assert_close(found.last_hidden_state, expected.last_hidden_state, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_text_features_are_one_graph_for_every_length(make_model: MakeModel, make_tokens: MakeTokens) -> None:
    model, counter = make_model(), CompileCounter()
    compiled = torch.compile(model.get_text_features, fullgraph=True, dynamic=True, backend=counter)
    for lengths in ([4, 9], [6, 12, 3], [5] * 7):
        batch = texts(make_tokens, lengths)
        found, expected = compiled(**batch).pooler_output, model.get_text_features(**batch).pooler_output
        torch.testing.assert_close(found, expected, **CLOSE)
    assert counter.frame_count == 1


@visions("isolated", slow=("mlp", "probe"))
def test_scoring_is_one_graph(
    make_model: MakeModel, make_tokens: MakeTokens, pixel_values: Tensor, vision: dict[str, Any]
) -> None:
    model = make_model(vision=vision)
    batch = {**texts(make_tokens, [4, 9]), "pixel_values": pixel_values}
    expected = model(**batch).logits_per_image
    model.compile(fullgraph=True, backend="eager")
    torch.testing.assert_close(model(**batch).logits_per_image, expected, **CLOSE)


@pytest.mark.slow
def test_the_loss_of_nested_captions_compiles_in_pieces(
    make_model: MakeModel, make_tokens: MakeTokens, pixel_values: Tensor
) -> None:
    """Lengths, missing and equal captions are values, on which no single graph can depend."""
    model = make_model().train()
    ids, mask = (tensor.unflatten(0, (4, 3)) for tensor in make_tokens([3, 20, 9, 8, 5, 16, 17, 4, 12, 7, 10, 3]))
    steps = []
    for forward in (model, torch.compile(model, backend="eager")):
        model.zero_grad()
        loss = forward(input_ids=ids, attention_mask=mask, pixel_values=pixel_values, return_loss=True).loss
        loss.backward()
        steps.append((loss.detach(), [parameter.grad.clone() for parameter in model.parameters()]))
    torch.testing.assert_close(steps[0], steps[1], **CLOSE)


@visions("isolated", slow=("mlp", "probe"))
def test_training_step_of_the_tower_is_one_graph(
    make_model: MakeModel, pixel_values: Tensor, vision: dict[str, Any]
) -> None:
    model = make_model(vision={**vision, "patch_dropout": 0.5}).train().vision_model
    steps = []
    for tower in (model, torch.compile(model, fullgraph=True, backend="eager")):
        torch.manual_seed(3)
        model.zero_grad()
        branches = tower(pixel_values, output_patches=False).branch_embeds
        branches.square().sum().backward()
        steps.append((branches.detach(), [parameter.grad.clone() for parameter in model.parameters()]))
    torch.testing.assert_close(steps[0], steps[1], **CLOSE)


@pytest.mark.slow
def test_inductor_gives_the_same_numbers(make_model: MakeModel, pixel_values: Tensor) -> None:
    model = make_model()
    steps = []
    for encode in (model.get_image_features, torch.compile(model.get_image_features, fullgraph=True)):
        model.zero_grad()
        branches = encode(pixel_values).branch_embeds
        (branches * torch.arange(branches.numel()).view_as(branches).cos()).sum().backward()
        steps.append((branches.detach(), [parameter.grad for parameter in model.vision_model.parameters()]))
    torch.testing.assert_close(steps[0], steps[1], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_an_exported_program_takes_any_number_of_images(make_model: MakeModel, pixel_values: Tensor) -> None:
    """What the exporters to ONNX, ExecuTorch and OpenVINO start from."""
    model = make_model()
    shapes = {"pixel_values": {0: Dim("images")}}
    config = DynamoConfig(dynamic=True, dynamic_shapes=shapes)
    program = DynamoExporter().export(model, {"pixel_values": pixel_values[:2]}, config).program.module()
    for size in (4, 1):
        found, expected = (of(pixel_values=pixel_values[:size]) for of in (program, model))
        torch.testing.assert_close(found.branch_embeds, expected.branch_embeds, **CLOSE)


def run_onnx(path: Path, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(path)
    names = [output.name for output in session.get_outputs()]
    assert {given.name for given in session.get_inputs()} == set(inputs)
    values = session.run(None, {name: value.numpy() for name, value in inputs.items()})
    return {name: torch.from_numpy(value) for name, value in zip(names, values, strict=True)}


def export_onnx(model: nn.Module, inputs: dict[str, Tensor], folder: Path, **options: Any) -> Path:
    pytest.importorskip("onnxscript")
    from transformers.exporters import OnnxConfig, OnnxExporter

    OnnxExporter().export(model, dict(inputs), OnnxConfig(**options)).save_pretrained(folder)
    return folder / "model.onnx"


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.slow
@visions("isolated", "mlp", "probe", "convolutional")
def test_image_tower_in_onnx(
    make_model: MakeModel, pixel_values: Tensor, tmp_path: Path, vision: dict[str, Any]
) -> None:
    model = make_model(vision=vision)
    some = {"pixel_values": {0: Dim("images")}}
    path = export_onnx(model, {"pixel_values": pixel_values[:2]}, tmp_path, dynamic=True, dynamic_shapes=some)
    for size in (2, 4, 1):
        found, expected = (
            run_onnx(path, {"pixel_values": pixel_values[:size]}),
            model(pixel_values=pixel_values[:size]),
        )
        for name, shape in (("image_embeds", (size, 16)), ("branch_embeds", (size, 3, 16))):
            assert found[name].shape == shape
            torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_text_tower_in_onnx(make_model: MakeModel, make_tokens: MakeTokens, tmp_path: Path) -> None:
    model = make_model()
    some = dict.fromkeys(["input_ids", "attention_mask"], {0: Dim("texts"), 1: Dim("tokens", max=24)})
    path = export_onnx(model, texts(make_tokens, [4, 9]), tmp_path, dynamic=True, dynamic_shapes=some)
    for lengths in ([4, 9], [6, 24, 3], [5]):
        batch = texts(make_tokens, lengths)
        found = run_onnx(path, batch)["text_embeds"]
        assert found.shape == (len(lengths), 16)
        torch.testing.assert_close(found, model(**batch).text_embeds, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@visions("isolated", "mlp", "probe")
def test_both_towers_in_onnx(
    make_model: MakeModel, make_tokens: MakeTokens, pixel_values: Tensor, tmp_path: Path, vision: dict[str, Any]
) -> None:
    """With `dynamic=True` the exporter finds by itself what may change: N, T and L."""
    model = make_model(vision=vision)
    batch = {**texts(make_tokens, [4, 9, 7]), "pixel_values": pixel_values}
    path = export_onnx(model, batch, tmp_path, dynamic=True)
    other = {**texts(make_tokens, [6, 12, 3, 8, 5]), "pixel_values": pixel_values[:2]}
    for inputs in (batch, other):
        found, expected = run_onnx(path, inputs), model(**inputs)
        for name in ("logits_per_image", "branch_embeds", "text_embeds", "image_embeds"):
            torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-4)


def assert_int8_is_near(quantised: Tensor, exact: Tensor, cosine: float) -> None:
    """(N, D) both: the nearest exact vector to each quantised one is its own."""
    assert F.cosine_similarity(quantised, exact).min() > cosine
    nearest = (F.normalize(quantised, dim=-1) @ F.normalize(exact, dim=-1).T).argmax(dim=1)
    assert nearest.tolist() == list(range(len(exact)))


@visions("isolated", "mlp", "probe")
@torch.no_grad()
def test_int8_in_torch(make_model: MakeModel, make_tokens: MakeTokens, vision: dict[str, Any]) -> None:
    """Measured cosines: 0.992 and above. The seeds are fixed; kernels differ between machines."""
    model = make_model(vision=vision)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # in favour of torchao, which is not a dependency
        quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    assert not any(type(module) is nn.Linear for module in quantised.modules())
    batch = {**texts(make_tokens, [5, 9, 7, 12, 4, 10, 8, 6]), "pixel_values": torch.randn(16, 3, 32, 32)}
    found, expected = quantised(**batch), model(**batch)
    assert_int8_is_near(found.image_embeds, expected.image_embeds, 0.98)
    assert_int8_is_near(found.text_embeds, expected.text_embeds, 0.98)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@visions("isolated", "mlp", "probe")
@torch.no_grad()
def test_int8_in_onnx(make_model: MakeModel, pixel_values: Tensor, tmp_path: Path, vision: dict[str, Any]) -> None:
    pytest.importorskip("onnxruntime")
    from transformers.exporters import OnnxRuntimeDynamicConfig, OnnxRuntimeQuantizer

    model = make_model(vision=vision)
    quantizer = OnnxRuntimeQuantizer(OnnxRuntimeDynamicConfig(op_types_to_quantize=["MatMul", "Gemm"]))
    path = export_onnx(model, {"pixel_values": pixel_values}, tmp_path, quantizer=quantizer)
    found = run_onnx(path, {"pixel_values": pixel_values})["image_embeds"]
    assert_int8_is_near(found, model(pixel_values=pixel_values).image_embeds, 0.95)
