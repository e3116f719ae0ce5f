"""The shared suite for models, set up for a vision tower, a model of two towers and an image classifier.

The same cases run for our classes and for transformers' own CLIP and SigLIP (the controls), so ours cannot override a
test that theirs do not. Sizes are those of transformers' own tests of CLIP, except that images are smaller.
"""

import unittest
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import CLIPTextConfig, PreTrainedConfig, PreTrainedModel, SiglipTextConfig
from transformers_tests.test_modeling_common import ModelTesterMixin, floats_tensor, global_rng, ids_tensor

TOWER = {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 4}
DROPOUT = {"dropout": 0.1, "attention_dropout": 0.1, "initializer_range": 0.02}
IMAGES = {"image_size": 16, "patch_size": 4, "num_channels": 3}
NUM_PATCHES = (IMAGES["image_size"] // IMAGES["patch_size"]) ** 2
BATCH_SIZE, LENGTH, VOCABULARY = 12, 7, 99


class VisionTester:
    """What the suite asks about a tower; `num_class_tokens` come before the patches."""

    is_training = True
    batch_size = BATCH_SIZE
    hidden_size, num_hidden_layers = TOWER["hidden_size"], TOWER["num_hidden_layers"]
    num_attention_heads = TOWER["num_attention_heads"]

    def __init__(self, config_class: type[PreTrainedConfig], fields: dict[str, Any], num_class_tokens: int) -> None:
        self.config_class, self.fields = config_class, fields
        self.seq_length = NUM_PATCHES + num_class_tokens

    def get_config(self) -> PreTrainedConfig:
        return self.config_class(**TOWER, **DROPOUT, **IMAGES, projection_dim=32, **self.fields)

    def prepare_config_and_inputs_for_common(self) -> tuple[PreTrainedConfig, dict[str, Any]]:
        size = [BATCH_SIZE, IMAGES["num_channels"], IMAGES["image_size"], IMAGES["image_size"]]
        return self.get_config(), {"pixel_values": floats_tensor(size)}


class BackboneTester(VisionTester):
    """What the suite asks about a tower of another family, whose sizes stand in its own configuration."""

    def __init__(
        self,
        config_class: type[PreTrainedConfig],
        fields: dict[str, Any],
        backbone: type[PreTrainedConfig],
        num_class_tokens: int = 0,
    ) -> None:
        super().__init__(config_class, fields, num_class_tokens)
        self.backbone = backbone

    def get_config(self) -> PreTrainedConfig:
        backbone = self.backbone(**TOWER, **DROPOUT, **IMAGES)
        return self.config_class(backbone_config=backbone, **DROPOUT, **self.fields)


class TextTester:
    """What the suite asks about the text tower inside a composite."""

    seq_length, num_hidden_layers = LENGTH, TOWER["num_hidden_layers"]

    def __init__(self, config_class: type[PreTrainedConfig] = CLIPTextConfig, num_positions: int = 512) -> None:
        self.config_class, self.num_positions = config_class, num_positions

    def get_config(self) -> PreTrainedConfig:
        padding = 1 if self.config_class is SiglipTextConfig else VOCABULARY - 1
        ends = {"bos_token_id": VOCABULARY - 2, "eos_token_id": VOCABULARY - 1, "pad_token_id": padding}
        sizes = {"vocab_size": VOCABULARY, "max_position_embeddings": self.num_positions}
        return self.config_class(**TOWER, **DROPOUT, **ends, **sizes)

    def prepare_config_and_inputs_for_common(self) -> tuple[PreTrainedConfig, dict[str, Any]]:
        ids = ids_tensor([BATCH_SIZE, LENGTH], VOCABULARY - 2)
        ids[:, -1] = VOCABULARY - 1
        return self.get_config(), {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


class CompositeTester:
    """What the suite asks about both towers together."""

    is_training = True
    batch_size = BATCH_SIZE

    def __init__(
        self,
        config_class: type[PreTrainedConfig],
        vision: VisionTester,
        text: TextTester | None = None,
        projection_dim: int | None = 64,
    ) -> None:
        self.config_class, self.vision_model_tester = config_class, vision
        self.text_model_tester = text or TextTester()
        self.fields = {} if projection_dim is None else {"projection_dim": projection_dim}

    def get_config(self) -> PreTrainedConfig:
        text, vision = self.text_model_tester.get_config(), self.vision_model_tester.get_config()
        return self.config_class(text_config=text.to_dict(), vision_config=vision.to_dict(), **self.fields)

    def prepare_config_and_inputs_for_common(self) -> tuple[PreTrainedConfig, dict[str, Any]]:
        _, texts = self.text_model_tester.prepare_config_and_inputs_for_common()
        _, images = self.vision_model_tester.prepare_config_and_inputs_for_common()
        return self.get_config(), {**texts, **images, "return_loss": True}


class ClassifierTester(CompositeTester):
    """What the suite asks about a classifier, which has the composite's configuration and sees images alone."""

    def __init__(self, config_class: type[PreTrainedConfig], vision: VisionTester) -> None:
        super().__init__(config_class, vision)
        self.hidden_size, self.num_hidden_layers = vision.hidden_size, vision.num_hidden_layers
        self.seq_length, self.num_attention_heads = vision.seq_length, vision.num_attention_heads

    def prepare_config_and_inputs_for_common(self) -> tuple[PreTrainedConfig, dict[str, Any]]:
        return self.get_config(), self.vision_model_tester.prepare_config_and_inputs_for_common()[1]


NO_TRAINING = "This module does not support standalone training"


class VisionCase(ModelTesterMixin):
    """What `CLIPVisionModelTest` overrides there, of which we need: no training alone, an image's input embeddings."""

    all_model_classes: ClassVar[tuple[type[PreTrainedModel], ...]]
    tester: ClassVar[VisionTester]
    test_resize_embeddings = False

    def setUp(self) -> None:
        global_rng.seed(0)  # of the suite's inputs
        self.model_tester = self.tester

    def test_model_get_set_embeddings(self) -> None:
        config, _ = self.model_tester.prepare_config_and_inputs_for_common()
        for model_class in self.all_model_classes:
            model = model_class(config)
            self.assertIsInstance(model.get_input_embeddings(), nn.Module)
            self.assertIsNone(model.get_output_embeddings())

    @unittest.skip(NO_TRAINING)
    def test_training(self) -> None: ...

    @unittest.skip(NO_TRAINING)
    def test_training_gradient_checkpointing(self) -> None: ...

    @unittest.skip(NO_TRAINING)
    def test_training_gradient_checkpointing_use_reentrant_false(self) -> None: ...

    @unittest.skip(NO_TRAINING)
    def test_training_gradient_checkpointing_use_reentrant_true(self) -> None: ...


class CompositeCase(ModelTesterMixin):
    """What `CLIPModelTest` overrides there, of which we need: states and attentions are each tower's."""

    all_model_classes: ClassVar[tuple[type[PreTrainedModel], ...]]
    tester: ClassVar[CompositeTester]
    additional_model_inputs = ("pixel_values",)
    test_attention_outputs = False
    _is_composite = True

    def setUp(self) -> None:
        global_rng.seed(0)  # of the suite's inputs
        self.model_tester = self.tester

    @unittest.skip("Hidden_states is tested in individual model tests")
    def test_hidden_states_output(self) -> None: ...

    @unittest.skip("Retain_grad is tested in individual model tests")
    def test_retain_grad_hidden_states_attentions(self) -> None: ...


class ClassifierCase(ModelTesterMixin):
    """What `CLIPForImageClassificationModelTest` overrides there, of which we need: there are no tokens to embed."""

    all_model_classes: ClassVar[tuple[type[PreTrainedModel], ...]]
    tester: ClassVar[ClassifierTester]
    test_resize_embeddings = False

    def setUp(self) -> None:
        global_rng.seed(0)  # of the suite's inputs
        self.model_tester = self.tester

    @unittest.skip("An image classifier does not support inputs_embeds")
    def test_model_get_set_embeddings(self) -> None: ...
