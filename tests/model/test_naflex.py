"""SigLIP 2's NaFlex variant, whose images keep their shape, against transformers' own model."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from torch.nn import functional as F
from transformers import (
    AutoModel,
    CLIPTokenizer,
    SiglipImageProcessorPil,
    pipeline,
)
from transformers.models.siglip2.modeling_siglip2 import Siglip2VisionEmbeddings

from families import NAFLEX_PATCHES, full_length, make_model, make_naflex, make_siglip, make_texts, naflex_images
from holistic_clip_hf import HolisticCLIPProcessor, HolisticSiglipModel
from holistic_clip_hf.backbone_holistic_clip import resize_positions
from holistic_clip_hf.initialization import from_checkpoint, from_siglip, make_processor
from holistic_clip_hf.visualization import branch_attention, branch_relevance, patch_grid

CLOSE = {"rtol": 1e-6, "atol": 1e-6}


def draw(width: int, height: int) -> Image.Image:
    generator = torch.Generator().manual_seed(width)
    return Image.fromarray(torch.randint(256, (height, width, 3), generator=generator, dtype=torch.uint8).numpy())


@pytest.fixture
def batch() -> dict[str, Tensor]:
    """Three shapes, of which two leave room for padding."""
    images = [draw(40, 20), draw(30, 30), draw(16, 64)]
    made = dict(naflex_images()(images, return_tensors="pt"))
    assert made["pixel_attention_mask"].sum(dim=1).min() < NAFLEX_PATCHES
    return made


def test_one_probe_is_naflex(batch: dict[str, Tensor]) -> None:
    stock = make_naflex()
    ours = from_siglip(stock, perspectives=["all"])
    assert type(ours) is HolisticSiglipModel
    ids, mask = make_texts([4, 9, 6])
    theirs = stock(input_ids=full_length(ids), **batch, return_loss=True)
    found = ours(input_ids=ids, attention_mask=mask, **batch, return_loss=True)
    for name in ("logits_per_image", "image_embeds", "text_embeds", "loss"):
        torch.testing.assert_close(found[name], theirs[name], **CLOSE)
    found.loss.backward()
    theirs.loss.backward()
    for name in ("embeddings.patch_embedding.weight", "embeddings.position_embedding.weight"):
        gradient = ours.vision_model.backbone.get_parameter(name).grad
        torch.testing.assert_close(gradient, stock.vision_model.get_parameter(name).grad, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours.vision_model.head.probe.grad, stock.vision_model.head.probe.grad, **CLOSE)


def test_positions_are_resized_as_pillow_does() -> None:
    """Also for images one patch wide, of which torch 2.13 gives every row the position of the first on CPUs."""
    positions = torch.randn(4, 4, 3, generator=torch.Generator().manual_seed(0))
    shapes = [(3, 5), (4, 4), (9, 2), (1, 12), (12, 1), (1, 1), (6, 7)]
    found = resize_positions(positions, torch.tensor(shapes), 45)
    stock = Siglip2VisionEmbeddings.resize_positional_embeddings(positions, torch.tensor(shapes), 45)
    for row, (height, width) in enumerate(shapes):
        channels = [
            np.asarray(Image.fromarray(each.numpy()).resize((width, height), Image.Resampling.BILINEAR))
            for each in positions.permute(2, 0, 1)
        ]
        expected = torch.from_numpy(np.stack(channels, axis=-1)).flatten(0, 1)
        torch.testing.assert_close(found[row, : height * width], expected, **CLOSE)
        assert (found[row, height * width :] == found[row, 0]).all()
        if width > 1:
            torch.testing.assert_close(found[row], stock[row], **CLOSE)


@torch.no_grad()
def test_naflex_compiles_to_one_graph() -> None:
    ours, counter = from_siglip(make_naflex(), perspectives=["a", "b"]), CompileCounter()
    torch.compiler.reset()
    compiled = torch.compile(ours.get_image_features, fullgraph=True, dynamic=True, backend=counter)
    for pictures, most in (([draw(40, 20), draw(30, 30)], 16), ([draw(16, 64)] * 3, 16), ([draw(20, 20)] * 5, 9)):
        made = naflex_images()(pictures, return_tensors="pt", max_num_patches=most)
        torch.testing.assert_close(compiled(**made).branch_embeds, ours.get_image_features(**made).branch_embeds)


@torch.no_grad()
def test_copies_are_naflex_and_padding_is_not_seen(batch: dict[str, Tensor]) -> None:
    stock = make_naflex()
    ours = from_siglip(stock, perspectives=["a", "b", "c"], vision_config={"branched_head_mlp": True})
    expected = F.normalize(stock.get_image_features(**batch).pooler_output, dim=-1)
    found = ours.get_image_features(**batch)
    for branch in range(3):
        torch.testing.assert_close(found.branch_embeds[:, branch], expected, rtol=2e-6, atol=2e-6)
    hidden = batch["pixel_attention_mask"] == 0
    junk = {**batch, "pixel_values": batch["pixel_values"].masked_fill(hidden[..., None], 9.0)}
    torch.testing.assert_close(ours.get_image_features(**junk).branch_embeds, found.branch_embeds, **CLOSE)
    ours.vision_model.head.branch_probe[0, 0] += 1.0
    change = (ours.get_image_features(**batch).branch_embeds - found.branch_embeds).abs().amax(dim=(0, 2))
    assert change[1] > 1e-3 and change[0] == change[2] == 0


@torch.no_grad()
def test_images_are_cut_as_the_processor_cuts_them() -> None:
    """An image (N, 3, height, width) of any size gives what its patches give, and maps have its grid."""
    ours, picture = from_siglip(make_naflex(), perspectives=["a", "b"]), draw(32, 24)
    cut = naflex_images()([picture], return_tensors="pt", do_resize=False, max_num_patches=12)
    pixels = SiglipImageProcessorPil(do_resize=False)([picture], return_tensors="pt")["pixel_values"]
    expected = ours.get_image_features(**cut)
    found = ours.get_image_features(pixels)
    torch.testing.assert_close(found.branch_embeds, expected.branch_embeds, **CLOSE)
    assert patch_grid(ours, pixels) == tuple(cut["spatial_shapes"][0].tolist()) == (3, 4)
    maps = branch_attention(ours, pixels)
    assert maps.shape == (1, 2, 12)
    torch.testing.assert_close(maps.sum(dim=-1), torch.ones(1, 2))
    assert branch_attention(ours, pixels, rollout=True).shape == (1, 2, 12)
    with torch.enable_grad():
        assert branch_relevance(ours, pixels, torch.randn(1, 32)).shape == (1, 2, 1, 12)


def test_naflex_saves_and_loads(batch: dict[str, Tensor], tmp_path: Path) -> None:
    ours = from_siglip(make_naflex(), perspectives=["a", "b"], perturbation=0.5)
    ours.save_pretrained(tmp_path / "ours")
    loaded = AutoModel.from_pretrained(tmp_path / "ours")
    found, expected = (model.get_image_features(**batch).branch_embeds for model in (loaded, ours))
    assert torch.equal(found, expected)
    make_naflex().save_pretrained(tmp_path / "stock")
    assert from_checkpoint(tmp_path / "stock", perspectives=["a"]).config.vision_config.takes_patches


def test_the_pipeline_and_the_processor_take_images_of_any_shape(tokenizer: CLIPTokenizer, tmp_path: Path) -> None:
    ends = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": 0}
    stock = make_naflex(vocab_size=len(tokenizer) + 8, max_position_embeddings=64, **ends)
    for part in (stock, tokenizer, naflex_images()):
        part.save_pretrained(tmp_path)
    ours = from_siglip(tmp_path, perspectives=["a", "b"])
    processor = make_processor(ours, tmp_path)
    assert isinstance(processor, HolisticCLIPProcessor)
    pictures, labels = [draw(40, 20), draw(16, 64)], ["a red square", "a green square, drawn flat"]
    inputs = processor(images=pictures, text=labels, return_tensors="pt")
    expected = naflex_images()(pictures, return_tensors="pt")
    for name, value in expected.items():
        assert torch.equal(inputs[name], value), name
    assert ours(**inputs).logits_per_image.shape == (2, 2)
    tokenizer.model_input_names = ["input_ids"]  # as SigLIP's, which gives no mask
    parts = {"tokenizer": tokenizer, "image_processor": naflex_images()}
    theirs, found = (
        pipeline("zero-shot-image-classification", model=model, **parts)(pictures[0], candidate_labels=labels)
        for model in (stock, ours)
    )
    assert {each["label"]: each["score"] for each in found} == pytest.approx(
        {each["label"]: each["score"] for each in theirs}, abs=1e-6
    )
    SiglipImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="a SiglipImageProcessorPil of patches of None pixels; expected SigLIP 2's"):
        make_processor(ours, tmp_path)


def test_what_naflex_cannot_read_is_refused(batch: dict[str, Tensor]) -> None:
    ours, patches = from_siglip(make_naflex(), perspectives=["a"]), batch["pixel_values"]
    with pytest.raises(ValueError, match=r"expected patches \(N, P, 192\) with `pixel_attention_mask`"):
        ours.get_image_features(patches)
    with pytest.raises(ValueError, match=r"expected patches \(N, P, 192\)"):
        ours.get_image_features(**{**batch, "pixel_values": patches[..., :48]})
    with pytest.raises(ValueError, match=r"expected images \(N, 3, height, width\) for a map"):
        branch_attention(ours, patches)
    with pytest.raises(ValueError, match=r"expected images \(N, 3, height, width\) for a map"):
        patch_grid(ours, patches)
    fixed = from_siglip(make_siglip(), perspectives=["a"])
    with pytest.raises(ValueError, match="`pixel_attention_mask` and `spatial_shapes` came with the images"):
        fixed.get_image_features(**batch)
    with pytest.raises(ValueError, match=r"of model type 'siglip_vision_model'; expected images \(N, 3, height"):
        fixed.vision_model(**batch)
    with pytest.raises(ValueError, match="`spatial_shapes` came with the images"):
        make_model("vit")(pixel_values=torch.zeros(1, 3, 32, 32), spatial_shapes=torch.ones(1, 2))
