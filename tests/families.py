"""Models of other families, small and of random weights, and their texts."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    CLIPTextConfig,
    ConvNextConfig,
    DINOv3ConvNextConfig,
    DINOv3ViTConfig,
    MetaClip2Config,
    MetaClip2Model,
    PreTrainedConfig,
    ResNetConfig,
    Siglip2Config,
    Siglip2ImageProcessorPil,
    Siglip2Model,
    SiglipConfig,
    SiglipModel,
    SiglipVisionConfig,
    SwinConfig,
    Tipsv2VisionConfig,
    ViTConfig,
)

from holistic_clip_hf import HolisticCLIPConfig, HolisticCLIPModel
from random_weights import fill

TOWER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
PATCHES = {"image_size": 32, "patch_size": 8}
STAGES = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}
NAFLEX_PATCHES = 16
PADDING, END = 1, 59
TOKENS = {"vocab_size": 60, "max_position_embeddings": 12, "pad_token_id": PADDING, "bos_token_id": 58}

BACKBONES: dict[str, PreTrainedConfig] = {
    "siglip": SiglipVisionConfig(**TOWER, **PATCHES),
    "dinov3": DINOv3ViTConfig(**TOWER, **PATCHES, num_register_tokens=2),
    "dinov3 convnext": DINOv3ConvNextConfig(**STAGES, image_size=64),
    "resnet": ResNetConfig(hidden_sizes=[8, 32], depths=[1, 1], embedding_size=8, layer_type="basic"),
    "convnext": ConvNextConfig(**STAGES, image_size=64),
    "vit": ViTConfig(**TOWER, **PATCHES),
    "swin": SwinConfig(embed_dim=16, depths=[1, 1], num_heads=[2, 2], window_size=4, image_size=32, patch_size=4),
    "tips": Tipsv2VisionConfig(**TOWER, **PATCHES),
}
# Patches of an image of 64 pixels: the grid, by each architecture's own strides.
GRIDS = {"dinov3 convnext": 2, "resnet": 8, "convnext": 2}


def randomise(model: nn.Module, seed: int = 0) -> Any:
    fill(model, seed, spread=0.2)
    return model.eval()


def make_siglip(seed: int = 0, **text: Any) -> SiglipModel:
    texts = {**TOWER, **TOKENS, "eos_token_id": END, **text}
    return randomise(SiglipModel(SiglipConfig(text_config=texts, vision_config={**TOWER, **PATCHES})), seed)


def make_naflex(**text: Any) -> Siglip2Model:
    """A SigLIP 2 whose images keep their shape: `NAFLEX_PATCHES` at most."""
    texts = {**TOWER, **TOKENS, "eos_token_id": END, **text}
    vision = {**TOWER, "patch_size": PATCHES["patch_size"], "num_patches": NAFLEX_PATCHES}
    return randomise(Siglip2Model(Siglip2Config(text_config=texts, vision_config=vision)))


def naflex_images() -> Siglip2ImageProcessorPil:
    """The image processor of `make_naflex`."""
    return Siglip2ImageProcessorPil(patch_size=PATCHES["patch_size"], max_num_patches=NAFLEX_PATCHES)


def make_metaclip() -> MetaClip2Model:
    texts = {**TOWER, **TOKENS, "eos_token_id": 2}
    return randomise(MetaClip2Model(MetaClip2Config(text_config=texts, vision_config={**TOWER, **PATCHES})))


def make_texts(lengths: list[int], end: int = END) -> tuple[Tensor, Tensor]:
    """Ids and mask of texts of these lengths, padded with `PADDING`."""
    ids, mask = torch.full((len(lengths), max(lengths)), PADDING), torch.zeros(len(lengths), max(lengths)).long()
    generator = torch.Generator().manual_seed(3)
    for row, length in enumerate(lengths):
        ids[row, :length] = torch.randint(3, 50, (length,), generator=generator)
        ids[row, length - 1], mask[row, :length] = end, 1
    return ids, mask


def full_length(ids: Tensor, length: int = 12) -> Tensor:
    return F.pad(ids, (0, length - ids.shape[1]), value=PADDING)


def side_of(name: str) -> int:
    return 64 if "convnext" in name else 32


def make_model(name: str, **fields: Any) -> HolisticCLIPModel:
    text = CLIPTextConfig(**TOWER, **TOKENS, eos_token_id=END)
    config = HolisticCLIPConfig(
        **{"text_config": text, "projection_dim": 16, "perspectives": ["a", "b", "c"], **fields},
        vision_config={"backbone_config": BACKBONES[name].to_dict(), "image_size": side_of(name)},
    )
    torch.manual_seed(0)
    model = HolisticCLIPModel(config)
    for part in (model.vision_model.head, model.text_model):
        randomise(part)
    return model.eval()
