# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""One branch as the folder of a stock model, with the processor files of today and of older programs.

It is written beside its place, read again by transformers alone, compared with the branch, and then put there.
"""

import copy
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModel, AutoProcessor, CLIPProcessor, Siglip2Processor, SiglipProcessor

from ..modeling_holistic_clip import HolisticCLIPModel
from ..processing_holistic_clip import HolisticCLIPProcessor
from ..publishing.stranger import TEXTS, probe_pictures
from ..storage import parse_json, require_own_folder, write_json
from .stock import branch_index, to_clip, to_siglip

LAYOUTS = {"clip": (to_clip, CLIPProcessor), "siglip": (to_siglip, SiglipProcessor)}
TOLERANCE = 1e-6  # of unit vectors in float64, where sums in another order agree
IMAGE_PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")


class ExportError(RuntimeError):
    """An export that does not give the numbers of the checkpoint that it was made of."""


def export_stock(
    model: HolisticCLIPModel,
    processor: HolisticCLIPProcessor,
    output: str | Path,
    *,
    layout: str,
    branch: str | None = None,
) -> dict[str, float]:
    """Write one branch as a folder that plain transformers loads, without any code of ours.

    Args:
        model: the model.
        processor: Processor of the model. What it does beyond the stock one stays behind: upright and transparent
            images, more than 8 bits, repaired texts.
        output: Folder to write, new or empty.
        layout: `"clip"` or `"siglip"`.
        branch: Name of the branch; left out, the only one.

    Returns:
        The largest difference of image vectors, text vectors and cosines to the model's, on two pictures and three
        texts, in float64.

    Raises:
        ValueError: a branch without such a form, or a folder that holds anything.
        ExportError: what was written gives other numbers.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"`layout` is {layout!r}; expected one of {', '.join(map(repr, LAYOUTS))}.")
    convert, processor_kind = LAYOUTS[layout]
    index = branch_index(model.config, branch)
    stock = convert(model, branch)
    with new_folder(Path(output)) as folder:
        stock.save_pretrained(folder)
        save_processor(processor_kind, processor, folder)
        differences = _differences(model, processor, folder, index)
        require_close(differences, TOLERANCE)
    return differences


@contextmanager
def new_folder(output: Path) -> Iterator[Path]:
    """Give a folder that takes its place when the work in it has succeeded, and is removed if it fails.

    Raises:
        ValueError: `output` holds anything.
    """
    require_own_folder(output, lambda path: False, holds="an export")
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as scratch:
        folder = Path(scratch) / "export"
        folder.mkdir()
        yield folder
        if output.exists():
            output.rmdir()
        os.replace(folder, output)


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


def require_close(differences: dict[str, float], tolerance: float) -> None:
    """Raise `ExportError` where a difference is above the tolerance, or is not a number."""
    for what, difference in differences.items():
        if not difference <= tolerance:
            raise ExportError(
                f"What was written differs from the checkpoint in {what} by {difference:.1e}; expected at most "
                f"{tolerance:.0e}. Nothing was kept. Report it with the checkpoint's config.json."
            )


@torch.no_grad()
def _differences(
    model: HolisticCLIPModel, processor: HolisticCLIPProcessor, folder: Path, index: int
) -> dict[str, float]:
    exact = copy.deepcopy(model).double().eval().cpu()
    stock = AutoModel.from_pretrained(folder, trust_remote_code=False, dtype=torch.float64).eval()
    stock_processor = AutoProcessor.from_pretrained(folder, trust_remote_code=False)
    pictures, texts = probe_pictures(), list(TEXTS)
    pixels, tokens = processor(images=pictures, return_tensors="pt"), processor(text=texts, return_tensors="pt")
    images = exact.get_image_features(pixels["pixel_values"].double()).branch_embeds[:, index]
    words = exact.get_text_features(tokens["input_ids"], tokens["attention_mask"]).text_embeds
    logits = exact.logit_scale.exp() * images @ words.T
    logits = logits if exact.logit_bias is None else logits + exact.logit_bias
    given = stock_processor(images=pictures, text=texts, padding="max_length", truncation=True, return_tensors="pt")
    found = stock(**{**given, "pixel_values": given["pixel_values"].double()})
    scale = float(exact.logit_scale.exp())
    return {
        "image vectors": furthest(found.image_embeds, images),
        "text vectors": furthest(found.text_embeds, words),
        "logits over the scale": furthest(found.logits_per_image, logits) / scale,
    }


def furthest(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference of two tensors' numbers."""
    return float((found - expected).abs().max())
