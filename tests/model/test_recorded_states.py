"""What a tower records beside its vectors, and what it computes when nothing is asked for."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from holistic_clip_hf import HolisticCLIPForImageClassification, HolisticCLIPModel

MakeModel = Callable[..., HolisticCLIPModel]
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
ASKED: list[dict[str, Any]] = [
    {"output_hidden_states": True},
    {"output_attentions": True},
    {"output_hidden_states": True, "output_attentions": True},
]


@pytest.mark.parametrize("asked", ASKED, ids=lambda asked: "+".join(asked))
@pytest.mark.parametrize("branch_type", ["cls", "mlp"])
def test_the_last_state_is_trimmed_alike_whatever_is_recorded(
    make_model: MakeModel, pixel_values: Tensor, branch_type: str, asked: dict[str, Any]
) -> None:
    """Class tokens alone, unless patches are asked for; by keyword or by the configuration of either."""
    options: dict[str, Any] = {"vision": {"branch_type": branch_type}, "attention": "eager"}
    model = make_model(**options)
    plain, patches = (model.get_image_features(pixel_values, output_patches=each) for each in (False, True))
    shape = (4, 3, 32) if branch_type == "cls" else (4, 3, 1, 32)
    assert plain.last_hidden_state.shape == shape
    configured, inner = make_model(**options), make_model(**options)
    for name in asked:
        setattr(configured.config, name, True)
        setattr(inner.vision_model.config, name, True)
    for found in (
        model.get_image_features(pixel_values, **asked),
        configured.get_image_features(pixel_values),
        inner.get_image_features(pixel_values),
        model(pixel_values=pixel_values, **asked).vision_model_output,
    ):
        torch.testing.assert_close(found.last_hidden_state, plain.last_hidden_state, **CLOSE)
        assert all(found["_".join(name.split("_")[1:])] is not None for name in asked)
    whole = model.get_image_features(pixel_values, output_patches=True, **asked)
    torch.testing.assert_close(whole.last_hidden_state, patches.last_hidden_state, **CLOSE)
    assert whole.last_hidden_state.shape[-2] == shape[-2] + 16


@pytest.mark.parametrize(("branch_type", "layers", "last"), [("cls", 1, 4), ("mlp", 1, 4), ("mlp", 2, 12)])
def test_attentions_of_every_layer_are_of_all_tokens(
    make_model: MakeModel, pixel_values: Tensor, branch_type: str, layers: int, last: int
) -> None:
    """(N, heads, S, S) each; a layer that is run per branch has N x H rows."""
    model = make_model(vision={"branch_type": branch_type, "num_branch_layers": layers}, attention="eager")
    tokens = 3 + 16 if branch_type == "cls" else 1 + 16
    found = model.get_image_features(pixel_values, output_attentions=True).attentions
    assert [tuple(weights.shape) for weights in found] == [(4, 2, tokens, tokens), (last, 2, tokens, tokens)]
    for weights in found:
        torch.testing.assert_close(weights.sum(dim=-1), torch.ones(weights.shape[:-1]), **CLOSE)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("branch_type", ["cls", "mlp"])
@pytest.mark.parametrize("output_patches", [False, True])
def test_attention_dropout_acts_in_training_alone(
    make_model: MakeModel, pixel_values: Tensor, attention: str, branch_type: str, output_patches: bool
) -> None:
    """In the last layer too, whose queries are the class tokens: the other layer is made to pass its input on."""
    vision = {"branch_type": branch_type, "attention_dropout": 0.5}
    model = make_model(vision=vision, attention=attention)
    with torch.no_grad():
        model.vision_model.encoder.layers[0].self_attn.out_proj.weight.zero_()

    def embed(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return model.get_image_features(pixel_values, output_patches=output_patches).branch_embeds

    expected = embed(0)
    assert torch.equal(expected, embed(1))
    model.train()
    assert (embed(0) - embed(1)).abs().max() > 1e-3 and torch.equal(embed(0), embed(0))
    for layer in model.vision_model.encoder.layers:
        layer.self_attn.dropout = 0.0
    torch.testing.assert_close(embed(0), expected, **CLOSE)


@pytest.mark.parametrize("branch_type", ["cls", "mlp"])
def test_a_classifier_computes_no_more_than_the_vectors_need(
    make_model: MakeModel, pixel_values: Tensor, branch_type: str
) -> None:
    """The last layer for the class tokens alone, as `get_image_features`, but for the projection of each."""
    model = make_model(vision={"branch_type": branch_type})
    classifier = HolisticCLIPForImageClassification(model.config).eval()

    def operations(call: Callable[[], Any]) -> int:
        with FlopCounterMode(display=False) as counter:
            call()
        return counter.get_total_flops()

    projection, linear = 2 * 4 * 3 * 32 * 16, 2 * 4 * (3 * 32) * model.config.num_labels
    needed = operations(lambda: model.get_image_features(pixel_values)) - projection
    assert operations(lambda: classifier(pixel_values)) == needed + linear
    assert operations(lambda: classifier(pixel_values, output_hidden_states=True)) > 1.2 * needed
