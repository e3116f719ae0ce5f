"""transformers' shared suite for models, run on ours: three branches, of each type."""

from unittest import TestCase

from model_cases import (
    ClassifierCase,
    ClassifierTester,
    CompositeCase,
    CompositeTester,
    VisionCase,
    VisionTester,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES

from holistic_clip_hf import (
    HolisticCLIPConfig,
    HolisticCLIPForImageClassification,
    HolisticCLIPModel,
    HolisticCLIPVisionConfig,
    HolisticCLIPVisionModel,
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


class ClassTokenVisionModelTest(VisionCase, TestCase):
    all_model_classes = (HolisticCLIPVisionModel,)
    tester = CLASS_TOKENS


class StreamVisionModelTest(VisionCase, TestCase):
    all_model_classes = (HolisticCLIPVisionModel,)
    tester = STREAMS


class ProbeVisionModelTest(VisionCase, TestCase):
    all_model_classes = (HolisticCLIPVisionModel,)
    tester = PROBES


class ClassTokenModelTest(CompositeCase, TestCase):
    all_model_classes = (HolisticCLIPModel,)
    tester = CompositeTester(HolisticCLIPConfig, CLASS_TOKENS)


class StreamModelTest(CompositeCase, TestCase):
    all_model_classes = (HolisticCLIPModel,)
    tester = CompositeTester(HolisticCLIPConfig, STREAMS)


class ProbeModelTest(CompositeCase, TestCase):
    all_model_classes = (HolisticCLIPModel,)
    tester = CompositeTester(HolisticCLIPConfig, PROBES)


class ClassTokenClassifierTest(ClassifierCase, TestCase):
    all_model_classes = (HolisticCLIPForImageClassification,)
    tester = ClassifierTester(HolisticCLIPConfig, CLASS_TOKENS)


class StreamClassifierTest(ClassifierCase, TestCase):
    all_model_classes = (HolisticCLIPForImageClassification,)
    tester = ClassifierTester(HolisticCLIPConfig, STREAMS)
