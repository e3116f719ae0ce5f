"""Branches of the kind `probe`: against SigLIP's own head, one probe at a time, and alone from start to end."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel, SiglipVisionConfig
from transformers.models.siglip.modeling_siglip import SiglipMultiheadAttentionPoolingHead

from holistic_clip_hf import HolisticCLIPConfig, HolisticCLIPModel
from holistic_clip_hf.initialization import from_clip, from_holistic_clip
from holistic_clip_hf.vision_holistic_clip import HolisticCLIPProbeHead

MakeModel = Callable[..., HolisticCLIPModel]
MakeTokens = Callable[..., tuple[Tensor, Tensor]]
PROBES = {"branch_type": "probe"}
BRANCHED = {**PROBES, "branched_head_mlp": True}
HEADS = pytest.mark.parametrize("vision", [PROBES, BRANCHED], ids=["one MLP", "branched MLP"])
CLOSE = {"rtol": 1e-6, "atol": 2e-6}


def probes_of(head: HolisticCLIPProbeHead) -> Tensor:
    return torch.cat([head.probe, head.branch_probe], dim=1)[0]


def siglip_head(head: HolisticCLIPProbeHead, branch: int) -> SiglipMultiheadAttentionPoolingHead:
    """SigLIP's own head, with the weights of one of ours."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "hidden_act": "quick_gelu"}
    stock = SiglipMultiheadAttentionPoolingHead(SiglipVisionConfig(**sizes, layer_norm_eps=1e-5))
    state = head.state_dict()
    named = {"probe": probes_of(head)[branch][None, None]}
    for part in ("weight", "bias"):
        parts = [state[f"attention.{name}_proj.{part}"] for name in "qkv"]
        named[f"attention.in_proj_{part}"] = torch.cat(parts)
        second = f"branch_fc2.{branch - 1}" if branch and head.has_branched_mlp else "fc2"
        for ours, theirs in (
            ("attention.out_proj", "attention.out_proj"),
            ("layernorm", "layernorm"),
            ("mlp.fc1", "mlp.fc1"),
            (f"mlp.{second}", "mlp.fc2"),
        ):
            named[f"{theirs}.{part}"] = state[f"{ours}.{part}"]
    stock.load_state_dict(named)
    return stock.eval()


@HEADS
def test_each_probe_is_a_head_of_siglip(make_model: MakeModel, vision: dict[str, Any]) -> None:
    head, patches = make_model(vision=vision).vision_model.head, torch.randn(4, 16, 32)
    found = head(patches)
    assert found.shape == (4, 3, 32)
    for branch in range(3):
        stock = siglip_head(head, branch)
        torch.testing.assert_close(found[:, branch], stock(patches), **CLOSE)
        alone = stock(patches.flatten(0, 1)[:, None]).unflatten(0, (4, 16))
        states = head.patch_states(patches)
        torch.testing.assert_close(states if states.ndim == 3 else states[:, branch], alone, **CLOSE)


@HEADS
@torch.no_grad()
def test_probes_are_alone(make_model: MakeModel, pixel_values: Tensor, vision: dict[str, Any]) -> None:
    model = make_model(vision=vision)
    before = model.vision_model(pixel_values)
    model.vision_model.head.branch_probe[0, 0] += 1.0
    after = model.vision_model(pixel_values)
    assert torch.equal(after.last_hidden_state, before.last_hidden_state)
    change = (after.branch_embeds - before.branch_embeds).abs().amax(dim=(0, 2))
    assert change[1] > 1e-3 and change[0] == change[2] == 0


@torch.no_grad()
def test_probes_read_patches_and_no_class_token(make_model: MakeModel, pixel_values: Tensor) -> None:
    tower = make_model(vision=PROBES).vision_model
    output = tower(pixel_values)
    assert output.last_hidden_state.shape == (4, 17, 32)
    expected = tower.head(tower.post_layernorm(output.last_hidden_state[:, 1:]))
    assert torch.equal(output.branch_embeds, expected)
    assert torch.equal(output.pooler_output, expected.mean(dim=1))
    # Nothing is left out of what is returned, whatever is asked for.
    assert torch.equal(tower(pixel_values, output_patches=False).last_hidden_state, output.last_hidden_state)


@HEADS
@torch.no_grad()
def test_patches_in_the_space_of_texts(make_model: MakeModel, pixel_values: Tensor, vision: dict[str, Any]) -> None:
    model = make_model(vision=vision)
    tower, output = model.vision_model, model.get_patch_features(pixel_values)
    patches = tower.post_layernorm(tower(pixel_values).last_hidden_state[:, 1:])
    for branch in range(3):
        alone = siglip_head(tower.head, branch)(patches.flatten(0, 1)[:, None]).unflatten(0, (4, 16))
        expected = F.normalize(model.visual_projection(alone), dim=-1)
        found = output.patch_embeds if vision == PROBES else output.branch_patch_embeds[:, branch]
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert (output.branch_patch_embeds is None) == (vision == PROBES)


