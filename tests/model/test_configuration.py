"""The configuration: names decide H, contradictions are refused, nothing is lost on disk, every field is read."""

import copy
import dataclasses
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor
from transformers import AutoConfig, AutoModel, CLIPConfig, CLIPTextConfig, CLIPVisionConfig, PreTrainedConfig

import holistic_clip_hf
from holistic_clip_hf import (
    HolisticCLIPConfig,
    HolisticCLIPForImageClassification,
    HolisticCLIPModel,
    HolisticCLIPVisionConfig,
    LossOptions,
)

PAPER = ["web", "detail", "nouns", "background", "main_object", "style"]


def test_default_is_the_papers_six_perspectives() -> None:
    config = HolisticCLIPConfig()
    assert config.perspectives == PAPER
    assert config.vision_config.num_branches == 6
    assert (config.matching, config.fusion, config.diversity_weight, config.diversity_threshold) == (
        "aligned",
        "centroid",
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
    ({"fusion": "sum"}, "`fusion` is 'sum'; expected one of 'centroid', 'mean'"),
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
    ({"vision_config": {"num_branches": 0}}, r"vision_config.num_branches` is 0; expected a whole number"),
    ({"vision_config": {"branch_type": "token"}}, "`branch_type` is 'token'; expected one of 'cls', 'mlp'"),
    ({"vision_config": {"branch_isolation": "closed"}}, "`branch_isolation` is 'closed'; expected one of 'isolated'"),
    ({"vision_config": {"branch_type": "mlp", "num_branch_layers": 13}}, "`num_branch_layers` is 13; expected 1 to"),
    ({"vision_config": {"branch_type": "mlp", "num_branch_layers": 0}}, "`num_branch_layers` is 0; expected 1 to"),
    ({"vision_config": {"patch_dropout": 1.0}}, "patch_dropout` is 1.0; expected at least 0 and below 1"),
    ({"vision_config": {"patch_dropout": -0.5}}, "patch_dropout` is -0.5"),
    ({"vision_config": {"patch_stem": "conv"}}, "`patch_stem` is 'conv'; expected one of 'linear', 'convolutional'"),
    ({"vision_config": {"patch_stem": "convolutional", "patch_size": 14}}, "power of two; it is 14"),
    (
        {
            "vision_config": {
                "patch_stem": "convolutional",
                "patch_size": 16,
                "hidden_size": 4,
                "num_attention_heads": 2,
            }
        },
        "`hidden_size` is 4; expected at least 8 with",
    ),
    *(
        ({name: value}, f"`{name}` is {value}; expected")
        for name in ("fused_weight", "diversity_weight", "diversity_threshold", "logit_bias_init_value")
        for value in (math.nan, math.inf)
    ),
    ({"logit_scale_init_value": math.nan}, "`logit_scale_init_value` is nan; expected a logarithm"),
    ({"logit_scale_init_value": 1e4}, "`logit_scale_init_value` is 10000.0; expected a logarithm"),
    ({"initializer_factor": math.inf}, "`initializer_factor` is inf"),
    ({"fusion": "softmax", "fusion_scale": math.nan}, "0 or more; got fusion='softmax', fusion_scale=nan"),
    ({"projection_dim": 0}, "`projection_dim` is 0; expected a whole number, 1 or more"),
    ({"vision_config": {"image_size": 32, "patch_size": 33}}, "`patch_size` is 33; expected at most `image_size`"),
    (
        {"vision_config": {"image_size": [224, 224]}},
        "`vision_config.image_size` is .224, 224.; expected a whole number",
    ),
    ({"vision_config": {"patch_size": 0}}, "`vision_config.patch_size` is 0"),
    ({"vision_config": {"hidden_size": 0}}, "`vision_config.hidden_size` is 0"),
    ({"vision_config": {"layer_norm_eps": math.nan}}, "`vision_config.layer_norm_eps` is nan"),
    ({"vision_config": {"attention_dropout": math.nan}}, "`vision_config.attention_dropout` is nan"),
    ({"vision_config": {"num_attention_heads": 7}}, "`vision_config.num_attention_heads` is 7; expected a divisor of"),
    ({"vision_config": {"hidden_act": "gleu"}}, "`vision_config.hidden_act` is 'gleu'; expected the name"),
    ({"text_config": {"hidden_size": 0}}, "`text_config.hidden_size` is 0"),
    ({"text_config": {"num_attention_heads": 0}}, "`text_config.num_attention_heads` is 0"),
    ({"text_config": {"num_attention_heads": 7}}, "`text_config.num_attention_heads` is 7; expected a divisor of"),
    ({"text_config": {"layer_norm_eps": None}}, "`text_config.layer_norm_eps` is None"),
    ({"text_config": {"hidden_act": "gleu"}}, "`text_config.hidden_act` is 'gleu'; expected the name"),
    ({"text_config": {"vocab_size": 560}}, "`text_config.eos_token_id` is 49407; expected the id of the tokenizer's"),
    ({"text_config": {"eos_token_id": None}}, "`text_config.eos_token_id` is None"),
    ({"text_config": {"eos_token_id": [5, 7]}}, "`text_config.eos_token_id` is .5, 7."),
    ({"projection_dim": "512"}, "HolisticCLIPConfig: .*'projection_dim' expected int, got str"),
    ({"vision_config": {"num_branches": 2.5}}, "`vision_config.num_branches` is 2.5; expected a whole number"),
]


