# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Numbers that a checkpoint gives to people who never heard of this package; also a script for an interpreter of its
own.

    python -I stranger.py NAME [REVISION]

As a script it trusts the checkpoint's code and makes sure that this package cannot be imported, since an installed
package would win over the code that travels. It imports torch, transformers and Pillow, nothing of its siblings.
"""

import json
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import torch
from PIL import Image
from transformers import AutoModel, AutoProcessor, pipeline

PACKAGE = "holistic_clip_hf"
TEXTS = ("red", "a sea", "blue")  # short, as the pipeline cuts nothing and a text tower may have few positions
PICTURE_SIZE = 96


def measure(name: str, **loading: Any) -> dict[str, Any]:
    """Measure the numbers of a checkpoint on two pictures and three texts: by model and processor, and by both
    pipelines.

    `loading` goes to every `from_pretrained`. The entry `modules` says where the classes came from, `dtype` in which
    precision the numbers are.
    """
    model = AutoModel.from_pretrained(name, use_safetensors=True, **loading).eval()
    processor = AutoProcessor.from_pretrained(name, **loading)
    pictures = probe_pictures()
    images = processor(images=pictures, return_tensors="pt")
    texts = processor(text=list(TEXTS), return_tensors="pt")
    with torch.inference_mode():
        image = model.get_image_features(**images)
        text = model.get_text_features(**texts)
        numbers = {
            "image": image.pooler_output,
            "branches": image.branch_embeds,
            "text": text.pooler_output,
            "logits": model(**texts, **images).logits_per_image,
        }
    found: dict[str, Any] = {what: tensor.flatten().tolist() for what, tensor in numbers.items()}
    classify, extract = (
        pipeline(task, model=name, device="cpu", **loading)
        for task in ("zero-shot-image-classification", "image-feature-extraction")
    )
    scores = classify(pictures[0], candidate_labels=list(TEXTS), hypothesis_template="a {}")
    found["zero-shot pipeline"] = [one["score"] for one in sorted(scores, key=lambda one: one["label"])]
    found["feature pipeline"] = _flat(extract(pictures[0]))
    found["modules"] = [type(one).__module__ for one in (model, model.config, processor)]
    found["dtype"] = str(model.dtype)
    return found


def probe_pictures() -> list[Image.Image]:
    """Draw two pictures in which no pixel is like its neighbour and no channel like another."""
    gradients = (Image.linear_gradient("L"), Image.radial_gradient("L"))
    ramp, rings = (gradient.resize((PICTURE_SIZE, PICTURE_SIZE)) for gradient in gradients)
    turned = ramp.transpose(Image.Transpose.ROTATE_90)
    return [Image.merge("RGB", channels) for channels in ((ramp, turned, rings), (rings, ramp, turned))]


def _flat(nested: Any) -> list[float]:
    return [number for part in nested for number in _flat(part)] if isinstance(nested, list) else [nested]


class _Absent(MetaPathFinder):
    """Importer that ends the process where something imports the package."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.partition(".")[0] == PACKAGE:
            sys.exit(f"The checkpoint's code imports {fullname}, which people without the package do not have.")
        return None


def main(name: str, revision: str | None = None) -> None:
    sys.meta_path.insert(0, _Absent())
    revisions = {} if revision is None else {"revision": revision}
    sys.stdout.write(json.dumps(measure(name, trust_remote_code=True, **revisions)))


if __name__ == "__main__":
    main(*sys.argv[1:])
