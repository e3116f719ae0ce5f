"""Other people's CLIPs as ours: nothing lost, nothing made up, and before training the same answers."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import BertConfig, CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

from conftest import randomise
from holistic_clip_hf import HolisticCLIPConfig, HolisticCLIPModel
from holistic_clip_hf.initialization import from_clip, from_holistic_clip, stretch_text_positions

MakeConfig = Callable[..., HolisticCLIPConfig]
MakeClip = Callable[..., CLIPModel]
MakeTokens = Callable[[list[int]], tuple[Tensor, Tensor]]
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
H3 = {"num_branches": 3, "num_branch_layers": 2}
COPIES = [{**H3, "branch_type": "cls"}, {**H3, "branch_type": "mlp"}, {**H3, "branched_token_mlp": True}]


@pytest.fixture
def make_clip(make_config: MakeConfig) -> MakeClip:
    def make(hidden_act: str = "gelu") -> CLIPModel:
        config = make_config()
        text = {name: config.text_config.to_dict()[name] for name in CLIPTextConfig.__annotations__}
        vision = {name: config.vision_config.to_dict()[name] for name in CLIPVisionConfig.__annotations__}
        act = {"hidden_act": hidden_act}
        stock = CLIPConfig(text_config=text | act, vision_config=vision | act, projection_dim=config.projection_dim)
        clip = CLIPModel(stock).eval()
        randomise(clip)
        return clip

    return make


@pytest.mark.parametrize("hidden_act", ["gelu", "quick_gelu"])
@pytest.mark.parametrize("branch_type", ["cls", "mlp"])
def test_one_branch_is_clip(
    make_clip: MakeClip, make_tokens: MakeTokens, pixel_values: Tensor, branch_type: str, hidden_act: str
) -> None:
    clip = make_clip(hidden_act)
    model = from_clip(clip, vision_config={"num_branches": 1, "branch_type": branch_type, "num_branch_layers": 1})
    ids, mask = make_tokens([4, 9, 12])
    batch = {"input_ids": ids, "attention_mask": mask, "pixel_values": pixel_values}
    torch.testing.assert_close(model(**batch).logits_per_image, clip(**batch).logits_per_image, **CLOSE)


@pytest.mark.parametrize("vision", COPIES, ids=["cls", "mlp", "cls, branched"])
def test_copies_are_clip_before_training(make_clip: MakeClip, pixel_values: Tensor, vision: dict[str, Any]) -> None:
    clip = make_clip()
    output = from_clip(clip, vision_config=vision).get_image_features(pixel_values)
    expected = F.normalize(clip.get_image_features(pixel_values).pooler_output, dim=-1)
    torch.testing.assert_close(output.pooler_output, expected, **CLOSE)
    torch.testing.assert_close(output.branch_embeds, expected[:, None].expand(-1, 3, -1), **CLOSE)


@pytest.mark.parametrize("isolation", ["isolated", "strict", "open", "official"])
def test_copies_are_only_near_clip_where_patches_see_more_or_less(
    make_clip: MakeClip, pixel_values: Tensor, isolation: str
) -> None:
    clip = make_clip()
    found = from_clip(clip, vision_config={**H3, "branch_isolation": isolation}).get_image_features(pixel_values)
    expected = F.normalize(clip.get_image_features(pixel_values).pooler_output, dim=-1)
    assert 1e-4 < (found.pooler_output - expected).abs().max() < 0.3


def test_perspectives_say_how_many_branches(make_clip: MakeClip) -> None:
    assert from_clip(make_clip(), perspectives=["short", "style"]).config.num_branches == 2
    assert from_clip(make_clip()).config.perspectives == HolisticCLIPConfig().perspectives


def test_an_initial_temperature_of_its_own_is_kept(make_clip: MakeClip) -> None:
    clip = make_clip()
    clip.config.logit_scale_init_value = 1.5
    assert from_clip(clip, vision_config=H3).config.logit_scale_init_value == 1.5


@pytest.mark.parametrize("vision", COPIES, ids=["cls", "mlp", "cls, branched"])
def test_perturbation(make_clip: MakeClip, pixel_values: Tensor, vision: dict[str, Any]) -> None:
    clip = make_clip()
    before = torch.random.get_rng_state()
    plain, one, again, two = (
        from_clip(clip, vision_config=vision, perturbation=share, seed=seed).state_dict()
        for share, seed in ((0, 1), (0.1, 1), (0.1, 1), (0.1, 2))
    )
    assert torch.equal(torch.random.get_rng_state(), before)
    for name, value in plain.items():
        assert torch.equal(one[name], again[name])
        if ".branch_" not in name:
            assert torch.equal(one[name], value) and torch.equal(clip.state_dict()[name], value)
            continue
        assert not torch.equal(one[name], two[name])
        relative = (one[name] - value).square().mean().sqrt() / value.square().mean().sqrt()
        assert relative.item() == pytest.approx(0.1, rel=0.35)
    embeds = from_clip(clip, vision_config=vision, perturbation=0.1).get_image_features(pixel_values).branch_embeds
    assert (embeds[:, 1] - embeds[:, 2]).abs().max() > 1e-3


@pytest.mark.parametrize("share", [-0.1, float("nan"), float("inf")])
def test_perturbation_out_of_range_is_refused(make_clip: MakeClip, share: float) -> None:
    with pytest.raises(ValueError, match="`perturbation` is"):
        from_clip(make_clip(), vision_config=H3, perturbation=share)


def test_training_ours_leaves_theirs_alone(make_clip: MakeClip) -> None:
    clip = make_clip()
    before = {name: value.clone() for name, value in clip.state_dict().items()}
    model = from_clip(clip, vision_config=H3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(value, before[name]) for name, value in clip.state_dict().items())


def test_a_folder_of_half_precision_becomes_float32(make_clip: MakeClip, tmp_path: Path) -> None:
    clip = make_clip().half()
    clip.save_pretrained(tmp_path)
    model = from_clip(tmp_path, vision_config=COPIES[1])
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert not model.training
    noisy = from_clip(clip, vision_config=H3, perturbation=0.1).state_dict()
    exact = from_clip(clip.float(), vision_config=H3, perturbation=0.1).state_dict()
    assert all(torch.equal(noisy[name], value) for name, value in exact.items())
    assert all(torch.equal(model.state_dict()[name], value.float()) for name, value in clip.state_dict().items())


def test_not_a_clip_is_refused(make_clip: MakeClip, make_config: MakeConfig, tmp_path: Path) -> None:
    BertConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is of model type 'bert'; expected one of 'clip'"):
        from_clip(str(tmp_path))
    with pytest.raises(ValueError, match="The HolisticCLIPModel is of model type 'holistic_clip'; expected"):
        from_clip(HolisticCLIPModel(make_config()))
    state = make_clip().state_dict()
    del state["visual_projection.weight"]
    make_clip().save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(ValueError, match=r"lacks visual_projection\.weight; has no place for nothing"):
        from_clip(tmp_path)
    with torch.device("meta"):
        empty = CLIPModel(make_clip().config)
    with pytest.raises(ValueError, match="on the meta device"):
        from_clip(empty)


def test_what_only_an_override_makes_new_is_warned_of(
    make_clip: MakeClip, pixel_values: Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="holistic_clip_hf"):
        from_clip(make_clip(), vision_config=H3)
        assert not caplog.records
        model = from_clip(make_clip(), vision_config={**H3, "patch_stem": "convolutional"}, matching="free", seed=3)
    (record,) = caplog.records
    stem = [name for name in model.state_dict() if "patch_embedding" in name]
    assert len(stem) == 10 and all(name in record.message for name in stem)
    assert record.message.endswith("left out: vision_model.embeddings.patch_embedding.weight.")
    assert all(model.state_dict()[name].isfinite().all() for name in stem)
    again = from_clip(make_clip(), vision_config={**H3, "patch_stem": "convolutional"}, matching="free", seed=3)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    assert model.config.matching == "free" and model.config.projection_dim == 16


def test_an_override_stretches(make_clip: MakeClip, make_tokens: MakeTokens) -> None:
    clip = make_clip()
    model = from_clip(clip, perspectives=["short"], text_config={"max_position_embeddings": 60})
    other = from_clip(clip, perspectives=["short"])
    stretch_text_positions(other, 60)
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in model.state_dict().items())
    assert model.config.to_dict() == other.config.to_dict()
    assert model.get_text_features(make_tokens([60])[0]).pooler_output.isfinite().all()


WRONG_OVERRIDES = [
    ({"num_branches": 2}, "HolisticCLIPConfig has no field num_branches"),
    ({"vision_config": {"branches": 2}}, "HolisticCLIPVisionConfig has no field branches"),
    ({"text_config": {"context": 2}}, "CLIPTextConfig has no field context"),
    ({"text_config": CLIPTextConfig()}, "`text_config` is a CLIPTextConfig. Give a dict"),
    ({"projection_dim": 8}, r"other shapes .*visual_projection\.weight \(16, 32\) for \(8, 32\)"),
    ({"text_config": {"max_position_embeddings": 20}}, "24 positions cannot be stretched to 20"),
]


@pytest.mark.parametrize(("overrides", "message"), WRONG_OVERRIDES, ids=[message for _, message in WRONG_OVERRIDES])
def test_wrong_override_is_refused(make_clip: MakeClip, overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_clip(make_clip(), **{"vision_config": H3, **overrides})


def test_anchored_patches_see_the_first_class_token_alone(make_clip: MakeClip) -> None:
    tower = from_clip(make_clip(), vision_config=H3).vision_model
    tokens = torch.randn(1, 3 + 16, 32)
    plain = tower.encoder.layers[0](tokens, tower._isolation_mask(tokens))
    for moved in range(3 + 16):
        other = tokens.clone()
        other[:, moved] = torch.randn(32)
        change = tower.encoder.layers[0](other, tower._isolation_mask(other)) - plain
        seen_by = {place for place in range(3 + 16) if change[0, place].abs().max() > 0}
        patches = set(range(3, 19))
        assert seen_by == ({moved} if 0 < moved < 3 else {0} | patches if moved == 0 else {0, 1, 2} | patches)


def test_anchored_last_layer_is_pruned_exactly(make_clip: MakeClip, pixel_values: Tensor) -> None:
    model = from_clip(make_clip(), vision_config=H3, perturbation=0.5)
    pruned, whole = (model.get_image_features(pixel_values, output_patches=p).branch_embeds for p in (False, True))
    torch.testing.assert_close(pruned, whole, **CLOSE)


def test_every_parameter_of_copies_learns(make_clip: MakeClip, make_tokens: MakeTokens, pixel_values: Tensor) -> None:
    ids, mask = make_tokens([5, 9, 7, 12, 6, 8, 4, 11, 10, 5, 6, 7])
    for vision in COPIES:
        model = from_clip(make_clip(), vision_config=vision).train()
        captions = {"input_ids": ids.view(4, 3, -1), "attention_mask": mask.view(4, 3, -1)}
        model(**captions, pixel_values=pixel_values, return_loss=True, branch_of_slot=[0, 1, 2]).loss.backward()
        grads = {name: parameter.grad for name, parameter in model.named_parameters()}
        assert all(g is not None and (g.any() or name.endswith("k_proj.bias")) for name, g in grads.items())
        branches = [g for name, g in grads.items() if ".branch_fc2.0.bias" in name or "branch_class" in name]
        assert branches and all(g.isfinite().all() for g in branches)


@pytest.mark.parametrize("names", [["a", "c"], ["a", "d", "b"], ["a"]], ids=len)
def test_class_tokens_keep_their_linears_by_name(
    make_config: MakeConfig, pixel_values: Tensor, tmp_path: Path, names: list[str]
) -> None:
    vision = {**H3, "branched_token_mlp": True, "branch_isolation": "strict"}  # patches see no class token
    model = HolisticCLIPModel(make_config(vision=vision, perspectives=["a", "b", "c"])).eval()
    randomise(model)
    model.save_pretrained(tmp_path)
    found = from_holistic_clip(tmp_path, perspectives=names).get_image_features(pixel_values).branch_embeds
    expected = model.get_image_features(pixel_values).branch_embeds
    for branch, name in enumerate(names if len(names) > 1 else []):  # one class token is seen by patches, as CLIP's
        torch.testing.assert_close(found[:, branch], expected[:, "abc".find(name) if name != "d" else 0], **CLOSE)
    assert found.shape[1] == len(names)
    with pytest.raises(ValueError, match="begins with 'b'; expected 'a', the first of"):
        from_holistic_clip(tmp_path, perspectives=["b", "a"])
