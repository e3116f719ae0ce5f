"""The configuration: names decide H, contradictions are refused, nothing is lost on disk, every field is read."""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, CLIPVisionConfig, PreTrainedConfig

import holistic_clip_hf
from holistic_clip_hf import HolisticCLIPConfig, HolisticCLIPVisionConfig, LossOptions

PAPER = ["web", "detail", "nouns", "background", "main_object", "style"]


def test_default_is_the_papers_six_perspectives() -> None:
    config = HolisticCLIPConfig()
    assert config.perspectives == PAPER
    assert config.vision_config.num_branches == 6
    assert (config.matching, config.fusion, config.diversity_weight, config.diversity_threshold) == (
        "aligned",
        "mean",
        1.0,
        0.7,
    )


def test_names_set_the_number_of_branches() -> None:
    assert HolisticCLIPConfig(perspectives=["short", "style"]).vision_config.num_branches == 2
    assert HolisticCLIPConfig(vision_config={"image_size": 32}, perspectives=["all"]).vision_config.num_branches == 1


def test_number_of_branches_makes_names() -> None:
    config = HolisticCLIPConfig(vision_config={"num_branches": 3})
    assert config.perspectives == ["branch_0", "branch_1", "branch_2"]
    assert HolisticCLIPConfig(vision_config=HolisticCLIPVisionConfig(num_branches=6)).perspectives == PAPER


def test_shared_default_is_not_mutable() -> None:
    HolisticCLIPConfig().perspectives.append("another")
    assert HolisticCLIPConfig().perspectives == PAPER


REFUSED = [
    ({"perspectives": ["a", "b"], "vision_config": {"num_branches": 3}}, "2 `perspectives` .a, b. for 3 branches"),
    ({"perspectives": ["a", "a"]}, "distinct, non-empty names"),
    ({"perspectives": ["a", ""]}, "distinct, non-empty names"),
    ({"matching": "greedy"}, "`matching` is 'greedy'; expected one of 'aligned', 'free'"),
    ({"fusion": "sum"}, "`fusion` is 'sum'; expected one of 'mean'"),
    ({"duplicate_captions": "drop"}, "`duplicate_captions` is 'drop'; expected one of 'positive'"),
    ({"diversity_weight": -0.1}, "`diversity_weight` is -0.1"),
    ({"fused_weight": -2.0}, "`fused_weight` is -2.0"),
    ({"fusion_scale": 2.0}, "`fusion_scale` goes with `fusion='softmax'`"),
    ({"fusion": "softmax", "fusion_scale": -1.0}, "0 or more; got fusion='softmax', fusion_scale=-1.0"),
    ({"fusion": "weighted"}, "`branch_weights` go with `fusion='weighted'`"),
    ({"branch_weights": [1.0] * 6}, "`branch_weights` go with `fusion='weighted'`"),
    ({"fusion": "weighted", "branch_weights": [1.0, 2.0]}, "needs 6 non-negative numbers"),
    ({"fusion": "weighted", "branch_weights": [1.0, 1.0, 1.0, 1.0, 1.0, -1.0]}, "needs 6 non-negative numbers"),
    ({"fusion": "weighted", "branch_weights": [0.0] * 6}, "all zero"),
    ({"vision_config": {"num_branches": 0}}, "`num_branches` is 0"),
    ({"vision_config": {"branch_type": "token"}}, "`branch_type` is 'token'; expected one of 'cls', 'mlp'"),
    ({"vision_config": {"branch_isolation": "closed"}}, "`branch_isolation` is 'closed'; expected one of 'isolated'"),
    ({"vision_config": {"branch_type": "mlp", "num_branch_layers": 13}}, "`num_branch_layers` is 13; expected 1 to"),
    ({"vision_config": {"branch_type": "mlp", "num_branch_layers": 0}}, "`num_branch_layers` is 0; expected 1 to"),
    ({"vision_config": {"patch_dropout": 1.0}}, "`patch_dropout` is 1.0"),
    ({"vision_config": {"patch_dropout": -0.5}}, "`patch_dropout` is -0.5"),
    ({"vision_config": {"patch_stem": "conv"}}, "`patch_stem` is 'conv'; expected one of 'linear', 'convolutional'"),
    ({"vision_config": {"patch_stem": "convolutional", "patch_size": 14}}, "power of two; it is 14"),
]


