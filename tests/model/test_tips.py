"""TIPSv2's two class tokens as branches, against transformers' own model."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModel, Tipsv2Config, Tipsv2Model

from families import BACKBONES, TOKENS, TOWER, make_siglip, make_texts, randomise
from holistic_clip_hf import HolisticCLIPConfig, HolisticCLIPPatchModel, from_tips
from holistic_clip_hf.evaluation.segmentation import read_patches
from holistic_clip_hf.initialization import from_holistic_clip
from holistic_clip_hf.visualization import branch_attention, branch_relevance, patch_grid

CLOSE: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-6}


@pytest.fixture(scope="module")
def stock() -> Tipsv2Model:
    towers = {"text_config": {**TOWER, **TOKENS, "pad_token_id": 0}, "vision_config": BACKBONES["tips"].to_dict()}
    model = randomise(Tipsv2Model(Tipsv2Config(**towers)))
    model.temperature.data.fill_(0.02)
    return model


@pytest.fixture
def images() -> Tensor:
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_each_class_token_is_a_branch(stock: Tipsv2Model, images: Tensor) -> None:
    model = from_tips(stock)
    assert model.config.perspectives == ["web", "synthetic"]
    states = stock.vision_model(images).last_hidden_state
    found = model.get_image_features(images)
    torch.testing.assert_close(found.branch_embeds, F.normalize(states[:, :2], dim=-1), **CLOSE)
    whole = model.get_image_features(images, output_patches=True).last_hidden_state
    torch.testing.assert_close(whole, states, **CLOSE)
    patches = model.get_patch_features(images).patch_embeds
    torch.testing.assert_close(patches, F.normalize(states[:, 2:], dim=-1), **CLOSE)


@torch.no_grad()
def test_the_branch_of_web_texts_gives_the_logits_of_tips(stock: Tipsv2Model, images: Tensor) -> None:
    model = from_tips(stock, fusion="weighted", branch_weights=[1, 0])
    ids, mask = make_texts([4, 9])
    expected = stock(input_ids=ids, attention_mask=mask, pixel_values=images)
    found = model(input_ids=ids, attention_mask=mask, pixel_values=images)
    torch.testing.assert_close(found.logits_per_image, expected.logits_per_image, rtol=1e-5, atol=1e-4)


def test_it_trains_saves_and_loads(stock: Tipsv2Model, images: Tensor, tmp_path: Path) -> None:
    model = from_tips(stock).train()
    ids, mask = make_texts([4, 9, 7, 8, 3, 6])
    ids, mask = (each.unflatten(0, (3, 2)) for each in (ids, mask))
    model(input_ids=ids, attention_mask=mask, pixel_values=images, return_loss=True).loss.backward()
    without = {name for name, each in model.named_parameters() if each.requires_grad and each.grad is None}
    assert without == set()
    tokens = [name for name, _ in model.named_parameters() if name.endswith(("cls_token", "register_tokens"))]
    assert len(tokens) == 2 and all(model.get_parameter(name).grad.abs().sum() > 0 for name in tokens)
    model.eval().save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert loaded.config.vision_config.branch_type == "cls"
    with torch.no_grad():
        found, expected = (each.get_image_features(images).branch_embeds for each in (loaded, model))
    assert torch.equal(found, expected)


def test_maps_are_those_of_the_class_tokens(stock: Tipsv2Model, images: Tensor) -> None:
    model = from_tips(stock)
    stock.vision_model.set_attn_implementation("eager")
    with torch.no_grad():
        attentions = stock.vision_model(images, output_attentions=True).attentions[-1].mean(dim=1)
    torch.testing.assert_close(branch_attention(model, images), attentions[:, :2, 2:], **CLOSE)
    assert patch_grid(model, images) == (4, 4)
    texts = F.normalize(torch.randn(2, 32, generator=torch.Generator().manual_seed(1)), dim=-1)
    found = branch_relevance(model, images, texts)
    assert found.shape == (3, 2, 2, 16)
    norm = stock.vision_model.encoder.layer[-1].norm1
    states: list[Tensor] = []
    handle = norm.register_forward_hook(lambda module, given, output: states.append(output) or output)
    branches = F.normalize(stock.vision_model(images.clone().requires_grad_()).last_hidden_state[:, :2], dim=-1)
    handle.remove()
    for branch in range(2):
        for text in range(2):
            score = (branches[:, branch] @ texts[text]).sum()
            gradient = torch.autograd.grad(score, states[0], retain_graph=True)[0]
            expected = (gradient * states[0]).sum(dim=-1)[:, 2:]
            torch.testing.assert_close(found[:, branch, text], expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_other_programs_take_one_of_its_tokens(stock: Tipsv2Model, images: Tensor) -> None:
    tower = HolisticCLIPPatchModel.from_model(from_tips(stock), branch="synthetic")
    expected = stock.vision_model(images, output_hidden_states=True)
    found = tower(images, output_hidden_states=True)
    torch.testing.assert_close(found.last_hidden_state, expected.last_hidden_state[:, 1:], **CLOSE)
    torch.testing.assert_close(found.hidden_states[-1], expected.hidden_states[-1][:, 1:], **CLOSE)


def test_what_does_not_fit_is_refused(stock: Tipsv2Model, images: Tensor, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is of model type 'siglip'; expected 'tipsv2'"):
        from_tips(make_siglip())
    with pytest.raises(ValueError, match="`num_branches` is 3 and `branch_type` 'cls'; expected 2, the number of"):
        from_tips(stock, perspectives=["a", "b", "c"])
    vision = {"backbone_config": BACKBONES["dinov3"].to_dict(), "branch_type": "cls"}
    with pytest.raises(ValueError, match="of model type 'dinov3_vit'; expected 'probe'"):
        HolisticCLIPConfig(vision_config=vision, perspectives=["a", "b"])
    model = from_tips(stock)
    with pytest.raises(ValueError, match="of model type 'tipsv2_vision_model'; expected 'class_path'"):
        read_patches(model, images, "value")
    states = model.get_image_features(images, output_patches=True).last_hidden_state
    with pytest.raises(ValueError, match="`tower_states` are given to a tower of branch_type='cls'"):
        model.get_image_features(tower_states=states)
    model.save_pretrained(tmp_path)
    assert from_holistic_clip(tmp_path, perspectives=["web", "synthetic"]).config.num_branches == 2
    with pytest.raises(ValueError, match="are its backbone's own; expected their names"):
        from_holistic_clip(tmp_path, perspectives=["synthetic", "web"])
