"""One source of truth: the end token, the initial temperature, what is recorded, and whose weights a folder holds."""

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModel, CLIPConfig, CLIPForImageClassification, CLIPModel, CLIPTextConfig

from holistic_clip_hf import (
    HolisticCLIPConfig,
    HolisticCLIPForImageClassification,
    HolisticCLIPModel,
    HolisticCLIPVisionModel,
)
from holistic_clip_hf.initialization import from_clip

MakeConfig = Callable[..., HolisticCLIPConfig]
MakeModel = Callable[..., HolisticCLIPModel]
MakeTokens = Callable[[list[int]], tuple[Tensor, Tensor]]
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
LEGACY = 2


def flat_and_packed(model: HolisticCLIPModel, ids: Tensor) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        return model.get_text_features(ids).text_embeds, model.encode_captions(ids[:, None])[:, 0]


def read_at(model: HolisticCLIPModel, ids: Tensor, places: list[int]) -> Tensor:
    """Text vectors read at these places, from the states of all tokens."""
    with torch.no_grad():
        states = model.text_model(ids).last_hidden_state
        rows = torch.stack([states[row, place] for row, place in enumerate(places)])
        vectors = rows @ model.text_projection.weight.T
    return vectors / vectors.norm(dim=-1, keepdim=True)


@pytest.fixture
def with_new_token(make_model: MakeModel, make_tokens: MakeTokens) -> tuple[HolisticCLIPModel, Tensor, int]:
    """A model of an old configuration, to which a token was added, texts that have it, and the end token."""
    model = make_model(text={"eos_token_id": LEGACY})
    end = model.config.text_config.vocab_size - 1
    ids, _ = make_tokens([9, 9, 9])
    model.resize_token_embeddings(end + 2)
    ids[:, 3] = end + 1
    return model, ids, end


def test_an_added_token_is_not_where_a_text_is_read(with_new_token: tuple[HolisticCLIPModel, Tensor, int]) -> None:
    model, ids, end = with_new_token
    assert (ids[:, 8] == end).all() and (ids[:, 3] > end).all()
    expected = read_at(model, ids, [8, 8, 8])
    assert (expected - read_at(model, ids, [3, 3, 3])).abs().max() > 0.1
    for found in flat_and_packed(model, ids):
        torch.testing.assert_close(found, expected, **CLOSE)


@pytest.mark.parametrize("start", [LEGACY, 7, None], ids=["old", "wrong", "right"])
def test_flat_is_packed_is_loaded_whatever_the_configuration_says(
    make_model: MakeModel, make_tokens: MakeTokens, tmp_path: Path, start: int | None
) -> None:
    """As transformers' `align_special_tokens`, which writes the tokenizer's end token when training begins."""
    model = make_model(text={} if start is None else {"eos_token_id": start})
    end = model.config.text_config.vocab_size - 1
    ids, _ = make_tokens([5, 11, 7])
    ids[:, 2] = 7
    model.config.text_config.eos_token_id = end
    expected = read_at(model, ids, [4, 10, 6])
    model.save_pretrained(tmp_path)
    for each in (model, HolisticCLIPModel.from_pretrained(tmp_path).eval()):
        for found in flat_and_packed(each, ids):
            torch.testing.assert_close(found, expected, **CLOSE)
        assert each.text_model.eos_token_id == end


def test_a_text_without_the_end_token_is_refused(make_model: MakeModel, make_tokens: MakeTokens) -> None:
    """transformers would read it at its first token, which is that of all texts."""
    model = make_model()
    ids, _ = make_tokens([5, 5])
    ids[1, 4] = 3
    for encode in (model.get_text_features, lambda ids: model.encode_captions(ids[:, None])):
        with pytest.raises(ValueError, match="texts without the end token 548, at which they are read; expected it"):
            encode(ids)


def stock_clip(make_config: MakeConfig, vocab_size: int = 549, **text: Any) -> CLIPModel:
    config = make_config(vision={"num_branches": 1})
    towers = config.text_config.to_dict(), config.vision_config.to_dict()
    fields = {**towers[0], "vocab_size": vocab_size, **text, "model_type": "clip_text_model"}
    stock = CLIPConfig(
        text_config=fields, vision_config={**towers[1], "model_type": "clip_vision_model"}, projection_dim=16
    )
    clip = CLIPModel(stock).eval()
    with torch.no_grad():
        for parameter in clip.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return clip


