"""Nested captions: packed into rows, equal ones once, missing ones not at all; and their loss."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from holistic_clip_hf import HolisticCLIPModel
from holistic_clip_hf.loss_holistic_clip import diversity_penalty
from reference import loss_of

MakeModel = Callable[..., HolisticCLIPModel]
MakeTokens = Callable[[list[int]], tuple[Tensor, Tensor]]
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def parameter_gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def nested(make_tokens: MakeTokens) -> tuple[Tensor, Tensor, Tensor]:
    """(4, 3, 20), two captions missing."""
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


def tokens_that_enter(model: HolisticCLIPModel) -> list[Tensor]:
    """Filled with the `input_ids` of each call of the text tower."""
    seen: list[Tensor] = []
    tower = model.text_model.embeddings
    tower.register_forward_pre_hook(lambda module, args, given: seen.append(given["input_ids"]), with_kwargs=True)
    return seen


def test_missing_captions_never_enter_the_text_tower(make_model: MakeModel, make_tokens: MakeTokens) -> None:
    model = make_model()
    seen = tokens_that_enter(model)
    ids, mask, present = nested(make_tokens)
    model.encode_captions(ids, mask, present)
    # Lengths present are 3, 20, 8, 5, 16, 17, 4, 12, 10, 3: 98 tokens, in one call, in 5 rows of 24 places.
    assert [tuple(tokens.shape) for tokens in seen] == [(5, 24)]
    entered = sorted(token for token in seen[0].flatten().tolist() if token)
    assert entered == sorted(token for token in ids[mask.bool() & present[..., None]].tolist() if token)


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


@pytest.mark.parametrize("attention", ["eager", "flex_attention"])
@torch.no_grad()
def test_every_attention_gives_the_same_numbers(
    make_model: MakeModel, make_tokens: MakeTokens, attention: str
) -> None:
    ids, mask, present = nested(make_tokens)
    expected = make_model().encode_captions(ids, mask, present)
    with torch.compiler.set_stance("force_eager"):
        found = make_model(attention=attention).encode_captions(ids, mask, present)
    torch.testing.assert_close(found, expected, **CLOSE)


def test_the_end_of_old_checkpoints_is_their_highest_token(make_model: MakeModel, make_tokens: MakeTokens) -> None:
    """transformers: an `eos_token_id` of 2 is that of CLIP's first configurations, which never had such a token."""
    model = make_model()
    ids, mask, present = nested(make_tokens)
    expected = model.encode_captions(ids, mask, present)
    assert (ids.amax(dim=-1) == model.config.text_config.eos_token_id).all()
    model.text_model.config.eos_token_id = 2
    torch.testing.assert_close(model.encode_captions(ids, mask, present), expected, **CLOSE)


def test_same_captions_enter_the_text_tower_once(make_model: MakeModel, make_tokens: MakeTokens) -> None:
    model = make_model()
    ids, mask, present = nested(make_tokens)
    ids[1, 1], mask[1, 1] = ids[0, 0], mask[0, 0]  # the text of (0, 0) in another image and slot
    caption_ids = torch.arange(12).view(4, 3).index_put((torch.tensor([1]), torch.tensor([1])), torch.tensor(0))
    expected = model.encode_captions(ids, mask, present)
    seen = tokens_that_enter(model)
    found = model.encode_captions(ids, mask, present, caption_ids)
    ends = [int((tokens == model.config.text_config.eos_token_id).sum()) for tokens in seen]
    assert ends == [9]
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
    options |= {"diversity": diversity, "fused_weight": 0.3}
    model = make_model(**options, matching="aligned")
    ids, mask, present = nested(make_tokens)
    caption_ids = torch.tensor([[1, 2, 3], [1, 5, 6], [7, 8, 6], [9, 2, 4]])
    batch = {"input_ids": ids, "attention_mask": mask, "caption_mask": present, "caption_ids": caption_ids}
    output = model(**batch, pixel_values=pixel_values, branch_of_slot=[2, -1, 0], return_loss=True)
    expected = loss_of(
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
    assert torch.equal(output.loss_parts["fused"], expected.fused)
    assert torch.equal(output.loss_parts["diversity"], expected.diversity)
    other = diversity_penalty(output.branch_embeds, 0.45, form={"pairwise": "official"}.get(diversity, "pairwise"))
    assert (other - expected.diversity).abs() > 1e-3
    assert output.logits_per_image is None and output.text_embeds.shape == (4, 3, 16)
