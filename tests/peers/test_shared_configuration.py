"""transformers' shared checks of configurations, on ours and on CLIP's."""

from unittest import TestCase

import pytest
from model_cases import CompositeTester, VisionTester
from transformers import CLIPConfig, CLIPVisionConfig, PreTrainedConfig
from transformers_tests.test_configuration_common import ConfigTester

from holistic_clip_hf import HolisticCLIPConfig, HolisticCLIPVisionConfig

COMMON = ["projection_dim", "logit_scale_init_value"]


class Parent(TestCase):
    """What `ConfigTester` makes its assertions on; it asks the tester for a configuration with other values."""

    def __init__(self, tester: VisionTester | CompositeTester) -> None:
        super().__init__()
        self.model_tester = tester


class OurConfigTester(ConfigTester):
    """The checks with our refusal of a vocabulary that ends before the end token."""

    def create_and_test_config_from_pretrained_custom_kwargs(self) -> None:
        with self.parent.assertRaisesRegex(ValueError, r"eos_token_id` is \d+; expected .* `vocab_size`, which is 20"):
            super().create_and_test_config_from_pretrained_custom_kwargs()


@pytest.mark.parametrize(
    ("config_class", "fields"),
    [
        (HolisticCLIPVisionConfig, {"num_branches": 3}),
        (HolisticCLIPVisionConfig, {"num_branches": 3, "branch_type": "mlp", "num_branch_layers": 2}),
        (CLIPVisionConfig, {}),
    ],
)
def test_configuration_of_a_vision_tower(config_class: type[PreTrainedConfig], fields: dict) -> None:
    parent = Parent(VisionTester(config_class, fields, num_class_tokens=1))
    ConfigTester(
        parent, config_class=config_class, has_text_modality=False, hidden_size=36, **fields
    ).run_common_tests()


@pytest.mark.parametrize(
    ("config_class", "vision_class", "fields"),
    [
        (HolisticCLIPConfig, HolisticCLIPVisionConfig, {"num_branches": 3}),
        (CLIPConfig, CLIPVisionConfig, {}),
    ],
)
def test_configuration_of_both_towers(
    config_class: type[PreTrainedConfig], vision_class: type[PreTrainedConfig], fields: dict
) -> None:
    parent = Parent(CompositeTester(config_class, VisionTester(vision_class, fields, num_class_tokens=1)))
    tester = ConfigTester if config_class is CLIPConfig else OurConfigTester
    tester(
        parent, config_class=config_class, has_text_modality=False, common_properties=list(COMMON)
    ).run_common_tests()
