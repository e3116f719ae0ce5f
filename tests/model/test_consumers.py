"""Programs of transformers, unmodified, with a tower of three branches inside: ten of them by three kinds of branches.

Each runs forward and backward, is saved and reloaded, and, with the code beside it, is loaded by strangers.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers import (
    BertConfig,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    GemmaConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    Qwen2Config,
    UperNetConfig,
    UperNetForSemanticSegmentation,
    VipLlavaConfig,
    VipLlavaForConditionalGeneration,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
)

from holistic_clip_hf import (
    HolisticCLIPModel,
    HolisticCLIPPatchModel,
    HolisticCLIPVisionBackbone,
    HolisticCLIPVisionModelWithProjection,
)
from holistic_clip_hf.publishing.consumers import carry_code, require_fitting

NAMES = ["short", "style", "shape"]
BRANCH_TYPES = ("cls", "mlp", "probe")
IMAGE, VOCABULARY = 64, 70  # id of the image's token, number of tokens
WIDTH = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT = {**WIDTH, "num_key_value_heads": 1, "vocab_size": VOCABULARY, "head_dim": 16, "pad_token_id": 0}
MakeModel = Callable[..., HolisticCLIPModel]


class Consumer(NamedTuple):
    """A program: its model around a tower, its inputs for two images, and the Auto class that strangers use."""

    make: Callable[[HolisticCLIPModel], Any]
    inputs: Callable[[Tensor], dict[str, Any]]
    auto: str = "AutoModelForImageTextToText"
    tower: str = ""


def text_with(num_tokens: int) -> Tensor:
    """(2, L): one token, those of the image, two tokens."""
    return torch.tensor([[5, *[IMAGE] * num_tokens, 7, 9]] * 2)


def around(kind: Any, config_kind: Any, text: Any, path: str = "model.vision_tower", **options: Any) -> Any:
    """Return what makes a vision-language model and puts the tower's weights into it."""
    token = options.pop("class_token", True)

    def make(model: HolisticCLIPModel) -> Any:
        tower = HolisticCLIPPatchModel.from_model(model, class_token=token, branch="style")
        config = config_kind(vision_config=tower.config, text_config=text, image_token_index=IMAGE, **options)
        torch.manual_seed(0)
        made = kind(config)
        made.get_submodule(path).load_state_dict(tower.state_dict())
        for parameter in made.model.multi_modal_projector.parameters():
            if not parameter.any():  # Gemma 3 begins blind
                nn.init.normal_(parameter)
        return made

    return make


def prompt(num_tokens: int, **more: Any) -> Callable[[Tensor], dict[str, Any]]:
    def inputs(pixels: Tensor) -> dict[str, Any]:
        ids = text_with(num_tokens)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels, "labels": ids} | more

    return inputs


def tiles(pixels: Tensor) -> dict[str, Any]:
    """The whole image, and one tile of it."""
    ids = text_with(16 + 4 * 5)
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    return {**given, "pixel_values": pixels[:, None].repeat(1, 2, 1, 1, 1), "image_sizes": torch.full((2, 2), 32)}


def make_captioner(model: HolisticCLIPModel) -> Any:
    decoder = BertConfig(**WIDTH, vocab_size=VOCABULARY, is_decoder=True, add_cross_attention=True)
    tower = HolisticCLIPPatchModel.from_model(model)
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(tower.config, decoder)
    made = VisionEncoderDecoderModel(config)
    made.encoder.load_state_dict(tower.state_dict())
    return made


def make_dual(model: HolisticCLIPModel) -> Any:
    tower = HolisticCLIPPatchModel.from_model(model)
    text = BertConfig(**WIDTH, vocab_size=VOCABULARY)
    config = VisionTextDualEncoderConfig.from_vision_text_configs(tower.config, text, projection_dim=16)
    made = VisionTextDualEncoderModel(config)
    made.vision_model.load_state_dict(tower.state_dict())
    return made


def make_segmenter(model: HolisticCLIPModel) -> Any:
    tower = HolisticCLIPVisionBackbone.from_model(model, out_features=["stem", "stage1", "stage2"])
    config = UperNetConfig(backbone_config=tower.config, hidden_size=16, use_auxiliary_head=False, num_labels=3)
    made = UperNetForSemanticSegmentation(config)
    made.backbone.load_state_dict(tower.state_dict())
    return made


def segmented(pixels: Tensor) -> dict[str, Any]:
    """Wide images, of no whole number of patches."""
    return {"pixel_values": nn.functional.interpolate(pixels, (44, 65)), "labels": torch.ones(2, 44, 65).long()}


def pair(pixels: Tensor) -> dict[str, Any]:
    ids = torch.tensor([[5, 6, 7], [8, 9, 10]])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels, "return_loss": True}


