"""The control: transformers' own CLIP under the same cases, and what only it needs to override."""

import unittest
from unittest import TestCase

from model_cases import (
    ClassifierCase,
    ClassifierTester,
    CompositeCase,
    CompositeTester,
    VisionCase,
    VisionTester,
)
from transformers import CLIPConfig, CLIPForImageClassification, CLIPModel, CLIPVisionConfig, CLIPVisionModel

TOWER = VisionTester(CLIPVisionConfig, {}, num_class_tokens=1)


class ControlVisionModelTest(VisionCase, TestCase):
    all_model_classes = (CLIPVisionModel,)
    tester = TOWER


class ControlModelTest(CompositeCase, TestCase):
    all_model_classes = (CLIPModel,)
    tester = CompositeTester(CLIPConfig, TOWER)
    test_resize_embeddings = False

    @unittest.skip("CLIPModel does not have input/output embeddings")
    def test_model_get_set_embeddings(self) -> None: ...


# transformers marks the whole set slow and flaky; in bfloat16 some fail with any seed, others with another.
for name in [name for name in dir(ControlModelTest) if name.startswith("test_eager_matches_sdpa") and "bf16" in name]:
    setattr(ControlModelTest, name, unittest.skip("flaky upstream")(getattr(ControlModelTest, name)))


class ControlClassifierTest(ClassifierCase, TestCase):
    """The tower's last norm gets no gradient: this classifier reads the patches, which do not pass it."""

    all_model_classes = (CLIPForImageClassification,)
    tester = ClassifierTester(CLIPConfig, TOWER)

    @unittest.expectedFailure
    def test_training_gradient_checkpointing(self) -> None:
        super().test_training_gradient_checkpointing()

    @unittest.expectedFailure
    def test_training_gradient_checkpointing_use_reentrant_false(self) -> None:
        super().test_training_gradient_checkpointing_use_reentrant_false()

    @unittest.expectedFailure
    def test_training_gradient_checkpointing_use_reentrant_true(self) -> None:
        super().test_training_gradient_checkpointing_use_reentrant_true()
