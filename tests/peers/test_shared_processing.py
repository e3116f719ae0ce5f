"""transformers' shared suite for processors, on ours and on CLIP's, with the same parts."""

from typing import ClassVar
from unittest import TestCase
from unittest.mock import patch

from transformers import CLIPImageProcessor, CLIPProcessor, CLIPTokenizer
from transformers_tests.test_processing_common import ProcessorTesterMixin

from holistic_clip_hf import HolisticCLIPProcessor
from holistic_clip_hf.trainer.tiny import train_tokenizer


class ProcessorCase(ProcessorTesterMixin):
    """Parts made here, where the suite would fetch some from the Hub."""

    processor_class: ClassVar[type]

    @classmethod
    def _setup_image_processor(cls) -> CLIPImageProcessor:
        return CLIPImageProcessor(size={"shortest_edge": 20}, crop_size={"height": 18, "width": 18})

    @classmethod
    def _setup_tokenizer(cls) -> CLIPTokenizer:
        return train_tokenizer(["lower newer", "a red square on white"], vocab_size=540, max_length=77)


class HolisticProcessorTest(ProcessorCase, TestCase):
    processor_class = HolisticCLIPProcessor

    @classmethod
    def setUpClass(cls) -> None:
        # As transformers' own: without code in the folder. With it, saving sets `auto_map` on the object that is
        # saved and loading leaves it out, so that the two differ.
        cls.enterClassContext(patch.object(HolisticCLIPProcessor, "_auto_class", None))
        super().setUpClass()


class ControlProcessorTest(ProcessorCase, TestCase):
    processor_class = CLIPProcessor
