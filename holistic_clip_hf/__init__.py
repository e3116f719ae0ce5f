"""CLIPs that read several captions per image and answer with several embeddings per image.

The public names of every room are here. Each is imported when it is first used, so that importing the package costs
nothing. It makes transformers' Auto classes know the model, too.
"""

from importlib import import_module
from typing import Any

from .registration import register_when_needed

__version__ = "0.1.0"

_HOMES = {
    "configuration_holistic_clip": (
        *("HolisticBackboneVisionConfig", "HolisticCLIPConfig"),
        *("HolisticCLIPVisionConfig", "HolisticSiglipConfig"),
    ),
    "backbone_holistic_clip": ("HolisticBackboneVisionModel",),
    "vision_holistic_clip": ("HolisticCLIPVisionModel",),
    "modeling_holistic_clip": (
        *("HolisticCLIPForImageClassification", "HolisticCLIPModel"),
        *("HolisticCLIPOutput", "HolisticSiglipModel"),
    ),
    "towers_holistic_clip": (
        *("HolisticCLIPPatchConfig", "HolisticCLIPPatchModel"),
        *("HolisticCLIPTextModelWithProjection", "HolisticCLIPVisionBackbone"),
        "HolisticCLIPVisionModelWithProjection",
    ),
    "loss_holistic_clip": ("LossOptions", "MultiToMultiLoss", "multi_to_multi_loss"),
    "processing_holistic_clip": ("HolisticCLIPProcessor",),
    "initialization": ("from_backbone", "from_clip", "from_official", "from_open_clip", "from_siglip", "from_tips"),
    "images.decoding": ("read_image",),
    "captioning.captioner": ("caption_images",),
    "corpus.build": ("build_corpus", "load_corpus"),
    "corpus.from_sources": ("build_from_sources",),
    "trainer": ("HolisticCLIPTrainer", "HolisticCLIPTrainingArguments"),
    "trainer.augmentation": ("Augmentation",),
    "trainer.collator": ("HolisticCLIPCollator",),
    "evaluation.retrieval": ("evaluate_retrieval",),
    "evaluation.records": ("Record", "capture_provenance", "load_records", "save_records"),
    "publishing.hub": ("publish", "publish_corpus", "pull_corpus"),
    "exporting": ("export_stock", "to_clip", "to_siglip"),
    "search": ("SearchIndex", "index_images"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [*_HOME_OF]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f".{_HOME_OF[name]}", __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


register_when_needed()
