"""From H similarities to one score: each fusion against plain loops, and as the dot product of two vectors."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from holistic_clip_hf import HolisticCLIPForImageClassification, HolisticCLIPModel
from holistic_clip_hf.loss_holistic_clip import route

MakeModel = Callable[..., HolisticCLIPModel]
MakeTokens = Callable[[list[int]], tuple[Tensor, Tensor]]

FUSIONS: list[dict[str, Any]] = [
    {"fusion": "centroid"},
    {"fusion": "mean"},
    {"fusion": "weighted", "branch_weights": [1.0, 0.0, 3.0]},
    {"fusion": "routed"},
    {"fusion": "max"},
    {"fusion": "softmax"},
    {"fusion": "softmax", "fusion_scale": 3.0},
]
IDS = ["centroid", "mean", "weighted", "routed", "max", "softmax", "softmax at a scale"]


def turn(model: HolisticCLIPModel) -> HolisticCLIPModel:
    """With a router that has been trained, to anything; it takes vectors of 16 numbers, of length 4."""
    for parameter in model.branch_fusion.parameters():
        nn.init.normal_(parameter)
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
        numbers = output.branch_embeds[image].T.tolist()  # of all branches, number by number
        length = sum((sum(each) / 3) ** 2 for each in numbers) ** 0.5  # of their mean
        shares = {
            "centroid": lambda length=length: [1 / 3 / length] * 3,
            "mean": lambda: [1 / 3] * 3,
            "weighted": lambda: [0.25, 0.0, 0.75],
            "routed": lambda text=text: softmax(
                [(4 * row @ texts[text] + bias).item() for row, bias in zip(router.weight, router.bias, strict=True)]
            ),
            "max": lambda scores=scores: [float(score == max(scores)) for score in scores],
            "softmax": lambda scores=scores: softmax([options.get("fusion_scale", scale) * score for score in scores]),
        }[options["fusion"]]()
        expected = sum(share * score for share, score in zip(shares, scores, strict=True))
        assert output.logits_per_image[image, text].item() == pytest.approx(scale * expected, abs=1e-4)
        assert output.logits_per_text[text, image] == output.logits_per_image[image, text]


@pytest.mark.parametrize("options", FUSIONS[:4], ids=IDS[:4])
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


def test_the_centroid_is_what_libraries_that_compare_by_cosine_rank_by(
    make_model: MakeModel, make_tokens: MakeTokens, pixel_values: Tensor
) -> None:
    """Whether they take the model's vectors as they are, or make them of unit length first."""
    model = make_model()
    assert model.config.fusion == "centroid"
    ids, mask = make_tokens([4, 9])
    images, texts = model.get_image_features(pixel_values).pooler_output, model.get_text_features(ids, mask)
    torch.testing.assert_close(images.norm(dim=-1), torch.ones(4))
    cosine = nn.functional.cosine_similarity(images[:, None], texts.pooler_output[None], dim=-1)
    logits = model(input_ids=ids, attention_mask=mask, pixel_values=pixel_values).logits_per_image
    torch.testing.assert_close(logits, model.logit_scale.exp() * cosine, rtol=1e-4, atol=1e-5)


def test_a_checkpoint_from_before_the_centroid_stays_at_the_mean(make_model: MakeModel, tmp_path: Path) -> None:
    make_model(fusion="mean").save_pretrained(tmp_path)
    assert HolisticCLIPModel.from_pretrained(tmp_path).config.fusion == "mean"


def test_before_it_is_fitted_routing_is_the_mean(
    make_model: MakeModel, make_tokens: MakeTokens, pixel_values: Tensor, tmp_path: Path
) -> None:
    """So a checkpoint of any fusion can be loaded to be fitted."""
    mean = make_model(fusion="mean")
    mean.save_pretrained(tmp_path)
    routed = HolisticCLIPModel.from_pretrained(tmp_path, fusion="routed").eval()
    ids, mask = make_tokens([4, 9])
    batch = {"input_ids": ids, "attention_mask": mask, "pixel_values": pixel_values}
    torch.testing.assert_close(routed(**batch).logits_per_image, mean(**batch).logits_per_image, rtol=1e-4, atol=1e-5)


