# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Attention and relevance: where in an image each branch looks, and what speaks for a text there.

- `branch_attention`: how much of its attention a branch's class token or probe gives to each patch.
- `branch_relevance`: which patches raise, and which lower, the similarity of a branch with a text. It goes by
  gradients, so that branches differ even if they share their attention.

Patches are counted row by row from the top left. The functions switch the tower to eager attention, or hold gradients,
for as long as they run, so two threads must not run them on one model at once.

Axes: N images, H branches, M captions, T texts, P patches, S tokens (class tokens, then patches), D projection width.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor
from torch.nn import functional as F

from ..modeling_holistic_clip import HolisticCLIPModel
from ..vision_holistic_clip import HolisticCLIPVisionModel


def patch_agreement(patch_embeds: Tensor, text_embeds: Tensor) -> Tensor:
    """Return the cosine of each text with each patch: (..., P, D) and (T, D) to (..., T, P).

    Patches are `get_patch_features`' `patch_embeds` (N, P, D) or, where each branch has its own,
    `branch_patch_embeds` (N, H, P, D).
    """
    return F.normalize(text_embeds, dim=-1) @ F.normalize(patch_embeds, dim=-1).mT


def part_matching(branch_embeds: Tensor, text_embeds: Tensor) -> Tensor:
    """Return the cosine of each branch of one image with each of its captions: (H, D) and (M, D) to (H, M)."""
    return F.normalize(branch_embeds, dim=-1) @ F.normalize(text_embeds, dim=-1).T


def best_branches(similarity: Tensor, branches: Sequence[str]) -> list[str]:
    """Return the branch that agrees most with each caption: of (H, M), M names."""
    return [branches[index] for index in similarity.argmax(dim=0).tolist()]


def branch_attention(model: HolisticCLIPModel, pixel_values: Tensor, *, rollout: bool = False) -> Tensor:
    """Return the attention that each branch gives to each patch, a mean over heads: (N, 3, height, width) to (N, H,
    P).

    A row is at most one in sum: the rest goes to class tokens. Probes read patches alone, so that theirs is one.
    Images may be of another size than the model's; larger ones give finer maps.

    Args:
        rollout: follow attention through all layers (https://arxiv.org/abs/2005.00928) in place of the last one's, or
            of the probes' alone.

    Raises:
        ValueError: branches of the kind `mlp` that share all attention, so that their maps could not differ.

    >>> branch_attention(model, processor(images=[image], return_tensors="pt")["pixel_values"])
    """
    tower = model.vision_model
    vision = model.vision_model.config
    if tower.has_streams and vision.num_branch_layers == 1:
        raise ValueError(
            "The branches part in the last MLP only (branch_type='mlp', num_branch_layers=1), behind all attention: "
            "their attention is one and the same. Use `branch_relevance`, which asks for gradients."
        )
    if tower.head is not None:
        return _probe_attention(model, pixel_values, rollout)
    with torch.no_grad(), _eager(tower):
        attentions = tower(
            pixel_values, _is_resized(model, pixel_values), output_attentions=True, return_dict=True
        ).attentions
    layers = [layer.mean(dim=1).unflatten(0, (len(pixel_values), -1)) for layer in attentions]
    found = roll_out(layers) if rollout else layers[-1]
    num_class_tokens = tower.num_class_tokens
    found = found[:, :, :num_class_tokens, num_class_tokens:]
    return found[:, :, 0] if tower.has_streams else found[:, 0]


def _probe_attention(model: HolisticCLIPModel, pixel_values: Tensor, rollout: bool) -> Tensor:
    """Return the probes' own attention (N, H, P), or what it comes to if each patch is followed to those before."""
    tower, is_resized = model.vision_model, _is_resized(model, pixel_values)
    with torch.no_grad(), _eager(tower) if rollout else nullcontext():
        output = tower(pixel_values, is_resized, output_attentions=rollout, return_dict=True)
        found = tower.head.attention_weights(tower.patch_states(output.last_hidden_state))
    if not rollout:
        return found
    num_patches = found.shape[-1]
    sizes = {layer.shape[-2:] for layer in output.attentions or ()}
    if len(sizes) != 1 or min(min(size) for size in sizes) < num_patches:
        raise ValueError(
            "`rollout` is True and the tower has no attention of all patches to all in each layer; expected one that "
            "has. Leave `rollout` out for the attention of the probes."
        )
    followed = roll_out([layer.mean(dim=1) for layer in output.attentions])
    return found @ followed[:, -num_patches:, -num_patches:]  # the patches stand behind class tokens


