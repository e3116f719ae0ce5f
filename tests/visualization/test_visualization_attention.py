"""Where branches look: against plain loops, finite differences, and models built so that the answer is known."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from holistic_clip_hf import HolisticCLIPModel
from holistic_clip_hf.visualization import branch_attention, branch_relevance, patch_grid
from holistic_clip_hf.visualization.attention import roll_out

MakeModel = Callable[..., HolisticCLIPModel]
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
TWO_STREAMS: dict[str, Any] = {"branch_type": "mlp", "num_branch_layers": 2}
PROBES: dict[str, Any] = {"branch_type": "probe", "branched_head_mlp": True}
ONE_STREAM: dict[str, Any] = {"branch_type": "mlp", "num_branch_layers": 1}
RED, GREEN = (1, 2), (3, 0)  # rows and columns of patches


@pytest.fixture
def colour_seekers(make_model: MakeModel) -> HolisticCLIPModel:
    """One layer, one head, two branches: the class token of branch 0 asks for red, that of branch 1 for green."""
    model = make_model(vision={"num_branches": 2, "num_hidden_layers": 1, "num_attention_heads": 1})
    tower = model.vision_model
    embeddings, attention = tower.embeddings, tower.encoder.layers[0].self_attn
    with torch.no_grad():
        for parameter in (*embeddings.parameters(), *attention.parameters()):
            parameter.zero_()
        for norm in (tower.pre_layrnorm, tower.encoder.layers[0].layer_norm1):
            norm.weight.fill_(1)
            norm.bias.zero_()
        for channel in range(3):  # a patch's state is its colour
            embeddings.patch_embedding.weight[channel, channel] = 1
        embeddings.class_embedding[0] = embeddings.branch_class_embedding[0, 1] = 1
        attention.q_proj.weight.copy_(torch.eye(32))
        attention.k_proj.weight.copy_(torch.eye(32))
    return model


@pytest.fixture
def two_spots() -> Tensor:
    """Black, but for a red and a green patch."""
    image = torch.zeros(1, 3, 32, 32)
    for channel, (row, column) in enumerate((RED, GREEN)):
        image[0, channel, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] = 1
    return image


def test_a_branch_that_asks_for_red_is_seen_to_look_at_red(
    colour_seekers: HolisticCLIPModel, two_spots: Tensor
) -> None:
    maps = branch_attention(colour_seekers, two_spots)[0].unflatten(-1, patch_grid(colour_seekers, two_spots))
    # A layer norm turns the unit vector e_i of 32 parts into one of norm sqrt(32): keys that agree score about
    # 32 / sqrt(32), red against green -32 / 31 / sqrt(32), an empty patch 0; the class token itself agrees too.
    alike, unlike = math.exp(math.sqrt(32)), math.exp(-math.sqrt(32) / 31)
    expected = alike / (2 * alike + unlike + 14)
    for branch, (row, column) in enumerate((RED, GREEN)):
        assert maps[branch, row, column].item() == pytest.approx(expected, rel=1e-2)
        assert maps[branch].sum() - maps[branch, row, column] < 0.05


def rows_by_loops(model: HolisticCLIPModel, states: Tensor, mask: Tensor | None, queried: int) -> list[list[float]]:
    """Attention of the first tokens to all tokens, mean over heads, one exponential at a time; states (S, E)."""
    layer = model.vision_model.encoder.layers[-1]
    normed, attention = layer.layer_norm1(states), layer.self_attn
    queries, keys = attention.q_proj(normed), attention.k_proj(normed)
    size, width = len(states), attention.head_dim
    rows = []
    for query in range(queried):
        total = [0.0] * size
        for head in range(attention.num_heads):
            part = slice(head * width, (head + 1) * width)
            logits = [float(queries[query, part] @ keys[key, part]) * width**-0.5 for key in range(size)]
            if mask is not None:
                logits = [logit + float(mask[0, 0, query, key]) for key, logit in enumerate(logits)]
            exponentials = [math.exp(logit) for logit in logits]
            total = [
                before + one / sum(exponentials) / attention.num_heads
                for before, one in zip(total, exponentials, strict=True)
            ]
        rows.append(total)
    return rows


@pytest.mark.parametrize("isolation", ["isolated", "open", "official"])
@torch.no_grad()
def test_attention_of_class_tokens_by_loops(make_model: MakeModel, pixel_values: Tensor, isolation: str) -> None:
    model = make_model(vision={"branch_isolation": isolation})
    tower, found = model.vision_model, branch_attention(model, pixel_values)
    states = tower.pre_layrnorm(tower.embeddings(pixel_values))
    mask = tower._isolation_mask(states)
    states = tower.encoder.layers[0](states, mask)
    for image in range(2):
        expected = torch.tensor(rows_by_loops(model, states[image], mask, 3))[:, 3:]
        torch.testing.assert_close(found[image], expected, **CLOSE)
    assert found.shape == (4, 3, 16)


@torch.no_grad()
def test_attention_of_streams_by_loops(make_model: MakeModel, pixel_values: Tensor) -> None:
    model = make_model(vision=TWO_STREAMS)
    tower, found = model.vision_model, branch_attention(model, pixel_values)
    streams = tower.encoder.layers[0](tower.pre_layrnorm(tower.embeddings(pixel_values))[:, None])
    for image, branch in ((0, 0), (1, 2), (3, 1)):
        expected = torch.tensor(rows_by_loops(model, streams[image, branch], None, 1))[0, 1:]
        torch.testing.assert_close(found[image, branch], expected, **CLOSE)


def test_branches_without_attention_of_their_own_are_refused(make_model: MakeModel, pixel_values: Tensor) -> None:
    with pytest.raises(ValueError, match="their attention is one and the same. Use `branch_relevance`"):
        branch_attention(make_model(vision=ONE_STREAM), pixel_values)


def test_the_tower_keeps_its_attention(make_model: MakeModel, pixel_values: Tensor) -> None:
    model = make_model()
    branch_attention(model, pixel_values)
    assert model.vision_model.config._attn_implementation == "sdpa"
    with pytest.raises(ValueError, match="must be"):
        branch_attention(model, pixel_values[0])
    assert model.vision_model.config._attn_implementation == "sdpa"


def test_rollout_by_loops() -> None:
    first, second = torch.rand(1, 1, 3, 3).softmax(-1), torch.rand(1, 2, 3, 3).softmax(-1)
    found = roll_out([first, second])
    for branch in range(2):
        for end in range(3):
            for start in range(3):
                expected = 0.0
                for middle in range(3):
                    step = 0.5 * float(first[0, 0, middle, start]) + 0.5 * (middle == start)
                    expected += (0.5 * float(second[0, branch, end, middle]) + 0.5 * (end == middle)) * step
                assert found[0, branch, end, start].item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("isolation", ["sdpa", "eager"])
@torch.no_grad()
def test_attention_of_probes_by_loops(make_model: MakeModel, pixel_values: Tensor, isolation: str) -> None:
    model = make_model(vision=PROBES, attention=isolation)
    tower, found = model.vision_model, branch_attention(model, pixel_values)
    patches = tower.post_layernorm(tower(pixel_values).last_hidden_state[:, 1:])
    attention, width = tower.head.attention, tower.head.attention.head_dim
    probes = torch.cat([tower.head.probe, tower.head.branch_probe], dim=1)[0]
    for image, branch in ((0, 0), (1, 2), (3, 1)):
        query, keys = attention.q_proj(probes[branch]), attention.k_proj(patches[image])
        shares = torch.zeros(16)
        for head in range(2):
            part = slice(head * width, (head + 1) * width)
            raised = [math.exp(float(query[part] @ key[part]) * width**-0.5) for key in keys]
            shares += torch.tensor(raised) / sum(raised) / 2
        torch.testing.assert_close(found[image, branch], shares, **CLOSE)
    torch.testing.assert_close(found.sum(dim=-1), torch.ones(4, 3))


@torch.no_grad()
def test_rollout_of_probes(make_model: MakeModel, pixel_values: Tensor) -> None:
    model = make_model(vision=PROBES, attention="eager")
    layers = model.vision_model(pixel_values, output_attentions=True).attentions
    one, two = ((layer[1].mean(dim=0) + torch.eye(17)) / 2 for layer in layers)
    expected = branch_attention(model, pixel_values)[1] @ (two @ one)[1:, 1:]
    torch.testing.assert_close(branch_attention(model, pixel_values, rollout=True)[1], expected, **CLOSE)


@pytest.mark.parametrize("vision", [{}, TWO_STREAMS], ids=["cls", "mlp"])
@torch.no_grad()
def test_rollout_follows_all_layers(make_model: MakeModel, pixel_values: Tensor, vision: dict[str, Any]) -> None:
    model = make_model(vision=vision, attention="eager")
    layers = model.vision_model(pixel_values, output_attentions=True).attentions
    found, size = branch_attention(model, pixel_values, rollout=True), layers[0].shape[-1]
    for branch in range(3):
        pair = [layers[0][1], layers[1][1] if not vision else layers[1][3 + branch]]
        one, two = ((layer.mean(dim=0) + torch.eye(size)) / 2 for layer in pair)
        row, first_patch = (branch, 3) if not vision else (0, 1)
        torch.testing.assert_close(found[1, branch], (two @ one)[row, first_patch:], **CLOSE)


@pytest.mark.parametrize("vision", [{}, ONE_STREAM, TWO_STREAMS], ids=["cls", "mlp, one layer", "mlp, two layers"])
def test_relevance_by_finite_differences(make_model: MakeModel, pixel_values: Tensor, vision: dict[str, Any]) -> None:
    model = make_model(vision=vision).double()
    pixels, texts = pixel_values[:2].double(), F.normalize(torch.randn(2, 16, dtype=torch.float64), dim=-1)
    found = branch_relevance(model, pixels, texts)
    assert found.shape == (2, 3, 2, 16) and not found.requires_grad
    tower = model.vision_model
    first_patch, step = tower.embeddings.num_class_tokens, 1e-6

    @torch.no_grad()
    def similarity(faded: int, by: float) -> Tensor:
        def fade(module: Any, given: Any, read: Tensor) -> Tensor:
            read = read.clone()
            read[..., first_patch + faded, :] *= 1 + by
            return read

        hook = tower.encoder.layers[-1].layer_norm1.register_forward_hook(fade)
        try:
            return model.get_image_features(pixels).branch_embeds @ texts.T
        finally:
            hook.remove()

    for patch in (0, 7, 15):
        slope = (similarity(patch, step) - similarity(patch, -step)) / (2 * step)
        torch.testing.assert_close(found[..., patch], slope, rtol=1e-4, atol=1e-8)
    assert found.abs().amax(dim=-1).min() > 1e-4  # not what is left of a sum that is zero


def test_relevance_of_probes_by_finite_differences(make_model: MakeModel, pixel_values: Tensor) -> None:
    model = make_model(vision=PROBES).double()
    tower, step = model.vision_model, 1e-6
    pixels, texts = pixel_values[:2].double(), F.normalize(torch.randn(2, 16, dtype=torch.float64), dim=-1)
    found = branch_relevance(model, pixels, texts)
    assert found.shape == (2, 3, 2, 16) and not found.requires_grad

    @torch.no_grad()
    def similarity(faded: int, by: float) -> Tensor:
        patches = tower.post_layernorm(tower(pixels).last_hidden_state[:, 1:])
        patches[:, faded] *= 1 + by
        return F.normalize(model.visual_projection(tower.head(patches)), dim=-1) @ texts.T

    for patch in (0, 7, 15):
        slope = (similarity(patch, step) - similarity(patch, -step)) / (2 * step)
        torch.testing.assert_close(found[..., patch], slope, rtol=1e-4, atol=1e-7)


def test_relevance_of_a_frozen_model_without_gradients(make_model: MakeModel, pixel_values: Tensor) -> None:
    model = make_model()
    texts = F.normalize(torch.randn(1, 16), dim=-1)
    expected = branch_relevance(model, pixel_values, texts)
    with torch.inference_mode():
        found = branch_relevance(model.requires_grad_(False), pixel_values.clone(), texts.clone())
    torch.testing.assert_close(found, expected)
    assert found.abs().max() > 0 and all(parameter.grad is None for parameter in model.parameters())


def test_larger_images_give_finer_maps(make_model: MakeModel) -> None:
    model, pixels = make_model(), torch.randn(1, 3, 64, 48)
    assert patch_grid(model, pixels) == (8, 6)
    assert branch_attention(model, pixels).shape == (1, 3, 48)
    assert branch_relevance(model, pixels, torch.randn(1, 16)).shape == (1, 3, 1, 48)
