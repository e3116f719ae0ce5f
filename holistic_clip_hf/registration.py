# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Registration of the classes with transformers' Auto classes, at the moment when somebody needs either of them.

`import holistic_clip_hf` has to make `AutoModel.from_pretrained` work, and must not cost the seconds that torch takes
to import, since the command's help would wait for it too. transformers has no entry points for other people's models.
So its imports are watched. When one has brought the Auto classes, and torch with them, ours are registered there.
"""

import sys
import threading
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

PACKAGE = __name__.rpartition(".")[0]
AUTO = "transformers.models.auto"


def _register_configurations() -> None:
    from transformers import AutoConfig

    from .configuration_holistic_clip import (
        HolisticBackboneVisionConfig,
        HolisticCLIPConfig,
        HolisticCLIPVisionConfig,
        HolisticSiglipConfig,
    )

    for config in (
        HolisticCLIPConfig,
        HolisticCLIPVisionConfig,
        HolisticBackboneVisionConfig,
        HolisticSiglipConfig,
    ):
        AutoConfig.register(config.model_type, config, exist_ok=True)


def _register_models() -> None:
    from transformers import AutoModel, AutoModelForImageClassification, AutoModelForZeroShotImageClassification

    from .backbone_holistic_clip import HolisticBackboneVisionModel
    from .configuration_holistic_clip import (
        HolisticBackboneVisionConfig,
        HolisticCLIPConfig,
        HolisticCLIPVisionConfig,
        HolisticSiglipConfig,
    )
    from .modeling_holistic_clip import HolisticCLIPForImageClassification, HolisticCLIPModel, HolisticSiglipModel
    from .towers_holistic_clip import register_towers
    from .vision_holistic_clip import HolisticCLIPVisionModel

    joint: list[tuple[Any, Any]] = [
        (HolisticCLIPConfig, HolisticCLIPModel),
        (HolisticSiglipConfig, HolisticSiglipModel),
    ]
    AutoModel.register(HolisticCLIPVisionConfig, HolisticCLIPVisionModel, exist_ok=True)
    AutoModel.register(HolisticBackboneVisionConfig, HolisticBackboneVisionModel, exist_ok=True)
    AutoModelForImageClassification.register(HolisticCLIPConfig, HolisticCLIPForImageClassification, exist_ok=True)
    for config, model in joint:
        AutoModel.register(config, model, exist_ok=True)
        AutoModelForZeroShotImageClassification.register(config, model, exist_ok=True)
    register_towers()


def _register_processor() -> None:
    from transformers import AutoProcessor

    from .configuration_holistic_clip import HolisticCLIPConfig, HolisticSiglipConfig
    from .processing_holistic_clip import HolisticCLIPProcessor

    for config in (HolisticCLIPConfig, HolisticSiglipConfig):
        AutoProcessor.register(config, HolisticCLIPProcessor, exist_ok=True)


def _carry(home: str, classes: dict[str, str]) -> Callable[[], None]:
    """Return what makes saved checkpoints carry the classes' code along, for people who lack the package."""

    def register() -> None:
        for name, auto_class in classes.items():
            getattr(sys.modules[home], name).register_for_auto_class(auto_class)

    return register


# The module after whose import each is done.
_AFTER: dict[str, Callable[[], None]] = {
    f"{AUTO}.configuration_auto": _register_configurations,
    f"{AUTO}.modeling_auto": _register_models,
    f"{AUTO}.processing_auto": _register_processor,
    **{
        f"{PACKAGE}.{home}": _carry(f"{PACKAGE}.{home}", classes)
        for home, classes in {
            "configuration_holistic_clip": {
                "HolisticCLIPConfig": "AutoConfig",
                "HolisticCLIPVisionConfig": "AutoConfig",
                "HolisticBackboneVisionConfig": "AutoConfig",
                "HolisticSiglipConfig": "AutoConfig",
            },
            "vision_holistic_clip": {"HolisticCLIPVisionModel": "AutoModel"},
            "backbone_holistic_clip": {"HolisticBackboneVisionModel": "AutoModel"},
            "modeling_holistic_clip": {
                "HolisticCLIPModel": "AutoModel",
                "HolisticSiglipModel": "AutoModel",
                "HolisticCLIPForImageClassification": "AutoModelForImageClassification",
            },
            "processing_holistic_clip": {"HolisticCLIPProcessor": "AutoProcessor"},
            "towers_holistic_clip": {
                "HolisticCLIPPatchConfig": "AutoConfig",
                "HolisticCLIPPatchModel": "AutoModel",
                "HolisticCLIPTextModelWithProjection": "AutoModel",
                "HolisticCLIPTextProjectionConfig": "AutoConfig",
                "HolisticCLIPVisionBackbone": "AutoBackbone",
                "HolisticCLIPVisionModelWithProjection": "AutoModel",
                "HolisticCLIPVisionProjectionConfig": "AutoConfig",
            },
        }.items()
    },
}


class _Watcher(MetaPathFinder):
    """A finder that finds nothing itself, and is told when an import of transformers or of ours has ended.

    Nothing is registered while one of these is under way: transformers imports its modules in circles, and ours import
    transformers'.
    """

    def __init__(self) -> None:
        self._waiting = dict(_AFTER)
        self._imports = threading.local()
        self._is_busy = False

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec that the other finders give, with a loader that tells."""
        # Registering imports the files that travel, so none of them may be half imported then.
        travels = name.startswith(f"{PACKAGE}.") and name.endswith("_holistic_clip")
        if not name.startswith("transformers.") and not travels:
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(name, path, target)
            if spec is not None and spec.loader is not None:
                spec.loader = _TellingLoader(spec.loader, self)
                return spec
        return None

    def begin(self) -> None:
        """Count an import that begins in this thread."""
        self._imports.depth = getattr(self._imports, "depth", 0) + 1

    def end(self) -> None:
        """Count an import that has ended, and catch up after the outermost."""
        self._imports.depth -= 1
        if self._imports.depth == 0:
            self.catch_up()

    def catch_up(self) -> None:
        """Register with what has been imported by now."""
        if self._is_busy:
            return
        self._is_busy = True
        try:
            for name in _AFTER:
                if name in self._waiting and name in sys.modules:
                    self._waiting.pop(name)()
        finally:
            self._is_busy = False
        if not self._waiting and self in sys.meta_path:
            sys.meta_path.remove(self)


class _TellingLoader(Loader):
    """The loader of a module, which tells the watcher when it begins and ends."""

    def __init__(self, loader: Loader, watcher: _Watcher) -> None:
        self._loader = loader
        self._watcher = watcher

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Create the module as its own loader does."""
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Execute the module as its own loader does, and put that one in place."""
        # Whoever asks a module for its source or its data asks the loader that has them.
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        module.__loader__ = self._loader
        self._watcher.begin()
        try:
            self._loader.exec_module(module)
        finally:
            self._watcher.end()


def register_when_needed() -> None:
    """Register the classes now if transformers' Auto classes are imported already, else as soon as they are."""
    watcher = _Watcher()
    sys.meta_path.insert(0, watcher)
    watcher.catch_up()