def test_a_router_is_kept_with_the_checkpoint(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model(fusion="routed")
    turn(model)
    model.save_pretrained(tmp_path)
    loaded = HolisticCLIPModel.from_pretrained(tmp_path)
    assert torch.equal(loaded.branch_fusion.router.weight, model.branch_fusion.router.weight)
    _, info = HolisticCLIPForImageClassification.from_pretrained(tmp_path, num_labels=2, output_loading_info=True)
    assert not info["unexpected_keys"]


def test_captions_are_trained_on_by_their_own_vectors(
    make_model: MakeModel, make_tokens: MakeTokens, pixel_values: Tensor
) -> None:
    """Without a fused term routing is for answering: the loss does not see it."""
    ids, mask = make_tokens([4, 9, 3, 5, 6, 4, 8, 7])
    nested = {"input_ids": ids.unflatten(0, (4, 2)), "attention_mask": mask.unflatten(0, (4, 2))}
    flat = {"input_ids": ids[:4], "attention_mask": mask[:4]}
    mean, routed = make_model(fused_weight=0.0), make_model(fused_weight=0.0, fusion="routed")
    routed.load_state_dict(mean.state_dict(), strict=False)
    for texts in (nested, flat):
        expected = mean(**texts, pixel_values=pixel_values, return_loss=True).loss
        assert torch.equal(routed(**texts, pixel_values=pixel_values, return_loss=True).loss, expected)


def test_the_fused_term_trains_the_router(
    make_model: MakeModel, make_tokens: MakeTokens, pixel_values: Tensor
) -> None:
    """Against one-to-many training of vectors side by side, made by loops."""
    model = turn(make_model(fusion="routed", fused_weight=0.7))
    ids, mask = make_tokens([4, 9, 3, 5, 6, 4, 8, 7])
    nested = {"input_ids": ids.unflatten(0, (4, 2)), "attention_mask": mask.unflatten(0, (4, 2))}
    output = model(**nested, pixel_values=pixel_values, return_loss=True)
    output.loss.backward()
    router = model.branch_fusion.router
    texts, images = output.text_embeds.detach(), output.branch_embeds.detach()
    weight = router.weight.detach().clone().requires_grad_()
    total = 0.0
    for slot in range(2):
        shares = [(weight @ (4 * texts[text, slot]) + router.bias.detach()).softmax(dim=0) for text in range(4)]
        logits = output.logit_scale.detach() * torch.stack(
            [
                torch.stack([sum(shares[text][h] * (images[image, h] @ texts[text, slot]) for h in range(3))])
                for image in range(4)
                for text in range(4)
            ]
        ).view(4, 4)
        for one_way in (logits, logits.T):
            total = total + sum(one_way[n].logsumexp(dim=0) - one_way[n, n] for n in range(4)) / 16
    torch.testing.assert_close(output.loss_parts["fused"], total.detach(), rtol=1e-4, atol=1e-5)
    (0.7 * total).backward()
    torch.testing.assert_close(router.weight.grad, weight.grad, rtol=1e-3, atol=1e-6)
    assert weight.grad.abs().max() > 1e-3


def test_routing_of_nested_captions_is_that_of_flat_ones(
    make_model: MakeModel, make_tokens: MakeTokens, pixel_values: Tensor
) -> None:
    model = turn(make_model(fusion="routed"))
    ids, mask = make_tokens([4, 9, 3, 5, 6, 4, 8, 7])
    nested = model(input_ids=ids.unflatten(0, (4, 2)), attention_mask=mask.unflatten(0, (4, 2)))
    flat = model.get_text_features(ids, mask).pooler_output
    assert nested.routing.shape == (4, 2, 3) and nested.text_embeds.shape == (4, 2, 16)
    torch.testing.assert_close(route(nested.text_embeds, nested.routing).flatten(0, 1), flat, rtol=1e-4, atol=1e-5)


def test_patches_of_branches_are_averaged_where_texts_are_routed(make_model: MakeModel, pixel_values: Tensor) -> None:
    patches = make_model(fusion="routed", vision={"branch_type": "mlp"}).get_patch_features(pixel_values)
    torch.testing.assert_close(patches.patch_embeds, patches.branch_patch_embeds.mean(dim=1))


def test_routing_needs_a_router(make_model: MakeModel, make_tokens: MakeTokens) -> None:
    model = make_model()
    model.config.fusion = "routed"
    with pytest.raises(ValueError, match=r"no router.*from_pretrained\(\.\.\., fusion='routed'\)"):
        model.get_text_features(*make_tokens([4]))
