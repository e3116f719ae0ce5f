"""The control: transformers' own SigLIP under the same cases, and what only it needs to override."""

from unittest import TestCase

from model_cases import CompositeCase, CompositeTester, TextTester, VisionCase, VisionTester
from transformers import SiglipConfig, SiglipModel, SiglipTextConfig, SiglipVisionConfig, SiglipVisionModel

TOWER = VisionTester(SiglipVisionConfig, {}, num_class_tokens=0)


class ControlSiglipVisionModelTest(VisionCase, TestCase):
    all_model_classes = (SiglipVisionModel,)
    tester = TOWER


class ControlSiglipModelTest(CompositeCase, TestCase):
    all_model_classes = (SiglipModel,)
    tester = CompositeTester(SiglipConfig, TOWER, TextTester(SiglipTextConfig), projection_dim=None)
