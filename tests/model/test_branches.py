"""The vision tower: what class tokens see, what the H-fold layers compute, and that every short cut is exact."""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from holistic_clip_hf import HolisticCLIPConfig, HolisticCLIPModel, HolisticCLIPVisionModel
from holistic_clip_hf.configuration_holistic_clip import HolisticBackboneVisionConfig

MakeModel = Callable[..., HolisticCLIPModel]
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
ISOLATIONS = ["isolated", "strict", "anchored", "open", "official"]
TOWERS = [("cls", isolation) for isolation in ISOLATIONS] + [("mlp", "isolated")]
OWN_LINEARS = {"branched_token_mlp": True, "num_branch_layers": 2}


def tower(make_model: MakeModel, attention: str = "sdpa", **vision: Any) -> HolisticCLIPVisionModel:
    return make_model(vision=vision, attention=attention).vision_model


def first_layer(model: HolisticCLIPVisionModel, tokens: Tensor) -> Tensor:
    return model.encoder.layers[0](tokens, model._isolation_mask(tokens))


@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_what_a_class_token_moves(make_model: MakeModel, isolation: str) -> None:
    model = tower(make_model, branch_isolation=isolation)
    tokens = torch.randn(1, 3 + 16, 32)
    moved = tokens.clone()
    moved[:, 1] = torch.randn(32)
    change = (first_layer(model, moved) - first_layer(model, tokens)).abs().amax(dim=-1)[0]
    class_tokens_move, patches_move = isolation in ("open", "official"), isolation not in ("strict", "anchored")
    assert change[1] > 1e-3
    for other in (0, 2):
        assert (change[other] > 1e-4) == class_tokens_move, f"class token {other}"
        assert class_tokens_move or change[other] == 0
    assert ((change[3:] > 1e-4) == patches_move).all()
    assert patches_move or (change[3:] == 0).all()


def test_class_tokens_see_all_patches(make_model: MakeModel) -> None:
    model = tower(make_model, branch_isolation="strict")
    tokens = torch.randn(1, 3 + 16, 32)
    for patch in range(3, 19):
        moved = tokens.clone()
        moved[:, patch] = torch.randn(32)
        change = (first_layer(model, moved) - first_layer(model, tokens)).abs().amax(dim=-1)[0]
        assert (change > 1e-5).all()


def attention_by_loops(module: nn.Module, tokens: Tensor, bonus: Callable[[int, int], float]) -> Tensor:
    """(S, E) to (S, E): softmax attention one query at a time; `bonus(query, key)` is added to the logits."""
    size, width = tokens.shape
    head_width = width // module.num_heads
    queries, keys, values = (
        getattr(module, name)(tokens).view(size, module.num_heads, head_width)
        for name in ("q_proj", "k_proj", "v_proj")
    )
    output = torch.zeros(size, module.num_heads, head_width)
    for query in range(size):
        for head in range(module.num_heads):
            logits = [
                float(queries[query, head] @ keys[key, head]) / math.sqrt(head_width) + bonus(query, key)
                for key in range(size)
            ]
            exponentials = [math.exp(logit - max(logits)) for logit in logits]
            weights = torch.tensor([value / sum(exponentials) for value in exponentials])
            output[query, head] = weights @ values[:, head]
    return module.out_proj(output.reshape(size, width))


@pytest.mark.parametrize(("isolation", "added"), [("official", 1.0), ("open", 0.0), ("isolated", -math.inf)])
@torch.no_grad()
def test_what_is_added_between_class_tokens(make_model: MakeModel, isolation: str, added: float) -> None:
    model = tower(make_model, branch_isolation=isolation)
    tokens = torch.randn(2, 3 + 16, 32)
    attention = model.encoder.layers[0].self_attn
    found, _ = attention(tokens, model._isolation_mask(tokens))

    def bonus(query: int, key: int) -> float:
        return added if query < 3 and key < 3 and query != key else 0.0

    expected = torch.stack([attention_by_loops(attention, image, bonus) for image in tokens])
    torch.testing.assert_close(found, expected, **CLOSE)