@pytest.mark.parametrize(("fields", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_contradiction_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HolisticCLIPConfig(**fields)


def test_a_tower_alone_is_refused_too() -> None:
    with pytest.raises(ValueError, match="`hidden_size` is 0; expected a whole number, 1 or more"):
        HolisticCLIPVisionConfig(hidden_size=0)
    with pytest.raises(ValueError, match="HolisticCLIPVisionConfig: .*'branch_type' expected str, got int"):
        HolisticCLIPVisionConfig(branch_type=3)


KEYWORDS: list[dict[str, Any]] = [
    {},
    {"text_config": {"hidden_size": 64}, "vision_config": {"hidden_size": 96}},
    {"vision_config": {"image_size": 384, "hidden_act": "gelu"}},
    {"text_config": {"hidden_act": "gelu_new", "eos_token_id": 7}, "projection_dim": 24},
    {"text_config": CLIPTextConfig(num_hidden_layers=3), "vision_config": CLIPVisionConfig(patch_size=14)},
    {"text_config_dict": {"hidden_size": 64}, "vision_config_dict": {"patch_size": 8}},
    {"text_config": {"hidden_size": 64, "num_hidden_layers": 3}, "text_config_dict": {"num_hidden_layers": 5}},
    {"vision_config": CLIPVisionConfig(patch_size=14), "vision_config_dict": {"num_hidden_layers": 5}},
    {"text_config": CLIPTextConfig(num_hidden_layers=3), "text_config_dict": {"hidden_act": "gelu"}},
]


@pytest.mark.parametrize("keywords", KEYWORDS, ids=range(len(KEYWORDS)))
def test_the_same_keywords_give_the_towers_of_clip(keywords: dict[str, Any]) -> None:
    before = copy.deepcopy(keywords)
    stock, ours = CLIPConfig(**copy.deepcopy(keywords)), HolisticCLIPConfig(**keywords)
    for tower, kind in (("text_config", CLIPTextConfig), ("vision_config", CLIPVisionConfig)):
        names = [name for name in kind.__annotations__ if name != "projection_dim"]
        expected, found = getattr(stock, tower), getattr(ours, tower)
        assert {name: getattr(found, name) for name in names} == {name: getattr(expected, name) for name in names}
        assert found.projection_dim == ours.projection_dim == stock.projection_dim
    assert str(keywords) == str(before), "what the caller gave is his own"


def test_old_names_keep_our_own_fields() -> None:
    config = HolisticCLIPConfig(vision_config={"num_branches": 3}, vision_config_dict={"patch_size": 8})
    assert (config.num_branches, config.vision_config.patch_size) == (3, 8)
    assert HolisticCLIPConfig(vision_config_dict={"patch_size": 8}, perspectives=["a", "b"]).num_branches == 2


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"fusion": "sofmax"}, "`fusion` is 'sofmax'; expected one of 'centroid', 'mean'"),
        ({"fusion": "weighted"}, "`branch_weights` go with `fusion='weighted'`"),
        ({"branch_weights": [1.0, 1.0, 1.0]}, "`branch_weights` go with `fusion='weighted'`"),
        ({"fused_weight": -1}, "`fused_weight` is -1; expected 0"),
        ({"fusion_scale": 2.0}, "`fusion_scale` goes with"),
        ({"matching": "greedy"}, "`matching` is 'greedy'"),
        ({"diversity_threshold": math.nan}, "`diversity_threshold` is nan"),
        ({"perspectives": ["a"]}, "1 `perspectives` .a. for 3 branches"),
        ({"vision_config": {"patch_dropout": 2.0}}, "`vision_config.patch_dropout` is 2.0"),
        ({"text_config": {"vocab_size": 9}}, "`text_config.eos_token_id` is"),
    ],
    ids=str,
)
def test_keywords_are_refused_at_loading(
    make_model: Callable[..., HolisticCLIPModel], tmp_path: Path, keywords: dict[str, Any], message: str
) -> None:
    """And not at the first save, after training."""
    make_model().save_pretrained(tmp_path)
    for kind in (HolisticCLIPModel, AutoModel, AutoConfig):
        with pytest.raises(ValueError, match=message):
            kind.from_pretrained(tmp_path, **keywords)