@pytest.mark.parametrize(("fields", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_contradiction_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HolisticCLIPConfig(**fields)


def test_branch_layers_do_not_matter_to_class_tokens() -> None:
    assert HolisticCLIPVisionConfig(num_hidden_layers=2, num_branch_layers=3).num_branch_layers == 3


def test_survives_the_disk(make_config: Callable[..., HolisticCLIPConfig], tmp_path: Path) -> None:
    config = make_config(
        vision={"branch_type": "mlp", "branch_isolation": "strict", "patch_dropout": 0.25, "num_branches": 2},
        perspectives=["short", "style"],
        matching="free",
        fusion="weighted",
        branch_weights=[1.0, 3.0],
        diversity_weight=0.5,
        diversity_threshold=0.2,
        duplicate_captions="ignore",
    )
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path, trust_remote_code=False)
    assert type(loaded) is HolisticCLIPConfig
    assert type(loaded.vision_config) is HolisticCLIPVisionConfig
    expected = config.to_dict()
    expected.pop("_name_or_path")  # where it was loaded from
    assert {name: loaded.to_dict()[name] for name in expected} == expected


def test_vision_config_loads_from_the_joint_file(
    make_config: Callable[..., HolisticCLIPConfig], tmp_path: Path
) -> None:
    make_config(vision={"num_branches": 5}).save_pretrained(tmp_path)
    assert HolisticCLIPVisionConfig.from_pretrained(tmp_path).num_branches == 5


def test_branch_of_slot_goes_by_name() -> None:
    config = HolisticCLIPConfig(perspectives=["short", "style"])
    assert config.branch_of_slot(["style", "web", "short", "style"]) == [1, -1, 0, 1]


def own_fields(cls: type, base: type) -> set[str]:
    return {field.name for field in dataclasses.fields(cls)} - {field.name for field in dataclasses.fields(base)}


def test_every_field_is_read() -> None:
    """A field that no code reads is a promise that nothing keeps; the configuration file itself does not count."""
    package = Path(holistic_clip_hf.__file__).parent
    source = "\n".join(
        path.read_text() for path in package.rglob("*.py") if path.name != "configuration_holistic_clip.py"
    )
    fields = own_fields(HolisticCLIPConfig, PreTrainedConfig) | own_fields(HolisticCLIPVisionConfig, CLIPVisionConfig)
    assert {"num_branches", "patch_stem", "fusion", "duplicate_captions"} <= fields
    assert "**self.config.loss_options" in source and "**config.loss_options" in source
    read_at_once = set(HolisticCLIPConfig().loss_options)
    assert read_at_once <= {field.name for field in dataclasses.fields(LossOptions)}
    assert [name for name in sorted(fields - read_at_once) if not re.search(rf"\bconfig\.{name}\b", source)] == []


def test_a_stock_clip_configuration_has_one_branch() -> None:
    """Also where it saved only what differs from CLIP's own defaults, which are not ours."""
    config = HolisticCLIPConfig(vision_config={"model_type": "clip_vision_model"})
    vision = config.vision_config
    assert (vision.num_branches, vision.patch_size, vision.hidden_act) == (1, 32, "quick_gelu")
    assert config.perspectives == ["branch_0"]
    branched = HolisticCLIPConfig(vision_config={"model_type": "clip_vision_model"}, perspectives=["short", "style"])
    assert branched.vision_config.num_branches == 2 and branched.vision_config.patch_size == 32


def test_whole_numbers_do_as_numbers() -> None:
    config = HolisticCLIPConfig(perspectives=["a", "b"], diversity_weight=0, fusion="weighted", branch_weights=[1, 2])
    assert (config.diversity_weight, list(config.branch_weights)) == (0, [1, 2])
    with pytest.raises(ValueError, match="non-negative numbers"):
        HolisticCLIPConfig(perspectives=["a", "b"], fusion="weighted", branch_weights=[float("nan"), 1.0])