def roll_out(layers: Sequence[Tensor]) -> Tensor:
    """Multiply attention through all layers: each (N, 1 or H, S, S), first layer first, to (N, 1 or H, S, S).

    Half of a token's state comes past the attention, by the residual: so each layer counts as the mean of its
    attention and the identity.
    """
    identity = torch.eye(layers[0].shape[-1], device=layers[0].device)
    total = identity
    for attention in layers:
        total = (attention + identity) / 2 @ total
    return total


def branch_relevance(model: HolisticCLIPModel, pixel_values: Tensor, text_embeds: Tensor) -> Tensor:
    """Return what each patch adds to the similarity of each branch with each text, to first order.

    Gradient times input of the last attention, behind its norm, with probes of their head. Positive: the similarity
    would fall if the patch faded there.

    Args:
        pixel_values: (N, 3, height, width).
        text_embeds: (T, D) of unit length, `model.get_text_features(...).text_embeds`.

    Returns:
        (N, H, T, P).

    >>> branch_relevance(model, pixel_values, model.get_text_features(**tokens).text_embeds)
    """
    tower, texts = model.vision_model, text_embeds.detach().to(pixel_values.device)
    with torch.inference_mode(False), torch.enable_grad():
        # A frozen tower builds no graph by itself.
        pixels = pixel_values.detach().clone().requires_grad_()
        states, branches = _last_inputs(tower, pixels, _is_resized(model, pixels))
        branches = F.normalize(model.visual_projection(branches), dim=-1)
        similarity = torch.einsum("nhd,td->nht", branches, texts.clone())
        gradients = [
            torch.autograd.grad(similarity[:, branch, text].sum(), states, retain_graph=True)[0]
            for branch in range(similarity.shape[1])
            for text in range(similarity.shape[2])
        ]
    added = torch.stack([(gradient * states.detach()).sum(dim=-1) for gradient in gradients], dim=1)
    if states.ndim == 4:  # streams (N, H * T, H, S): a branch's gradient is zero in all but its own
        added = added.sum(dim=2)
    first_patch = 0 if tower.head is not None else tower.num_class_tokens
    return added[..., first_patch:].unflatten(1, similarity.shape[1:]).detach()


def _last_inputs(tower: HolisticCLIPVisionModel, pixels: Tensor, is_resized: bool) -> tuple[Tensor, Tensor]:
    """Return the states that the last attention, or the head of probes, reads, and the branches (N, H, E) of them.

    They are those behind the norm, which undoes any change of size: before it, what a patch adds would be zero.
    """
    if tower.head is not None:
        patches = tower.patch_states(tower(pixels, is_resized, return_dict=True).last_hidden_state)
        return patches, tower.head(patches)
    read: list[Tensor] = []
    hook = tower.last_norm.register_forward_hook(lambda *given: read.append(given[-1]))
    try:
        output = tower(pixels, is_resized, return_dict=True)
    finally:
        hook.remove()
    return read[0], output.branch_embeds


def patch_grid(model: HolisticCLIPModel, pixel_values: Tensor) -> tuple[int, int]:
    """Return rows and columns of patches: what (…, P) unflattens to.

    Raises:
        ValueError: patches in place of images.
    """
    _require_images(model, pixel_values)
    return model.vision_model.patch_grid(*pixel_values.shape[-2:])


def _is_resized(model: HolisticCLIPModel, pixel_values: Tensor) -> bool:
    _require_images(model, pixel_values)
    side = model.vision_model.config.image_size
    return tuple(pixel_values.shape[-2:]) != (side, side)


def _require_images(model: HolisticCLIPModel, pixel_values: Tensor) -> None:
    """Refuse the patches that a NaFlex tower takes besides; a tower says itself what is not an image."""
    if model.vision_model.config.takes_patches and pixel_values.ndim != 4:
        side = model.vision_model.config.patch_size
        raise ValueError(
            f"`pixel_values` is of shape {tuple(pixel_values.shape)}; expected images (N, 3, height, width) for a "
            f"map, which has rows and columns. Give the images themselves, resized to multiples of {side} pixels."
        )


@contextmanager
def _eager(tower: HolisticCLIPVisionModel) -> Iterator[None]:
    """Provide the only attention that tells its weights; afterwards the tower's own again."""
    parts = {"": tower.config, **{name: getattr(tower.config, name) for name in tower.config.sub_configs}}
    before = {name: part._attn_implementation for name, part in parts.items()}
    tower.set_attn_implementation("eager")
    try:
        yield
    finally:
        tower.set_attn_implementation(before)