def test_a_configuration_that_was_changed_is_refused_by_the_model(
    make_config: Callable[..., HolisticCLIPConfig],
) -> None:
    config = make_config()
    config.fusion = "sofmax"
    for kind in (HolisticCLIPModel, HolisticCLIPForImageClassification):
        with pytest.raises(ValueError, match="`fusion` is 'sofmax'"):
            kind(config)


@pytest.mark.parametrize(
    "towers", [{}, {"text_config": {"projection_dim": 9}, "vision_config": {"projection_dim": 9}}]
)
def test_towers_follow_the_width_of_the_common_space(towers: dict[str, Any], tmp_path: Path) -> None:
    config = HolisticCLIPConfig(projection_dim=24, **towers)
    config.save_pretrained(tmp_path)
    for found in (config, HolisticCLIPConfig.from_pretrained(tmp_path)):
        assert found.text_config.projection_dim == found.vision_config.projection_dim == found.projection_dim == 24


@pytest.mark.parametrize(
    ("name", "value"),
    [("fusion", "sofmax"), ("fusion", "weighted"), ("branch_weights", [1.0, 2.0, 3.0]), ("fusion_scale", 2.0)],
)
def test_a_fusion_that_is_set_later_is_refused_where_it_is_used(
    make_model: Callable[..., HolisticCLIPModel],
    pixel_values: Tensor,
    make_tokens: Callable[..., tuple[Tensor, Tensor]],
    name: str,
    value: Any,
) -> None:
    model, (input_ids, attention_mask) = make_model(), make_tokens([4, 5])
    setattr(model.config, name, value)
    with pytest.raises(ValueError, match=f"`{name}"):
        model.get_image_features(pixel_values)
    with pytest.raises(ValueError, match=f"`{name}"):
        model(input_ids=input_ids, attention_mask=attention_mask, pixel_values=pixel_values)


@pytest.mark.parametrize("name", ["matching", "objective", "duplicate_captions", "diversity"])
def test_an_objective_that_is_set_later_is_refused_where_it_is_used(
    make_model: Callable[..., HolisticCLIPModel], name: str
) -> None:
    config = make_model().config
    setattr(config, name, "other")
    with pytest.raises(ValueError, match=f"`{name}` is 'other'; expected one of"):
        LossOptions(**config.loss_options)


def test_a_keyword_that_weights_do_not_fit_is_refused_in_a_sentence(
    make_model: Callable[..., HolisticCLIPModel], tmp_path: Path
) -> None:
    make_model().save_pretrained(tmp_path)
    message = r"has the weight text_projection.weight of the shape .*; the configuration asks for \(6, .*Leave out the"
    with pytest.raises(ValueError, match=message):
        HolisticCLIPModel.from_pretrained(tmp_path, projection_dim=6)
    drawn = HolisticCLIPModel.from_pretrained(tmp_path, projection_dim=6, ignore_mismatched_sizes=True)
    assert drawn.text_projection.weight.shape[0] == 6


def test_fitting_keywords_are_taken(make_model: Callable[..., HolisticCLIPModel], tmp_path: Path) -> None:
    make_model().save_pretrained(tmp_path)
    loaded = HolisticCLIPModel.from_pretrained(tmp_path, fusion="weighted", branch_weights=[1.0, 2.0, 3.0])
    loaded.save_pretrained(tmp_path / "again")
    assert AutoConfig.from_pretrained(tmp_path / "again").branch_weights == [1.0, 2.0, 3.0]


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
    assert "**self.config.loss_options" in source and "**self.model.config.loss_options" in source
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


@pytest.mark.parametrize("content", ["[]", '"text"', "5", "null"])
def test_a_file_that_is_not_an_object_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match="is not a JSON object; expected one"):
        HolisticCLIPConfig.from_pretrained(tmp_path)
