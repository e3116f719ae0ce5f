# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""One branch as the folder of a stock model, with the processor files of today and of older programs.

It is written beside its place, read again by transformers alone, compared with the branch, and then put there.
"""

import copy
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModel, AutoProcessor, CLIPProcessor, Siglip2Processor, SiglipProcessor

from ..modeling_holistic_clip import HolisticCLIPModel
from ..processing_holistic_clip import HolisticCLIPProcessor
from ..publishing.stranger import TEXTS
from ..storage import new_folder, parse_json, write_json
from .stock import branch_index, to_clip, to_siglip
from .verification import ProbeImages, furthest, require_close

LAYOUTS = {"clip": (to_clip, CLIPProcessor), "siglip": (to_siglip, SiglipProcessor)}
TOLERANCE = 1e-6  # of unit vectors in float64, where sums in another order agree
IMAGE_PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")


def export_stock(
    model: HolisticCLIPModel,
    processor: HolisticCLIPProcessor,
    output: str | Path,
    *,
    layout: str,
    branch: str | None = None,
    verify_images: str | Path | None = None,
) -> dict[str, float]:
    """Write one branch as a folder that plain transformers loads, without any code of ours.

    Args:
        model: the model.
        processor: Processor of the model. What it does beyond the stock one stays behind: upright and transparent
            images, more than 8 bits, repaired texts, the form of captions.
        output: Folder to write, new or empty.
        layout: `"clip"` or `"siglip"`.
        branch: Name of the branch; left out, the only one.
        verify_images: Folder of images to run the stock model on. Default: two drawn ones.

    Returns:
        The largest difference of image vectors, text vectors and cosines to the model's, on these images and three
        texts, in float64.

    Raises:
        ValueError: a branch without such a form, a folder that holds anything, or no image to run it on.
        ExportError: what was written gives other numbers.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"`layout` is {layout!r}; expected one of {', '.join(map(repr, LAYOUTS))}.")
    convert, processor_kind = LAYOUTS[layout]
    index = branch_index(model.config, branch)
    stock = convert(model, branch)
    images = ProbeImages(processor, verify_images)
    with new_folder(Path(output), holds="an export") as folder:
        stock.save_pretrained(folder)
        save_processor(processor_kind, processor, folder)
        differences = _differences(model, processor, folder, index, images)
        require_close(differences, TOLERANCE)
    return differences


def save_processor(kind: Any, processor: HolisticCLIPProcessor, folder: Path) -> None:
    """Save a stock processor as transformers 5 does, and its image part as older programs look for it."""
    tokenizer, image_processor = copy.deepcopy(processor.tokenizer), copy.deepcopy(processor.image_processor)
    if kind in (SiglipProcessor, Siglip2Processor):  # its padding is read, and a mask over it gives other vectors
        tokenizer.model_input_names = ["input_ids"]
        tokenizer.init_kwargs["model_input_names"] = tokenizer.model_input_names
    kind(image_processor, tokenizer).save_pretrained(folder)
    image_processor.save_pretrained(folder)
    for name in IMAGE_PROCESSOR_FILES:
        fields = parse_json((folder / name).read_text(encoding="utf-8"))
        write_json(folder / name, _plainly_named(fields))


def _plainly_named(fields: dict[str, Any]) -> dict[str, Any]:
    """Name image processors without the backend that happened to be installed here."""
    named = {}
    for key, value in fields.items():
        if key == "image_processor_type":
            value = re.sub(r"(Pil|Fast)$", "", value)
        named[key] = _plainly_named(value) if isinstance(value, dict) else value
    return named


@torch.no_grad()
def _differences(
    model: HolisticCLIPModel, processor: HolisticCLIPProcessor, folder: Path, index: int, images: ProbeImages
) -> dict[str, float]:
    exact = copy.deepcopy(model).double().eval().cpu()
    stock = AutoModel.from_pretrained(folder, trust_remote_code=False, dtype=torch.float64).eval()
    stock_processor = AutoProcessor.from_pretrained(folder, trust_remote_code=False)
    tokens = processor(text=list(TEXTS), return_tensors="pt")
    words = exact.get_text_features(tokens["input_ids"], tokens["attention_mask"]).text_embeds
    scale = exact.logit_scale.exp()
    bias = 0.0 if exact.logit_bias is None else exact.logit_bias
    differences: dict[str, list[float]] = {}
    for pictures in images.batches():
        pixels = processor(images=pictures, return_tensors="pt")["pixel_values"].double()
        branch = exact.get_image_features(pixels).branch_embeds[:, index]
        given = stock_processor(
            images=pictures, text=list(TEXTS), padding="max_length", truncation=True, return_tensors="pt"
        )
        found = stock(**{**given, "pixel_values": given["pixel_values"].double()})
        pairs = {
            "image vectors": (found.image_embeds, branch),
            "text vectors": (found.text_embeds, words),
            "logits over the scale": (found.logits_per_image / scale, (scale * branch @ words.T + bias) / scale),
        }
        for what, pair in pairs.items():
            differences.setdefault(what, []).append(furthest(*pair))
    return {what: float(np.max(each)) for what, each in differences.items()}  # NaN is the largest