gemma = GemmaConfig(**TEXT)
gemma3 = Gemma3TextConfig(**TEXT, layer_types=["full_attention"] * 2)
CONSUMERS = {
    "llava": Consumer(
        around(LlavaForConditionalGeneration, LlavaConfig, LlamaConfig(**TEXT)), prompt(16), tower="model.vision_tower"
    ),
    "llava next": Consumer(
        around(
            LlavaNextForConditionalGeneration, LlavaNextConfig, LlamaConfig(**TEXT), image_grid_pinpoints=[[32, 32]]
        ),
        tiles,
        tower="model.vision_tower",
    ),
    "llava onevision": Consumer(
        around(
            LlavaOnevisionForConditionalGeneration,
            LlavaOnevisionConfig,
            Qwen2Config(**TEXT),
            image_grid_pinpoints=[[32, 32]],
            class_token=False,
        ),
        tiles,
        tower="model.vision_tower",
    ),
    "vip llava": Consumer(
        around(
            VipLlavaForConditionalGeneration, VipLlavaConfig, LlamaConfig(**TEXT), vision_feature_layer=[-2, -1, 0]
        ),
        prompt(16),
        tower="model.vision_tower",
    ),
    "paligemma": Consumer(
        around(PaliGemmaForConditionalGeneration, PaliGemmaConfig, gemma, projection_dim=32, class_token=False),
        prompt(16, token_type_ids=torch.zeros(2, 19).long()),
        tower="model.vision_tower",
    ),
    "gemma 3": Consumer(
        around(Gemma3ForConditionalGeneration, Gemma3Config, gemma3, mm_tokens_per_image=4, class_token=False),
        prompt(4, token_type_ids=(text_with(4) == IMAGE).long()),
        tower="model.vision_tower",
    ),
    "encoder-decoder": Consumer(
        make_captioner,
        lambda pixels: {"pixel_values": pixels, "decoder_input_ids": text_with(0), "labels": text_with(0)},
        tower="encoder",
    ),
    "dual encoder": Consumer(make_dual, pair, "AutoModel", "vision_model"),
    "upernet": Consumer(make_segmenter, segmented, "AutoModelForSemanticSegmentation", "backbone"),
}
by_branch_type = pytest.mark.parametrize("branch_type", BRANCH_TYPES)


@pytest.fixture
def make_tower(make_model: MakeModel) -> Callable[[str], HolisticCLIPModel]:
    return lambda branch_type: make_model(perspectives=NAMES, vision={"branch_type": branch_type})


def answer(model: nn.Module, inputs: dict[str, Any]) -> Tensor:
    with torch.no_grad():
        found = model(**inputs)
    return found.logits_per_image if "logits_per_image" in found else found.logits


def reloaded(kind: Any, folder: Path) -> nn.Module:
    return kind.from_pretrained(folder).eval()


@pytest.mark.parametrize("name", CONSUMERS)
@by_branch_type
def test_a_program_takes_the_tower(
    make_tower: Callable[[str], HolisticCLIPModel], pixel_values: Tensor, tmp_path: Path, name: str, branch_type: str
) -> None:
    consumer = CONSUMERS[name]
    model, inputs = consumer.make(make_tower(branch_type)), consumer.inputs(pixel_values[:2])
    model.train()(**inputs).loss.backward()
    tower = model.get_submodule(consumer.tower)
    trained = [name for name, each in tower.named_parameters() if each.grad is not None and each.grad.any()]
    assert any("encoder.layers.0" in name for name in trained), trained
    expected = answer(model.eval(), inputs)
    model.save_pretrained(tmp_path / "saved")
    found = reloaded(type(model), tmp_path / "saved")
    torch.testing.assert_close(answer(found, inputs), expected, rtol=1e-5, atol=1e-6)
    # The answer is one about the image.
    inputs["pixel_values"] = inputs["pixel_values"].flip(-1)
    assert not torch.allclose(answer(model, inputs), expected, atol=1e-5)


STRANGER = """
import sys

import torch
import transformers

torch.set_num_threads(1)
found = {}
for name, auto, folder in zip(*[iter(sys.argv[3:])] * 3):
    model = getattr(transformers, auto).from_pretrained(folder, trust_remote_code=True).eval()
    towers = [each for each in model.modules() if "towers_holistic_clip" in type(each).__module__]
    assert towers and all(type(each).__module__.startswith("transformers_modules.") for each in towers)
    with torch.no_grad():
        output = model(**torch.load(sys.argv[1])[name])
    found[name] = output.get("logits_per_image", output.get("logits", output.get("image_embeds")))
torch.save(found, sys.argv[2])
assert "holistic_clip_hf" not in sys.modules
"""


