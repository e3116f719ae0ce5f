"""transformers' shared suite for models, run on ours: three branches, of each type, under CLIP and under SigLIP."""

import tempfile
from collections.abc import Callable
from unittest import TestCase

from model_cases import (
    LENGTH,
    BackboneTester,
    ClassifierCase,
    ClassifierTester,
    CompositeCase,
    CompositeTester,
    TextTester,
    VisionCase,
    VisionTester,
)
from transformers import DINOv3ViTConfig, SiglipTextConfig, SiglipVisionConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES

from holistic_clip_hf import (
    HolisticBackboneVisionConfig,
    HolisticBackboneVisionModel,
    HolisticCLIPConfig,
    HolisticCLIPForImageClassification,
    HolisticCLIPModel,
    HolisticCLIPVisionConfig,
    HolisticCLIPVisionModel,
    HolisticSiglipConfig,
    HolisticSiglipModel,
)

# The suite knows by this table which models are given labels to train on.
MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES["holistic_clip"] = "HolisticCLIPForImageClassification"

CLASS_TOKENS = VisionTester(HolisticCLIPVisionConfig, {"num_branches": 3, "branch_type": "cls"}, num_class_tokens=3)
# Both layers are branched: the first fans out, the second has H streams from the start.
STREAMS = VisionTester(
    HolisticCLIPVisionConfig, {"num_branches": 3, "branch_type": "mlp", "num_branch_layers": 2}, num_class_tokens=1
)
# Probes read the patches behind one class token.
PROBES = VisionTester(HolisticCLIPVisionConfig, {"num_branches": 3, "branch_type": "probe"}, num_class_tokens=1)
# Towers of other families, whose states the probes read.
SIGLIP = BackboneTester(HolisticBackboneVisionConfig, {"num_branches": 3}, SiglipVisionConfig)
# One class token and no registers, the default; they stand in the hidden states, before the patches.
DINOV3 = BackboneTester(HolisticBackboneVisionConfig, {"num_branches": 3}, DINOv3ViTConfig, num_class_tokens=1)


class OurVisionCase(VisionCase):
    """The cases of a vision tower, with our refusals."""


class OurCompositeCase(CompositeCase):
    """The cases of both towers, with our refusals."""


class OurClipCase(OurCompositeCase):
    """The same of CLIP's texts, which are read at an end token that each must have."""


class OurClassifierCase(ClassifierCase):
    """The cases of a classifier, with our refusals."""

    def test_can_load_ignoring_mismatched_shapes(self) -> None:
        """The suite's, with our ValueError, which its sub-tests would keep to themselves."""
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        (model_class,) = self.all_model_classes
        with tempfile.TemporaryDirectory() as folder:
            model_class(config).save_pretrained(folder)
            with self.assertRaisesRegex(ValueError, "has the weight classifier.* of the shape"):
                model_class.from_pretrained(folder, num_labels=42)
            model = model_class.from_pretrained(folder, num_labels=42, ignore_mismatched_sizes=True)
        self.assertEqual(model(**inputs).logits.shape[-1], 42)


def refused(test: Callable[[TestCase], None], message: str) -> Callable[[TestCase], None]:
    """A test of the suite that has to end in our refusal."""

    def assert_refused(self: TestCase) -> None:
        with self.assertRaisesRegex(ValueError, message):
            test(self)

    return assert_refused


# What ours refuse and transformers' own take: a checkpoint that lacks weights, texts padded in front.
for case in (OurVisionCase, OurCompositeCase, OurClipCase, OurClassifierCase):
    name = "test_model_weights_reload_no_missing_tied_weights"
    setattr(case, name, refused(getattr(case, name), "lacks the weights .* and [0-9]+ more"))
for name in [name for name in dir(OurCompositeCase) if "sdpa_inference" in name and "pad_left" in name]:
    if "no_attn_mask" not in name:
        for case in (OurCompositeCase, OurClipCase):
            setattr(case, name, refused(getattr(case, name), "texts that are padded in front"))

# And an end token that the vocabulary lacks, which the defaults of CLIP's configuration name, or that a text lacks.
for case in (OurClipCase, OurClassifierCase):
    name = "test_model_forward_default_config_values"
    setattr(case, name, refused(getattr(case, name), "`text_config.eos_token_id` is 49407; expected .* below"))
name = "test_resize_tokens_embeddings"
setattr(OurClipCase, name, refused(getattr(OurClipCase, name), "texts without the end token"))


class ClassTokenVisionModelTest(OurVisionCase, TestCase):
    all_model_classes = (HolisticCLIPVisionModel,)
    tester = CLASS_TOKENS


class StreamVisionModelTest(OurVisionCase, TestCase):
    all_model_classes = (HolisticCLIPVisionModel,)
    tester = STREAMS


class ProbeVisionModelTest(OurVisionCase, TestCase):
    all_model_classes = (HolisticCLIPVisionModel,)
    tester = PROBES


class SiglipTowerTest(OurVisionCase, TestCase):
    all_model_classes = (HolisticBackboneVisionModel,)
    tester = SIGLIP


class Dinov3TowerTest(OurVisionCase, TestCase):
    all_model_classes = (HolisticBackboneVisionModel,)
    tester = DINOV3


class ClassTokenModelTest(OurClipCase, TestCase):
    all_model_classes = (HolisticCLIPModel,)
    tester = CompositeTester(HolisticCLIPConfig, CLASS_TOKENS)


class StreamModelTest(OurClipCase, TestCase):
    all_model_classes = (HolisticCLIPModel,)
    tester = CompositeTester(HolisticCLIPConfig, STREAMS)


class ProbeModelTest(OurClipCase, TestCase):
    all_model_classes = (HolisticCLIPModel,)
    tester = CompositeTester(HolisticCLIPConfig, PROBES)


class SiglipModelTest(OurCompositeCase, TestCase):
    all_model_classes = (HolisticSiglipModel,)
    tester = CompositeTester(HolisticSiglipConfig, SIGLIP, TextTester(SiglipTextConfig, LENGTH), projection_dim=32)


class ClassTokenClassifierTest(OurClassifierCase, TestCase):
    all_model_classes = (HolisticCLIPForImageClassification,)
    tester = ClassifierTester(HolisticCLIPConfig, CLASS_TOKENS)


class StreamClassifierTest(OurClassifierCase, TestCase):
    all_model_classes = (HolisticCLIPForImageClassification,)
    tester = ClassifierTester(HolisticCLIPConfig, STREAMS)
