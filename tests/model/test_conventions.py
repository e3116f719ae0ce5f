"""What users of transformers models take for granted: attention back ends, dtypes, device maps, adapters, shards."""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import infer_auto_device_map
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModel

from holistic_clip_hf import HolisticCLIPModel
from holistic_clip_hf.options_holistic_clip import BRANCH_ISOLATIONS

MakeModel = Callable[..., HolisticCLIPModel]
MakeTokens = Callable[..., tuple[Tensor, Tensor]]
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
TOWERS: dict[str, dict[str, Any]] = {isolation: {"branch_isolation": isolation} for isolation in BRANCH_ISOLATIONS} | {
    "mlp": {"branch_type": "mlp"},
    "cls, branched": {"branched_token_mlp": True, "num_branch_layers": 1},
    "probe": {"branch_type": "probe"},
    "probe, branched": {"branch_type": "probe", "branched_head_mlp": True},
}
BRANCH_TYPES: dict[str, dict[str, Any]] = {
    "cls": {},
    "mlp": {"branch_type": "mlp"},
    "cls, branched": {"branched_token_mlp": True, "num_branch_layers": 1},
    "probe": {"branch_type": "probe", "branched_head_mlp": True},
}
every_tower = pytest.mark.parametrize("vision", TOWERS.values(), ids=TOWERS)
every_branch_type = pytest.mark.parametrize("vision", BRANCH_TYPES.values(), ids=BRANCH_TYPES)


@pytest.fixture
def batch(make_tokens: MakeTokens, pixel_values: Tensor) -> dict[str, Tensor]:
    ids, mask = make_tokens([4, 9, 6, 12])
    return {"input_ids": ids, "attention_mask": mask, "pixel_values": pixel_values}


def assert_flex_equals_sdpa(make_model: MakeModel, batch: dict[str, Tensor], vision: dict[str, Any]) -> None:
    sdpa, flex = (make_model(vision=vision, attention=name) for name in ("sdpa", "flex_attention"))
    assert flex.vision_model.config._attn_implementation == "flex_attention"
    torch.testing.assert_close(flex(**batch).logits_per_image, sdpa(**batch).logits_per_image, **CLOSE)
    images = batch["pixel_values"]
    for patches in (False, True):  # without, the last layer is pruned to the class tokens
        found, expected = (model.get_image_features(images, output_patches=patches) for model in (flex, sdpa))
        torch.testing.assert_close(found.last_hidden_state, expected.last_hidden_state, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found.branch_embeds, expected.branch_embeds, **CLOSE)


@every_tower
@torch.no_grad()
def test_flex_attention_equals_sdpa(make_model: MakeModel, batch: dict[str, Tensor], vision: dict[str, Any]) -> None:
    with torch.compiler.set_stance("force_eager"):  # the same function, without the wait for its kernel
        assert_flex_equals_sdpa(make_model, batch, vision)


@pytest.mark.slow
@pytest.mark.parametrize("isolation", ["isolated", "official"])
@torch.no_grad()
def test_the_compiled_kernel_of_flex_attention(
    make_model: MakeModel, batch: dict[str, Tensor], isolation: str
) -> None:
    assert_flex_equals_sdpa(make_model, batch, {"branch_isolation": isolation})


@torch.no_grad()
def test_each_tower_has_its_own_attention(make_model: MakeModel, batch: dict[str, Tensor]) -> None:
    model = make_model()
    expected = model(**batch).logits_per_image
    model.set_attn_implementation({"text_config": "flex_attention", "vision_config": "eager"})
    assert model.text_model.config._attn_implementation == "flex_attention"
    assert model.vision_model.config._attn_implementation == "eager"
    with torch.compiler.set_stance("force_eager"):
        output = model(**batch, output_attentions=True)
    torch.testing.assert_close(output.logits_per_image, expected, **CLOSE)
    assert len(output.vision_model_output.attentions) == 2
    model.set_attn_implementation("sdpa")
    assert torch.equal(model(**batch).logits_per_image, expected)


# Unit round-off is 2^-8 and 2^-11; measured over the towers below: cosine 0.9998 and 0.999996, loss 0.016 and 0.003.
HALVES = pytest.mark.parametrize(
    ("dtype", "cosine", "loss_error"), [(torch.bfloat16, 0.999, 0.05), (torch.float16, 0.9999, 0.01)]
)


