"""From H similarities to one score: each fusion against plain loops, and as the dot product of two vectors."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from holistic_clip_hf import HolisticCLIPForImageClassification, HolisticCLIPModel

MakeModel = Callable[..., HolisticCLIPModel]
MakeTokens = Callable[[list[int]], tuple[Tensor, Tensor]]

FUSIONS: list[dict[str, Any]] = [
    {"fusion": "mean"},
    {"fusion": "weighted", "branch_weights": [1.0, 0.0, 3.0]},
    {"fusion": "routed"},
    {"fusion": "max"},
    {"fusion": "softmax"},
    {"fusion": "softmax", "fusion_scale": 3.0},
]
IDS = ["mean", "weighted", "routed", "max", "softmax", "softmax at a scale"]


def turn(model: HolisticCLIPModel) -> HolisticCLIPModel:
    """With a router that has been fitted, to anything."""
    if model.branch_fusion.router is not None:
        for buffer in model.branch_fusion.router.buffers():
            buffer.normal_(std=3.0)
    return model


def softmax(scores: list[float]) -> list[float]:
    return torch.tensor(scores).softmax(dim=0).tolist()


@pytest.mark.parametrize("options", FUSIONS, ids=IDS)
def test_fusion_equals_the_loops(
    make_model: MakeModel, make_tokens: MakeTokens, pixel_values: Tensor, options: dict[str, Any]
) -> None:
    model = turn(make_model(**options))
    ids, mask = make_tokens([4, 9])
    output = model(input_ids=ids, attention_mask=mask, pixel_values=pixel_values)
    texts = model.get_text_features(ids, mask).text_embeds
    scale, router = model.logit_scale.exp().item(), model.branch_fusion.router
    for image, text in [(image, text) for image in range(4) for text in range(2)]:
        scores = (output.branch_embeds[image] @ texts[text]).tolist()
        shares = {
            "mean": lambda: [1 / 3] * 3,
            "weighted": lambda: [0.25, 0.0, 0.75],
            "routed": lambda text=text: softmax(
                [(row @ texts[text] + bias).item() for row, bias in zip(router.weight, router.bias, strict=True)]
            ),
            "max": lambda scores=scores: [float(score == max(scores)) for score in scores],
            "softmax": lambda scores=scores: softmax([options.get("fusion_scale", scale) * score for score in scores]),
        }[options["fusion"]]()
        expected = sum(share * score for share, score in zip(shares, scores, strict=True))
        assert output.logits_per_image[image, text].item() == pytest.approx(scale * expected, abs=1e-4)
        assert output.logits_per_text[text, image] == output.logits_per_image[image, text]


@pytest.mark.parametrize("options", FUSIONS[:3], ids=IDS[:3])
def test_a_linear_fusion_is_one_dot_product(
    make_model: MakeModel, make_tokens: MakeTokens, pixel_values: Tensor, options: dict[str, Any]
) -> None:
    model = turn(make_model(**options))
    ids, mask = make_tokens([4, 9])
    output = model(input_ids=ids, attention_mask=mask, pixel_values=pixel_values)
    images, texts = model.get_image_features(pixel_values).pooler_output, model.get_text_features(ids, mask)
    width = 3 * 16 if options["fusion"] == "routed" else 16
    assert images.shape == (4, width) and texts.pooler_output.shape == (2, width)
    assert texts.text_embeds.shape == (2, 16)
    logits = output.logit_scale * images @ texts.pooler_output.T
    torch.testing.assert_close(output.logits_per_image, logits, rtol=1e-4, atol=1e-5)
    assert torch.equal(output.image_embeds, images) and torch.equal(output.text_embeds, texts.pooler_output)


def test_before_it_is_fitted_routing_is_the_mean(
    make_model: MakeModel, make_tokens: MakeTokens, pixel_values: Tensor, tmp_path: Path
) -> None:
    """So a checkpoint of any fusion can be loaded to be fitted."""
    mean = make_model()
    mean.save_pretrained(tmp_path)
    routed = HolisticCLIPModel.from_pretrained(tmp_path, fusion="routed").eval()
    ids, mask = make_tokens([4, 9])
    batch = {"input_ids": ids, "attention_mask": mask, "pixel_values": pixel_values}
    torch.testing.assert_close(routed(**batch).logits_per_image, mean(**batch).logits_per_image, rtol=1e-4, atol=1e-5)


def test_a_router_is_kept_and_never_trained(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model(fusion="routed")
    turn(model)
    model.save_pretrained(tmp_path)
    loaded = HolisticCLIPModel.from_pretrained(tmp_path)
    assert torch.equal(loaded.branch_fusion.router.weight, model.branch_fusion.router.weight)
    assert not list(loaded.branch_fusion.parameters())
    _, info = HolisticCLIPForImageClassification.from_pretrained(tmp_path, num_labels=2, output_loading_info=True)
    assert not info["unexpected_keys"]


def test_captions_are_trained_on_by_their_own_vectors(
    make_model: MakeModel, make_tokens: MakeTokens, pixel_values: Tensor
) -> None:
    """Routing is for answering: embeddings of nested captions and the loss do not see it."""
    ids, mask = make_tokens([4, 9, 3, 5, 6, 4, 8, 7])
    nested = {"input_ids": ids.unflatten(0, (4, 2)), "attention_mask": mask.unflatten(0, (4, 2))}
    flat = {"input_ids": ids[:4], "attention_mask": mask[:4]}
    mean, routed = make_model(), make_model(fusion="routed")
    routed.load_state_dict(mean.state_dict(), strict=False)
    for texts in (nested, flat):
        expected = mean(**texts, pixel_values=pixel_values, return_loss=True).loss
        assert torch.equal(routed(**texts, pixel_values=pixel_values, return_loss=True).loss, expected)


def test_patches_of_branches_are_averaged_where_texts_are_routed(make_model: MakeModel, pixel_values: Tensor) -> None:
    patches = make_model(fusion="routed", vision={"branch_type": "mlp"}).get_patch_features(pixel_values)
    torch.testing.assert_close(patches.patch_embeds, patches.branch_patch_embeds.mean(dim=1))


def test_routing_needs_a_router(make_model: MakeModel, make_tokens: MakeTokens) -> None:
    model = make_model()
    model.config.fusion = "routed"
    with pytest.raises(ValueError, match=r"no router.*from_pretrained\(\.\.\., fusion='routed'\)"):
        model.get_text_features(*make_tokens([4]))
