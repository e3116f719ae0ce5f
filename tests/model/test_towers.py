"""Single towers against plain sums over the tower of both, and against transformers' own classes with one branch."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoBackbone,
    AutoModel,
    CLIPConfig,
    CLIPModel,
    CLIPTextModelWithProjection,
    CLIPVisionModelWithProjection,
    DINOv3ViTConfig,
    ResNetConfig,
    SiglipVisionConfig,
)

from holistic_clip_hf import (
    HolisticCLIPModel,
    HolisticCLIPPatchConfig,
    HolisticCLIPPatchModel,
    HolisticCLIPTextModelWithProjection,
    HolisticCLIPVisionBackbone,
    HolisticCLIPVisionModelWithProjection,
)
from holistic_clip_hf.initialization import from_clip

NAMES = ["short", "style", "shape"]
WIDTH = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
CLOSE = {"rtol": 1e-5, "atol": 1e-6}
MakeModel = Callable[..., HolisticCLIPModel]


def make_probes(backbone: Any, make_model: MakeModel) -> HolisticCLIPModel:
    """A backbone of its own under three probes."""
    vision = {"backbone_config": backbone, "num_branches": 3, "image_size": 32}
    text = make_model().config.text_config
    config = type(make_model().config)(
        text_config=text, vision_config=vision, perspectives=NAMES, projection_dim=16, visual_projection=True
    )
    torch.manual_seed(0)
    model = HolisticCLIPModel(config).eval()
    for parameter in model.vision_model.head.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model


@pytest.fixture(params=["cls", "mlp", "probe", "siglip", "dinov3"])
def model(request: pytest.FixtureRequest, make_model: MakeModel) -> HolisticCLIPModel:
    if request.param == "siglip":
        return make_probes(SiglipVisionConfig(**WIDTH, image_size=32, patch_size=8), make_model)
    if request.param == "dinov3":  # a class token and registers before the patches
        backbone = DINOv3ViTConfig(**WIDTH, image_size=32, patch_size=8, num_register_tokens=2)
        return make_probes(backbone, make_model)
    return make_model(perspectives=NAMES, vision={"branch_type": request.param})


def states_by_loop(model: HolisticCLIPModel, states: Tensor, branches: Tensor, branch: int | None) -> Tensor:
    """(N, 1 + P, E) of what the tower gives, image by image."""
    kind, found = model.config.vision_config.branch_type, []
    chosen = [0, 1, 2] if branch is None else [branch]
    for image in range(len(states)):
        one = states[image]
        if one.ndim == 3:
            some = [one[min(h, len(one) - 1)] for h in chosen]
            one = sum(some) / len(some)
        patches = one[-16:]
        tokens = {"cls": one[:3], "mlp": one[:1].expand(3, -1), "probe": branches[image]}[kind]
        found.append(torch.cat([sum(tokens[h] for h in chosen)[None] / len(chosen), patches]))
    return torch.stack(found)


@pytest.mark.parametrize("branch", [None, "style", "shape"])
@torch.no_grad()
def test_states_are_those_of_the_branch_or_their_mean(
    model: HolisticCLIPModel, pixel_values: Tensor, branch: str | None
) -> None:
    index = None if branch is None else NAMES.index(branch)
    inner = model.vision_model(pixel_values, output_hidden_states=True)
    expected = [
        states_by_loop(model, states, inner.branch_embeds, index)
        for states in (*inner.hidden_states, inner.last_hidden_state)
    ]
    for class_token in (True, False):
        tower = HolisticCLIPPatchModel.from_model(model, branch=branch, class_token=class_token)
        found = tower(pixel_values, output_hidden_states=True)
        start = 0 if class_token else 1
        for states, wanted in zip((*found.hidden_states, found.last_hidden_state), expected, strict=True):
            torch.testing.assert_close(states, wanted[:, start:], **CLOSE)
        vector = inner.branch_embeds.mean(dim=1) if index is None else inner.branch_embeds[:, index]
        torch.testing.assert_close(found.pooler_output, vector, **CLOSE)
        # transformers asks for some layers alone, by an index or several.
        few = tower(pixel_values, output_hidden_states=[0, -2]).hidden_states
        assert [states is not None for states in few] == [True, True, False]
        assert torch.equal(few[-2], found.hidden_states[-2])
        assert tower(pixel_values).hidden_states is None


@torch.no_grad()
def test_it_is_saved_and_read_from_a_checkpoint_of_both_towers(
    model: HolisticCLIPModel, pixel_values: Tensor, tmp_path: Path
) -> None:
    model.save_pretrained(tmp_path / "both")
    tower = HolisticCLIPPatchModel.from_pretrained(tmp_path / "both", branch="shape", class_token=False)
    expected = HolisticCLIPPatchModel.from_model(model, branch="shape", class_token=False)(pixel_values)
    tower.save_pretrained(tmp_path / "tower")
    again = AutoModel.from_pretrained(tmp_path / "tower")
    assert type(again) is HolisticCLIPPatchModel
    for each in (tower, again):
        assert torch.equal(each(pixel_values).last_hidden_state, expected.last_hidden_state)
    # AutoBackbone.from_pretrained asks the Hub about every name, folders too; its models are made by configuration.
    backbone = HolisticCLIPVisionBackbone.from_pretrained(tmp_path / "tower", out_indices=[1, 2])
    assert backbone.out_features == ["stage1", "stage2"]
    assert type(AutoBackbone.from_config(again.config)) is HolisticCLIPVisionBackbone


@torch.no_grad()
def test_feature_maps_are_patches_where_they_lie(model: HolisticCLIPModel, pixel_values: Tensor) -> None:
    backbone = HolisticCLIPVisionBackbone.from_model(model, branch="style", out_features=["stem", "stage2"])
    assert backbone.channels == [32, 32]
    maps = backbone(pixel_values).feature_maps
    states = HolisticCLIPPatchModel.from_model(model, branch="style")(pixel_values, output_hidden_states=True)
    for found, layer in zip(maps, (0, 2), strict=True):
        assert found.shape == (4, 32, 4, 4)
        for row in range(4):
            for column in range(4):
                patch = states.hidden_states[layer][:, 1 + 4 * row + column]
                assert torch.equal(found[:, :, row, column], patch)
    assert [tuple(each.shape) for each in backbone(pixel_values[:, :, :25].repeat(1, 1, 1, 2)).feature_maps] == [
        (4, 32, 3, 8)
    ] * 2


def test_a_pyramid_gives_its_last_map(make_model: MakeModel) -> None:
    backbone = ResNetConfig(hidden_sizes=[8, 32], depths=[1, 1], embedding_size=8, layer_type="basic")
    model, images = make_probes(backbone, make_model), torch.randn(2, 3, 32, 32)
    tower = HolisticCLIPPatchModel.from_model(model)
    found = tower(images, output_hidden_states=-1)
    assert found.hidden_states[-1].shape == (2, 17, 32)
    with pytest.raises(ValueError, match="`output_hidden_states` is -2; expected -1.*'resnet', have states"):
        tower(images, output_hidden_states=-2)
    maps = HolisticCLIPVisionBackbone.from_model(model)(images).feature_maps
    assert len(maps) == 1
    expected = model.vision_model.backbone(images).last_hidden_state
    torch.testing.assert_close(maps[0], expected, **CLOSE)


@pytest.fixture
def clip(make_model: MakeModel) -> CLIPModel:
    config = make_model().config
    vision = {**WIDTH, "image_size": 32, "patch_size": 8, "projection_dim": 16}
    clip = CLIPModel(CLIPConfig(text_config=config.text_config.to_dict(), vision_config=vision, projection_dim=16))
    for parameter in clip.parameters():
        nn.init.normal_(parameter, std=0.2)
    return clip.eval()


@torch.no_grad()
def test_with_one_branch_it_is_clips_own_class(
    clip: CLIPModel, pixel_values: Tensor, make_tokens: Callable[..., tuple[Tensor, Tensor]], tmp_path: Path
) -> None:
    """Vectors, states, and the order of a tuple."""
    clip.save_pretrained(tmp_path)
    model = from_clip(clip, perspectives=["web"])
    ids, mask = make_tokens([5, 9, 7])
    pairs: list[tuple[Any, Any, dict[str, Any]]] = [
        (
            HolisticCLIPVisionModelWithProjection.from_model(model),
            CLIPVisionModelWithProjection.from_pretrained(tmp_path).eval(),
            {"pixel_values": pixel_values},
        ),
        (
            HolisticCLIPTextModelWithProjection.from_model(model),
            CLIPTextModelWithProjection.from_pretrained(tmp_path).eval(),
            {"input_ids": ids, "attention_mask": mask},
        ),
    ]
    for ours, theirs, inputs in pairs:
        found, expected = (each(**inputs, output_hidden_states=True, return_dict=False) for each in (ours, theirs))
        assert ours.config.projection_dim == theirs.config.projection_dim == 16
        flat = [(*each[:2], *each[2]) for each in (found, expected)]
        for one, other in zip(*flat, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_vectors_of_branches_and_of_all(model: HolisticCLIPModel, pixel_values: Tensor, tmp_path: Path) -> None:
    expected = model.get_image_features(pixel_values)
    fused = HolisticCLIPVisionModelWithProjection.from_model(model)(pixel_values).image_embeds
    torch.testing.assert_close(F.normalize(fused, dim=-1), expected.pooler_output, **CLOSE)
    raw = model.visual_projection(model.vision_model(pixel_values).branch_embeds)
    torch.testing.assert_close(fused.norm(dim=-1), raw.norm(dim=-1).mean(dim=-1), **CLOSE)
    for h, name in enumerate(NAMES):
        one = HolisticCLIPVisionModelWithProjection.from_model(model, branch=name)
        torch.testing.assert_close(one(pixel_values).image_embeds, raw[:, h], **CLOSE)
    model.save_pretrained(tmp_path)
    text = HolisticCLIPTextModelWithProjection.from_pretrained(tmp_path)
    ids = torch.tensor([[7, 8, model.config.text_config.eos_token_id]])
    features = model.get_text_features(ids)
    torch.testing.assert_close(F.normalize(text(ids).text_embeds, dim=-1), features.text_embeds, **CLOSE)


@torch.no_grad()
def test_weights_of_branches_count(make_model: MakeModel, pixel_values: Tensor) -> None:
    model = make_model(perspectives=NAMES, fusion="weighted", branch_weights=[1.0, 0.0, 3.0])
    found = HolisticCLIPVisionModelWithProjection.from_model(model)(pixel_values).image_embeds
    expected = model.get_image_features(pixel_values).pooler_output
    torch.testing.assert_close(F.normalize(found, dim=-1), F.normalize(expected, dim=-1), **CLOSE)


@torch.no_grad()
def test_a_tuple_has_clips_order(make_model: MakeModel, pixel_values: Tensor) -> None:
    """Branches stand behind what CLIP has, and where CLIP's ends if nothing is recorded."""
    tower = make_model(attention="eager").vision_model
    plain = tower(pixel_values, return_dict=False)
    assert [tuple(each.shape) for each in plain] == [(4, 19, 32), (4, 32), (4, 3, 32)]
    found = tower(pixel_values, output_hidden_states=True, output_attentions=True)
    last, pooled, states, attentions, branches = found.to_tuple()
    assert states is found.hidden_states and attentions is found.attentions and branches is found.branch_embeds
    assert last is found.last_hidden_state and pooled is found.pooler_output and found[2] is states


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"branch": "colour"}, "`branch` is 'colour'; expected one of 'short', 'style', 'shape', or None"),
        ({"perspectives": ["a"]}, "`perspectives` has 1 names; expected 3"),
        ({"class_token": "yes"}, "HolisticCLIPPatchConfig"),
    ],
)
def test_what_does_not_fit_is_refused(make_model: MakeModel, fields: dict[str, Any], message: str) -> None:
    vision = make_model(perspectives=NAMES).config.vision_config
    with pytest.raises(ValueError, match=message):
        HolisticCLIPPatchConfig(**{"vision_config": vision, "perspectives": NAMES, **fields})


def test_other_models_and_late_changes_are_refused(make_model: MakeModel, clip: CLIPModel, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`model` is of model type 'clip'; expected one of 'holistic_clip'"):
        HolisticCLIPPatchModel.from_model(clip)
    make_model(perspectives=NAMES).save_pretrained(tmp_path / "both")
    with pytest.raises(ValueError, match="`branch` is 'colour'"):
        HolisticCLIPPatchModel.from_pretrained(tmp_path / "both", branch="colour")
    clip.save_pretrained(tmp_path / "clip")
    with pytest.raises(ValueError, match="The checkpoint is one of 'clip'; expected 'holistic_clip_patches'"):
        HolisticCLIPPatchModel.from_pretrained(tmp_path / "clip")


def test_both_towers_follow_the_width_of_the_projection(make_model: MakeModel) -> None:
    config = make_model(projection_dim=24).config
    assert config.text_config.projection_dim == config.vision_config.projection_dim == 24
