# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Processors that come along with other people's weights."""

from os import PathLike
from typing import Any

from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer

from ..modeling_holistic_clip import HolisticCLIPModel
from ..processing_holistic_clip import HolisticCLIPProcessor


def make_processor(
    model: HolisticCLIPModel, images: str | PathLike, texts: str | PathLike | None = None
) -> HolisticCLIPProcessor:
    """Return the image processor and the tokenizer of the checkpoints that a model was made of.

    Args:
        model: the model that will be given what the processor makes.
        images: Folder or name on the Hub of the checkpoint of the vision tower, with its image processor.
        texts: Folder or name of the checkpoint of the text encoder, with its tokenizer; left out, `images`.

    Raises:
        ValueError: images of another size, a tokenizer of another vocabulary, without padding or of the slow kind, or
            one that ends texts with another token than the one at which they are read.
    """
    image_processor = load_image_processor(images)
    tokenizer = AutoTokenizer.from_pretrained(images if texts is None else texts, trust_remote_code=False)
    text: Any = model.config.text_config
    positions = getattr(text, "max_position_embeddings", tokenizer.model_max_length)
    tokenizer.model_max_length = min(tokenizer.model_max_length, positions)
    _require_size(model, image_processor)
    _require_tokenizer(model, tokenizer)
    return HolisticCLIPProcessor(image_processor, tokenizer)


def saved_caption_form(source: str | PathLike, **options: Any) -> tuple[str | None, list[str]]:
    """Read from a checkpoint the form that its captions had in training, and the perspectives that had it.

    Args:
        source: Folder or name on the Hub of a checkpoint.
        options: Keywords of the Hub's client, such as `revision`.

    Returns:
        No form and no perspectives if captions were as they are, or of a checkpoint of other people.
    """
    fields, _ = HolisticCLIPProcessor.get_processor_dict(source, **options)
    return fields.get("caption_form"), list(fields.get("caption_perspectives", []))


def load_image_processor(source: str | PathLike) -> Any:
    """Load the image processor of a checkpoint, of the kind that needs no torchvision."""
    return AutoImageProcessor.from_pretrained(source, backend="pil", trust_remote_code=False)


def _require_size(model: HolisticCLIPModel, image_processor: Any) -> None:
    vision: Any = model.vision_model.config
    if vision.takes_patches:
        side = getattr(image_processor, "patch_size", None)
        if side != vision.patch_size or "spatial_shapes" not in image_processor.model_input_names:
            raise ValueError(
                f"`images` has a {type(image_processor).__name__} of patches of {side} pixels; expected SigLIP 2's "
                f"with `spatial_shapes`, of {vision.patch_size} pixels. Take that of the NaFlex checkpoint."
            )
        return
    side = vision.image_size
    blank = Image.new("RGB", (2 * side, side))
    pixels = image_processor([blank], return_tensors="pt")["pixel_values"]
    if tuple(pixels.shape[-2:]) != (side, side):
        raise ValueError(
            f"`images` has an image processor that gives {tuple(pixels.shape)}; expected images of {side} x {side} "
            f"pixels. Make the model with `vision_config={{'image_size': ...}}`, or set the processor's `size`."
        )


def _require_tokenizer(model: HolisticCLIPModel, tokenizer: Any) -> None:
    text: Any = model.config.text_config
    found = f"`texts` has a tokenizer of {len(tokenizer)} tokens"
    if not tokenizer.is_fast or tokenizer.pad_token_id is None:
        raise ValueError(
            f"{found} of the slow kind or without a padding token; expected one of the library `tokenizers` that "
            f"pads. Convert it, or set its `pad_token`."
        )
    if len(tokenizer) > text.vocab_size:
        raise ValueError(f"{found}; expected at most {text.vocab_size}, which the text encoder knows. Take its own.")
    if model.config.reads_end_token and tokenizer.eos_token_id != text.eos_token_id:
        raise ValueError(
            f"{found} that ends texts with token {tokenizer.eos_token_id}; expected {text.eos_token_id}, at which the "
            f"model reads them. Take the text encoder's own, or set `text_config={{'eos_token_id': ...}}`."
        )