def test_a_conversion_writes_the_true_end_token(make_config: MakeConfig, make_tokens: MakeTokens) -> None:
    clip = stock_clip(make_config, eos_token_id=LEGACY)
    ours = from_clip(clip, perspectives=["all"])
    assert ours.config.text_config.eos_token_id == 548 and clip.config.text_config.eos_token_id == LEGACY
    ids, mask = make_tokens([4, 9, 12])
    with torch.no_grad():
        expected = clip.get_text_features(ids, mask).pooler_output
    found = ours.get_text_features(ids, mask).text_embeds
    torch.testing.assert_close(found, expected / expected.norm(dim=-1, keepdim=True), **CLOSE)
    assert from_clip(clip, perspectives=["all"], text_config={"eos_token_id": 9}).text_model.eos_token_id == 9
    # Tokens were added to CLIP's own vocabulary before: they have higher ids than its end token.
    resized = stock_clip(make_config, vocab_size=49410, eos_token_id=LEGACY)
    assert from_clip(resized, perspectives=["all"]).config.text_config.eos_token_id == CLIPTextConfig().eos_token_id


def test_one_branch_of_the_same_keywords_is_clip(make_tokens: MakeTokens, pixel_values: Tensor) -> None:
    """Activations too, where the keywords leave them out, and with the names of old checkpoints."""
    tower = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**tower, "vocab_size": 549, "max_position_embeddings": 24, "eos_token_id": 548}
    vision = {**tower, "image_size": 32, "patch_size": 8}
    old = {
        "text_config_dict": {**text, "num_hidden_layers": 1},
        "vision_config_dict": {**vision, "hidden_act": "relu"},
    }
    ids, mask = make_tokens([4, 9, 12])
    batch = {"input_ids": ids, "attention_mask": mask, "pixel_values": pixel_values}
    for more in ({}, old):
        keywords = {"text_config": text, "vision_config": vision, "projection_dim": 16, **more}
        stock = CLIPModel(CLIPConfig(**copy.deepcopy(keywords))).eval()
        with torch.no_grad():
            for parameter in stock.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
        ours = HolisticCLIPModel(HolisticCLIPConfig(**keywords, perspectives=["all"])).eval()
        ours.load_state_dict(stock.state_dict(), strict=True)
        torch.testing.assert_close(ours(**batch).logits_per_image, stock(**batch).logits_per_image, **CLOSE)


def test_a_whole_number_does_as_temperature(make_config: MakeConfig) -> None:
    for kind in (3, 3.0):
        model = HolisticCLIPModel(make_config(logit_scale_init_value=kind))
        assert model.logit_scale.item() == 3.0 and model.logit_scale.requires_grad
        assert model.logit_scale.exp().item() == pytest.approx(math.exp(3))


@pytest.mark.parametrize("branch_type", ["cls", "mlp"])
@pytest.mark.parametrize("whose", ["joint", "vision_config"])
def test_a_configuration_asks_as_a_keyword_does(
    make_model: MakeModel, pixel_values: Tensor, whose: str, branch_type: str
) -> None:
    model = make_model(vision={"branch_type": branch_type})
    expected = model(pixel_values=pixel_values, output_hidden_states=True).vision_model_output
    config = model.config if whose == "joint" else model.config.vision_config
    config.output_hidden_states = True
    found = model(pixel_values=pixel_values).vision_model_output
    assert [state.shape for state in found.hidden_states] == [state.shape for state in expected.hidden_states]
    torch.testing.assert_close(found.hidden_states, expected.hidden_states, rtol=0.0, atol=0.0)
    assert model(pixel_values=pixel_values, output_hidden_states=False).vision_model_output.hidden_states is None


def test_the_joint_configuration_asks_the_text_tower_too(make_model: MakeModel, make_tokens: MakeTokens) -> None:
    model = make_model()
    ids, _ = make_tokens([5, 6])
    expected = model.get_text_features(ids, output_hidden_states=True).hidden_states
    model.config.output_hidden_states = True
    torch.testing.assert_close(model.get_text_features(ids).hidden_states, expected, rtol=0.0, atol=0.0)


def test_a_classifier_computes_the_last_layer_for_class_tokens_alone(
    make_config: MakeConfig, pixel_values: Tensor
) -> None:
    model = HolisticCLIPForImageClassification(make_config()).eval()
    sizes: list[int] = []
    last = model.vision_model.encoder.layers[-1].mlp
    last.register_forward_hook(lambda module, given, output: sizes.append(output.shape[1]))
    pruned, whole = model(pixel_values), model(pixel_values, output_hidden_states=True)
    assert sizes == [3, 3 + 16]
    torch.testing.assert_close(pruned.logits, whole.logits, **CLOSE)
    assert whole.hidden_states[-1].shape[1] == 3 + 16
    model.config.output_hidden_states = True
    assert len(model(pixel_values).hidden_states) == 3


