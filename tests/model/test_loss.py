"""The loss against the paper's released numbers, against plain loops, against closed forms and against CLIP's own."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F
from transformers import SiglipConfig, SiglipModel
from transformers.models.clip.modeling_clip import image_text_contrastive_loss

import reference
from holistic_clip_hf.loss_holistic_clip import CaptionBatch
from reference import loss_of

OFFICIAL = load_file(Path(__file__).parents[1] / "data" / "official" / "loss.safetensors")
OFFICIAL_CASES = sorted({key.split(".")[0] for key in OFFICIAL})
SHAPES = [(3, 3), (2, 4), (4, 2), (1, 3), (3, 1), (1, 1)]  # (H, M)


def unit(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1)


def embeds(num_branches: int, num_slots: int, images: int = 5, width: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    branches, texts = unit(images, num_branches, width), unit(images, num_slots, width, seed=1)
    return branches.requires_grad_(), texts.requires_grad_(), torch.tensor(7.0, dtype=torch.float64).requires_grad_()


def ragged(images: int, slots: int) -> tuple[Tensor, Tensor]:
    """A mask with holes and ids in which images share captions, in one slot all of them."""
    generator = torch.Generator().manual_seed(3)
    mask = torch.rand(images, slots, generator=generator) > 0.3
    mask[0] = True
    ids = torch.randint(0, 3, (images, slots), generator=generator)
    ids[:, -1] = 9
    return mask, ids


def gradients(loss: Tensor, *inputs: Tensor, retain: bool = False) -> list[Tensor]:
    return [part.clone() for part in torch.autograd.grad(loss, inputs, retain_graph=retain)]


@pytest.mark.parametrize("case", OFFICIAL_CASES)
def test_equals_the_released_code(case: str) -> None:
    expected = {key.removeprefix(f"{case}."): value for key, value in OFFICIAL.items() if key.startswith(f"{case}.")}
    branches, texts = (expected[name].requires_grad_() for name in ("branch_embeds", "text_embeds"))
    result = loss_of(
        branches,
        texts,
        expected["logit_scale"].squeeze(),
        matching="free" if branches.shape[1] > texts.shape[1] else "aligned",
        duplicate_captions="negative",
        diversity="official",
        diversity_threshold=0.7,
    )
    close = {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(result.contrastive[None], expected["contrastive_loss"], **close)
    torch.testing.assert_close(result.diversity[None], expected["diversity_loss"], **close)
    branch_gradient, text_gradient = gradients(result.total, branches, texts)
    torch.testing.assert_close(branch_gradient, expected["branch_embeds_grad"], **close)
    torch.testing.assert_close(text_gradient, expected["text_embeds_grad"], **close)


def test_every_released_case_is_there() -> None:
    assert len(OFFICIAL_CASES) == 6


def choices(num_branches: int, num_slots: int) -> list[tuple[str, list[int] | None]]:
    """Matching and `branch_of_slot`: the default, a permutation from the far end, one that frees every second slot."""
    backwards = [(num_branches - 1 - slot) % num_branches for slot in range(num_slots)]
    aligned = [None, backwards, [-1 if slot % 2 == 0 else branch for slot, branch in enumerate(backwards)]]
    return [*(("aligned", choice) for choice in aligned), ("free", None), ("balanced", None)]


@pytest.mark.parametrize("objective", ["softmax", "sigmoid"])
@pytest.mark.parametrize("duplicate_captions", ["positive", "ignore", "negative"])
@pytest.mark.parametrize(("num_branches", "num_slots"), SHAPES)
def test_equals_the_loops(num_branches: int, num_slots: int, duplicate_captions: str, objective: str) -> None:
    branches, texts, scale = embeds(num_branches, num_slots)
    bias = torch.tensor(-2.0, dtype=torch.float64).requires_grad_() if objective == "sigmoid" else None
    mask, ids = ragged(5, num_slots)
    for matching, choice in choices(num_branches, num_slots):
        result = loss_of(
            branches,
            texts,
            scale,
            objective=objective,
            logit_bias=bias,
            matching=matching,
            branch_of_slot=choice,
            caption_mask=mask,
            caption_ids=ids,
            duplicate_captions=duplicate_captions,
            diversity_weight=0.0,
        )
        by_default = [slot if slot < num_branches else -1 for slot in range(num_slots)]
        slots = (choice or by_default) if matching == "aligned" else [-1] * num_slots
        met = reference.met_branches(branches, texts, slots, mask, matching)
        rest = (met, mask, ids, duplicate_captions)
        if bias is None:
            expected, inputs = reference.contrastive(branches, texts, scale, *rest), (branches, texts, scale)
        else:
            expected = reference.sigmoid_contrastive(branches, texts, scale, bias, *rest)
            inputs = (branches, texts, scale, bias)
        assert result.assignment[mask].tolist() == torch.tensor(met)[mask].tolist()
        torch.testing.assert_close(result.contrastive, expected, rtol=1e-9, atol=1e-10)
        found = gradients(result.total, *inputs)
        for one, other in zip(found, gradients(expected, *inputs), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("form", ["pairwise", "official"])
@pytest.mark.parametrize("threshold", [-0.5, 0.0, 0.3])
def test_diversity_equals_the_loops(form: str, threshold: float) -> None:
    branches, texts, scale = embeds(4, 2)
    result = loss_of(branches, texts, scale, diversity=form, diversity_threshold=threshold, diversity_weight=0.5)
    expected = reference.diversity(branches, threshold, form)
    torch.testing.assert_close(result.diversity.double(), torch.as_tensor(expected).double())
    torch.testing.assert_close(result.total, result.contrastive + 0.5 * result.diversity)
    torch.testing.assert_close(gradients(result.diversity, branches)[0], gradients(expected, branches)[0])


def test_assignment_is_what_each_caption_met() -> None:
    branches, texts, scale = embeds(3, 3)
    result = loss_of(branches, texts, scale, branch_of_slot=[2, -1, 0])
    free = [reference.best(reference.similarities(branches[image], texts[image, 1])) for image in range(5)]
    assert result.assignment.tolist() == [[2, best, 0] for best in free]
    assert len(set(free)) > 1


@pytest.mark.parametrize("matching", ["aligned", "free"])
def test_all_equal_embeddings_give_log_of_the_batch(matching: str) -> None:
    same = torch.zeros(6, 3, 8).index_fill(2, torch.tensor([0]), 1.0)
    # CLIP's highest temperature, of which float32 has no exponential
    result = loss_of(same, same, torch.tensor(100.0), matching=matching, diversity_weight=0)
    assert result.total.item() == pytest.approx(math.log(6), abs=1e-5)


def test_one_branch_and_one_caption_is_clip() -> None:
    branches, texts, scale = embeds(1, 1)
    result = loss_of(branches, texts, scale)
    expected = image_text_contrastive_loss(scale * texts[:, 0] @ branches[:, 0].T)
    torch.testing.assert_close(result.total.double(), expected, rtol=1e-6, atol=1e-6)
    assert result.diversity.item() == 0


def test_one_branch_and_one_caption_is_siglip() -> None:
    tower = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = tower | {"vocab_size": 20, "max_position_embeddings": 6, "bos_token_id": 0, "eos_token_id": 1}
    config = SiglipConfig(text_config=text, vision_config=tower | {"image_size": 8, "patch_size": 4})
    model = SiglipModel(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    output = model(torch.randint(0, 20, (5, 6)), torch.randn(5, 3, 8, 8), return_loss=True)
    result = loss_of(
        output.image_embeds[:, None],
        output.text_embeds[:, None],
        model.logit_scale.exp(),
        objective="sigmoid",
        logit_bias=model.logit_bias,
    )
    torch.testing.assert_close(result.total, output.loss)
    inputs = (output.image_embeds, output.text_embeds, model.logit_scale, model.logit_bias)
    expected = gradients(output.loss, *inputs, retain=True)
    torch.testing.assert_close(gradients(result.total, *inputs), expected)


@pytest.mark.parametrize("matching", ["aligned", "free", "balanced"])
def test_order_of_images_does_not_matter(matching: str) -> None:
    branches, texts, scale = embeds(3, 3)
    mask, ids = ragged(5, 3)
    order = torch.tensor([3, 0, 4, 1, 2])
    options = {"matching": matching}
    before = loss_of(branches, texts, scale, caption_mask=mask, caption_ids=ids, **options)
    after = loss_of(branches[order], texts[order], scale, caption_mask=mask[order], caption_ids=ids[order], **options)
    torch.testing.assert_close(before.total, after.total)


def test_order_of_slots_matters_exactly_where_they_are_aligned() -> None:
    branches, texts, scale = embeds(3, 3)
    turned = texts[:, [1, 2, 0]]

    def total(slots: Tensor, matching: str) -> float:
        return loss_of(branches, slots, scale, matching=matching).total.item()

    assert abs(total(texts, "aligned") - total(turned, "aligned")) > 1e-2
    assert total(texts, "free") == pytest.approx(total(turned, "free"), abs=1e-6)


def test_two_collapsed_branches_of_five() -> None:
    branches = torch.eye(5).expand(4, -1, -1).clone()
    branches[:, 1] = branches[:, 0]
    texts = unit(4, 5, 5).float()
    pairwise, official = (
        loss_of(branches, texts, torch.tensor(1.0), diversity=form) for form in ("pairwise", "official")
    )
    assert pairwise.diversity.item() == pytest.approx((1.0 - 0.7) / 10)
    assert official.diversity.item() == 0


@pytest.mark.parametrize("choice", [[0, 1, 2], [-1, -1, -1]])
def test_missing_caption_counts_for_nothing(choice: list[int]) -> None:
    branches, texts, scale = embeds(3, 3)
    mask = torch.ones(5, 3, dtype=torch.bool)
    mask[1, 2] = mask[4, 0] = False
    result = loss_of(branches, texts, scale, branch_of_slot=choice, caption_mask=mask)
    text_gradient = gradients(result.total, texts)[0]
    assert (text_gradient[~mask] == 0).all()
    assert (text_gradient[mask].abs().amax(dim=-1) > 0).all()
    other = torch.where(mask[..., None], texts, torch.full_like(texts, 100.0))
    again = loss_of(branches, other, scale, branch_of_slot=choice, caption_mask=mask)
    assert torch.equal(again.total, result.total)


@pytest.mark.parametrize("objective", ["softmax", "sigmoid"])
@pytest.mark.parametrize("matching", ["aligned", "balanced"])
@pytest.mark.parametrize("num_ranks", [2, 3])
def test_mean_over_ranks_is_the_whole_batch(num_ranks: int, matching: str, objective: str) -> None:
    branches, texts, scale = embeds(3, 4, images=6)
    mask, ids = ragged(6, 4)
    bias = torch.tensor(-2.0, dtype=torch.float64).requires_grad_()
    inputs = (branches, texts, scale) if objective == "softmax" else (branches, texts, scale, bias)
    options: dict[str, Any] = {"branch_of_slot": [2, 0, -1, 1], "diversity_threshold": -0.5, "matching": matching}
    options |= {"objective": objective, "logit_bias": bias if objective == "sigmoid" else None}
    whole = loss_of(branches, texts, scale, caption_mask=mask, caption_ids=ids, **options)
    rows, parts = 6 // num_ranks, []
    for offset in range(0, 6, rows):
        mine = slice(offset, offset + rows)
        local = {"caption_mask": mask[mine], "caption_ids": ids[mine]}
        # As a gathered tensor: the same numbers, but not the same tensor.
        everyone = CaptionBatch(branches * 1, texts * 1, mask, ids)
        part = loss_of(branches[mine], texts[mine], scale, **local, **options, gathered=everyone, offset=offset)
        assert torch.equal(part.assignment, whole.assignment[mine])
        parts.append(part.total)
    mean = sum(parts) / num_ranks
    torch.testing.assert_close(mean, whole.total)
    found, expected = (gradients(loss, *inputs) for loss in (mean, whole.total))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)


def refuse(message: str, branches: Tensor, texts: Tensor, **options: Any) -> Callable[[], None]:
    def run() -> None:
        with pytest.raises(ValueError, match=message):
            loss_of(branches, texts, torch.tensor(1.0), **options)

    return run


def test_refusals_say_what_was_got() -> None:
    branches, texts = unit(4, 2, 8), unit(4, 3, 8)
    refuse(r"got \(3, 2, 8\) and \(4, 3, 8\)", branches[:3], texts)()
    refuse(r"got \(4, 8\) and \(4, 3, 8\)", branches[:, 0], texts)()
    refuse(r"got \(4, 2, 7\) and \(4, 3, 8\)", branches[..., :7], texts)()
    refuse(r"\(4, 3\); got \(4, 2\)", branches, texts, caption_mask=torch.ones(4, 2))()
    refuse(r"\(4, 3\); got \(4, 3\) and \(3, 4\)", branches, texts, caption_ids=torch.ones(3, 4))()
    refuse("`matching` is 'nearest'; expected one of 'aligned'", branches, texts, matching="nearest")()
    refuse("`objective` is 'hinge'; expected one of 'softmax', 'sigmoid'", branches, texts, objective="hinge")()
    refuse("'sigmoid' and `logit_bias` is None. Give a bias", branches, texts, objective="sigmoid")()
    refuse("none with 'softmax'", branches, texts, logit_bias=torch.tensor(-10.0))()
    refuse("`chunk_size` is 0; expected 1 or more", branches, texts, chunk_size=0)()
    everyone = CaptionBatch(branches.clone(), texts.clone(), torch.ones(4, 3), torch.arange(12).view(4, 3))
    refuse(r"from `offset` on; got .* at offset 1", branches, texts, gathered=everyone, offset=1)()
    refuse(r"from `offset` on; got .* at offset 0", branches, texts[:, :2], gathered=everyone)()
    refuse(r"from `offset` on; got .* at offset 3", branches, texts, offset=3)()
    refuse("needs 3 numbers, each -1 .free. or a branch below 2", branches, texts, branch_of_slot=[0, 1])()
    refuse(r"below 2; got \[0, 1, 2\]", branches, texts, branch_of_slot=[0, 1, 2])()
    refuse(r"below 2; got \[0, -2, 1\]", branches, texts, branch_of_slot=[0, -2, 1])()
    refuse("`duplicate_captions` is 'drop'; expected one of 'positive'", branches, texts, duplicate_captions="drop")()
    refuse("`diversity` is 'mean'; expected one of 'pairwise'", branches, texts, diversity="mean")()
    nothing = torch.zeros(4, 3, dtype=torch.bool)
    for matching in ("aligned", "free", "balanced"):
        refuse("no caption in any slot", branches, texts, caption_mask=nothing, matching=matching)()


@pytest.mark.parametrize("matching", ["aligned", "free", "balanced"])
def test_whatever_a_missing_row_holds(matching: str) -> None:
    branches = torch.randn(4, 2, 8, requires_grad=True)
    texts = torch.randn(4, 2, 8)
    texts[1, 0] = torch.nan
    texts.requires_grad_()
    mask = torch.ones(4, 2, dtype=torch.bool)
    mask[1, 0] = False
    loss = loss_of(branches, texts, torch.tensor(10.0), caption_mask=mask, matching=matching)
    loss.total.backward()
    assert branches.grad.isfinite().all() and texts.grad.isfinite().all()
    assert texts.grad[1, 0].count_nonzero() == 0


@pytest.mark.parametrize("form", ["pairwise", "official"])
def test_an_image_that_fills_a_place_is_not_penalised(form: str) -> None:
    branches, texts, scale = embeds(3, 3)
    mask, ids = ragged(5, 3)
    counted = torch.tensor([True, False, True, True, False])
    mask[~counted] = False
    options = {"diversity": form, "diversity_threshold": -0.9, "fused_weight": 1.0}
    found = loss_of(branches, texts, scale, caption_mask=mask, caption_ids=ids, image_mask=counted, **options)
    kept = branches[counted].detach().tolist()
    assert found.diversity.item() == pytest.approx(reference.diversity(kept, -0.9, form)) != 0
    fewer = branches[counted], texts[counted], scale
    expected = loss_of(*fewer, caption_mask=mask[counted], caption_ids=ids[counted], **options)
    assert found.total.item() == pytest.approx(expected.total.item())
    assert not torch.autograd.grad(found.total, branches)[0][~counted].any()
