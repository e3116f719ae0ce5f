"""sentence-transformers' multi-vector encoder: an image is as many vectors as it has branches."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from holistic_clip_hf import HolisticCLIPModel, HolisticCLIPProcessor
from holistic_clip_hf.evaluation.adapters import multi_vector_encoder

TEXTS = ["a red square", "a blue circle, drawn flat on white", "all green"]


@pytest.mark.parametrize("branch_type", ["cls", "mlp", "probe"])
def test_maximal_similarity_is_the_fusion_of_the_same_name(
    make_model: Callable[..., HolisticCLIPModel],
    processor: HolisticCLIPProcessor,
    red_square: Image.Image,
    tmp_path: Path,
    branch_type: str,
) -> None:
    model = make_model(perspectives=["short", "colour", "shape"], fusion="max", vision={"branch_type": branch_type})
    for part in (model, processor):
        part.save_pretrained(tmp_path)
    images = [red_square, *(red_square.rotate(angle, fillcolor="green") for angle in (30, 60, 200))]
    encoder = multi_vector_encoder(str(tmp_path), device="cpu")
    queries, documents = encoder.encode_query(TEXTS), encoder.encode_document(images)
    assert [tuple(each.shape) for each in queries] == [(1, 16)] * 3
    assert [tuple(each.shape) for each in documents] == [(3, 16)] * 4
    with torch.no_grad():
        output = model(**processor(images=images, text=TEXTS, return_tensors="pt", padding=True))
    for found, expected in zip(documents, output.branch_embeds, strict=True):
        torch.testing.assert_close(torch.as_tensor(found), expected, rtol=1e-5, atol=1e-6)
    scores = encoder.similarity(queries, documents)  # (T, N)
    torch.testing.assert_close(scores.T * output.logit_scale, output.logits_per_image, rtol=1e-5, atol=1e-5)