OURS = [HolisticCLIPModel, HolisticCLIPForImageClassification, HolisticCLIPVisionModel]


@pytest.mark.parametrize("kind", OURS, ids=lambda kind: kind.__name__)
def test_a_classifier_of_clip_is_refused_by_name(make_config: MakeConfig, tmp_path: Path, kind: Any) -> None:
    """Its head reads the mean of the patches: all names fit, all predictions would be wrong."""
    clip = stock_clip(make_config)
    CLIPForImageClassification(clip.config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="saved by CLIPForImageClassification, whose .* Load it with CLIPForImage"):
        kind.from_pretrained(tmp_path)


def test_the_tower_alone_has_what_old_names_say(make_config: MakeConfig, pixel_values: Tensor, tmp_path: Path) -> None:
    """`vision_config_dict` in a saved file, over `vision_config`."""
    clip = stock_clip(make_config)
    clip.vision_model.config.hidden_act = "gelu"
    clip.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    content = json.loads(file.read_text())
    said = {name: content["vision_config"][name] for name in ("hidden_size", "intermediate_size", "image_size")}
    said |= {"num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 8, "hidden_act": "relu"}
    file.write_text(json.dumps({**content, "vision_config_dict": said}))
    expected = CLIPModel.from_pretrained(tmp_path).eval().vision_model(pixel_values).pooler_output
    for found in (HolisticCLIPVisionModel.from_pretrained(tmp_path), HolisticCLIPModel.from_pretrained(tmp_path)):
        tower = getattr(found, "vision_model", found).eval()
        torch.testing.assert_close(tower(pixel_values).pooler_output, expected, **CLOSE)


def test_weights_that_would_be_drawn_at_random_are_refused(
    make_config: MakeConfig, make_model: MakeModel, tmp_path: Path
) -> None:
    classifier, empty = tmp_path / "classifier", tmp_path / "empty"
    HolisticCLIPForImageClassification(make_config()).save_pretrained(classifier)
    for load in (HolisticCLIPModel.from_pretrained, AutoModel.from_pretrained):
        with pytest.raises(
            ValueError,
            match="saved by HolisticCLIPForImageClassification, lacks the weights logit_scale, .*CLIPModel;",
        ):
            load(classifier)
    assert HolisticCLIPVisionModel.from_pretrained(classifier).config.num_branches == 3
    make_model().save_pretrained(empty)
    save_file({"other": torch.zeros(1)}, empty / "model.safetensors", metadata={"format": "pt"})
    for kind in OURS:
        with pytest.raises(ValueError, match=rf"lacks the weights \S+, \S+, \S+ and \d+ more of {kind.__name__};"):
            kind.from_pretrained(empty)


def test_only_branches_router_bias_and_classifier_may_be_new(make_model: MakeModel, tmp_path: Path) -> None:
    make_model(vision={"num_branches": 1}, perspectives=["all"]).save_pretrained(tmp_path)
    more = {"vision_config": {"num_branches": 2}, "perspectives": ["a", "b"], "fusion": "routed"}
    model, report = HolisticCLIPModel.from_pretrained(tmp_path, **more, objective="sigmoid", output_loading_info=True)
    names = {name.split(".")[-1] for name in report["missing_keys"]}
    assert names == {"branch_class_embedding", "branch_position_embedding", "weight", "bias", "logit_bias"}
    assert model.config.num_branches == 2
    assert HolisticCLIPForImageClassification.from_pretrained(tmp_path, num_labels=3).classifier.out_features == 3
    with pytest.raises(ValueError, match=r"lacks the weights .*vision_model\.embeddings\.patch_embedding"):
        HolisticCLIPModel.from_pretrained(tmp_path, vision_config={"patch_stem": "convolutional"})


def test_the_bias_in_the_output_is_not_the_parameter(make_model: MakeModel, pixel_values: Tensor) -> None:
    """DistributedDataParallel would count it twice."""
    model = make_model(objective="sigmoid")
    output = model(pixel_values=pixel_values)
    assert not output.logit_bias.is_leaf and output.logit_bias == model.logit_bias
    output.logit_bias.backward()
    assert model.logit_bias.grad == 1.0