@pytest.mark.slow
@by_branch_type
def test_strangers_load_every_program(
    make_tower: Callable[[str], HolisticCLIPModel],
    pixel_values: Tensor,
    tmp_path: Path,
    branch_type: str,
    without_the_package: Callable[..., str],
) -> None:
    given, expected, arguments = {}, {}, []
    for name, consumer in CONSUMERS.items():
        model = consumer.make(make_tower(branch_type)).eval()
        given[name] = consumer.inputs(pixel_values[:2])
        expected[name] = answer(model, given[name])
        model.save_pretrained(tmp_path / name)
        carry_code(tmp_path / name)
        arguments += [name, consumer.auto, tmp_path / name]
    encoder = HolisticCLIPVisionModelWithProjection.from_model(make_tower(branch_type))
    encoder.save_pretrained(tmp_path / "adapter")
    given["adapter"], expected["adapter"] = {"pixel_values": pixel_values}, encoder(pixel_values).image_embeds.detach()
    torch.save(given, tmp_path / "inputs.pt")
    without_the_package(
        STRANGER,
        *(tmp_path / "inputs.pt", tmp_path / "found.pt"),
        *arguments,
        *("adapter", "AutoModel", tmp_path / "adapter"),
    )
    found = torch.load(tmp_path / "found.pt")
    assert found.keys() == expected.keys()
    for name, numbers in expected.items():
        torch.testing.assert_close(found[name], numbers, rtol=1e-5, atol=1e-5)


@by_branch_type
def test_an_adapter_of_diffusers_calls_it_as_clips(
    make_tower: Callable[[str], HolisticCLIPModel], pixel_values: Tensor, tmp_path: Path, branch_type: str
) -> None:
    """The calls of `encode_image` and `load_ip_adapter` of diffusers."""
    model = make_tower(branch_type)
    model.save_pretrained(tmp_path / "both")
    encoder = HolisticCLIPVisionModelWithProjection.from_pretrained(tmp_path / "both").eval()
    assert (encoder.config.image_size, encoder.config.projection_dim, encoder.config.hidden_size) == (32, 16, 32)
    pixels = pixel_values.to(device=encoder.device, dtype=next(encoder.parameters()).dtype)
    states = encoder(pixels, output_hidden_states=True).hidden_states[-2]
    uncond = encoder(torch.zeros_like(pixels), output_hidden_states=True).hidden_states[-2]
    assert states.shape == uncond.shape == (4, 17, 32)
    embeds = encoder(pixels).image_embeds
    assert embeds.shape == (4, 16) and torch.zeros_like(embeds).shape == embeds.shape
    # The direction is that of the fused vector, which is what texts are held against.
    fused = model.get_image_features(pixel_values).pooler_output
    torch.testing.assert_close(nn.functional.normalize(embeds, dim=-1), fused, rtol=1e-5, atol=1e-6)
    embeds.square().sum().backward()
    encoder.save_pretrained(tmp_path / "alone")
    alone = reloaded(HolisticCLIPVisionModelWithProjection, tmp_path / "alone")
    assert torch.equal(alone(pixels).image_embeds, embeds)
    assert type(transformers.AutoModel.from_pretrained(tmp_path / "alone")) is type(encoder)


def test_a_class_token_asked_of_patches_alone_is_refused(
    make_tower: Callable[[str], HolisticCLIPModel], tmp_path: Path
) -> None:
    model = make_tower("cls")
    patches, token = (HolisticCLIPPatchModel.from_model(model, class_token=each).config for each in (False, True))
    text = LlamaConfig(**TEXT)
    with pytest.raises(ValueError, match="drops the first state.*`vision_feature_select_strategy='full'`"):
        require_fitting(LlavaConfig(vision_config=patches, text_config=text))
    with pytest.raises(ValueError, match="'vipllava' drops the first state of each image, which would be a patch"):
        require_fitting(VipLlavaConfig(vision_config=patches, text_config=text))
    with pytest.raises(ValueError, match="'paligemma' takes every state for a patch; expected False"):
        require_fitting(PaliGemmaConfig(vision_config=token, text_config=gemma))
    with pytest.raises(ValueError, match="'llava' and has no tower of this package"):
        require_fitting(LlavaConfig(text_config=text))
    require_fitting(
        LlavaConfig(
            vision_config=patches, text_config=text, vision_feature_select_strategy="full", image_seq_length=16
        )
    )
    with pytest.raises(FileNotFoundError, match="has no `config.json`"):
        carry_code(tmp_path)
    HolisticCLIPPatchModel.from_model(model).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="holds a tower by itself"):
        carry_code(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ValueError, match="'bert' and has no tower"):
        carry_code(tmp_path)
