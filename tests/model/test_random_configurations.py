"""Two hundred drawn configurations: each gives the same numbers again from the disk, or is refused at the door.

A configuration is put together from what fits. Into every other one, something that contradicts it is put.
"""

import copy
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from holistic_clip_hf import HolisticCLIPConfig, HolisticCLIPForImageClassification, HolisticCLIPModel

Fields = dict[str, Any]
Draw = random.Random
COUNT = 200
VOCABULARY, LENGTH = 40, 9


def tower(draw: Draw) -> Fields:
    heads = draw.choice([1, 2, 4])
    return {
        "hidden_size": heads * draw.choice([4, 8]),
        "intermediate_size": draw.choice([5, 16]),
        "num_hidden_layers": draw.randint(1, 3),
        "num_attention_heads": heads,
        "hidden_act": draw.choice(["gelu", "quick_gelu", "relu"]),
        "attention_dropout": draw.choice([0, 0.0, 0.1]),
        "layer_norm_eps": draw.choice([1e-5, 1e-6]),
    }


def vision_fields(draw: Draw, num_branches: int) -> Fields:
    fields = tower(draw)
    patch = draw.choice([2, 3, 4, 8])
    if patch in (2, 4, 8):
        fields["patch_stem"] = draw.choice(["linear", "convolutional"])
    kind = draw.choice(["cls", "mlp", "probe"])
    return fields | {
        "image_size": patch * draw.randint(1, 3) + draw.choice([0, 1]),
        "patch_size": patch,
        "num_branches": num_branches,
        "branch_type": kind,
        "branched_head_mlp": kind == "probe" and draw.choice([True, False]),
        "branched_token_mlp": kind == "cls" and draw.choice([True, False]),
        "num_branch_layers": draw.randint(1, fields["num_hidden_layers"]),
        "branch_isolation": draw.choice(["isolated", "strict", "anchored", "open", "official"]),
        "patch_dropout": draw.choice([0.0, 0, 0.5]),
    }


def fitting(draw: Draw) -> Fields:
    num_branches = draw.choice([1, 1, 2, 3, 6])
    fusion = draw.choice(["centroid", "mean", "weighted", "routed", "max", "softmax"])
    text = tower(draw) | {"vocab_size": VOCABULARY, "max_position_embeddings": LENGTH}
    fields: Fields = {
        "text_config": text | {"eos_token_id": draw.choice([2, VOCABULARY - 1]), "bos_token_id": 0},
        "vision_config": vision_fields(draw, num_branches),
        "projection_dim": draw.choice([1, 3, 8]),
        "logit_scale_init_value": draw.choice([0, 2.6592, 3, -1.5]),
        "fusion": fusion,
        "objective": draw.choice(["softmax", "sigmoid"]),
        "matching": draw.choice(["aligned", "free", "balanced"]),
        "duplicate_captions": draw.choice(["positive", "ignore", "negative"]),
        "diversity": draw.choice(["pairwise", "official"]),
        "fused_weight": draw.choice([0, 1.0, 0.5]),
        "diversity_weight": draw.choice([0, 1.0]),
        "diversity_threshold": draw.choice([0.7, -0.5, 0]),
    }
    if draw.random() < 0.5:
        fields["perspectives"] = [f"name {branch}" for branch in range(num_branches)]
    if fusion == "weighted":
        fields["branch_weights"] = [draw.choice([1, 0.5]) for _ in range(num_branches)]
    if fusion == "softmax" and draw.random() < 0.5:
        fields["fusion_scale"] = draw.choice([0, 5.0])
    return fields


def of_tower(name: str, key: str, values: list[Any]) -> Callable[[Fields, Draw], None]:
    return lambda fields, draw: fields[name].update({key: draw.choice(values)})


def of_joint(key: str, values: list[Any]) -> Callable[[Fields, Draw], None]:
    return lambda fields, draw: fields.update({key: draw.choice(values)})


