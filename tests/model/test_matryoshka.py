"""Matryoshka training: prefixes of the vectors have the loss vectors of their width would have, in plain loops."""

from typing import Any

import pytest
import torch
from test_loss import embeds, gradients, ragged
from torch import Tensor

import reference
from holistic_clip_hf import HolisticCLIPConfig, LossOptions
from holistic_clip_hf.loss_holistic_clip import prefix_of
from holistic_clip_hf.publishing.model_card import CardFacts, render_model_card
from reference import loss_of


def prefix(vectors: Tensor, width: int) -> list[list[list[Tensor]]]:
    """(N, any, D) as lists of single numbers, the first `width` of each vector, of unit length."""
    cut = [[[vector[d] for d in range(width)] for vector in row] for row in vectors]
    if width == vectors.shape[-1]:
        return cut  # whole vectors are of unit length as they are
    return [[[value / sum(x * x for x in vector) ** 0.5 for value in vector] for vector in row] for row in cut]


def mean_of(row: list[list[Tensor]]) -> list[list[Tensor]]:
    """The branches' mean, of unit length, as the only branch."""
    mean = [sum(branch[d] for branch in row) / len(row) for d in range(len(row[0]))]
    return [[value / sum(x * x for x in mean) ** 0.5 for value in mean]]


def plain_loss(branches: Any, texts: Any, scale: Tensor, mask: Any, ids: Any, matching: str) -> Any:
    """Contrast, centroid and diversity of vectors of one width, weighted as in the test."""
    slots = [0, 1, 2, -1] if matching == "aligned" else [-1] * 4
    met = reference.met_branches(branches, texts, slots, mask, matching)
    fused = [mean_of(row) for row in branches]
    return (
        reference.contrastive(branches, texts, scale, met, mask, ids, "positive")
        + 0.6 * reference.contrastive(fused, texts, scale, [[0] * 4] * 5, mask, ids, "positive")
        + 0.7 * reference.diversity(branches, -0.5, "pairwise")
    )


@pytest.mark.parametrize("chunk_size", [None, 2])
@pytest.mark.parametrize("matching", ["aligned", "free", "balanced"])
def test_prefixes_have_the_loss_of_vectors_of_their_width(matching: str, chunk_size: int | None) -> None:
    branches, texts, scale = embeds(3, 4, width=6)
    mask, ids = ragged(5, 4)
    options: dict[str, Any] = {"matching": matching, "fused_weight": 0.6, "chunk_size": chunk_size}
    options |= {"diversity_weight": 0.7, "diversity_threshold": -0.5, "caption_mask": mask, "caption_ids": ids}
    result = loss_of(branches, texts, scale, matryoshka_dims=[2, 6, 3], **options)
    losses = [
        plain_loss(prefix(branches, width), prefix(texts, width), scale, mask, ids, matching) for width in (6, 2, 3)
    ]
    expected = sum(losses) / 3
    torch.testing.assert_close(result.total, expected, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(
        result.total, result.contrastive + 0.6 * result.fused + 0.7 * result.diversity, rtol=1e-12, atol=0
    )
    found, wanted = (gradients(each, branches, texts, scale) for each in (result.total, expected))
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10)
    whole = loss_of(branches, texts, scale, **options)
    assert torch.equal(result.assignment, whole.assignment) and not torch.isclose(result.total, whole.total)


@pytest.mark.parametrize("about", [{"objective": "sigmoid"}, {"routed": True}, {"fusion": "weighted"}], ids=str)
def test_every_objective_and_fusion_is_that_of_the_cut_vectors(about: dict[str, Any]) -> None:
    branches, texts, scale = embeds(3, 4, width=6)
    options: dict[str, Any] = {"fused_weight": 0.6, **about}
    if options.pop("routed", False):
        options["routing"] = torch.rand(5, 4, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    if "fusion" in about:
        options["branch_weights"] = [0.5, 0.0, 1.5]
    if "objective" in about:
        options["logit_bias"] = torch.tensor(-3.0, dtype=torch.float64)
    result = loss_of(branches, texts, scale, matryoshka_dims=[2], **options)
    cut = [each[..., :2] / each[..., :2].square().sum(dim=-1, keepdim=True).sqrt() for each in (branches, texts)]
    expected = (loss_of(branches, texts, scale, **options).total + loss_of(*cut, scale, **options).total) / 2
    torch.testing.assert_close(result.total, expected)
    for ours, theirs in zip(*(gradients(x, branches, texts, scale) for x in (result.total, expected)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10)


def test_a_prefix_of_half_precision_is_made_of_unit_length_in_float32() -> None:
    vectors = torch.tensor([[3.0, 4.0, 12.0]], dtype=torch.bfloat16) / 13
    cut = prefix_of(vectors, 2)
    assert cut.dtype == torch.float32
    torch.testing.assert_close(cut.norm(dim=-1), torch.ones(1))
    assert prefix_of(vectors, 3) is vectors


@pytest.mark.parametrize("wrong", [[0], [2.5], [True], [4, 4], [17], "64", [-1]])
def test_what_is_no_prefix_is_refused(wrong: Any, make_config: Any) -> None:
    with pytest.raises(ValueError, match="matryoshka_dims"):
        make_config(matryoshka_dims=wrong)
    if wrong != [17]:  # the loss alone does not know the width of the vectors
        with pytest.raises(ValueError, match="`matryoshka_dims` is .*expected whole numbers"):
            LossOptions(matryoshka_dims=wrong)
    else:
        branches, texts, scale = embeds(3, 3)
        with pytest.raises(ValueError, match="1 to 4, the width of the vectors"):
            loss_of(branches, texts, scale, matryoshka_dims=wrong)


def test_configuration_and_card_say_what_was_trained(make_config: Any, tmp_path: Any) -> None:
    config = make_config(matryoshka_dims=(8, 4))
    config.save_pretrained(tmp_path)
    again = HolisticCLIPConfig.from_pretrained(tmp_path)
    assert again.matryoshka_dims == [8, 4] and again.loss_options["matryoshka_dims"] == [8, 4]
    facts = CardFacts("someone/model", model_name="model")
    assert "16 numbers; the first 8 or 4 were trained to serve alone" in render_model_card(config, [], facts)
    assert "serve alone" not in render_model_card(make_config(), [], facts)
