"""CLIPs that read several captions per image and answer with several embeddings per image.

Importing the package registers its classes with transformers' Auto classes. The parts that need more than torch and
transformers are imported by path: `holistic_clip_hf.initialization`, `.trainer`, `.collator`, `.corpus`,
`.evaluation`, `.publishing`.
"""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForZeroShotImageClassification,
    AutoProcessor,
)

from .configuration_holistic_clip import HolisticCLIPConfig, HolisticCLIPVisionConfig
from .loss_holistic_clip import MultiToMultiLoss, multi_to_multi_loss
from .modeling_holistic_clip import (
    HolisticCLIPForImageClassification,
    HolisticCLIPModel,
    HolisticCLIPOutput,
)
from .processing_holistic_clip import HolisticCLIPProcessor
from .vision_holistic_clip import HolisticCLIPVisionModel

__version__ = "0.1.0"

AutoConfig.register(HolisticCLIPConfig.model_type, HolisticCLIPConfig)
AutoConfig.register(HolisticCLIPVisionConfig.model_type, HolisticCLIPVisionConfig)
AutoModel.register(HolisticCLIPConfig, HolisticCLIPModel)
AutoModel.register(HolisticCLIPVisionConfig, HolisticCLIPVisionModel)
AutoModelForImageClassification.register(HolisticCLIPConfig, HolisticCLIPForImageClassification)
AutoModelForZeroShotImageClassification.register(HolisticCLIPConfig, HolisticCLIPModel)
AutoProcessor.register(HolisticCLIPConfig, HolisticCLIPProcessor)

# A saved checkpoint carries this code along, for people who do not have the package.
HolisticCLIPConfig.register_for_auto_class()
HolisticCLIPVisionConfig.register_for_auto_class()
HolisticCLIPModel.register_for_auto_class("AutoModel")
HolisticCLIPVisionModel.register_for_auto_class("AutoModel")
HolisticCLIPForImageClassification.register_for_auto_class("AutoModelForImageClassification")
HolisticCLIPProcessor.register_for_auto_class("AutoProcessor")

__all__ = [
    "HolisticCLIPConfig",
    "HolisticCLIPForImageClassification",
    "HolisticCLIPModel",
    "HolisticCLIPOutput",
    "HolisticCLIPProcessor",
    "HolisticCLIPVisionConfig",
    "HolisticCLIPVisionModel",
    "MultiToMultiLoss",
    "multi_to_multi_loss",
]
