"""Nested captions: in buckets of like length, equal ones once, missing ones not at all; and their loss."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from holistic_clip_hf import HolisticCLIPModel, multi_to_multi_loss
from holistic_clip_hf.loss_holistic_clip import diversity_penalty

MakeModel = Callable[..., HolisticCLIPModel]
MakeTokens = Callable[[list[int]], tuple[Tensor, Tensor]]
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def parameter_gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def nested(make_tokens: MakeTokens) -> tuple[Tensor, Tensor, Tensor]:
    """(4, 3, 20): lengths in four buckets, two captions missing."""
    lengths = [3, 20, 9, 8, 5, 16, 17, 4, 12, 7, 10, 3]
    ids, mask = make_tokens(lengths)
    present = torch.tensor([[1, 1, 0], [1, 1, 1], [1, 1, 1], [0, 1, 1]], dtype=torch.bool)
    return ids.unflatten(0, (4, 3)), mask.unflatten(0, (4, 3)), present


def test_nested_captions_are_encoded_as_one_by_one(make_model: MakeModel, make_tokens: MakeTokens) -> None:
    model = make_model()
    ids, mask, present = nested(make_tokens)
    found = model.encode_captions(ids, mask, present)
    weight = torch.randn_like(found)
    (found * weight).sum().backward()
    gradients = parameter_gradients(model)
    model.zero_grad()
    expected = torch.zeros_like(found)
    rows = [(image, slot) for image, slot in present.nonzero().tolist()]
    for image, slot in rows:
        one = model.get_text_features(ids[image, slot][None], mask[image, slot][None]).pooler_output[0]
        (one * weight[image, slot]).sum().backward()
        expected[image, slot] = one.detach()
    torch.testing.assert_close(found.detach(), expected, **CLOSE)
    assert (found[~present] == 0).all()
    torch.testing.assert_close(found[present].norm(dim=-1), torch.ones(len(rows)))
    # One by one, no row of the position table beyond the longest text has been touched; nor may it be here.
    torch.testing.assert_close(gradients, parameter_gradients(model), rtol=1e-4, atol=1e-5)


def test_missing_captions_never_enter_the_text_tower(make_model: MakeModel, make_tokens: MakeTokens) -> None:
    model = make_model()
    shapes: list[tuple[int, ...]] = []
    model.text_model.embeddings.register_forward_hook(lambda module, args, output: shapes.append(tuple(output.shape)))
    ids, mask, present = nested(make_tokens)
    model.encode_captions(ids, mask, present)
    # Lengths present: up to 8 (3, 8, 5, 4, 3), up to 11 (10), up to 16 (16, 12), up to 22 (20, 17); missing: 9, 7
    assert sorted(shape[:2] for shape in shapes) == sorted([(5, 8), (1, 10), (2, 16), (2, 20)])


def test_text_tower_runs_even_without_any_caption(make_model: MakeModel, make_tokens: MakeTokens) -> None:
    """One rank may have none; were it to leave the tower out, the others would wait for it for ever."""
    model = make_model()
    ids, mask, present = nested(make_tokens)
    embeds = model.encode_captions(ids, mask, torch.zeros_like(present))
    assert embeds.shape == (*present.shape, 16) and not embeds.any()
    embeds.sum().backward()
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in model.text_model.parameters())


def test_a_caption_without_tokens_is_refused(make_model: MakeModel, make_tokens: MakeTokens) -> None:
    ids, mask, present = nested(make_tokens)
    mask[0, 1] = 0
    with pytest.raises(ValueError, match="Set its `caption_mask` to false"):
        make_model().encode_captions(ids, mask, torch.ones_like(present))


def test_one_bucket_gives_the_same_numbers(make_model: MakeModel, make_tokens: MakeTokens) -> None:
    model = make_model()
    ids, mask, present = nested(make_tokens)
    expected = model.encode_captions(ids, mask, present)
    model.bucket_texts = False
    shapes: list[tuple[int, ...]] = []
    model.text_model.embeddings.register_forward_hook(lambda module, args, output: shapes.append(tuple(output.shape)))
    torch.testing.assert_close(model.encode_captions(ids, mask, present), expected, **CLOSE)
    assert [shape[:2] for shape in shapes] == [(10, 20)]


def test_same_captions_enter_the_text_tower_once(make_model: MakeModel, make_tokens: MakeTokens) -> None:
    model = make_model()
    ids, mask, present = nested(make_tokens)
    ids[1, 1], mask[1, 1] = ids[0, 0], mask[0, 0]  # the text of (0, 0) in another image and slot
    caption_ids = torch.arange(12).view(4, 3).index_put((torch.tensor([1]), torch.tensor([1])), torch.tensor(0))
    expected = model.encode_captions(ids, mask, present)
    rows: list[int] = []
    model.text_model.embeddings.register_forward_hook(lambda module, args, output: rows.append(len(output)))
    found = model.encode_captions(ids, mask, present, caption_ids)
    assert sum(rows) == 9
    torch.testing.assert_close(found, expected, **CLOSE)
    weight = torch.randn_like(found)
    one, other = (
        torch.autograd.grad((part * weight).sum(), model.text_projection.weight) for part in (found, expected)
    )
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="padded in front"):
        model.encode_captions(ids.flip(-1), mask.flip(-1), present)


def test_defaults_of_nested_captions(make_model: MakeModel, make_tokens: MakeTokens) -> None:
    model = make_model()
    ids, mask, present = nested(make_tokens)
    plain = model.encode_captions(ids)
    torch.testing.assert_close(plain, model.encode_captions(ids, mask, torch.ones_like(present)), **CLOSE)


@pytest.mark.parametrize("diversity", ["pairwise", "official"])
def test_loss_of_nested_captions(
    make_model: MakeModel, make_tokens: MakeTokens, pixel_values: Tensor, diversity: str
) -> None:
    options: dict[str, Any] = {"diversity_weight": 0.5, "diversity_threshold": 0.45, "duplicate_captions": "ignore"}
    options["diversity"] = diversity
    model = make_model(**options, matching="aligned")
    ids, mask, present = nested(make_tokens)
    caption_ids = torch.tensor([[1, 2, 3], [1, 5, 6], [7, 8, 6], [9, 2, 4]])
    batch = {"input_ids": ids, "attention_mask": mask, "caption_mask": present, "caption_ids": caption_ids}
    output = model(**batch, pixel_values=pixel_values, branch_of_slot=[2, -1, 0], return_loss=True)
    expected = multi_to_multi_loss(
        output.branch_embeds,
        output.text_embeds,
        model.logit_scale.exp(),
        branch_of_slot=[2, -1, 0],
        caption_mask=present,
        caption_ids=caption_ids,
        **options,
    )
    assert torch.equal(output.loss, expected.total)
    assert torch.equal(output.loss_parts["contrastive"], expected.contrastive)
    assert torch.equal(output.loss_parts["diversity"], expected.diversity)
    other = diversity_penalty(output.branch_embeds, 0.45, form={"pairwise": "official"}.get(diversity, "pairwise"))
    assert (other - expected.diversity).abs() > 1e-3
    assert output.logits_per_image is None and output.text_embeds.shape == (4, 3, 16)