NOT_NUMBERS = [math.nan, math.inf, -math.inf]
CONTRADICTIONS = [
    *(of_tower(name, "num_attention_heads", [0, 3, 7, -1]) for name in ("text_config", "vision_config")),
    *(of_tower(name, "hidden_size", [0, -4, "8"]) for name in ("text_config", "vision_config")),
    *(of_tower(name, "hidden_act", ["gleu", ""]) for name in ("text_config", "vision_config")),
    *(of_tower(name, "attention_dropout", [1.0, None, *NOT_NUMBERS]) for name in ("text_config", "vision_config")),
    *(of_tower(name, "layer_norm_eps", [None, -1.0, *NOT_NUMBERS]) for name in ("text_config", "vision_config")),
    *(of_tower(name, "num_hidden_layers", [0]) for name in ("text_config", "vision_config")),
    of_tower("text_config", "eos_token_id", [VOCABULARY, -1, None, [1, 5]]),
    of_tower("text_config", "max_position_embeddings", [0]),
    of_tower("vision_config", "image_size", [1, 0, [8, 8], None]),
    of_tower("vision_config", "patch_size", [0, 99, [4, 4]]),
    of_tower("vision_config", "num_branches", [0, -1, 7.0]),
    of_tower("vision_config", "branch_type", ["head", 3]),
    of_tower("vision_config", "branch_isolation", ["closed"]),
    of_tower("vision_config", "patch_dropout", [1.0, -0.1, *NOT_NUMBERS]),
    lambda fields, draw: fields["vision_config"].update(branch_type="mlp", num_branch_layers=draw.choice([0, 4])),
    lambda fields, draw: fields["vision_config"].update(patch_stem="convolutional", patch_size=3, image_size=6),
    of_joint("projection_dim", [0, None, 2.5]),
    of_joint("logit_scale_init_value", [None, 100, *NOT_NUMBERS]),
    of_joint("fusion", ["sofmax", None]),
    of_joint("matching", ["greedy"]),
    of_joint("fused_weight", [-1, *NOT_NUMBERS]),
    of_joint("diversity_weight", [-1, *NOT_NUMBERS]),
    of_joint("diversity_threshold", NOT_NUMBERS),
    of_joint("branch_weights", [[1.0] * 9, [math.nan], [-1.0], [0.0]]),
    of_joint("fusion_scale", [-1.0, *NOT_NUMBERS]),
    of_joint("perspectives", [["a"] * 2, ["a", ""], [f"name {branch}" for branch in range(9)]]),
    lambda fields, draw: fields.update(fusion="weighted", branch_weights=None),
    lambda fields, draw: fields.update(fusion="mean", branch_weights=[1.0] * fields["vision_config"]["num_branches"]),
]


def batch_of(config: HolisticCLIPConfig) -> dict[str, torch.Tensor]:
    """Three images, of two captions each; `balanced` and all else has something to choose."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(1, VOCABULARY - 1, (3, 2, LENGTH), generator=generator)
    ids[..., -1] = VOCABULARY - 1
    size = config.vision_config.image_size
    return {"input_ids": ids, "pixel_values": torch.randn(3, 3, size, size, generator=generator)}


def numbers(model: HolisticCLIPModel) -> list[torch.Tensor]:
    batch = batch_of(model.config)
    slots = [0, min(1, model.config.num_branches - 1)]
    torch.manual_seed(1)
    with torch.no_grad():
        nested = model(**batch, branch_of_slot=slots, return_loss=True)
        flat = model(input_ids=batch["input_ids"][:, 0], pixel_values=batch["pixel_values"])
    packed = flat.text_model_output.text_embeds, nested.text_embeds[:, 0]
    torch.testing.assert_close(*packed, rtol=1e-4, atol=1e-5)
    return [nested.loss, nested.branch_embeds, nested.text_embeds, flat.image_embeds, flat.logits_per_image]


def require_the_same_from_disk(fields: Fields, folder: Path) -> None:
    model = HolisticCLIPModel(HolisticCLIPConfig(**fields)).eval()
    expected = numbers(model)
    assert all(each.isfinite().all() for each in expected)
    model.save_pretrained(folder)
    for found in (HolisticCLIPModel.from_pretrained(folder).eval(), copy.deepcopy(model)):
        torch.testing.assert_close(numbers(found), expected, rtol=1e-5, atol=1e-6)
    classifier = HolisticCLIPForImageClassification.from_pretrained(folder, num_labels=4).eval()
    assert classifier(batch_of(model.config)["pixel_values"]).logits.shape == (3, 4)


@pytest.mark.slow
def test_each_loads_to_the_same_numbers_or_is_refused_at_the_door(tmp_path: Path) -> None:
    for seed in range(COUNT):
        draw = random.Random(seed)
        fields, contradicts = fitting(draw), seed % 2 == 1
        if contradicts:
            draw.choice(CONTRADICTIONS)(fields, draw)
        try:
            if not contradicts:
                require_the_same_from_disk(fields, tmp_path)
                continue
            with pytest.raises(ValueError):
                HolisticCLIPConfig(**fields)
        except BaseException as error:
            error.add_note(f"seed {seed}: {fields}")
            raise


@pytest.mark.parametrize("seed", range(8))
def test_contradictions_in_keywords_are_refused_at_loading(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    fields = fitting(draw)
    HolisticCLIPModel(HolisticCLIPConfig(**fields)).save_pretrained(tmp_path)
    for contradiction in CONTRADICTIONS:
        changed = copy.deepcopy(fields)
        contradiction(changed, draw)
        keywords = {name: value for name, value in changed.items() if str(value) != str(fields.get(name))}
        with pytest.raises(ValueError):
            HolisticCLIPModel.from_pretrained(tmp_path, **keywords)