@HALVES
@every_tower
def test_half_precision(
    make_model: MakeModel,
    batch: dict[str, Tensor],
    tmp_path: Path,
    vision: dict[str, Any],
    dtype: torch.dtype,
    cosine: float,
    loss_error: float,
) -> None:
    whole = make_model(vision=vision)
    whole.save_pretrained(tmp_path)
    expected = whole(**batch, return_loss=True)
    half = HolisticCLIPModel.from_pretrained(tmp_path, dtype=dtype)
    assert half.dtype == dtype
    assert {parameter.dtype for parameter in half.parameters()} == {dtype}
    converted = make_model(vision=vision).to(dtype).state_dict()
    assert all(torch.equal(value, converted[name]) for name, value in half.state_dict().items())
    output = half(**batch, return_loss=True)  # images are given in float32, as the processor gives them
    with torch.autocast("cpu", dtype=dtype):
        mixed = whole(**batch, return_loss=True)
    for found in (output, mixed):
        assert found.branch_embeds.dtype == dtype and found.loss.dtype == torch.float32
        assert found.loss.item() == pytest.approx(expected.loss.item(), abs=loss_error)
        for name in ("branch_embeds", "text_embeds", "image_embeds"):
            assert F.cosine_similarity(found[name].float(), expected[name], dim=-1).min() > cosine
    output.loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in half.parameters() if parameter.grad is not None)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("attention", ["eager", "sdpa", "flex_attention"])
@torch.no_grad()
def test_large_logits_behind_the_mask_stay_finite(make_model: MakeModel, attention: str, dtype: torch.dtype) -> None:
    """The mask holds the lowest half: a logit of -1000 and below carries it over the edge, to minus infinity."""
    tower = make_model(vision={"branch_isolation": "strict"}, attention=attention).to(dtype).vision_model
    tokens, attend = 30 * torch.randn(2, 19, 32, dtype=dtype), tower.encoder.layers[0].self_attn
    queries, keys = (linear(tokens).float() for linear in (attend.q_proj, attend.k_proj))
    assert (queries @ keys.mT * attend.scale).min() < -1000
    with torch.compiler.set_stance("force_eager"):
        output, _ = attend(tokens, tower._isolation_mask(tokens))
    assert output.isfinite().all()


def test_double_precision(make_model: MakeModel, batch: dict[str, Tensor]) -> None:
    double = make_model().to(torch.float64)
    output = double(**batch, return_loss=True)
    assert output.loss.dtype == output.branch_embeds.dtype == torch.float64
    torch.testing.assert_close(output.loss.float(), make_model()(**batch, return_loss=True).loss, **CLOSE)


DEVICE_MAPS: dict[str, str | dict[str, str]] = {
    "auto": "auto",
    "one device": {"": "cpu"},
    "all on disk": {"": "disk"},
    "vision tower on disk": {
        **dict.fromkeys(["text_model", "text_projection", "visual_projection", "logit_scale"], "cpu"),
        "vision_model": "disk",
    },
    "split within the vision tower": {
        **dict.fromkeys(["text_model", "text_projection", "visual_projection", "logit_scale"], "cpu"),
        **dict.fromkeys(
            [f"vision_model.{part}" for part in ("embeddings", "pre_layrnorm", "post_layernorm", "head")], "cpu"
        ),
        "vision_model.encoder.layers.0": "cpu",
        "vision_model.encoder.layers.1": "disk",
    },
}


@every_branch_type
@pytest.mark.parametrize("device_map", DEVICE_MAPS.values(), ids=DEVICE_MAPS)
@pytest.mark.filterwarnings(
    "ignore:The following device_map keys do not match:UserWarning"
)  # `logit_scale`, no module
@torch.no_grad()
def test_device_maps(
    make_model: MakeModel,
    batch: dict[str, Tensor],
    tmp_path: Path,
    vision: dict[str, Any],
    device_map: str | dict[str, str],
) -> None:
    model = make_model(vision=vision)
    model.save_pretrained(tmp_path / "model")
    placed = AutoModel.from_pretrained(tmp_path / "model", device_map=device_map, offload_folder=tmp_path / "weights")
    offloaded = {name for name, parameter in placed.named_parameters() if parameter.device.type == "meta"}
    on_disk = [] if isinstance(device_map, str) else [key for key, place in device_map.items() if place == "disk"]
    assert offloaded == {name for name, _ in model.named_parameters() if name.startswith(tuple(on_disk))}
    if not on_disk:
        buffers = dict(model.named_buffers())
        assert all(torch.equal(value, buffers[name]) for name, value in placed.named_buffers())
    assert torch.equal(placed(**batch).logits_per_image, model(**batch).logits_per_image)
    images, texts = batch["pixel_values"], batch["input_ids"]
    assert torch.equal(placed.get_image_features(images)[1], model.get_image_features(images)[1])
    nested = texts.view(2, 2, -1)
    assert torch.equal(placed.encode_captions(nested), model.encode_captions(nested))


