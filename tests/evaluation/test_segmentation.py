"""Zero-shot segmentation: windows, readouts, masks and counts, each against plain loops."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image
from sklearn.metrics import jaccard_score, recall_score
from torch import Tensor
from torch.nn import functional as F

from holistic_clip_hf import HolisticCLIPModel, HolisticCLIPProcessor
from holistic_clip_hf.evaluation.records import Record, capture_provenance
from holistic_clip_hf.evaluation.segmentation import (
    PixelClasses,
    Windows,
    confusion,
    evaluate_segmentation,
    intersection_over_union,
    read_patches,
    score_pixels,
)

MakeModel = Callable[..., HolisticCLIPModel]
PROVENANCE = capture_provenance(model="tiny", dataset="squares", split="test", seed=0)
NAMES = ["sky", "dog", "grass"]


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    colours = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(colours)


def embeds(width: int = 16) -> Tensor:
    return F.normalize(torch.randn(3, width, generator=torch.Generator().manual_seed(5)), dim=-1)


def rows(*pairs: tuple[Image.Image, np.ndarray]) -> Dataset:
    features = Features({"image": ImageFeature(), "mask": ImageFeature()})
    made = [{"image": image, "mask": Image.fromarray(mask.astype(np.uint8))} for image, mask in pairs]
    return Dataset.from_list(made, features=features)


def measure(
    model: HolisticCLIPModel, processor: HolisticCLIPProcessor, dataset: Dataset, **options: Any
) -> dict[str, Record]:
    fields = {name: options.pop(name) for name in ("names", "embeds", "background", "threshold") if name in options}
    chosen = PixelClasses(**{"names": NAMES, "embeds": embeds(), **fields})
    found = evaluate_segmentation(model, processor, dataset, provenance=PROVENANCE, classes=chosen, **options)
    return {record.label: record for record in found}


def test_counts_and_overlap_equal_the_loops() -> None:
    generator = torch.Generator().manual_seed(0)
    predicted, mask = (torch.randint(0, 3, (9, 7), generator=generator) for _ in range(2))
    mask[:2] = 255
    counts = confusion(predicted, mask, 4)
    for truth in range(4):
        for said in range(4):
            expected = sum(int(mask[y, x] == truth and predicted[y, x] == said) for y in range(9) for x in range(7))
            assert counts[truth, said] == expected
    overlap = intersection_over_union(counts)
    seen = mask != 255
    for label in range(3):
        both = ((mask == label) & (predicted == label) & seen).sum()
        either = (((mask == label) | (predicted == label)) & seen).sum()
        assert overlap[label].item() == pytest.approx(both.item() / either.item())
    assert overlap[3].isnan()


def test_means_are_scikit_learns_over_the_classes_that_are_there(
    make_model: MakeModel, processor: HolisticCLIPProcessor
) -> None:
    """Two classes in the masks of three; the third is only ever predicted."""
    model, image = make_model(), picture(32, 32)
    said = score_pixels(model, processor, image, embeds(), Windows(short_side=32), "class_path").argmax(dim=0)
    absent = int(said.flatten().bincount().argmax())
    there = [label for label in range(3) if label != absent]
    mask = np.where(np.random.default_rng(0).random((32, 32)) < 0.5, *there)
    assert set(said.unique().tolist()) > {absent}
    found = measure(model, processor, rows((image, mask)), background=there[0])
    truth, guess = mask.ravel(), said.numpy().ravel()
    overlaps = jaccard_score(truth, guess, labels=there, average=None, zero_division=0)
    assert found["mean_iou"].value == pytest.approx(overlaps.mean())
    assert found["mean_iou_foreground"].value == pytest.approx(overlaps[1])
    assert found["mean_class_accuracy"].value == pytest.approx(
        recall_score(truth, guess, labels=there, average="macro")
    )
    assert found["mean_iou"].counts == {"n_images": 1, "n_classes": 2, "n_pixels": 32 * 32}


def test_a_palette_is_scaled_as_its_colours_are(make_model: MakeModel, processor: HolisticCLIPProcessor) -> None:
    model, image = make_model(), picture(40, 48).quantize(16)
    expected = score_pixels(model, processor, image.convert("RGB"), embeds(), Windows(short_side=32), "class_path")
    torch.testing.assert_close(
        score_pixels(model, processor, image, embeds(), Windows(short_side=32), "class_path"), expected
    )


@pytest.mark.parametrize("kind", ["cls", "mlp", "probe"])
@pytest.mark.parametrize("readout", ["class_path", "value"])
def test_one_window_is_the_patches_scaled_up(
    make_model: MakeModel, processor: HolisticCLIPProcessor, kind: str, readout: str
) -> None:
    model, image = make_model(vision={"branch_type": kind}), picture(32, 32)
    pixels = processor(images=[image], return_tensors="pt")["pixel_values"]
    patches = read_patches(model, pixels, readout)[0]
    torch.testing.assert_close(patches.norm(dim=-1), torch.ones(16))
    by_patch = torch.stack([patches @ each for each in embeds()]).reshape(1, 3, 4, 4)
    expected = F.interpolate(by_patch, size=(32, 32), mode="bilinear")[0]
    found = score_pixels(model, processor, image, embeds(), Windows(short_side=32), readout)
    torch.testing.assert_close(found, expected)


def test_overlapping_windows_are_averaged_and_reach_the_border(
    make_model: MakeModel, processor: HolisticCLIPProcessor
) -> None:
    model, image = make_model(), picture(60, 40)
    found = score_pixels(model, processor, image, embeds(), Windows(short_side=40), "class_path")
    total, seen = torch.zeros(3, 40, 60), torch.zeros(40, 60)
    for top in (0, 8):  # a stride of 16, the last one at the border
        for left in (0, 16, 28):
            window = image.crop((left, top, left + 32, top + 32))
            one = score_pixels(model, processor, window, embeds(), Windows(short_side=32), "class_path")
            total[:, top : top + 32, left : left + 32] += one
            seen[top : top + 32, left : left + 32] += 1
    torch.testing.assert_close(found, total / seen)


@pytest.mark.parametrize("kind", ["cls", "mlp"])
def test_value_readout_is_attention_of_each_token_to_itself(
    make_model: MakeModel, pixel_values: Tensor, kind: str
) -> None:
    model = make_model(vision={"branch_type": kind, "num_branch_layers": 2})
    tower, seen = model.vision_model, []
    handle = tower.encoder.layers[-1].layer_norm1.register_forward_hook(lambda m, given, output: seen.append(output))
    states = tower(pixel_values)
    handle.remove()
    size = seen[0].shape[-2]
    own = torch.zeros(size, size).masked_fill(~torch.eye(size, dtype=torch.bool), -torch.inf)[None, None]
    attended = tower.encoder.layers[-1].self_attn(seen[0].flatten(0, -3), own)[0].reshape(seen[0].shape)
    first = tower.embeddings.num_class_tokens
    embeds = F.normalize(model.visual_projection(tower.post_layernorm(attended[..., first:, :])), dim=-1)
    expected = embeds if kind == "cls" else F.normalize(embeds.mean(dim=1), dim=-1)
    torch.testing.assert_close(read_patches(model, pixel_values, "value"), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(tower(pixel_values).last_hidden_state, states.last_hidden_state), "the hook is gone"


def test_a_mask_that_is_what_the_model_says_is_perfect(
    make_model: MakeModel, processor: HolisticCLIPProcessor
) -> None:
    model, images = make_model(), [picture(40, 50, seed) for seed in range(2)]
    said = [
        score_pixels(model, processor, image, embeds(), Windows(short_side=32), "class_path").argmax(dim=0).numpy()
        for image in images
    ]
    right = measure(model, processor, rows(*zip(images, said, strict=True)))
    assert {name: record.value for name, record in right.items()} == {
        "mean_iou": 1.0,
        "mean_class_accuracy": 1.0,
        "pixel_accuracy": 1.0,
    }
    assert right["mean_iou"].counts["n_pixels"] == 2 * 40 * 50
    wrong = measure(
        model, processor, rows(*((image, (mask + 1) % 3) for image, mask in zip(images, said, strict=True)))
    )
    assert wrong["mean_iou"].value == 0.0


def test_background_by_text_and_by_threshold(make_model: MakeModel, processor: HolisticCLIPProcessor) -> None:
    model, image = make_model(), picture(32, 32)
    scores = score_pixels(model, processor, image, embeds(), Windows(short_side=32), "class_path")
    probability = (model.logit_scale.exp() * scores[1:]).softmax(dim=0)
    threshold = probability.amax(dim=0).median().item()
    mask = np.where(probability.amax(dim=0) < threshold, 0, 1 + probability.argmax(dim=0))
    by_threshold = measure(model, processor, rows((image, mask)), background=0, threshold=threshold)
    assert by_threshold["mean_iou"].value == 1.0 and by_threshold["mean_iou_foreground"].value == 1.0
    assert by_threshold["mean_iou"].details["background_threshold"] == threshold
    everything_sky = measure(model, processor, rows((image, np.zeros((32, 32)))), background=0, threshold=1.1)
    assert everything_sky["mean_iou"].value == 1.0


@pytest.mark.parametrize(
    "wrong", [np.zeros((8, 8)), np.full((32, 32), 7), np.zeros((32, 32, 3))], ids=["size", "class", "mode"]
)
def test_a_mask_that_cannot_be_used_costs_its_row_alone(
    make_model: MakeModel, processor: HolisticCLIPProcessor, wrong: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    model, image, mask = make_model(), picture(32, 32), np.arange(32 * 32).reshape(32, 32) % 3
    expected = measure(model, processor, rows((image, mask)))
    found = measure(model, processor, rows((image, wrong), (image, mask)))
    assert {name: record.value for name, record in found.items()} == {name: r.value for name, r in expected.items()}
    assert (found["mean_iou"].counts["n_images"], found["mean_iou"].counts["n_unusable"]) == (1, 1)
    assert "row 0 is left out: its mask " in caplog.text


def test_misuse_is_refused(make_model: MakeModel, processor: HolisticCLIPProcessor) -> None:
    model, image, mask = make_model(), picture(32, 32), np.zeros((32, 32))
    cases: list[tuple[Dataset, dict[str, Any], str]] = [
        (rows((image, np.zeros((8, 8)))), {}, "such as row 0: its mask has the size .8, 8., and the image .32, 32."),
        (rows((image, np.full((32, 32), 7))), {}, r"class indices \[7\], beyond the 3"),
        (rows((image, np.zeros((32, 32, 3)))), {}, "such as row 0: its mask is of mode RGB, and not one channel"),
        (rows((image, mask)).select([]), {}, "no rows"),
        (rows((image, mask)), {"readout": "attention"}, "expected one of class_path, value"),
        (rows((image, mask)), {"embeds": embeds(8)}, r"expected \(3, 16\)"),
        (rows((image, mask)), {"background": 3}, "one of 3 classes"),
        (rows((image, mask)), {"threshold": 0.2}, "needs `background`"),
        (rows((image, mask)), {"windows": Windows(short_side=16)}, "`short_side` from 32"),
        (rows((image, mask)), {"names": ["sky", " ", "grass"]}, "`class_names` has ' ' for class 1"),
        (rows((image, mask)), {"embeds": embeds() * torch.nan}, "Row 0: the model's scores are not finite"),
        (rows((image, np.full((32, 32), 255))), {}, "All pixels of all masks are 255"),
        (
            rows((image, mask)),
            {"names": [f"thing {index}" for index in range(256)], "embeds": torch.zeros(256, 16)},
            "256 classes; expected at most 255",
        ),
    ]
    for dataset, options, message in cases:
        with pytest.raises(ValueError, match=message):
            measure(model, processor, dataset, **options)
