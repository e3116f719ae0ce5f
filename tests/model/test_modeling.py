"""The joint model: CLIP at H=1, stock weights by name, and what a checkpoint keeps."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModel, BertConfig, CLIPConfig, CLIPModel, SiglipConfig

from holistic_clip_hf import (
    HolisticCLIPConfig,
    HolisticCLIPForImageClassification,
    HolisticCLIPModel,
    HolisticCLIPVisionModel,
)

MakeModel = Callable[..., HolisticCLIPModel]
MakeTokens = Callable[[list[int]], tuple[Tensor, Tensor]]
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def stock_clip(config: HolisticCLIPConfig, attention: str = "sdpa") -> CLIPModel:
    text, vision = config.text_config.to_dict(), config.vision_config.to_dict()
    stock = CLIPConfig(
        text_config={**text, "model_type": "clip_text_model"},
        vision_config={**vision, "model_type": "clip_vision_model"},
        projection_dim=config.projection_dim,
    )
    return CLIPModel._from_config(stock, attn_implementation=attention).eval()


def parameter_gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("branch_type", ["cls", "mlp"])
def test_one_branch_is_clip(
    make_model: MakeModel, make_tokens: MakeTokens, pixel_values: Tensor, branch_type: str, attention: str
) -> None:
    model = make_model(vision={"num_branches": 1, "branch_type": branch_type}, attention=attention)
    clip = stock_clip(model.config, attention)
    clip.load_state_dict(model.state_dict(), strict=True)
    ids, mask = make_tokens([4, 9, 6, 12])
    batch = {"input_ids": ids, "attention_mask": mask, "pixel_values": pixel_values, "return_loss": True}
    ours, theirs = model(**batch, output_hidden_states=True), clip(**batch, output_hidden_states=True)
    torch.testing.assert_close(ours.logits_per_image, theirs.logits_per_image, **CLOSE)
    torch.testing.assert_close(ours.logits_per_text, theirs.logits_per_text, **CLOSE)
    torch.testing.assert_close(ours.image_embeds, theirs.image_embeds, **CLOSE)
    torch.testing.assert_close(ours.text_embeds, theirs.text_embeds, **CLOSE)
    torch.testing.assert_close(ours.loss, theirs.loss, **CLOSE)
    for tower in ("vision_model_output", "text_model_output"):
        assert len(ours[tower].hidden_states) == 3
        torch.testing.assert_close(ours[tower].hidden_states, theirs[tower].hidden_states, **CLOSE)
    model(**batch).loss.backward()  # without hidden states, so that the last layer is pruned
    theirs.loss.backward()
    torch.testing.assert_close(parameter_gradients(model), parameter_gradients(clip), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("branch_type", "new"),
    [
        ("cls", {"embeddings.branch_class_embedding", "embeddings.branch_position_embedding"}),
        ("mlp", {f"encoder.layers.1.mlp.branch_fc2.{h}.{part}" for h in (0, 1) for part in ("weight", "bias")}),
    ],
)
def test_stock_weights_load_by_name(
    make_config: Callable[..., HolisticCLIPConfig], tmp_path: Path, branch_type: str, new: set[str]
) -> None:
    config = make_config(vision={"branch_type": branch_type})
    stock_clip(config).save_pretrained(tmp_path)
    model, report = HolisticCLIPModel.from_pretrained(tmp_path, config=config, output_loading_info=True)
    assert set(report["missing_keys"]) == {f"vision_model.{name}" for name in new}
    assert not report["unexpected_keys"] and not report["mismatched_keys"]
    stock, ours = CLIPModel.from_pretrained(tmp_path).state_dict(), model.state_dict()
    assert all(torch.equal(ours[name], value) for name, value in stock.items())
    weights = [ours[f"vision_model.{name}"] for name in new if not name.endswith("bias")]
    assert all(weight.isfinite().all() and weight.std() > 0 for weight in weights)


LAYER = [f"self_attn.{name}_proj" for name in ("k", "v", "q", "out")]
LAYER = [f"{name}.{part}" for name in (*LAYER, "layer_norm1", "mlp.fc1", "mlp.fc2", "layer_norm2") for part in "wb"]


def expected_keys(branch_type: str) -> set[str]:
    """Written out once: these names are an interface, which published checkpoints rely on."""
    full = {"w": "weight", "b": "bias"}
    layers = [f"encoder.layers.{index}.{name[:-1]}{full[name[-1]]}" for index in (0, 1) for name in LAYER]
    text = ["embeddings.token_embedding.weight", "embeddings.position_embedding.weight"]
    text += ["final_layer_norm.weight", "final_layer_norm.bias", *layers]
    vision = ["embeddings.class_embedding", "embeddings.patch_embedding.weight"]
    vision += ["embeddings.position_embedding.weight", *layers]
    vision += [f"{norm}.{part}" for norm in ("pre_layrnorm", "post_layernorm") for part in ("weight", "bias")]
    if branch_type == "cls":
        vision += ["embeddings.branch_class_embedding", "embeddings.branch_position_embedding"]
    elif branch_type == "probe":
        parts = [*(f"attention.{name}_proj" for name in ("q", "k", "v", "out")), "layernorm", "mlp.fc1", "mlp.fc2"]
        vision += ["head.probe", "head.branch_probe"]
        vision += [f"head.{name}.{part}" for name in parts for part in ("weight", "bias")]
    else:
        vision += [f"encoder.layers.1.mlp.branch_fc2.{h}.{part}" for h in (0, 1) for part in ("weight", "bias")]
    joint = ["logit_scale", "visual_projection.weight", "text_projection.weight"]
    return {*joint, *(f"text_model.{key}" for key in text), *(f"vision_model.{key}" for key in vision)}


@pytest.mark.parametrize("branch_type", ["cls", "mlp", "probe"])
def test_parameter_names_are_pinned(make_model: MakeModel, branch_type: str) -> None:
    model = make_model(vision={"branch_type": branch_type})
    assert set(model.state_dict()) == expected_keys(branch_type)


@pytest.mark.parametrize("branch_type", ["cls", "mlp", "probe"])
def test_saves_and_loads_bitwise(
    make_model: MakeModel, make_tokens: MakeTokens, pixel_values: Tensor, tmp_path: Path, branch_type: str
) -> None:
    model = make_model(vision={"branch_type": branch_type})
    model.save_pretrained(tmp_path)
    loaded, again = (AutoModel.from_pretrained(tmp_path, trust_remote_code=False) for _ in range(2))
    assert type(loaded) is HolisticCLIPModel
    assert all(torch.equal(loaded.state_dict()[name], value) for name, value in model.state_dict().items())
    # Buffers are not in the file: they are made anew after a start on the meta device.
    buffers = dict(model.named_buffers())
    assert buffers.keys() == dict(loaded.named_buffers()).keys()
    for other in (loaded, again):
        assert all(torch.equal(value, buffers[name]) for name, value in other.named_buffers())
    ids, mask = make_tokens([4, 9])
    batch = {"input_ids": ids, "attention_mask": mask, "pixel_values": pixel_values}
    torch.testing.assert_close(model(**batch).logits_per_image, loaded(**batch).logits_per_image, **CLOSE)


def test_initialisation_is_clips(make_config: Callable[..., HolisticCLIPConfig]) -> None:
    config = make_config(vision={"hidden_size": 64, "intermediate_size": 96})
    ours, clip = HolisticCLIPModel(config).state_dict(), stock_clip(config).state_dict()
    sizes = {name: (ours[name].std().item(), value.std().item()) for name, value in clip.items() if value.ndim > 1}
    assert {name: pair for name, pair in sizes.items() if pair[0] != pytest.approx(pair[1], rel=0.15)} == {}
    assert all(
        torch.equal(ours[name], value) for name, value in clip.items() if value.ndim < 2 and "class" not in name
    )


def test_one_modality_and_tuples(make_model: MakeModel, make_tokens: MakeTokens, pixel_values: Tensor) -> None:
    model = make_model()
    ids, mask = make_tokens([4, 9])
    images, texts = model(pixel_values=pixel_values), model(input_ids=ids, attention_mask=mask)
    assert set(images) == {"image_embeds", "branch_embeds", "logit_scale", "vision_model_output"}
    assert set(texts) == {"text_embeds", "logit_scale", "text_model_output"}
    both = model(input_ids=ids, attention_mask=mask, pixel_values=pixel_values)
    assert torch.equal(both.branch_embeds, images.branch_embeds) and torch.equal(both.text_embeds, texts.text_embeds)
    flat = model(input_ids=ids, attention_mask=mask, pixel_values=pixel_values, return_dict=False)
    assert isinstance(flat, tuple) and torch.equal(flat[0], both.logits_per_image)
    assert isinstance(flat[-1], tuple)
    features = model.get_image_features(pixel_values)
    assert features.pooler_output.shape == (4, 16) and features.branch_embeds.shape == (4, 3, 16)
    torch.testing.assert_close(features.branch_embeds.norm(dim=-1), torch.ones(4, 3))
    total = features.branch_embeds.sum(dim=1)
    torch.testing.assert_close(features.pooler_output, total / total.norm(dim=-1, keepdim=True))
    assert isinstance(model.get_text_features(ids, mask, return_dict=False), tuple)


def test_misuse_is_refused(make_model: MakeModel, make_tokens: MakeTokens, pixel_values: Tensor) -> None:
    model = make_model()
    ids, mask = make_tokens([4, 9])
    with pytest.raises(ValueError, match="Give `pixel_values`, `input_ids`, or both"):
        model()
    with pytest.raises(ValueError, match="needs both `pixel_values` and `input_ids`"):
        model(pixel_values=pixel_values, return_loss=True)
    with pytest.raises(ValueError, match="got 4 images and 2 texts"):
        model(input_ids=ids, attention_mask=mask, pixel_values=pixel_values, return_loss=True)
    with pytest.raises(ValueError, match="`pixel_values` is missing"):
        model.vision_model()
    with pytest.raises(ValueError, match="32 x 24 pixels for a model of 32 x 32"):
        model(pixel_values=pixel_values[..., :24])
    with pytest.raises(ValueError, match="hold no patch of 8 pixels"):
        model(pixel_values=pixel_values[..., :7], interpolate_pos_encoding=True)
    for shape in ((4, 1, 32, 32), (3, 32, 32)):
        with pytest.raises(ValueError, match=r"must be \(N, 3, height, width\)"):
            model(pixel_values=torch.zeros(shape))
    vocabulary, positions = model.config.text_config.vocab_size, model.config.text_config.max_position_embeddings
    for unknown in (-1, vocabulary):
        with pytest.raises(ValueError, match=f"for a vocabulary of {vocabulary}"):
            model(input_ids=torch.tensor([[3, unknown]]))
    with pytest.raises(ValueError, match=f"{positions + 1} tokens for a model of {positions} positions"):
        model(input_ids=torch.ones(2, positions + 1, dtype=torch.long))


def test_a_checkpoint_of_another_architecture_is_refused(tmp_path: Path) -> None:
    """transformers would warn and go on with random weights."""
    tower = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    for name, config in {"bert": BertConfig(**tower), "siglip": SiglipConfig(vision_config=tower)}.items():
        AutoModel.from_config(config).save_pretrained(tmp_path / name)
        for kind in (HolisticCLIPModel, HolisticCLIPVisionModel, HolisticCLIPForImageClassification):
            with pytest.raises(ValueError, match=f"The checkpoint is one of '{name}"):
                kind.from_pretrained(tmp_path / name)


def test_patches_of_one_branch_are_those_of_clip(make_model: MakeModel, pixel_values: Tensor) -> None:
    """With copies as branches of the MLP, those of every branch are."""
    model = make_model(vision={"num_branches": 1})
    clip = stock_clip(model.config)
    clip.load_state_dict(model.state_dict())
    states = clip.vision_model(pixel_values).last_hidden_state[:, 1:]
    patches = clip.visual_projection(clip.vision_model.post_layernorm(states))
    expected = patches / patches.norm(dim=-1, keepdim=True)
    found = model.get_patch_features(pixel_values)
    assert found.branch_patch_embeds is None and found.patch_embeds.shape == (4, 16, 16)
    torch.testing.assert_close(found.patch_embeds, expected, **CLOSE)

    branched = make_model(vision={"branch_type": "mlp", "num_branches": 3, "num_branch_layers": 2})
    state = {**model.state_dict()}
    for name in branched.state_dict().keys() - state.keys():
        head, _, tail = name.partition("branch_fc2.")
        state[name] = state[f"{head}fc2.{tail.split('.')[1]}"]
    branched.load_state_dict(state)
    found = branched.get_patch_features(pixel_values)
    torch.testing.assert_close(found.patch_embeds, expected, **CLOSE)
    torch.testing.assert_close(found.branch_patch_embeds, expected[:, None].expand(-1, 3, -1, -1), **CLOSE)


def test_patches_are_told_apart_from_class_tokens(make_model: MakeModel, pixel_values: Tensor) -> None:
    """Patch p of the output is patch p of the image: in the first layers, a change there moves it the most."""
    model = make_model(vision={"num_branches": 3, "num_hidden_layers": 1, "branch_isolation": "strict"})
    changed = pixel_values.clone()
    changed[:, :, 8:16, 24:32] += 1.0  # row 1, column 3 of a grid of 4 x 4
    moved = (
        model.get_patch_features(changed).patch_embeds - model.get_patch_features(pixel_values).patch_embeds
    ).norm(dim=-1)
    assert moved.shape == (4, 16) and moved.argmax(dim=1).tolist() == [7] * 4


def test_a_saved_clip_loads_as_one_branch(tmp_path: Path) -> None:
    """`from_pretrained` on a checkpoint of `CLIPModel` itself."""
    text = {"vocab_size": 99, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    text |= {"num_attention_heads": 4, "eos_token_id": 98, "bos_token_id": 97}
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    clip = CLIPModel(
        CLIPConfig(text_config=text, vision_config={**vision, "image_size": 64}, projection_dim=24)
    ).eval()
    clip.save_pretrained(tmp_path)
    model = HolisticCLIPModel.from_pretrained(tmp_path).eval()
    batch = {"input_ids": torch.tensor([[97, 5, 98], [97, 7, 98]]), "pixel_values": torch.randn(2, 3, 64, 64)}
    torch.testing.assert_close(model(**batch).logits_per_image, clip(**batch).logits_per_image, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="3 `perspectives`"):
        HolisticCLIPModel.from_pretrained(tmp_path, perspectives=["a", "b", "c"])