@pytest.mark.parametrize("num_branch_layers", [1, 2])
def test_streams_are_separate_clip_towers(make_model: MakeModel, pixel_values: Tensor, num_branch_layers: int) -> None:
    """Stream h is a stock tower whose last K layers have second linear h, fed by the layers all share."""
    model = tower(make_model, branch_type="mlp", num_branch_layers=num_branch_layers, num_hidden_layers=3)
    output = model(pixel_values)
    fields = {**model.config.to_dict(), "model_type": "clip_vision_model"}
    state = model.state_dict()
    for branch in range(3):
        weights = {name: value for name, value in state.items() if "branch_fc2" not in name}
        for layer in range(3 - num_branch_layers, 3):
            for part in ("weight", "bias") if branch else ():
                mlp = f"encoder.layers.{layer}.mlp"
                weights[f"{mlp}.fc2.{part}"] = state[f"{mlp}.branch_fc2.{branch - 1}.{part}"]
        clip = CLIPVisionModel(CLIPVisionConfig(**fields)).eval()
        clip.load_state_dict(weights, strict=True)
        expected = clip(pixel_values)
        torch.testing.assert_close(output.branch_embeds[:, branch], expected.pooler_output, **CLOSE)
        torch.testing.assert_close(output.last_hidden_state[:, branch], expected.last_hidden_state, **CLOSE)
    assert (output.branch_embeds[:, 1] - output.branch_embeds[:, 0]).abs().max() > 1e-2
    torch.testing.assert_close(output.pooler_output, output.branch_embeds.sum(dim=1) / 3, **CLOSE)


@pytest.mark.parametrize("isolation", ISOLATIONS)
@torch.no_grad()
def test_class_tokens_with_linears_of_their_own(
    make_model: MakeModel, pixel_values: Tensor, isolation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tower(make_model, branch_isolation=isolation, num_hidden_layers=3, **OWN_LINEARS)
    found = model(pixel_values)

    def token_by_token(layer: nn.Module, states: Tensor) -> Tensor:
        mlp = layer.mlp
        linears = [mlp.fc2, *mlp.branch_fc2] + [mlp.fc2] * (states.shape[1] - 3)
        rows = [mlp.activation_fn(mlp.fc1(states[:, at])) for at in range(states.shape[1])]
        return torch.stack([linear(row) for linear, row in zip(linears, rows, strict=True)], dim=1)

    for layer in model.encoder.layers[-2:]:
        monkeypatch.setattr(layer.mlp, "forward", partial(token_by_token, layer))
    expected = model(pixel_values)
    torch.testing.assert_close(found.last_hidden_state, expected.last_hidden_state, **CLOSE)
    torch.testing.assert_close(found.branch_embeds, expected.branch_embeds, **CLOSE)
    assert not hasattr(model.encoder.layers[0].mlp, "branch_fc2")


def test_linears_of_class_tokens_are_for_class_tokens(make_config: Callable[..., HolisticCLIPConfig]) -> None:
    with pytest.raises(ValueError, match="`branched_token_mlp` is True and `branch_type` is 'mlp'; expected 'cls'"):
        make_config(vision={"branched_token_mlp": True, "branch_type": "mlp"})
    with pytest.raises(ValueError, match="`num_branch_layers` is 9; expected 1 to"):
        make_config(vision={"branched_token_mlp": True, "num_branch_layers": 9})
    with pytest.raises(ValueError, match="`branched_token_mlp` is True and the backbone is of model type 'resnet'"):
        HolisticBackboneVisionConfig(backbone_config={"model_type": "resnet"}, branched_token_mlp=True)


def gradients_of(model: HolisticCLIPModel, pixel_values: Tensor, **options: Any) -> dict[str, Tensor]:
    model.zero_grad()
    images = pixel_values.clone().requires_grad_()
    embeds = model.get_image_features(images, **options).branch_embeds
    (embeds * torch.arange(embeds.numel()).view_as(embeds).cos()).sum().backward()
    found = {name: parameter.grad for name, parameter in model.vision_model.named_parameters()}
    return {**found, "pixel_values": images.grad, "embeds": embeds.detach()}


@pytest.mark.parametrize(
    ("branch_type", "isolation", "more"), [*((*each, {}) for each in TOWERS), ("cls", "strict", OWN_LINEARS)]
)
def test_pruned_last_layer_is_exact(
    make_model: MakeModel, pixel_values: Tensor, branch_type: str, isolation: str, more: dict[str, Any]
) -> None:
    model = make_model(vision={"branch_type": branch_type, "branch_isolation": isolation, **more})
    pruned, whole = model.get_image_features(pixel_values), model.get_image_features(pixel_values, output_patches=True)
    streams = () if branch_type == "cls" else (3,)
    class_tokens = 3 if branch_type == "cls" else 1
    assert pruned.last_hidden_state.shape == (4, *streams, class_tokens, 32)
    assert whole.last_hidden_state.shape == (4, *streams, class_tokens + 16, 32)
    torch.testing.assert_close(pruned.last_hidden_state, whole.last_hidden_state[..., :class_tokens, :], **CLOSE)
    found, expected = gradients_of(model, pixel_values), gradients_of(model, pixel_values, output_patches=True)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("branch_type", "isolation"), [*TOWERS, ("probe", "isolated")])
