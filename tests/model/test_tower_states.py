"""`tower_states` in place of pixels: what a tower once said, given back to its probes."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from holistic_clip_hf import HolisticBackboneVisionModel, HolisticCLIPConfig, HolisticCLIPModel

MakeModel = Callable[..., HolisticCLIPModel]
MakeTokens = Callable[..., tuple[Tensor, Tensor]]
PROBES = {"vision": {"branch_type": "probe"}}


@pytest.fixture(params=["own", "resnet"])
def model(request: pytest.FixtureRequest, make_model: MakeModel) -> HolisticCLIPModel:
    made = make_model(**PROBES)
    if request.param == "own":
        return made
    tower = {"model_type": "resnet", "hidden_sizes": [8, 32], "depths": [1, 1], "embedding_size": 8}
    fields: dict[str, Any] = {**made.config.to_dict(), "projection_dim": 16}
    fields["vision_config"] = {"backbone_config": {**tower, "layer_type": "basic"}, "image_size": 32}
    found = HolisticCLIPModel(HolisticCLIPConfig(**fields)).eval()
    assert isinstance(found.vision_model, HolisticBackboneVisionModel)
    return found


def test_states_answer_as_pixels_and_the_tower_is_not_run(
    model: HolisticCLIPModel, pixel_values: Tensor, make_tokens: MakeTokens
) -> None:
    ids, mask = make_tokens([5, 9, 7, 6])
    given = {"input_ids": ids, "attention_mask": mask, "return_loss": True}
    expected = model(pixel_values=pixel_values, **given)
    states = expected.vision_model_output.last_hidden_state.detach()

    def fail(*args: Any) -> None:
        raise AssertionError("the tower was run")

    for name in model.vision_model.below_states:
        getattr(model.vision_model, name).register_forward_pre_hook(fail)
    found = model(tower_states=states, **given)
    for name in ("loss", "logits_per_image", "image_embeds", "branch_embeds"):
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-6)
    half = model.get_image_features(tower_states=states.half()).branch_embeds
    torch.testing.assert_close(half, expected.branch_embeds, rtol=0, atol=5e-3)


def test_parts_below_the_states_and_above_are_all(model: HolisticCLIPModel) -> None:
    above = {"own": ["post_layernorm", "head"], "resnet": ["patch_norm", "head"]}
    kind = "resnet" if isinstance(model.vision_model, HolisticBackboneVisionModel) else "own"
    assert [name for name, _ in model.vision_model.named_children()] == [
        *model.vision_model.below_states,
        *above[kind],
    ]


def test_what_cannot_be_read_is_refused(make_model: MakeModel, pixel_values: Tensor) -> None:
    probes, states = make_model(**PROBES), torch.zeros(4, 17, 32)
    with pytest.raises(ValueError, match="`pixel_values` and `tower_states` are both given"):
        probes.get_image_features(pixel_values, tower_states=states)
    with pytest.raises(ValueError, match="branch_type='cls', whose branches come out of the tower itself"):
        make_model().get_image_features(tower_states=states)
    for wrong in (states[0], states[..., :31], states[:, :1]):
        with pytest.raises(ValueError, match=r"`tower_states` is \(.*\); expected \(N, S, 32\) with patches behind 1"):
            probes.get_image_features(tower_states=wrong)
    with pytest.raises(ValueError, match="`pixel_values` is missing"):
        probes.get_image_features()