@every_branch_type
def test_device_maps_keep_layers_whole(make_model: MakeModel, vision: dict[str, Any]) -> None:
    """A layer cut in two could not add its residual."""
    model = make_model(vision=vision)
    cut = set()
    for kilobytes in range(10, 250, 5):
        room = {"cpu": 1000 * kilobytes, "disk": 10**9}
        cut |= set(infer_auto_device_map(model, room, no_split_module_classes=model._no_split_modules))
    assert {"vision_model.embeddings", "vision_model.encoder"} <= cut  # the tower itself is cut
    assert not {key for key in cut if re.search(r"(embeddings|layers\.\d)\.", key)}


@every_branch_type
def test_lora(make_model: MakeModel, batch: dict[str, Tensor], tmp_path: Path, vision: dict[str, Any]) -> None:
    peft = pytest.importorskip("peft")
    settings = peft.LoraConfig(
        r=2, target_modules=["q_proj", "v_proj"], modules_to_save=["visual_projection"], init_lora_weights=False
    )
    model = peft.get_peft_model(make_model(vision=vision), settings)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model(**batch, return_loss=True).loss.backward()
    torch.optim.SGD(trainable, lr=0.1).step()
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved == {name for name in before if "lora_" in name or "visual_projection.modules_to_save" in name}
    num_attentions = 4 + ("branched_head_mlp" in vision)
    assert len(moved) == num_attentions * 2 * 2 + 1  # towers, layers, projections, factors; and the saved one
    expected = model(**batch).logits_per_image.detach()
    assert (expected - make_model(vision=vision)(**batch).logits_per_image).abs().max() > 0.1

    model.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(make_model(vision=vision), tmp_path).eval()
    torch.testing.assert_close(loaded(**batch).logits_per_image, expected, rtol=1e-4, atol=1e-4)
    by_itself = make_model(vision=vision)
    by_itself.load_adapter(tmp_path)
    torch.testing.assert_close(by_itself.eval()(**batch).logits_per_image, expected, rtol=1e-4, atol=1e-4)
    merged = model.merge_and_unload()
    assert type(merged) is HolisticCLIPModel
    assert set(merged.state_dict()) == set(make_model(vision=vision).state_dict())
    torch.testing.assert_close(merged(**batch).logits_per_image, expected, rtol=1e-4, atol=1e-4)


@every_branch_type
def test_shards(make_model: MakeModel, tmp_path: Path, vision: dict[str, Any]) -> None:
    model = make_model(vision=vision)
    model.save_pretrained(tmp_path, max_shard_size="50KB")
    size = sum(parameter.nbytes for parameter in model.parameters())
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) >= math.ceil(size / 50_000) > 1
    assert {path.suffix for path in tmp_path.iterdir()} == {".safetensors", ".json", ".py"}  # no pickle
    loaded = AutoModel.from_pretrained(tmp_path).state_dict()
    state = model.state_dict()
    assert loaded.keys() == state.keys()
    assert all(torch.equal(value, loaded[name]) for name, value in state.items())


@pytest.mark.parametrize("fusion", ["mean", "softmax"])
def test_towers_on_two_devices(make_model: MakeModel, batch: dict[str, Tensor], fusion: str) -> None:
    """As a device map over two GPUs leaves it; the meta device stands for the second."""
    model = make_model(fusion=fusion)
    model.vision_model.to("meta")
    model.visual_projection.to("meta")
    batch["pixel_values"] = batch["pixel_values"].to("meta")
    output = model(**batch)
    assert output.logits_per_image.device == output.image_embeds.device == torch.device("meta")