def test_eager_equals_sdpa(make_model: MakeModel, pixel_values: Tensor, branch_type: str, isolation: str) -> None:
    vision = {"branch_type": branch_type, "branch_isolation": isolation}
    sdpa, eager = (make_model(vision=vision, attention=name) for name in ("sdpa", "eager"))
    assert eager.vision_model.config._attn_implementation == "eager"
    found, expected = gradients_of(eager, pixel_values), gradients_of(sdpa, pixel_values)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("branch_type", ["cls", "mlp", "probe"])
def test_asking_for_more_changes_nothing(make_model: MakeModel, pixel_values: Tensor, branch_type: str) -> None:
    model = make_model(vision={"branch_type": branch_type}, attention="eager")
    plain = model.get_image_features(pixel_values)
    more = model.get_image_features(pixel_values, output_hidden_states=True, output_attentions=True)
    torch.testing.assert_close(plain.branch_embeds, more.branch_embeds, **CLOSE)
    tokens = 3 + 16 if branch_type == "cls" else 1 + 16
    streams = (3,) if branch_type == "mlp" else ()
    assert [states.shape for states in more.hidden_states[:2]] == [(4, tokens, 32)] * 2
    assert more.hidden_states[2].shape == (4, *streams, tokens, 32)
    assert [weights.shape[-2:] for weights in more.attentions] == [(tokens, tokens)] * 2
    torch.testing.assert_close(more.attentions[0].sum(dim=-1), torch.ones(4, 2, tokens))
    if branch_type == "cls":
        assert (more.attentions[0][:, :, :3, :3] * (1 - torch.eye(3)) == 0).all()


@pytest.mark.parametrize("branch_type", ["cls", "mlp", "probe"])
def test_activation_checkpointing_changes_nothing(
    make_model: MakeModel, pixel_values: Tensor, branch_type: str
) -> None:
    plain, checkpointed = (make_model(vision={"branch_type": branch_type}).train() for _ in range(2))
    checkpointed.activation_checkpointing_enable()
    calls: list[str] = []
    for name, layer in checkpointed.vision_model.encoder.layers.named_children():
        layer.layer_norm1.register_forward_hook(lambda module, args, output, name=name: calls.append(name))
    found, expected = gradients_of(checkpointed, pixel_values), gradients_of(plain, pixel_values)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert sorted(calls) == ["0", "0", "1", "1"]  # forward, and once more in backward


@pytest.mark.parametrize("branch_type", ["cls", "mlp", "probe"])
def test_tower_loads_from_the_whole_checkpoint(
    make_model: MakeModel, pixel_values: Tensor, tmp_path: Path, branch_type: str
) -> None:
    model = make_model(vision={"branch_type": branch_type})
    model.save_pretrained(tmp_path)
    loaded, report = HolisticCLIPVisionModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    state = model.vision_model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in loaded.state_dict().items())
    found, expected = loaded(pixel_values).branch_embeds, model.vision_model(pixel_values).branch_embeds
    torch.testing.assert_close(found, expected, **CLOSE)


def test_autocast_keeps_the_isolation(make_model: MakeModel, pixel_values: Tensor) -> None:
    model = make_model()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = model.get_image_features(pixel_values).branch_embeds
    expected = model.get_image_features(pixel_values).branch_embeds
    assert found.isfinite().all()
    assert ((found.float() * expected).sum(dim=-1) > 0.99).all()
    half = make_model().to(torch.bfloat16).get_image_features(pixel_values.bfloat16()).branch_embeds
    assert ((half.float() * expected).sum(dim=-1) > 0.99).all()