@pytest.mark.parametrize("fields", [{}, {"fusion": "routed"}, {"objective": "sigmoid"}, {"matching": "balanced"}])
def test_every_probe_learns(
    make_model: MakeModel, make_tokens: MakeTokens, pixel_values: Tensor, fields: dict[str, Any]
) -> None:
    model = make_model(vision=BRANCHED, **fields).train()
    ids, mask = make_tokens([4, 9, 6, 12, 5, 7, 8, 11, 4, 6, 5, 9])
    nested = {"input_ids": ids.view(4, 3, -1), "attention_mask": mask.view(4, 3, -1)}
    model(pixel_values=pixel_values, return_loss=True, **nested).loss.backward()
    head = model.vision_model.head
    for parameter in (head.probe, *(linear.weight for linear in head.mlp.branch_fc2)):
        assert parameter.grad.abs().max() > 0
    assert (head.branch_probe.grad.abs().amax(dim=-1) > 0).all()


def test_initialisation(make_config: Callable[..., HolisticCLIPConfig]) -> None:
    head = HolisticCLIPModel(make_config(vision={**BRANCHED, "num_branches": 40})).vision_model.head
    assert head.branch_probe.std().item() == pytest.approx(32**-0.5, rel=0.1)
    assert head.probe.std().item() == pytest.approx(32**-0.5, rel=0.4)
    for linear in head.attention.children():  # of Xavier, square: 1 / E
        assert linear.weight.std().item() == pytest.approx(32**-0.5, rel=0.1)
        assert not linear.bias.any()
    for linear in (head.mlp.fc2, *head.mlp.branch_fc2):
        assert linear.weight.std().item() == pytest.approx(32**-0.5 / 2, rel=0.1)


@HEADS
@pytest.mark.parametrize("names", [["b"], ["c", "a"], ["a", "b", "c", "d"]], ids=len)
def test_branches_are_kept_by_name(
    make_model: MakeModel, pixel_values: Tensor, tmp_path: Path, vision: dict[str, Any], names: list[str]
) -> None:
    model = make_model(vision=vision, perspectives=["a", "b", "c"])
    model.save_pretrained(tmp_path)
    found = from_holistic_clip(tmp_path, perspectives=names).get_image_features(pixel_values).branch_embeds
    expected = model.get_image_features(pixel_values).branch_embeds
    for branch, name in enumerate(names):
        torch.testing.assert_close(found[:, branch], expected[:, "abc".find(name) if name != "d" else 0], **CLOSE)


@pytest.mark.parametrize("names", [["a", "b", "c"], ["b", "d"]], ids=len)
def test_probes_gain_linears_of_their_own_and_answer_as_before(
    make_model: MakeModel, pixel_values: Tensor, tmp_path: Path, names: list[str]
) -> None:
    model = make_model(vision={"branch_type": "probe"}, perspectives=["a", "b", "c"], fusion="max")
    model.save_pretrained(tmp_path)
    made = from_holistic_clip(tmp_path, perspectives=names, branched_head_mlp=True)
    assert made.config.vision_config.branched_head_mlp and made.config.fusion == (
        "max" if len(names) == 3 else "centroid"
    )
    linears = made.vision_model.head.mlp.branch_fc2
    assert len(linears) == len(names) - 1 and all(torch.equal(each.weight, linears[0].weight) for each in linears)
    found = made.get_image_features(pixel_values).branch_embeds
    expected = model.get_image_features(pixel_values).branch_embeds
    for branch, name in enumerate(names):
        torch.testing.assert_close(found[:, branch], expected[:, "abc".find(name) if name != "d" else 1], **CLOSE)


def test_linears_of_their_own_are_for_probes(make_model: MakeModel, tmp_path: Path) -> None:
    make_model(perspectives=["a", "b", "c"]).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="`branched_head_mlp` is True, .* of the type 'cls'; expected probes"):
        from_holistic_clip(tmp_path, perspectives=["a", "b"], branched_head_mlp=True)


def test_a_clip_is_given_a_fresh_head(make_model: MakeModel, pixel_values: Tensor) -> None:
    config = make_model(vision={"num_branches": 1}).config
    stock = CLIPModel(
        CLIPConfig(
            text_config=config.text_config.to_dict(),
            vision_config={**config.vision_config.to_dict(), "model_type": "clip_vision_model"},
            projection_dim=16,
        )
    ).eval()
    model = from_clip(stock, perspectives=["a", "b"], vision_config=BRANCHED, seed=3)
    again = from_clip(stock, perspectives=["a", "b"], vision_config=BRANCHED, seed=3)
    states, patches = stock.vision_model(pixel_values).last_hidden_state, model.vision_model(pixel_values)
    torch.testing.assert_close(patches.last_hidden_state, states, rtol=1e-5, atol=1e-5)
    assert torch.equal(model.vision_model.head.branch_probe, again.vision_model.head.branch_probe)
    assert not torch.equal(patches.branch_embeds[:, 0], patches.branch_embeds[:, 1])


def test_branched_mlps_without_probes_are_refused(make_config: Callable[..., HolisticCLIPConfig]) -> None:
    with pytest.raises(ValueError, match="`branched_head_mlp` is True and `branch_type` is 'cls'; expected 'probe'"):
        make_config(vision={"branched_head_mlp": True})
