"""A tiny Stable Diffusion of random weights, conditioned by an exported text tower and, through an IP-Adapter, by our
image encoder."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiffusionPipeline, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPImageProcessor, CLIPTextModel, CLIPTokenizer

from holistic_clip_hf import HolisticCLIPModel, HolisticCLIPProcessor, HolisticCLIPVisionModelWithProjection
from holistic_clip_hf.exporting import export_stock

NAMES = ["short", "style", "shape"]
PROMPT = "a red square"
NUM_TOKENS, WIDTH, PROJECTION = 4, 32, 16  # of the adapter, of the text tower, of the image's vector
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture(params=["mlp"])
def model(make_model: Callable[..., HolisticCLIPModel], request: pytest.FixtureRequest) -> HolisticCLIPModel:
    return make_model(perspectives=NAMES, vision={"branch_type": request.param})


@pytest.fixture
def exported(make_model: Callable[..., HolisticCLIPModel], processor: HolisticCLIPProcessor, tmp_path: Path) -> Path:
    branched = make_model(perspectives=NAMES, vision={"branch_type": "mlp"})
    export_stock(branched, processor, tmp_path / "stock", layout="clip", branch="style")
    return tmp_path / "stock"


def pipeline(exported: Path, image_encoder: Any = None) -> StableDiffusionPipeline:
    torch.manual_seed(0)
    blocks = {"block_out_channels": (4, 8), "layers_per_block": 1, "norm_num_groups": 2}
    unet = UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        cross_attention_dim=WIDTH,
        attention_head_dim=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        **blocks,
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, **blocks
    )
    made = StableDiffusionPipeline(
        vae=vae,
        text_encoder=CLIPTextModel.from_pretrained(exported),
        tokenizer=CLIPTokenizer.from_pretrained(exported),
        unet=unet,
        scheduler=DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=CLIPImageProcessor.from_pretrained(exported),
        image_encoder=image_encoder,
        requires_safety_checker=False,
    )
    made.set_progress_bar_config(disable=True)
    return made


def adapter(unet: UNet2DConditionModel) -> dict[str, dict[str, Tensor]]:
    """An IP-Adapter of random weights, as its files hold one."""
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    weights = {}
    for index, name in enumerate(unet.attn_processors):
        if name.endswith("attn2.processor"):
            width = unet.get_submodule(name.removesuffix(".processor")).to_k.out_features
            weights |= {f"{index}.{part}_ip.weight": draw(width, WIDTH) for part in ("to_k", "to_v")}
    projection = {"proj.weight": draw(WIDTH * NUM_TOKENS, PROJECTION), "proj.bias": draw(WIDTH * NUM_TOKENS)}
    return {
        "image_proj": {**projection, "norm.weight": torch.ones(WIDTH), "norm.bias": torch.zeros(WIDTH)},
        "ip_adapter": weights,
    }


def drawn(pipe: StableDiffusionPipeline, prompt: str = PROMPT, **options: Any) -> np.ndarray:
    generator = torch.Generator().manual_seed(2)
    return pipe(prompt, num_inference_steps=2, output_type="np", generator=generator, **options).images


def test_an_exported_text_tower_conditions_stable_diffusion(
    model: HolisticCLIPModel, processor: HolisticCLIPProcessor, exported: Path, tmp_path: Path
) -> None:
    pipe = pipeline(exported)
    embeds, _ = pipe.encode_prompt(PROMPT, "cpu", 1, do_classifier_free_guidance=False)
    tokens = processor(text=[PROMPT], return_tensors="pt", padding="max_length")
    with torch.no_grad():
        states = model.get_text_features(**tokens).last_hidden_state
    length = int(tokens["attention_mask"].sum())
    torch.testing.assert_close(embeds[:, :length], states[:, :length], **CLOSE)
    images = drawn(pipe)
    assert images.shape == (1, 32, 32, 3) and np.isfinite(images).all()
    assert np.abs(images - drawn(pipe, "one blue circle")).max() > 0
    pipe.save_pretrained(tmp_path / "pipeline")
    again = DiffusionPipeline.from_pretrained(tmp_path / "pipeline")
    again.set_progress_bar_config(disable=True)
    np.testing.assert_allclose(drawn(again), images, atol=1e-5)


@pytest.mark.parametrize("model", ["cls", "mlp", "probe"], indirect=True)
@pytest.mark.parametrize("branch", [None, "shape"])
def test_an_ip_adapter_reads_our_image_encoder(
    model: HolisticCLIPModel, processor: HolisticCLIPProcessor, exported: Path, tmp_path: Path, branch: str | None
) -> None:
    model.save_pretrained(tmp_path / "model")
    encoder = HolisticCLIPVisionModelWithProjection.from_pretrained(tmp_path / "model", branch=branch)
    pipe = pipeline(exported, encoder)
    red, blue = (Image.new("RGB", (32, 32), colour) for colour in ("red", "blue"))
    embeds, without = pipe.encode_image(red, "cpu", 2)
    with torch.no_grad():
        expected = model.get_image_features(**processor(images=[red], return_tensors="pt"))
    chosen = expected.pooler_output if branch is None else expected.branch_embeds[:, NAMES.index(branch)]
    torch.testing.assert_close(F.normalize(embeds, dim=-1), F.normalize(chosen, dim=-1).repeat(2, 1), **CLOSE)
    assert embeds.shape == without.shape == (2, PROJECTION) and not without.any()
    states, zeros = pipe.encode_image(red, "cpu", 1, output_hidden_states=True)
    assert states.shape == zeros.shape == (1, 1 + 16, WIDTH)

    pipe.load_ip_adapter(adapter(pipe.unet), subfolder=None, weight_name=None, image_encoder_folder=None)
    pipe.set_ip_adapter_scale(1.0)
    of_red, of_blue = (drawn(pipe, ip_adapter_image=image) for image in (red, blue))
    assert np.isfinite(of_red).all() and np.abs(of_red - of_blue).max() > 1e-4
    pipe.set_ip_adapter_scale(0.0)
    np.testing.assert_allclose(drawn(pipe, ip_adapter_image=red), drawn(pipe, ip_adapter_image=blue), atol=1e-6)