@pytest.mark.parametrize(("branch_type", "class_tokens"), [("cls", 3), ("mlp", 1), ("probe", 1)])
def test_patch_dropout(make_model: MakeModel, pixel_values: Tensor, branch_type: str, class_tokens: int) -> None:
    model = tower(make_model, branch_type=branch_type, patch_dropout=0.7)
    whole = model.embeddings(pixel_values)
    assert whole.shape[1] == class_tokens + 16
    kept = model.train().embeddings(pixel_values)
    assert kept.shape[1] == class_tokens + round(16 * 0.3)
    assert torch.equal(kept[:, :class_tokens], whole[:, :class_tokens])
    chosen = (kept[:, class_tokens:, None] == whole[:, None, class_tokens:]).all(dim=-1)  # (N, kept, P)
    assert (chosen.sum(dim=2) == 1).all() and (chosen.sum(dim=1) <= 1).all()
    assert not torch.equal(chosen.any(dim=1)[0], chosen.any(dim=1)[1])
    assert model(pixel_values).branch_embeds.isfinite().all()


@pytest.mark.parametrize("branch_type", ["cls", "mlp", "probe"])
@pytest.mark.parametrize("patch_stem", ["linear", "convolutional"])
def test_other_image_sizes(make_model: MakeModel, pixel_values: Tensor, branch_type: str, patch_stem: str) -> None:
    model = make_model(vision={"branch_type": branch_type, "patch_stem": patch_stem})
    plain = model.get_image_features(pixel_values).branch_embeds
    native = model.get_image_features(pixel_values, interpolate_pos_encoding=True).branch_embeds
    torch.testing.assert_close(plain, native)
    wide = torch.randn(2, 3, 32, 48)
    output = model.vision_model(wide, interpolate_pos_encoding=True)
    assert output.branch_embeds.shape == (2, 3, 32)
    assert output.last_hidden_state.shape[-2] == model.vision_model.num_class_tokens + 24


@pytest.mark.parametrize("patch_size", [2, 4, 8, 16])
def test_convolutional_stem(make_model: MakeModel, pixel_values: Tensor, patch_size: int) -> None:
    model = tower(make_model, patch_stem="convolutional", patch_size=patch_size)
    stem = model.embeddings.patch_embedding
    assert stem(pixel_values).shape == (4, 32, 32 // patch_size, 32 // patch_size)
    assert [convolution.stride for convolution in stem.convolutions] == [(2, 2)] * int(math.log2(patch_size))
    assert stem.convolutions[-1].out_channels == 32
    # No image sees another.
    torch.testing.assert_close(stem(pixel_values[:1]), stem(pixel_values)[:1], **CLOSE)
    assert model(pixel_values).branch_embeds.shape == (4, 3, 32)


def test_convolutional_stem_with_a_rest(make_model: MakeModel) -> None:
    """CLIP's patches leave out what is over at the border; the two stems must see the same number of patches."""
    for patch_stem in ("linear", "convolutional"):
        model = tower(make_model, patch_stem=patch_stem, image_size=36)
        assert model(torch.randn(1, 3, 36, 36)).last_hidden_state.shape[1] == 3 + 16


def test_initialisation_of_branches(make_config: Callable[..., HolisticCLIPConfig]) -> None:
    embeddings = HolisticCLIPModel(make_config(vision={"num_branches": 40})).vision_model.embeddings
    assert embeddings.branch_class_embedding.std().item() == pytest.approx(32**-0.5, rel=0.1)
    assert embeddings.branch_position_embedding.std().item() == pytest.approx(0.02, rel=0.1)
    mlp = HolisticCLIPModel(make_config(vision={"branch_type": "mlp"})).vision_model.encoder.layers[1].mlp
    for linear in (mlp.fc2, *mlp.branch_fc2):
        assert linear.weight.std().item() == pytest.approx(32**-0.5 / 2, rel=0.1)
        assert not linear.bias.any()


def test_initialisation_of_the_convolutional_stem(make_config: Callable[..., HolisticCLIPConfig]) -> None:
    stem = HolisticCLIPModel(
        make_config(vision={"patch_stem": "convolutional"})
    ).vision_model.embeddings.patch_embedding
    for convolution in stem.convolutions:
        fan_out = convolution.out_channels * 9
        assert convolution.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.15)
    assert stem.projection.weight.std().item() == pytest.approx((1 / 32) ** 0.5, rel=0.15)


def test_flash_attention_with_a_mask_is_refused(make_model: MakeModel) -> None:
    model = tower(make_model)
    model.config._attn_implementation_internal = "flash_attention_2"
    with pytest.raises(ValueError, match="Flash attention takes no mask, which branch_isolation='isolated' needs"):
        model._isolation_mask(torch.zeros(1, 19, 32))
