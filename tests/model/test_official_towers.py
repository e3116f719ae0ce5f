"""The paper's released towers: their weights give their numbers, and stay ours from there on."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from holistic_clip_hf import HolisticCLIPModel
from holistic_clip_hf.initialization import from_official, from_open_clip

DATA = Path(__file__).parents[1] / "data" / "official"
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
HEADS = {"vision_heads": 4, "text_heads": 4}
VARIANTS = ["cls", "mlp"]


def load(variant: str) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, str]]:
    """The state dict, inputs and outputs, and the sizes that the file states."""
    with safe_open(DATA / f"tower_{variant}_h4.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    state = {name.removeprefix("state."): value for name, value in tensors.items() if name.startswith("state.")}
    return state, {name: value for name, value in tensors.items() if not name.startswith("state.")}, metadata


def assert_gives(model: HolisticCLIPModel, numbers: dict[str, Tensor]) -> None:
    output = model(pixel_values=numbers["pixel_values"], input_ids=numbers["input_ids"])
    for name in ("branch_embeds", "text_embeds"):
        torch.testing.assert_close(output[name], numbers[name], **CLOSE)
    torch.testing.assert_close(output.logit_scale, numbers["logit_scale"][0], **CLOSE)


@pytest.mark.parametrize("variant", VARIANTS)
def test_official_weights_give_the_official_numbers(variant: str) -> None:
    state, numbers, metadata = load(variant)
    model = from_official(state, **HEADS)
    assert_gives(model, numbers)
    # The same texts padded with anything below the end token: pooling is at the highest id, as in the released code.
    padded = numbers["input_ids"] + (numbers["input_ids"] == 0) * 7
    embeds = model.get_text_features(padded.flatten(0, 1)).pooler_output
    torch.testing.assert_close(embeds, numbers["text_embeds"].flatten(0, 1), **CLOSE)
    vision, text = model.config.vision_config, model.config.text_config
    assert (vision.branch_type, vision.num_branches) == (variant, int(metadata["num_branches"]))
    assert (vision.image_size, vision.patch_size) == (int(metadata["image_size"]), int(metadata["patch_size"]))
    assert (vision.num_hidden_layers, text.num_hidden_layers) == (5, 3)
    assert vision.branch_isolation == "official" or variant == "mlp"
    assert vision.num_branch_layers == 3
    assert text.max_position_embeddings == int(metadata["context_length"])


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_parameter_learns(variant: str) -> None:
    state, numbers, _ = load(variant)
    model = from_official(state, **HEADS).train()
    model(pixel_values=numbers["pixel_values"], input_ids=numbers["input_ids"], return_loss=True).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        # Softmax does not see what is added to all keys.
        assert parameter.grad.abs().max() > 1e-9 or name.endswith("k_proj.bias"), name


@pytest.mark.parametrize("variant", VARIANTS)
def test_survives_the_disk(variant: str, tmp_path: Path) -> None:
    state, numbers, _ = load(variant)
    from_official(state, **HEADS, perspectives=["web", "detail", "nouns", "style"]).save_pretrained(tmp_path)
    model = HolisticCLIPModel.from_pretrained(tmp_path)
    assert model.config.perspectives == ["web", "detail", "nouns", "style"]
    assert_gives(model, numbers)


@pytest.mark.parametrize("variant", VARIANTS)
def test_prefixed_half_precision_weights_load_in_float32(variant: str) -> None:
    state, numbers, _ = load(variant)
    model = from_official({f"module.{name}": value.half() for name, value in state.items()}, **HEADS)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.config.dtype == torch.float32
    embeds = model.get_image_features(numbers["pixel_values"]).branch_embeds
    assert ((embeds * numbers["branch_embeds"]).sum(dim=-1) > 0.9999).all()


@pytest.mark.parametrize("variant", VARIANTS)
def test_branches_are_not_dropped_by_the_other_converter(variant: str) -> None:
    with pytest.raises(ValueError, match="These weights have branches. Take `from_official`"):
        from_open_clip(load(variant)[0], **HEADS)


def test_an_incomplete_branch_is_named() -> None:
    state, _, _ = load("mlp")
    del state["visual.transformer.resblocks.3.c_proj.2.bias"]
    with pytest.raises(ValueError, match=r"Lacking: vision_model\.encoder\.layers\.3\.mlp\.branch_fc2\.1\.bias\."):
        from_official(state, **HEADS)
    state, _, _ = load("mlp")
    weight = "visual.transformer.resblocks.3.mlp.c_proj.weight"
    state[weight] = state["visual.transformer.resblocks.3.c_proj.0.weight"]
    with pytest.raises(ValueError, match=r"same place: vision_model\.encoder\.layers\.3\.mlp\.fc2\.weight"):
        from_official(state, **HEADS)


def test_more_class_tokens_than_the_weights_have_are_refused() -> None:
    state, _, _ = load("cls")
    with pytest.raises(ValueError, match=r"other shapes .*branch_class_embedding \(3, 64\) for \(5, 64\)"):
        from_official(state, **HEADS, vision_config={"num_branches": 6})
